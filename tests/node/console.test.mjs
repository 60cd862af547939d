// The console's pure parts: what it computes from the nodes' figures.

import assert from "node:assert/strict";
import { test } from "node:test";
import { cached, Figures, together, verdict } from "../../gateway/static/console/figures.js";
import { layout } from "../../gateway/static/console/graph.js";
import { bytes, count, duration, listed, ms, rate, some } from "../../gateway/static/console/format.js";
import { parse, servers } from "../../gateway/static/console/haproxy.js";

const NOW = Date.parse("2026-01-31T12:00:00Z");

/** The figures that node `name` published `agoMs` before NOW. */
function report(name, agoMs, { boot = "b", delivered = 10, p99 = 4, ...more } = {}) {
  const data = {
    id: `${name}.${boot}`, name, started: `2026-01-31T11:0${boot.length}:00.000Z`, clients: 5, topics: 2, ready: true, draining: false,
    moving: false, reasons: [], seconds: 5, rates: { delivered, received: 1 }, delays: { relay: p99 === null ? null : { p50: 1, p99 }, loop: null, redis: null },
    ...more,
  };
  return { data, timestamp: new Date(NOW - agoMs).toISOString() };
}

function figures(...messages) {
  const made = new Figures();
  messages.forEach((message) => made.add(message));
  return made;
}

const states = (made, now = NOW) => made.nodes(now).map(({ name, state }) => `${name} ${state}`);

test("a node has the state of its last report, and is silent after two missing reports", () => {
  const made = figures(report("n2", 6_000), report("n1", 6_000, { ready: false, reasons: ["bus: x"] }), report("n1", 1_000), report("n10", 2_000));
  assert.deepEqual(states(made), ["n1 ready", "n2 ready", "n10 ready"]);
  assert.deepEqual(states(made, NOW + 11_500), ["n1 ready", "n2 silent", "n10 silent"]);
});

test("a node that drained is not silent, and disappears two minutes later", () => {
  const made = figures(report("n1", 1_000, { draining: true, ready: false }));
  assert.deepEqual(states(made), ["n1 draining"]);
  assert.deepEqual(states(made, NOW + 30_000), ["n1 left"]);
  assert.deepEqual(states(made, NOW + 130_000), []);
});

test("a restarted node replaces the old one with its name", () => {
  const made = figures(report("n1", 60_000), report("n1", 1_000, { boot: "bb" }));
  assert.deepEqual(states(made), ["n1 ready"]);
  assert.equal(made.nodes(NOW)[0].id, "n1.bb");
});

test("reports of history and live data may overlap, and expire after ten minutes", () => {
  const made = figures();
  assert.equal(made.add(report("n1", 0)), true);
  assert.equal(made.add(report("n1", 0)), false);
  assert.equal(made.add({ data: { other: 1 }, timestamp: "now" }), false);
  made.forget(NOW + 500_000);
  assert.equal(made.nodes(NOW).length, 1);
  made.forget(NOW + 700_000);
  assert.equal(made.nodes(NOW).length, 0);
});

test("deliveries of all nodes are added up, at any moment of the five seconds of each report", () => {
  const made = new Figures();
  for (let ago = 0; ago < 60_000; ago += 5_000) {
    made.add(report("n1", ago + 100, { delivered: 10 }));
    made.add(report("n2", ago + 3_700, { delivered: 32, p99: 9 }));
  }
  const last = made.delivered(NOW).slice(-11);
  assert.deepEqual([...new Set(last.map(({ value }) => value))], [42]);
  assert.equal(made.delay(NOW).at(-1).value, 9); // the slowest node's
  assert.equal(made.delivered(NOW)[0].value, null); // no report yet
  assert.equal(made.delivered(NOW).at(-1).at, NOW);
});

test("a time without deliveries has no delay, and a time without reports has no value", () => {
  const made = figures(report("n1", 300_000), report("n1", 0, { p99: null }));
  assert.equal(made.delay(NOW).at(-1).value, null);
  assert.equal(made.delivered(NOW).at(-1).value, 10);
  assert.equal(made.delivered(NOW).find(({ at }) => at === NOW - 100_000).value, null);
});

test("the nodes' clocks count, not the page's", () => {
  const made = figures();
  made.add(report("n1", 0), NOW + 90_000);
  made.add(report("n2", 0), NOW + 91_000);
  assert.equal(made.time(NOW + 95_000), NOW + 5_000);
});

test("the total has the sum of the counts and the slowest delay", () => {
  const all = together(figures(report("n1", 0), report("n2", 0, { p99: 7 }), report("n3", 60_000)).nodes(NOW));
  assert.deepEqual([all.nodes, all.clients, all.delivered, all.relay.p99, all.loop], [2, 10, 20, 7, null]);
  assert.equal(together([]).relay.p99, null);
});

