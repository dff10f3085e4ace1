// The map of who calls whom, as an SVG that can be moved and enlarged.

import { empty, keyed, set, shape, write } from "./dom.js";
import * as format from "./format.js";
import { NODE, layout } from "./layout.js";

/** Number of edges up to which every one has its figures beside it. */
const MAX_LABELS = 24;
/** Size of a letter of a label, roughly. */
const LABEL = { width: 6.2, height: 14 };
/** Number of edges from which on they are thin. */
const DENSE = 80;
const MARGIN = 28;
/** Height of the map in pixels. */
const MIN_HEIGHT = 320;
const MAX_HEIGHT = 560;
/** How much larger than life a small map is. */
const ENLARGED = 1.2;
/** How far edges of the same ends are apart in their middle, and how high those are that pass over a column. */
const LANE = 46;
const ARCH = 96;
/** Smallest size at fit, below which the map is moved instead. */
const MAX_SHRINK = 1.7;
/** How far rows move apart at most where there is room. */
const MAX_STRETCH = 1.8;
const ZOOM_STEP = 1.25;
const MOVE_STEP = 60;
/** How many times larger than at fit. */
const MAX_ZOOM = 8;

export class GraphMap {
  /** `onSelect` is called with `{ edge: key }`, `{ node: id }` or nothing. */
  constructor(parent, onSelect) {
    Object.assign(this, { parent, onSelect, places: new Map(), topology: "", selected: undefined, sag: 0, rise: 0 });
    this.svg = shape("svg", { role: "group", "aria-label": "Map of calls; the table below has the same edges", tabindex: "0" });
    this.svg.append(this.markers());
    this.edgeLayer = this.svg.appendChild(shape("g"));
    this.nodeLayer = this.svg.appendChild(shape("g"));
    this.labelLayer = this.svg.appendChild(shape("g", { class: "labels", "aria-hidden": "true" }));
    parent.append(this.svg);
    this.listen();
    let width;
    new ResizeObserver(() => {
      if (parent.clientWidth === width) return;
      width = parent.clientWidth;
      this.fit();
      if (this.edges) this.draw();
    }).observe(parent);
  }

  markers() {
    const defs = shape("defs");
    for (const health of ["ok", "warn", "bad", "idle"]) {
      const marker = shape("marker", {
        id: `arrow-${health}`, class: health, viewBox: "0 0 8 8", refX: "7", refY: "4", markerWidth: "9", markerHeight: "9",
        markerUnits: "userSpaceOnUse", orient: "auto",
      });
      marker.append(shape("path", { d: "M0 0L8 4L0 8z" }));
      defs.append(marker);
    }
    return defs;
  }

  /** Shows nodes and edges of the last document. */
  show(nodes, edges) {
    Object.assign(this, { nodes, edges });
    const topology = [...nodes.map(({ id }) => id), ...edges.map(({ key }) => key)].join("\n");
    if (topology !== this.topology) {
      this.topology = topology;
      const links = edges.map(({ from, to }) => [from, to]);
      this.places = layout(nodes.map(({ id }) => id), links, this.places);
      this.at = this.places;
      this.findLanes(edges);
      this.fit();
    }
    empty(this.parent, edges.length === 0 && "No call has been seen yet. Counting needs a sidecar and traffic through it.");
    this.svg.toggleAttribute("hidden", edges.length === 0);
    this.draw();
  }

  draw() {
    const { nodes, edges } = this;
    const counts = nodeFigures(edges);
    const most = Math.max(1, ...edges.map(weight));
    keyed(this.edgeLayer, edges, ({ key }) => key, (edge) => this.makeEdge(edge), (node, edge) => this.updateEdge(node, edge, most));
    keyed(this.nodeLayer, nodes, ({ id }) => id, (node) => this.makeNode(node), (group, node) => this.updateNode(group, node, counts.get(node.id)));
    const isLabelled = ({ key }) => edges.length <= MAX_LABELS || this.selected?.edge === key;
    const labelled = edges.filter((edge) => edge.recent && isLabelled(edge));
    const placed = [];
    keyed(this.labelLayer, labelled, ({ key }) => key, () => shape("text"), (text, edge) => this.updateLabel(text, edge, placed));
    this.svg.classList.toggle("dense", edges.length > DENSE);
    this.markSelection();
  }

