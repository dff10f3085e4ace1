// What the API's documents say, as the page shows it.

/** Share of failed requests from which on an edge is not healthy, and from which on it is bad. */
const WARN = 0.001;
const BAD = 0.05;

/** Returns the name of a node without its namespace. */
const nameOf = (id) => id.split("/").slice(2).join("/") || id;

/** Returns edges with the side and the figures that are shown of each. */
export function edges(state) {
  return state.edges.map((edge) => {
    const side = edge.source ?? edge.destination;
    const recent = side.recent;
    const isTcp = edge.protocol === "tcp";
    const errorRatio = recent && recent.requests > 0 ? recent.errors / recent.requests : undefined;
    const sent = recent ? recent.request_bytes + recent.received_bytes : 0;
    const received = recent ? recent.response_bytes + recent.sent_bytes : 0;
    return {
      id: edge.id,
      key: `${edge.from}|${edge.to}|${edge.protocol}`,
      from: edge.from,
      to: edge.to,
      fromName: nameOf(edge.from),
      toName: nameOf(edge.to),
      protocol: edge.protocol,
      security: edge.security,
      services: edge.services,
      source: edge.source,
      destination: edge.destination,
      reporter: edge.source ? "source" : "destination",
      totals: side.totals,
      recent,
      isTcp,
      requests: isTcp ? undefined : (recent?.requests ?? 0),
      errorRatio,
      p50: recent?.latency_ms?.p50,
      p99: recent?.latency_ms?.p99,
      bytes: sent + received,
      total: isTcp ? side.totals.opened : side.totals.requests,
      health: health(recent, errorRatio),
    };
  });
}

function health(recent, errorRatio) {
  if (!recent) return "idle";
  if (errorRatio >= BAD) return "bad";
  return errorRatio >= WARN ? "warn" : "ok";
}

/** Returns figures over all edges; each request counts once, where its caller's proxy or else its callee's saw it. */
export function summary(all) {
  const sums = { requests: 0, errors: 0, bytes: 0, slowest: undefined };
  for (const { recent, bytes, p99 } of all) {
    if (!recent) continue;
    sums.requests += recent.requests;
    sums.errors += recent.errors;
    sums.bytes += bytes;
    if (p99 !== undefined) sums.slowest = Math.max(sums.slowest ?? 0, p99);
  }
  return sums;
}

/** Returns the columns of the history that have this edge, or of all edges added up. */
export function columns(history, id) {
  return history.columns.map(({ at, seconds, edges: moved }) => {
    const sum = { at, seconds, requests: 0, errors: 0, bytes: 0, connections: 0, rows: new Map() };
    for (const edge of moved) {
      if (id !== undefined && edge.id !== id) continue;
      sum.requests += edge.requests;
      sum.errors += edge.errors;
      sum.bytes += edge.bytes;
      sum.connections += edge.connections;
      for (const [row, count] of edge.latency) sum.rows.set(row, (sum.rows.get(row) ?? 0) + count);
    }
    return sum;
  });
}

/** Returns the labels of a point that tell it apart. */
export const labelsOf = (point) =>
  Object.entries(point.labels ?? {})
    .filter(([, value]) => value !== "")
    .map(([name, value]) => `${name}=${value}`)
    .join(", ");
