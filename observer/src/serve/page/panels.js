// The control plane, processes, what is not seen, findings, and the details of a selection.

import { element, empty, keyed, set, shape, write } from "./dom.js";
import * as format from "./format.js";
import { columns, labelsOf } from "./model.js";
import { Table } from "./table.js";

/** Families of the control plane that are shown, by what they say; the others are in the API. */
const FIGURES = [
  ["Services", ["pilot_services", "pilot_virt_services"]],
  ["Proxies connected", ["pilot_xds"]],
  ["Pushes", ["pilot_xds_pushes", "pilot_proxy_convergence_time", "pilot_proxy_queue_time"]],
  ["Rejected", ["pilot_total_xds_rejects", "pilot_xds_cds_reject", "pilot_xds_eds_reject", "pilot_xds_lds_reject", "pilot_xds_rds_reject"]],
  ["Errors", ["pilot_total_xds_internal_errors", "pilot_xds_write_timeout", "pilot_xds_push_context_errors"]],
  ["Conflicts", ["pilot_conflict_inbound_listener", "pilot_conflict_outbound_listener_tcp_over_current_tcp",
    "pilot_conflict_outbound_listener_http_over_current_tcp", "pilot_conflict_outbound_listener_tcp_over_current_http"]],
  ["Validation", ["galley_validation_passed", "galley_validation_failed", "galley_validation_http_error", "galley_validation_config_updates", "galley_validation_config_update_error"]],
  ["Certificates", ["citadel_server_csr_count", "citadel_server_success_cert_issuance_count", "citadel_server_csr_sign_err_count"]],
];
const PERCENTILES = ["p50", "p75", "p90", "p95", "p99", "p999"];

export class ControlPlane {
  constructor(parent) {
    this.parent = parent;
    this.instances = parent.appendChild(element("ul", { class: "instances" }));
    this.cards = parent.appendChild(element("div", { class: "cards" }));
  }

  show({ instances, families }) {
    keyed(this.instances, instances, ({ instance }) => instance, () => element("li"), (item, one) => {
      const scraped = one.up ? `scraped in ${format.milliseconds(one.scrape_seconds * 1000)}` : "cannot be scraped";
      set(item, "data-health", one.up ? "ok" : "bad");
      write(item, `${one.app} ${one.instance} · ${scraped}`);
    });
    const byName = new Map(families.map((family) => [family.name, family]));
    const build = byName.get("istio_build")?.points ?? [];
    const cards = FIGURES.map(([title, names]) => ({ title, families: names.flatMap((name) => byName.get(name) ?? []) }));
    if (build.length > 0) cards.unshift({ title: "Builds", families: [byName.get("istio_build")] });
    const shown = cards.filter((card) => card.families.length > 0);
    keyed(this.cards, shown, ({ title }) => title, ({ title }) => this.makeCard(title), (card, own) => this.updateCard(card, own));
    empty(this.parent, instances.length === 0 && "No control plane runs on this node, and none is configured with --control-plane.");
  }

  makeCard(title) {
    const card = element("section", { class: "card" });
    card.append(element("h3", {}, title), element("dl"));
    return card;
  }

  updateCard(card, { families }) {
    const lines = families.flatMap((family) => summarize(family));
    keyed(card.lastElementChild, lines, ({ name }) => name, () => makePair(), (pair, { name, value, hint }) => {
      write(pair.firstElementChild, name);
      write(pair.lastElementChild, value);
      set(pair, "title", hint);
    });
  }
}