  /** Gives edges with the same ends ways of their own, and labels the end of their edge where fewer meet. */
  findLanes(edges) {
    const between = new Map();
    const degrees = new Map();
    const count = (end) => degrees.set(end, (degrees.get(end) ?? 0) + 1);
    for (const { key, from, to } of edges) {
      [`from ${from}`, `to ${to}`].forEach(count);
      between.set(`${from}|${to}`, [...(between.get(`${from}|${to}`) ?? []), key]);
    }
    this.lanes = new Map();
    for (const keys of between.values()) keys.forEach((key, index) => this.lanes.set(key, index - (keys.length - 1) / 2));
    const isAtSource = ({ from, to }) => degrees.get(`from ${from}`) <= degrees.get(`to ${to}`);
    this.labelledAtSource = new Set(edges.filter(isAtSource).map(({ key }) => key));
    const isSmall = edges.length <= MAX_LABELS;
    this.arched = new Set(edges.filter((edge) => isSmall && this.skips(edge)).map(({ key }) => key));
    const isBack = ({ from, to }) => this.places.get(to).x < this.places.get(from).x;
    this.sag = edges.some(isBack) ? 60 : 0;
    this.rise = this.arched.size > 0 ? 60 : 0;
  }

  /** Returns whether an edge passes a node between its ends. */
  skips({ from, to }) {
    const [a, b] = [this.places.get(from), this.places.get(to)];
    const isBetween = ({ x, y }) => {
      const way = a.y + ((b.y - a.y) * (x - a.x)) / (b.x - a.x);
      return x > a.x && x < b.x && Math.abs(y - way) < NODE.height;
    };
    return b.x > a.x && [...this.places.values()].some(isBetween);
  }

  /** Returns how far the middle of an edge is aside. */
  bow({ key }) {
    return (this.lanes.get(key) ?? 0) * LANE - (this.arched.has(key) ? ARCH : 0);
  }

  makeEdge({ key }) {
    const group = shape("g", { class: "edge", role: "button", tabindex: "-1", "data-key": key });
    group.append(shape("path", { class: "touch" }), shape("path", { class: "line" }));
    group.addEventListener("click", () => this.onSelect({ edge: key }));
    return group;
  }

  updateEdge(group, edge, most) {
    const [touch, line] = group.children;
    const path = this.path(edge);
    set(touch, "d", path);
    set(line, "d", path);
    set(line, "stroke-width", (1.25 + (this.edges.length > DENSE ? 1.5 : 5) * (Math.log1p(weight(edge)) / Math.log1p(most))).toFixed(1));
    set(line, "marker-end", `url(#arrow-${edge.health})`);
    set(group, "data-health", edge.health);
    // What changes every second in every edge costs more than it says; the table has the figures.
    set(group, "aria-label", `${edge.fromName} calls ${edge.toName} over ${edge.protocol}`);
  }

  /** Returns the way of an edge: to the right in a curve; back or to the same column around the nodes. */
  path(edge) {
    const [from, to] = [this.at.get(edge.from), this.at.get(edge.to)];
    const lane = (this.lanes.get(edge.key) ?? 0) * 10;
    const half = NODE.width / 2;
    if (edge.from === edge.to) {
      const [x, y] = [from.x, from.y - NODE.height / 2];
      return `M${x + 30} ${y}C${x + 40} ${y - 44} ${x - 40} ${y - 44} ${x - 30} ${y - 3}`;
    }
    if (to.x > from.x) {
      const [x1, y1, x2, y2] = [from.x + half, from.y + lane, to.x - half - 3, to.y + lane];
      const bend = Math.max(60, (x2 - x1) * 0.45);
      const bow = this.bow(edge);
      return `M${x1} ${y1}C${x1 + bend} ${y1 + bow} ${x2 - bend} ${y2 + bow} ${x2} ${y2}`;
    }
    if (to.x === from.x) {
      const [x, y1, y2] = [from.x + half, from.y + lane, to.y + lane];
      const bend = 40 + Math.abs(y2 - y1) * 0.12;
      return `M${x} ${y1}C${x + bend} ${y1} ${x + bend} ${y2} ${x + 3} ${y2}`;
    }
    const [x1, y1, x2, y2] = [from.x, from.y + NODE.height / 2, to.x, to.y + NODE.height / 2 + 3];
    const sag = Math.max(y1, y2) + 46 + Math.abs(lane);
    return `M${x1} ${y1}C${x1} ${sag} ${x2} ${sag} ${x2} ${y2}`;
  }

