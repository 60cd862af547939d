// Layout of the service dependency graph: dependencies are to the left of a service.  (pure)

export const BOX = { width: 190, height: 46 };
const GAP = { x: 64, y: 14 };
const EDGE = 4; // room for the focus ring

/**
 * `services`: [{service, status, dependsOn}]. Returns {width, height, boxes: [{service, status, x, y}], edges: [{from, to, path}]}.
 * A dependency without reports has the status null. A cycle, which other programs may report, is broken at some edge.
 */
export function layout(services) {
  const known = new Map(services.map((service) => [service.service, service]));
  for (const need of services.flatMap(({ dependsOn }) => dependsOn)) {
    if (!known.has(need)) known.set(need, { service: need, status: null, dependsOn: [] });
  }
  const columns = [];
  for (const [name, column] of depths(known)) (columns[column] ??= []).push(name);
  const row = new Map();
  for (const names of columns) {
    // Near its dependencies, so that few lines cross.
    const wish = (name) => mean(known.get(name).dependsOn.filter((need) => row.has(need)).map((need) => row.get(need)));
    names.sort((a, b) => wish(a) - wish(b) || a.localeCompare(b, "en", { numeric: true }));
    names.forEach((name, at) => row.set(name, at));
  }
  const boxes = columns.flatMap((names, column) => names.map((name) => ({
    service: name,
    status: known.get(name).status,
    x: EDGE + column * (BOX.width + GAP.x),
    y: EDGE + row.get(name) * (BOX.height + GAP.y),
  })));
  const at = new Map(boxes.map((box) => [box.service, box]));
  const edges = [...known.values()].flatMap(({ service, dependsOn }) => dependsOn.map((need) => ({ from: need, to: service, path: curve(at.get(need), at.get(service)) })));
  return {
    width: 2 * EDGE + Math.max(0, columns.length * (BOX.width + GAP.x) - GAP.x),
    height: 2 * EDGE + Math.max(0, ...columns.map(({ length }) => length * (BOX.height + GAP.y) - GAP.y)),
    boxes, edges,
  };
}

/** The length of the longest dependency chain of each service. */
function depths(known) {
  const found = new Map();
  const visit = (name, path) => {
    if (found.has(name)) return found.get(name);
    if (path.has(name)) return -1; // a cycle: treat it as without dependencies
    path.add(name);
    const depth = 1 + Math.max(-1, ...known.get(name).dependsOn.map((need) => visit(need, path)));
    path.delete(name);
    found.set(name, depth);
    return depth;
  };
  for (const name of [...known.keys()].sort()) visit(name, new Set());
  return found;
}

const mean = (values) => (values.length ? values.reduce((total, value) => total + value, 0) / values.length : 0);

function curve(from, to) {
  const [x1, y1, x2, y2] = [from.x + BOX.width, from.y + BOX.height / 2, to.x, to.y + BOX.height / 2];
  const bend = Math.max(GAP.x / 2, Math.abs(x2 - x1) / 2);
  return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
}