/** Returns lines of a family: one per label set that differs, added up over instances. */
function summarize(family) {
  const hint = family.name;
  const prefix = family.name.replace(/^(pilot|galley_validation|citadel_server)_/, "").replace(/_total$/, "").replaceAll("_", " ");
  if (family.name === "istio_build") {
    return family.points.map(({ labels }) => ({ name: labels.component ?? "build", value: labels.tag ?? "", hint }));
  }
  const sums = new Map();
  for (const { labels, value, per_second } of family.points) {
    const own = Object.entries(labels).filter(([name]) => !["instance", "app", "pod", "namespace", "job", "scraper_node", "node"].includes(name));
    const name = own.map(([, text]) => text).join(" ");
    const sum = sums.get(name) ?? { value: 0, perSecond: undefined };
    sum.value += value;
    if (per_second !== undefined) sum.perSecond = (sum.perSecond ?? 0) + per_second;
    sums.set(name, sum);
  }
  const isHistogram = family.type === "histogram";
  const lines = [...sums].map(([name, sum]) => {
    if (isHistogram) name = "count";
    const change = sum.perSecond > 0 ? ` (${format.rate(sum.perSecond)}/s)` : "";
    return { name: name ? `${prefix} ${name}` : prefix, value: format.number(sum.value) + change, hint };
  });
  if (family.at_most?.p99 !== undefined) {
    lines.push({ name: `${prefix}, 99 % at most`, value: `${family.at_most.p99} s`, hint });
  }
  return lines;
}

function makePair() {
  const pair = element("div");
  pair.append(element("dt"), element("dd"));
  return pair;
}

export function processTable(parent) {
  const figure = (name, title, text, hint) => ({
    name, title, hint, numeric: true, value: (row) => row[name], text: (row) => text(row[name]),
  });
  return new Table(parent, {
    caption: "Processes of sidecars, gateways and the control plane",
    key: (row) => [row.app, row.instance, row.pod, row.namespace].join("|"),
    sort: ["cpu_cores", true],
    columns: [
      { name: "pod", title: "Pod", value: (row) => row.pod || row.instance, text: (row) => row.pod || row.instance },
      { name: "namespace", title: "Namespace", value: (row) => row.namespace, text: (row) => row.namespace || format.NONE },
      { name: "app", title: "Process", value: (row) => row.app, text: (row) => row.app },
      figure("cpu_cores", "CPU, cores", format.rate, "over the last minute"),
      figure("throttled_ratio", "Throttled", format.percent, "share of the last minute"),
      figure("resident_bytes", "Memory", format.bytes),
      { ...figure("open_files", "Files", format.number), text: (row) => (row.open_files === undefined ? format.NONE : `${format.number(row.open_files)} / ${format.number(row.max_open_files)}`) },
      figure("threads", "Threads", format.number),
      { name: "age", title: "Age", numeric: true, value: (row) => row.age, text: (row) => format.duration(row.age) },
    ],
  });
}

export function unseenTable(parent) {
  return new Table(parent, {
    caption: "What was not seen, and why",
    key: (row) => `${row.name}|${labelsOf(row)}`,
    sort: ["value", true],
    columns: [
      { name: "what", title: "What", value: (row) => row.help, text: (row) => row.help },
      { name: "why", title: "Why", value: labelsOf, text: (row) => labelsOf(row) || format.NONE },
      { name: "value", title: "Count", numeric: true, value: (row) => row.value, text: (row) => format.number(row.value) },
      { name: "rate", title: "Per second", numeric: true, value: (row) => row.per_second, text: (row) => format.rate(row.per_second) },
    ],
  });
}

export function listFindings(list, findings) {
  keyed(list, findings, ({ level, text }) => `${level} ${text}`, () => {
    const item = element("li");
    item.append(element("b"), element("span"));
    return item;
  }, (item, { level, text }) => {
    set(item, "data-health", { error: "bad", warning: "warn", note: "idle" }[level]);
    write(item.firstElementChild, level);
    write(item.lastElementChild, text);
  });
  empty(list.parentElement, findings.length === 0 && "Nothing deserves attention.");
}

/** The details of an edge or a node. */
export class Detail {
  constructor(parent, onSelect) {
    Object.assign(this, { parent, onSelect });
  }

