// Reads the API's events, and shows the last document.

import { element, keyed, set, write } from "./dom.js";
import * as format from "./format.js";
import { HeatMap } from "./heat.js";
import { GraphMap } from "./map.js";
import { columns, edges, summary } from "./model.js";
import { ControlPlane, Detail, listFindings, processTable, unseenTable } from "./panels.js";
import { Table } from "./table.js";

/** Time until another stream is asked for after one was refused. */
const RETRY_MS = 5000;

const find = (id) => document.getElementById(id);
const page = { state: undefined, history: { columns: [], latency_bounds_ms: [], max_columns: 60 }, edges: [], selected: undefined, isPaused: false };

const map = new GraphMap(find("graph"), select);
const detail = new Detail(find("detail"), select);
const heat = new HeatMap(find("heat"));
const controlPlane = new ControlPlane(find("control-plane-body"));
const processes = processTable(find("process-table"));
const unseen = unseenTable(find("unseen-table"));
const calls = new Table(find("edge-table"), {
  caption: "Calls between workloads and services, over the last seconds",
  key: ({ key }) => key,
  sort: ["requests", true],
  onSelect: ({ key }) => select({ edge: key }),
  columns: [
    { name: "from", title: "From", value: ({ fromName }) => fromName, text: ({ fromName }) => fromName },
    { name: "to", title: "To", value: ({ toName }) => toName, text: ({ toName }) => toName },
    { name: "protocol", title: "Protocol", value: ({ protocol }) => protocol, text: ({ protocol }) => protocol },
    figure("requests", "Requests/s", format.rate),
    { ...figure("errorRatio", "Errors", format.percent), kind: ({ health }) => health },
    figure("p50", "p50", format.milliseconds),
    figure("p99", "p99", format.milliseconds),
    figure("bytes", "Bytes/s", format.bytes),
    { ...figure("total", "Total", format.number), hint: "requests, or TCP connections, as in /metrics", exact: true },
    { name: "reporter", title: "Counted by", value: ({ reporter }) => reporter, text: ({ reporter }) => (reporter === "source" ? "caller" : "callee") },
  ],
});

function figure(name, title, text) {
  return { name, title, numeric: true, value: (edge) => edge[name], text: (edge) => text(edge[name]) };
}

function select(selected) {
  page.selected = selected;
  map.select(selected);
  calls.select(selected?.edge);
  if (selected?.edge) {
    const own = page.edges.find(({ key }) => key === selected.edge);
    if (own && !own.isTcp) find("heat-edge").value = own.key;
  }
  render();
}

/** What is shown, part by part: one frame each, so that none takes long. */
const PARTS = [
  showSummary,
  (state) => map.show(state.nodes, page.edges),
  (state) => detail.show({ selected: page.selected, edges: page.edges, nodes: state.nodes, history: page.history }),
  showCalls,
  showHeat,
  (state) => controlPlane.show(state.control_plane),
  showProcesses,
  (state) => unseen.show(state.unseen, "Everything was seen."),
  showFindings,
];

let rendering = 0;

/** Shows the last document; a later call replaces one that is not finished. */
async function render() {
  const { state } = page;
  if (!state) return;
  page.edges = edges(state);
  rendering += 1;
  const own = rendering;
  for (const part of PARTS) {
    if (own !== rendering) return;
    part(state);
    await new Promise(requestAnimationFrame);
  }
  set(document.body, "data-shown", state.at);
}

function showCalls() {
  const wanted = find("filter").value.trim().toLowerCase();
  const shown = page.edges.filter(({ key, services }) => `${key} ${services.join(" ")}`.toLowerCase().includes(wanted));
  calls.show(shown, wanted ? "No call matches the filter." : "No call has been seen yet.");
}

function showProcesses(state) {
  const age = (process) => ({ ...process, age: process.started === undefined ? undefined : state.at - process.started });
  processes.show(state.processes.map(age), "No process of the mesh runs here.");
}