test("the verdict names the worst state first", () => {
  const says = (...messages) => {
    const { level, says: text } = verdict(figures(...messages).nodes(NOW));
    return `${level}: ${text}`;
  };
  assert.equal(says(), "none: Waiting for the first figures…");
  assert.equal(says(report("n1", 0)), "good: The only node is ready");
  assert.equal(says(report("n1", 0), report("n2", 0)), "good: All 2 nodes are ready");
  assert.equal(says(report("n1", 0), report("n2", 0, { moving: true })), "good: n2 is moving clients");
  assert.equal(says(report("n1", 0), report("n2", 0, { draining: true })), "warn: n2 is draining");
  assert.equal(says(report("n1", 0), report("n2", 0, { ready: false, reasons: ["bus"] })), "warn: n2 is not ready");
  assert.equal(says(report("n1", 0, { ready: false, reasons: ["bus"] })), "bad: n1 is not ready");
  assert.equal(says(report("n1", 60_000), report("n2", 20_000), report("n3", 0, { draining: true })), "bad: n1 and n2 are silent");
  assert.equal(says(report("n1", 20_000, { draining: true })), "bad: No node is running");
  assert.match(verdict(figures(report("n1", 60_000), report("n2", 0)).nodes(NOW)).about, /^No figures for 1 min; 1 of 2 nodes ready\.$/);
});

test("figures are written with their units and a steady width", () => {
  assert.deepEqual([0, 999, 1234, 99_999, 100_000, 12_345_678].map(count), ["0", "999", "1,234", "99,999", "100k", "12M"]);
  assert.deepEqual([0, 0.6, 9.94, 10, 1500].map(rate), ["0", "0.6", "9.9", "10", "1,500"]);
  assert.deepEqual([null, undefined, 0, 0.42, 9.96, 999, 1234].map(ms), ["–", "–", "0 ms", "0.4 ms", "10 ms", "999 ms", "1.2 s"]);
  assert.deepEqual([0, 999, 1_500, 57_000_000, 2e9].map(bytes), ["0 B", "999 B", "1.5 kB", "57 MB", "2.0 GB"]);
  assert.deepEqual([-1, 59.9, 60, 3_725, 90_000].map(duration), ["0 s", "59 s", "1 min", "1 h 2 min", "1 d 1 h"]);
  assert.deepEqual([some(1, "node"), some(0, "node"), listed([]), listed(["a"]), listed(["a", "b", "c"])], ["1 node", "0 nodes", "", "a", "a, b and c"]);
});

test("HAProxy's servers are read from its statistics", () => {
  const rows = parse(
    "# pxname,svname,scur,smax,stot,status,lastchg,check_status,check_code,check_duration,addr,econ,eresp,wretr,wredis,desc,\n" +
      'gw,gw1,3,5,70,UP,61,L7OK,200,2,127.0.0.1:9001,1,2,3,4,"a, ""b""",\n' +
      "gw,gw2,0,0,0,DOWN 1/2,4,L4CON,,0,127.0.0.1:9002,0,0,0,0,,\n" +
      "gw,gw3,0,0,0,MAINT (resolution),4,,,,,,,,,,\ngw,gw4,0,0,0,MAINT,4,,,,192.0.2.1:9,,,,,,\ngw,BACKEND,0,0,0,UP,4,,,,,,,,,,\npublic,FRONTEND,0,0,0,OPEN,,,,,,,,,,,\n",
  );
  assert.equal(rows[0].desc, 'a, "b"');
  const [first, second, ...others] = servers(rows);
  assert.deepEqual(others, []);
  assert.deepEqual(first, {
    name: "gw1", address: "127.0.0.1:9001", status: "up", level: "good", check: "L7OK · 200 · 2 ms", current: 3, most: 5, total: 70,
    errors: 3, retries: 7, seconds: 61,
  });
  assert.deepEqual([second.status, second.level, second.check], ["down 1/2", "bad", "L4CON · 0 ms"]);
});

test("the cache's figures are the sum over the nodes that are not silent", () => {
  const cache = { near: 6, redis: 2, stale: 0, miss: 2, unavailable: 0, loads: 1, waits: 0, readBytes: 100, writtenBytes: 50 };
  const all = cached(figures(report("n1", 0, { cache }), report("n2", 0, { cache }), report("n3", 60_000, { cache })).nodes(NOW));
  assert.deepEqual([all.asked, all.near, all.loads], [20, 12, 2]);
  assert.equal(cached([]), null);
});

const service = (name, ...dependsOn) => ({ service: name, status: "active", dependsOn });
const placed = (services) => new Map(layout(services).boxes.map((box) => [box.service, box]));

test("a service stands to the right of its dependencies", () => {
  const at = placed([service("c", "b", "a"), service("b", "a"), service("a"), service("lone")]);
  assert.ok(at.get("a").x < at.get("b").x && at.get("b").x < at.get("c").x);
  assert.equal(at.get("lone").x, at.get("a").x);
  assert.notEqual(at.get("lone").y, at.get("a").y);
});

test("an unregistered dependency is drawn beside its dependents, and a cycle is drawn too", () => {
  const found = layout([service("a", "gone"), service("b", "c"), service("c", "b"), service("d", "d")]);
  assert.equal(found.boxes.find(({ service: name }) => name === "gone").status, null);
  assert.equal(found.boxes.length, 5);
  assert.equal(found.edges.length, 4);
  assert.ok(found.boxes.every(({ x, y }) => x + 190 <= found.width && y + 46 <= found.height));
  assert.deepEqual(layout([]), { width: 8, height: 8, boxes: [], edges: [] });
});

test("no two services have the same position", () => {
  const many = Array.from({ length: 60 }, (_, at) => service(`s${at}`, ...[at >> 1, at >> 2].filter((need) => need < at).map((need) => `s${need}`)));
  const { boxes } = layout(many);
  assert.equal(new Set(boxes.map(({ x, y }) => `${x} ${y}`)).size, 60);
});