  makeNode({ id, kind }) {
    const group = shape("g", { class: "node", role: "button", tabindex: "0", "data-kind": kind, "data-id": id });
    const box = { x: -NODE.width / 2, y: -NODE.height / 2, width: NODE.width, height: NODE.height };
    group.append(
      shape("rect", { ...box, rx: kind === "service" ? NODE.height / 2 : 6 }),
      shape("rect", { class: "health", x: box.x, y: box.y, width: 5, height: NODE.height, rx: 2 }),
      shape("text", { class: "name", x: box.x + 14, y: -3 }),
      shape("text", { class: "figures", x: box.x + 14, y: 13 }),
    );
    group.append(shape("title"));
    group.addEventListener("click", () => this.onSelect({ node: id }));
    return group;
  }

  updateNode(group, node, figures) {
    const { x, y } = this.at.get(node.id);
    const [, , name, text, title] = group.children;
    set(group, "transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
    set(group, "data-health", figures?.health ?? "idle");
    set(group, "data-local", node.is_local);
    write(name, cut(node.name, 20));
    const place = node.namespace && node.namespace !== "unknown" ? node.namespace : node.kind;
    const served = figures?.isCalled ? `${format.rate(figures.requests)}/s` : "calls only";
    write(text, cut(`${place} · ${served}`, 27));
    write(title, `${node.kind} ${node.name}${node.namespace ? ` in ${node.namespace}` : ""}`);
    set(group, "aria-label", `${node.kind} ${node.name}, ${served}`);
  }

  updateLabel(text, edge, placed) {
    const figures = shortFigures(edge);
    const { x, y, anchor } = this.labelPlace(edge);
    const width = figures.length * LABEL.width;
    const left = { start: x, middle: x - width / 2, end: x - width }[anchor];
    let top = y;
    while (placed.some((other) => left < other.right && other.left < left + width && Math.abs(top - other.top) < LABEL.height)) {
      top += LABEL.height;
    }
    placed.push({ left, right: left + width, top });
    set(text, "x", x.toFixed(1));
    set(text, "y", top.toFixed(1));
    set(text, "text-anchor", anchor);
    set(text, "data-health", edge.health);
    write(text, figures);
  }

  /** Returns the place of a label: at the end of the edge where fewer meet, on the side that the edge does not bend to. */
  labelPlace(edge) {
    const [from, to] = [this.at.get(edge.from), this.at.get(edge.to)];
    if (to.x <= from.x || this.bow(edge) !== 0) {
      const line = this.edgeLayer.byKey.get(edge.key).children[1];
      const { x, y } = line.getPointAtLength(line.getTotalLength() / 2);
      return { x, y: y - 6, anchor: "middle" };
    }
    const isAtSource = this.labelledAtSource.has(edge.key);
    const isBelow = isAtSource ? to.y < from.y : to.y > from.y;
    const aside = isBelow ? 16 : -8;
    if (isAtSource) return { x: from.x + NODE.width / 2 + 10, y: from.y + aside, anchor: "start" };
    return { x: to.x - NODE.width / 2 - 14, y: to.y + aside, anchor: "end" };
  }

  markSelection() {
    const { edge, node } = this.selected ?? {};
    for (const [key, group] of this.edgeLayer.byKey ?? []) {
      const [from, to] = key.split("|");
      const isNear = edge ? key === edge : node ? from === node || to === node : true;
      group.classList.toggle("selected", key === edge);
      group.classList.toggle("far", !isNear);
    }
    for (const [id, group] of this.nodeLayer.byKey ?? []) group.classList.toggle("selected", id === node);
  }

  select(selected) {
    this.selected = selected;
    this.markSelection();
  }

  /** Shows the whole map, little larger than life. Rows move apart as far as there is room. */
  fit() {
    const width = this.parent.clientWidth;
    const places = [...this.places.values()];
    if (places.length === 0 || width === 0) return;
    const span = (values) => [Math.min(...values), Math.max(...values)];
    const [left, right] = span(places.map(({ x }) => x));
    const [top, bottom] = span(places.map(({ y }) => y));
    const contentWidth = right - left + NODE.width + 2 * MARGIN;
    const outside = NODE.height + 2 * MARGIN + this.sag + this.rise;
    const wide = Math.max(contentWidth / width, 1 / ENLARGED);
    const height = Math.min(Math.max((bottom - top + outside) / wide, this.isBeside() ? MAX_HEIGHT : MIN_HEIGHT), MAX_HEIGHT);
    const shrink = this.places.size <= MAX_LABELS ? MAX_SHRINK : Infinity;
    const scale = Math.min(Math.max(wide, (bottom - top + outside) / height), shrink);
    const stretch = bottom > top ? Math.min(Math.max((height * scale - outside) / (bottom - top), 1), MAX_STRETCH) : 1;
    this.at = new Map([...this.places].map(([id, { x, y }]) => [id, { x, y: y * stretch }]));
    this.parent.style.height = `${Math.round(height)}px`;
    this.bounds = { width: width * scale, height: height * scale };
    this.look({
      x: left - NODE.width / 2 - MARGIN - Math.max(0, this.bounds.width - contentWidth) / 2,
      y: ((top + bottom) * stretch + this.sag - this.rise - this.bounds.height) / 2,
      ...this.bounds,
    });
  }

  /** Returns whether details stand beside the map. */
  isBeside() {
    return this.parent.clientWidth < this.parent.parentElement.clientWidth;
  }

  look(view) {
    this.view = view;
    set(this.svg, "viewBox", [view.x, view.y, view.width, view.height].map((part) => part.toFixed(2)).join(" "));
  }

  /** Enlarges around a point, given as shares of the width and height. */
  zoom(factor, [u, v] = [0.5, 0.5]) {
    const width = Math.min(Math.max(this.view.width / factor, this.bounds.width / MAX_ZOOM), this.bounds.width * 1.5);
    const height = (width / this.bounds.width) * this.bounds.height;
    this.look({ x: this.view.x + (this.view.width - width) * u, y: this.view.y + (this.view.height - height) * v, width, height });
  }

  move(x, y) {
    const scale = this.view.width / this.svg.clientWidth;
    this.look({ ...this.view, x: this.view.x - x * scale, y: this.view.y - y * scale });
  }

  listen() {
    const { svg } = this;
    svg.addEventListener("wheel", (event) => {
      // Without a key the wheel scrolls the page.
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const box = svg.getBoundingClientRect();
      const at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      this.zoom(event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, at);
    }, { passive: false });
    let held;
    svg.addEventListener("pointerdown", (event) => (held = [event.clientX, event.clientY]));
    svg.addEventListener("pointermove", (event) => {
      if (!held || event.buttons !== 1) return;
      this.move(event.clientX - held[0], event.clientY - held[1]);
      held = [event.clientX, event.clientY];
    });
    svg.addEventListener("click", (event) => event.target === svg && this.onSelect());
    svg.addEventListener("keydown", (event) => {
      const actions = {
        "+": () => this.zoom(ZOOM_STEP), "-": () => this.zoom(1 / ZOOM_STEP), 0: () => this.fit(), Escape: () => this.onSelect(),
        ArrowLeft: () => this.move(MOVE_STEP, 0), ArrowRight: () => this.move(-MOVE_STEP, 0),
        ArrowUp: () => this.move(0, MOVE_STEP), ArrowDown: () => this.move(0, -MOVE_STEP),
        Enter: () => event.target.dispatchEvent(new MouseEvent("click", { bubbles: true })),
        " ": () => event.target.dispatchEvent(new MouseEvent("click", { bubbles: true })),
      };
      if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      actions[event.key]();
    });
  }
}

/** What decides the width of an edge. */
const weight = (edge) => (edge.isTcp ? edge.bytes / 1000 : edge.requests ?? 0);

function nodeFigures(edges) {
  const rank = { idle: 0, ok: 1, warn: 2, bad: 3 };
  const figures = new Map();
  const of = (id) => figures.get(id) ?? figures.set(id, { requests: 0, health: "idle", isCalled: false }).get(id);
  for (const edge of edges) {
    const called = of(edge.to);
    called.isCalled = true;
    called.requests += edge.requests ?? 0;
    if (rank[edge.health] > rank[called.health]) called.health = edge.health;
    const caller = of(edge.from);
    if (caller.health === "idle" && edge.health !== "idle") caller.health = "ok";
  }
  return figures;
}

function shortFigures(edge) {
  if (edge.isTcp) return `${format.bytes(edge.bytes)}/s`;
  const parts = [`${format.rate(edge.requests)}/s`];
  if (edge.p99 !== undefined) parts.push(format.milliseconds(edge.p99));
  if (edge.errorRatio > 0) parts.push(`${format.percent(edge.errorRatio)} err`);
  return parts.join(" · ");
}

/** Shortens a text in its middle: names of workloads often differ at their ends. */
function cut(text, length) {
  if (text.length <= length) return text;
  const end = Math.floor((length - 1) / 2);
  return `${text.slice(0, length - 1 - end)}…${text.slice(-end)}`;
}