function showFindings({ findings }) {
  listFindings(find("finding-list"), findings);
  const weighty = findings.filter(({ level }) => level !== "note").length;
  write(find("finding-count"), weighty > 0 ? ` ${weighty}` : "");
}

function showSummary(state) {
  write(find("node"), state.node);
  document.title = `${state.node} · mesh observer`;
  write(find("about"), `mesh observer ${state.version} · read at ${format.time(state.at)} · counting since ${format.dateTime(state.began)}`);
  const sums = summary(page.edges);
  const sidecars = state.observer.sidecars.reduce((sum, { value }) => sum + value, 0);
  const tiles = [
    ["Requests", `${format.rate(sums.requests)}/s`],
    ["Errors", format.percent(sums.requests > 0 ? sums.errors / sums.requests : undefined), sums.errors > 0 ? "warn" : "ok"],
    ["Slowest p99", format.milliseconds(sums.slowest)],
    ["Traffic", `${format.bytes(sums.bytes)}/s`],
    ["Sidecars", format.number(sidecars)],
    ["Observer", `${format.percent(state.observer.cpu_cores)} CPU · ${format.bytes(state.observer.resident_bytes)}`],
  ];
  keyed(find("summary"), tiles, ([name]) => name, ([name]) => {
    const tile = element("div");
    tile.append(element("dt", {}, name), element("dd"));
    return tile;
  }, (tile, [, value, health]) => {
    write(tile.lastElementChild, value);
    set(tile, "data-health", health ?? "");
  });
}

function showHeat() {
  const choice = find("heat-edge");
  const options = [{ key: "", text: "all calls" }, ...page.edges.filter(({ isTcp }) => !isTcp).map((edge) => ({ key: edge.key, text: `${edge.fromName} → ${edge.toName} (${edge.protocol})` }))];
  keyed(choice, options, ({ key }) => key, ({ key }) => element("option", { value: key }), (option, { text }) => write(option, text));
  const own = page.edges.find(({ key }) => key === choice.value);
  const { history } = page;
  heat.show(columns(history, own?.id), history.latency_bounds_ms, history.max_columns);
}

let stream;
let retry;

/** Opens the stream: from now on the observer reads once per second. */
async function open() {
  if (stream || page.isPaused || document.hidden) return;
  clearTimeout(retry);
  stream = new EventSource("api/v1/events");
  stream.addEventListener("state", ({ data }) => {
    page.state = JSON.parse(data);
    say("live", "live");
    render();
  });
  stream.addEventListener("column", ({ data }) => {
    const { history } = page;
    const column = JSON.parse(data);
    history.columns = [...history.columns.filter(({ at }) => at < column.at), column].slice(-history.max_columns);
  });
  stream.addEventListener("error", () => {
    say("lost", "connection lost");
    if (stream?.readyState !== EventSource.CLOSED) return;
    close();
    retry = setTimeout(open, RETRY_MS);
  });
  stream.addEventListener("open", readHistory);
}

async function readHistory() {
  try {
    page.history = await (await fetch("api/v1/history")).json();
    render();
  } catch {
    // The stream's columns will do.
  }
}

function close() {
  stream?.close();
  stream = undefined;
}

function say(state, text) {
  set(find("live"), "data-state", state);
  write(find("live"), text);
}

find("pause").addEventListener("click", ({ currentTarget }) => {
  page.isPaused = !page.isPaused;
  set(currentTarget, "aria-pressed", page.isPaused);
  write(currentTarget, page.isPaused ? "Go on" : "Pause");
  if (page.isPaused) {
    close();
    say("paused", "paused");
  } else open();
});
find("filter").addEventListener("input", render);
find("heat-edge").addEventListener("change", render);
find("zoom-in").addEventListener("click", () => map.zoom(1.25));
find("zoom-out").addEventListener("click", () => map.zoom(0.8));
find("zoom-fit").addEventListener("click", () => map.fit());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
// Nobody looks at a hidden page.
document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
open();
