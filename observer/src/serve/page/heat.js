// The heat map of latency: time from left to right, duration upwards, colour by the number of requests.

import { element, empty, write } from "./dom.js";
import * as format from "./format.js";

/** Cividis, which is read alike with every kind of colour vision; lightness alone carries the order. */
const RAMP = [[0, 34, 78], [42, 63, 109], [87, 92, 109], [124, 123, 120], [166, 157, 117], [211, 193, 100], [254, 232, 56]];
const AXIS = { left: 62, bottom: 22, top: 6, right: 6 };
const HEIGHT = 230;
/** Rows that are shown at least. */
const MIN_ROWS = 8;

export class HeatMap {
  constructor(parent) {
    this.parent = parent;
    this.canvas = parent.appendChild(element("canvas", { role: "img" }));
    this.note = parent.appendChild(element("p", { class: "note" }));
    this.scale = parent.appendChild(element("p", { class: "scale", "aria-hidden": "true" }));
    this.scale.append(element("span", {}, "fewer"), element("i"), element("span", {}, "more requests"));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => write(this.note, this.sentence ?? ""));
    new ResizeObserver(() => this.draw()).observe(parent);
  }

  /** Shows columns; `bounds` are the rows' bounds in milliseconds, `max` is the number of columns that there can be. */
  show(columns, bounds, max) {
    Object.assign(this, { columns, bounds, max });
    const rows = columns.flatMap((column) => [...column.rows.keys()]);
    this.low = Math.min(...rows);
    this.high = Math.max(...rows);
    const missing = MIN_ROWS - (this.high - this.low + 1);
    if (missing > 0) {
      this.low = Math.max(0, this.low - Math.ceil(missing / 2));
      this.high = Math.min(bounds.length - 2, this.low + MIN_ROWS - 1);
    }
    const has = rows.length > 0;
    for (const part of [this.canvas, this.note, this.scale]) part.hidden = !has;
    empty(this.parent, !has && "No request has ended since somebody looks; a column is complete after five seconds.");
    if (!has) return;
    this.sentence = this.describe();
    this.canvas.setAttribute("aria-label", this.sentence);
    write(this.note, this.sentence);
    this.draw();
  }

  describe() {
    const sums = new Map();
    for (const { rows } of this.columns) for (const [row, count] of rows) sums.set(row, (sums.get(row) ?? 0) + count);
    const all = [...sums.values()].reduce((sum, count) => sum + count, 0);
    const bound = (share) => {
      let below = 0;
      for (const [row, count] of [...sums].sort(([a], [b]) => a - b)) {
        below += count;
        if (below >= share * all) return format.milliseconds(this.bounds[row + 1]);
      }
      return format.NONE;
    };
    const [first, last] = [this.columns[0], this.columns[this.columns.length - 1]];
    const length = format.duration(last.at - first.at + first.seconds);
    return `${format.number(all)} requests in ${length}: half took less than ${bound(0.5)}, 99 % less than ${bound(0.99)}`;
  }

  draw() {
    if (!this.columns || this.canvas.hidden) return;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(240, this.parent.clientWidth);
    this.canvas.width = width * ratio;
    this.canvas.height = HEIGHT * ratio;
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${HEIGHT}px`;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(this.parent);
    this.grid = { x: AXIS.left, y: AXIS.top, width: width - AXIS.left - AXIS.right, height: HEIGHT - AXIS.top - AXIS.bottom };
    this.drawCells(context, style);
    this.drawAxes(context, style);
  }

  drawCells(context, style) {
    const { grid } = this;
    context.fillStyle = style.getPropertyValue("--plot");
    context.fillRect(grid.x, grid.y, grid.width, grid.height);
    const most = Math.max(...this.columns.flatMap(({ rows }) => [...rows.values()]));
    const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const [cellWidth, cellHeight] = this.cell();
    this.columns.forEach(({ rows }, index) => {
      for (const [row, count] of rows) {
        const share = Math.log1p(count) / Math.log1p(most);
        context.fillStyle = colour(isDark ? 0.12 + 0.88 * share : 1 - share * 0.95);
        const x = grid.x + grid.width - (this.columns.length - index) * cellWidth;
        const y = grid.y + (this.high - row) * cellHeight;
        context.fillRect(x, y, Math.max(1, cellWidth - 1), Math.max(1, cellHeight - 1));
      }
    });
  }

  drawAxes(context, style) {
    const { grid } = this;
    const [cellWidth, cellHeight] = this.cell();
    context.fillStyle = style.getPropertyValue("--quiet");
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.ceil((this.high - this.low + 2) / 8);
    for (let row = this.low; row <= this.high + 1; row += every) {
      const y = grid.y + (this.high + 1 - row) * cellHeight;
      context.fillText(format.milliseconds(this.bounds[row]), grid.x - 6, Math.min(Math.max(y, 8), HEIGHT - AXIS.bottom));
    }
    context.textBaseline = "top";
    const last = this.columns[this.columns.length - 1];
    const steps = grid.width < 420 ? 2 : 5;
    for (let part = 0; part <= steps; part += 1) {
      const age = (part / steps) * this.max * last.seconds;
      const x = grid.x + grid.width - (age / last.seconds) * cellWidth;
      context.textAlign = part === 0 ? "right" : part === steps ? "left" : "center";
      context.fillText(part === 0 ? "now" : `−${format.duration(age)}`, x, grid.y + grid.height + 6);
    }
  }

  cell() {
    return [this.grid.width / this.max, this.grid.height / (this.high - this.low + 1)];
  }

  /** Describes the cell below the pointer. */
  point(event) {
    if (!this.grid) return;
    const [cellWidth, cellHeight] = this.cell();
    const [x, y] = [event.offsetX - this.grid.x, event.offsetY - this.grid.y];
    const column = this.columns[this.columns.length - Math.ceil((this.grid.width - x) / cellWidth)];
    const row = this.high - Math.floor(y / cellHeight);
    if (!column || row < this.low || row > this.high) return write(this.note, this.sentence);
    const range = `${format.milliseconds(this.bounds[row])} to ${format.milliseconds(this.bounds[row + 1])}`;
    write(this.note, `${format.time(column.at)}: ${format.number(column.rows.get(row) ?? 0)} requests took ${range}`);
  }
}

function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const [low, high] = [RAMP[Math.floor(place)], RAMP[Math.ceil(place)]];
  const part = place - Math.floor(place);
  return `rgb(${low.map((value, index) => Math.round(value + (high[index] - value) * part)).join(" ")})`;
}
