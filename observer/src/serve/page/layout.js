// Places of the nodes of a map: columns in the direction of the calls, and in each column an order that keeps edges short.

/** Size of a node, and distance of columns and rows, in the map's units. */
export const NODE = { width: 184, height: 42 };
const COLUMN = 368;
const ROW = 66;
/** Number of rows beyond which a column is folded. */
const MAX_ROWS = 13;
/** Number of columns beyond which depth is the shortest way instead of the longest. */
const MAX_COLUMNS = 7;
const TICKS = 240;

/**
 * Returns a map of places by id. `links` are pairs of ids; `before` has the places of an earlier layout, from which known
 * nodes start, so that a new one moves little.
 */
export function layout(ids, links, before) {
  const depths = depthsOf(ids, links);
  const columns = columnsOf(ids, depths);
  const nodes = new Map();
  columns.forEach((column, index) => {
    column.forEach((id, row) => {
      const y = before?.get(id)?.y ?? (row - (column.length - 1) / 2) * ROW;
      nodes.set(id, { id, fx: index * COLUMN, y, x: 0 });
    });
  });
  const ends = links.filter(([from, to]) => from !== to).map(([source, target]) => ({ source, target }));
  const simulation = d3
    .forceSimulation([...nodes.values()])
    .force("link", d3.forceLink(ends).id((node) => node.id).distance(0).strength(0.2))
    .force("middle", d3.forceY(0).strength(0.03))
    .force("apart", d3.forceCollide(ROW / 2).iterations(4))
    .stop();
  for (let tick = 0; tick < TICKS; tick += 1) simulation.tick();
  for (const column of columns) spread(column.map((id) => nodes.get(id)));
  return new Map([...nodes].map(([id, { x, y }]) => [id, { x, y }]));
}

/** Returns the nodes of each column, the callers' first. */
function columnsOf(ids, depths) {
  const byDepth = new Map();
  for (const id of ids) byDepth.set(depths.get(id), [...(byDepth.get(depths.get(id)) ?? []), id]);
  return [...byDepth].sort(([a], [b]) => a - b).flatMap(([, column]) => {
    const folds = Math.ceil(column.length / MAX_ROWS);
    const rows = Math.ceil(column.length / folds);
    return Array.from({ length: folds }, (_, fold) => column.slice(fold * rows, (fold + 1) * rows));
  });
}

/** Moves the nodes of a column apart where they still overlap, and keeps their order. */
function spread(nodes) {
  nodes.sort((a, b) => a.y - b.y);
  const middle = mean(nodes);
  for (let index = 1; index < nodes.length; index += 1) {
    nodes[index].y = Math.max(nodes[index].y, nodes[index - 1].y + ROW);
  }
  const moved = mean(nodes) - middle;
  for (const node of nodes) node.y -= moved;
}

const mean = (nodes) => nodes.reduce((sum, node) => sum + node.y, 0) / nodes.length;

/** Returns the depth of each node below those that nobody calls. */
function depthsOf(ids, links) {
  const callees = new Map(ids.map((id) => [id, []]));
  const callers = new Map(ids.map((id) => [id, 0]));
  for (const [from, to] of links) {
    if (from === to) continue;
    callees.get(from).push(to);
    callers.set(to, callers.get(to) + 1);
  }
  // Nodes that call and are not called come first; in a circle, whoever calls most of those who are left.
  const roots = [...ids].sort((a, b) => callers.get(a) - callers.get(b) || callees.get(b).length - callees.get(a).length);
  const order = [];
  const state = new Map();
  const backwards = new Set();
  const visit = (root) => {
    const stack = [[root, 0]];
    state.set(root, "open");
    while (stack.length > 0) {
      const top = stack[stack.length - 1];
      const next = callees.get(top[0])[top[1]];
      if (next === undefined) {
        state.set(top[0], "done");
        order.unshift(top[0]);
        stack.pop();
        continue;
      }
      top[1] += 1;
      if (state.get(next) === "open") backwards.add(`${top[0]}|${next}`);
      if (state.has(next)) continue;
      state.set(next, "open");
      stack.push([next, 0]);
    }
  };
  for (const root of roots) if (!state.has(root)) visit(root);
  const longest = new Map(ids.map((id) => [id, 0]));
  for (const id of order) {
    for (const next of callees.get(id)) {
      if (!backwards.has(`${id}|${next}`)) longest.set(next, Math.max(longest.get(next), longest.get(id) + 1));
    }
  }
  // Who is not called stands beside those who call the same.
  for (const id of order) {
    const next = callees.get(id).map((callee) => longest.get(callee));
    if (callers.get(id) === 0 && next.length > 0) longest.set(id, Math.max(0, Math.min(...next) - 1));
  }
  const deepest = Math.max(0, ...longest.values());
  if (deepest < MAX_COLUMNS) return longest;
  return shortest(ids, callees, roots.filter((id) => callers.get(id) === 0 || id === roots[0]));
}

function shortest(ids, callees, roots) {
  const depths = new Map(roots.map((id) => [id, 0]));
  const queue = [...roots];
  for (const id of queue) {
    for (const next of callees.get(id)) {
      if (depths.has(next)) continue;
      depths.set(next, depths.get(id) + 1);
      queue.push(next);
    }
  }
  for (const id of ids) if (!depths.has(id)) depths.set(id, 0);
  return depths;
}