  show({ selected, edges, nodes, history }) {
    const edge = selected?.edge && edges.find(({ key }) => key === selected.edge);
    const node = selected?.node && nodes.find(({ id }) => id === selected.node);
    const of = edge ? `edge ${edge.key}` : node ? `node ${node.id}` : "";
    if (of !== this.of) this.parent.replaceChildren();
    this.of = of;
    this.parent.byKey = undefined;
    this.parent.hidden = !edge && !node;
    if (edge) this.showEdge(edge, history);
    else if (node) this.showNode(node, edges);
  }

  head(title, subtitle) {
    if (this.parent.firstElementChild) return;
    const close = element("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
    close.addEventListener("click", () => this.onSelect());
    this.parent.append(close, element("h3", {}, title), element("p", { class: "note" }, subtitle));
    for (const name of ["facts", "sides", "codes", "sampled", "past", "calls"]) this.parent.append(element("div", { class: name }));
  }

  part(name) {
    return this.parent.querySelector(`:scope > .${name}`);
  }

  showEdge(edge, history) {
    this.head(`${edge.fromName} → ${edge.toName}`, edge.services.join(", "));
    const security = edge.security.map((one) => ({ mutual_tls: "mutual TLS", none: "plaintext" })[one] ?? one).join(" and ");
    this.facts([["Protocol", edge.protocol], ["Security", security || "not known here"]]);
    this.sides(edge);
    this.codes(edge);
    this.sampled(edge);
    this.past(columns(history, edge.id), history.max_columns, edge.isTcp);
  }

  showNode(node, edges) {
    this.head(node.name, `${node.kind}${node.namespace ? ` in ${node.namespace}` : ""}`);
    const facts = [["App", node.app], ["Version", node.version], ["Cluster", node.cluster], ["On this node", node.is_local ? "yes" : "no"]];
    this.facts(facts.filter(([, value]) => value));
    const calls = edges.filter(({ from, to }) => from === node.id || to === node.id);
    keyed(this.part("calls"), calls, ({ key }) => key, ({ key }) => {
      const button = element("button", { type: "button", class: "call" });
      button.append(element("span"), element("span"));
      button.addEventListener("click", () => this.onSelect({ edge: key }));
      return button;
    }, (button, edge) => {
      const isOut = edge.from === node.id;
      set(button, "data-health", edge.health);
      write(button.firstElementChild, `${isOut ? "→" : "←"} ${isOut ? edge.toName : edge.fromName} · ${edge.protocol}`);
      const figures = edge.isTcp ? `${format.bytes(edge.bytes)}/s` : `${format.rate(edge.requests)}/s`;
      write(button.lastElementChild, edge.recent ? figures : "idle");
    });
  }

  facts(pairs) {
    const list = this.part("facts");
    keyed(list, pairs, ([name]) => name, () => makePair(), (pair, [name, value]) => {
      write(pair.firstElementChild, name);
      write(pair.lastElementChild, value);
    });
  }

  /** What both proxies have counted, side by side. */
  sides({ source, destination, isTcp }) {
    const per = (name) => (side) => side?.recent?.[name];
    const lines = isTcp
      ? [["Opened/s", per("opened"), format.rate], ["Sent/s", per("sent_bytes"), format.bytes], ["Received/s", per("received_bytes"), format.bytes],
        ["Open now", (side) => side && side.totals.opened - side.totals.closed, format.number], ["Opened", (side) => side?.totals.opened, format.number]]
      : [["Requests/s", per("requests"), format.rate], ["Errors/s", per("errors"), format.rate],
        ...PERCENTILES.map((name) => [name.replace("p999", "p99.9"), (side) => side?.recent?.latency_ms?.[name], format.milliseconds]),
        ["Mean", (side) => side?.recent?.latency_ms?.mean, format.milliseconds],
        ["Request bytes/s", per("request_bytes"), format.bytes], ["Response bytes/s", per("response_bytes"), format.bytes],
        ["Requests", (side) => side?.totals.requests, format.number]];
    const parent = this.part("sides");
    if (!parent.firstElementChild) {
      const table = parent.appendChild(element("table"));
      const head = table.createTHead().insertRow();
      for (const title of ["", "Caller", "Callee"]) head.append(element("th", { scope: "col", class: "numeric" }, title));
      table.createTBody();
    }
    keyed(parent.firstElementChild.tBodies[0], lines, ([name]) => name, ([name]) => {
      const row = element("tr");
      row.append(element("th", { scope: "row" }, name), element("td", { class: "numeric" }), element("td", { class: "numeric" }));
      return row;
    }, (row, [, value, text]) => {
      write(row.children[1], text(value(source)));
      write(row.children[2], text(value(destination)));
    });
  }

  codes(edge) {
    const { codes, grpc_statuses: statuses } = edge.totals;
    const total = edge.totals.requests;
    const bars = [...Object.entries(codes ?? {}).map(([code, count]) => [code === "0" ? "no response" : code, count, isBad(code)]),
      ...Object.entries(statuses ?? {}).map(([status, count]) => [`grpc ${status}`, count, status !== "0" && status !== "unknown"])];
    keyed(this.part("codes"), total > 0 ? bars : [], ([name]) => name, () => {
      const bar = element("div", { class: "code" });
      bar.append(element("span"), element("meter", { min: "0", max: "1" }), element("span"));
      return bar;
    }, (bar, [name, count, bad]) => {
      const [label, meter, value] = bar.children;
      set(bar, "data-health", bad ? "bad" : "ok");
      write(label, name);
      meter.value = count / total;
      set(meter, "aria-label", `${name}: share of requests`);
      write(value, format.number(count));
    });
  }

  /** Requests whose traces are worth a look. */
  sampled({ source, destination }) {
    const { slowest, failed } = (source ?? destination)?.sampled ?? {};
    const requests = [["Slowest sampled", slowest], ["Last failed, sampled", failed]].filter(([, request]) => request);
    keyed(this.part("sampled"), requests, ([name]) => name, () => {
      const pair = makePair();
      pair.lastElementChild.append(element("span"), element("code"));
      return pair;
    }, (pair, [name, { duration_ms: duration, code, grpc_status: status, trace_id: trace }]) => {
      write(pair.firstElementChild, name);
      const [answer, id] = pair.lastElementChild.children;
      write(answer, `${format.milliseconds(duration)}, ${status === undefined ? code : `grpc ${status}`}, trace `);
      write(id, trace);
    });
  }

  past(past, max, isTcp) {
    const parent = this.part("past");
    const lines = isTcp
      ? [["Bytes/s", ({ bytes, seconds }) => bytes / seconds, format.bytes], ["Opened/s", ({ connections, seconds }) => connections / seconds, format.rate]]
      : [["Requests/s", ({ requests, seconds }) => requests / seconds, format.rate], ["Errors/s", ({ errors, seconds }) => errors / seconds, format.rate]];
    keyed(parent, past.length > 1 ? lines : [], ([name]) => name, () => {
      const figure = element("figure");
      const drawing = shape("svg", { viewBox: "0 0 200 36", preserveAspectRatio: "none", role: "img" });
      drawing.append(shape("path"));
      figure.append(element("figcaption"), drawing);
      return figure;
    }, (figure, [name, value, text]) => {
      const values = past.map(value);
      const most = Math.max(...values);
      write(figure.firstElementChild, `${name}, at most ${text(most)} in the last minutes`);
      set(figure.lastElementChild, "aria-label", figure.firstElementChild.textContent);
      const x = (index) => 200 - ((values.length - 1 - index) / Math.max(1, max - 1)) * 200;
      const y = (own) => 34 - (most > 0 ? (own / most) * 32 : 0);
      const path = values.map((own, index) => `${index === 0 ? "M" : "L"}${x(index).toFixed(1)} ${y(own).toFixed(1)}`).join("");
      set(figure.lastElementChild.firstElementChild, "d", path);
    });
  }
}

const isBad = (code) => code === "0" || code.startsWith("5");
