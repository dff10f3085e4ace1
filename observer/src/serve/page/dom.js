// Elements, and text in them. Labels come from workloads: they are set as text and never parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

/** Returns a new element; `text` is its text. */
export function element(name, attributes = {}, text) {
  return fill(document.createElement(name), attributes, text);
}

/** Returns a new element of a drawing. */
export function shape(name, attributes = {}, text) {
  return fill(document.createElementNS(SVG, name), attributes, text);
}

function fill(node, attributes, text) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Sets an attribute if it differs: what stays the same costs no layout. */
export function set(node, name, value) {
  const text = String(value);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

/** Sets the text if it differs. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Makes the children of `parent` those of `items`, in their order, and keeps the elements of known keys.
 * `make` returns a new element, `update` fills it.
 */
export function keyed(parent, items, key, make, update) {
  const known = (parent.byKey ??= new Map());
  const seen = new Set();
  let next = parent.firstElementChild;
  for (const item of items) {
    const id = key(item);
    seen.add(id);
    let node = known.get(id);
    if (!node) {
      node = make(item);
      known.set(id, node);
    }
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
    update(node, item);
  }
  for (const [id, node] of known) {
    if (seen.has(id)) continue;
    node.remove();
    known.delete(id);
  }
}

/** Shows a sentence instead of children, if there is one. */
export function empty(parent, sentence) {
  let note = parent.querySelector(":scope > .empty");
  if (sentence && !note) note = parent.appendChild(element("p", { class: "empty" }));
  if (sentence) write(note, sentence);
  else note?.remove();
}
