// A table whose columns sort it.

import { element, empty, keyed, set, write } from "./dom.js";

/** Rows that are shown at most; a filter finds the others. */
const MAX_ROWS = 100;

export class Table {
  /**
   * `columns`: `{ name, title, value(row), text(row), numeric, kind(row) }`; `key` tells rows apart; `onSelect` is called
   * with a row.
   */
  constructor(parent, { columns, key, sort, caption, onSelect }) {
    Object.assign(this, { columns, key, onSelect, sort, rows: [], selected: undefined, parent });
    const table = element("table");
    table.append(element("caption", { class: "hidden" }, caption));
    const head = table.createTHead().insertRow();
    this.heads = columns.map((column) => {
      const cell = head.appendChild(element("th", { scope: "col", class: column.numeric ? "numeric" : "" }));
      const button = cell.appendChild(element("button", { type: "button", title: column.hint ?? "" }, column.title));
      button.addEventListener("click", () => this.sortBy(column));
      return cell;
    });
    this.body = table.createTBody();
    this.more = element("p", { class: "empty", hidden: "" });
    parent.append(table, this.more);
    this.table = table;
  }

  sortBy(column) {
    const [name, down] = this.sort;
    this.sort = [column.name, name === column.name ? !down : Boolean(column.numeric)];
    this.render();
  }

  /** Shows rows; `nothing` is the sentence where there are none. */
  show(rows, nothing) {
    this.rows = rows;
    this.nothing = nothing;
    this.render();
  }

  select(key) {
    this.selected = key;
    for (const [id, row] of this.body.byKey ?? []) set(row, "aria-selected", id === key);
  }

  render() {
    const [name, down] = this.sort;
    const by = this.columns.find((column) => column.name === name);
    const value = by.value;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return this.key(a) < this.key(b) ? -1 : 1;
      if (x === undefined) return 1;
      if (y === undefined) return -1;
      return (x < y ? -1 : 1) * (down ? -1 : 1);
    };
    const rows = [...this.rows].sort(order);
    this.heads.forEach((cell, index) => {
      const isSorted = this.columns[index] === by;
      set(cell, "aria-sort", isSorted ? (down ? "descending" : "ascending") : "none");
    });
    keyed(this.body, rows.slice(0, MAX_ROWS), this.key, (row) => this.make(row), (node, row) => this.update(node, row));
    this.table.hidden = rows.length === 0;
    this.more.hidden = rows.length <= MAX_ROWS;
    write(this.more, `${rows.length - MAX_ROWS} more; sort or filter to find them`);
    empty(this.parent, rows.length === 0 && this.nothing);
  }

  make(row) {
    const line = element("tr", { "data-key": this.key(row), "aria-selected": this.key(row) === this.selected });
    for (const [index, { name, numeric }] of this.columns.entries()) {
      const isHead = index === 0;
      const cell = element(isHead ? "th" : "td", { class: numeric ? "numeric" : "", "data-field": name });
      if (isHead) cell.scope = "row";
      if (isHead && this.onSelect) cell.append(element("button", { type: "button" }));
      line.append(cell);
    }
    if (this.onSelect) line.addEventListener("click", () => this.onSelect(line.row));
    return line;
  }

  update(line, row) {
    line.row = row;
    for (const [index, { text, kind, value, exact }] of this.columns.entries()) {
      const cell = line.children[index];
      write(cell.firstElementChild ?? cell, text(row));
      if (kind) set(cell, "data-kind", kind(row) ?? "");
      if (exact) set(cell, "data-value", value(row) ?? "");
    }
  }
}
