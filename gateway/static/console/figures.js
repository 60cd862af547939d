// Summaries of the nodes' published figures: the state of each node, of all nodes, and the last ten minutes.  (pure)
//
// Times are ms since 1970 by the nodes' clocks. `now` is an argument, because this page's clock may differ.

import { duration, listed, some } from "./format.js";

export const TOPIC = "gateway:figures";
export const WINDOW_MS = 600_000;
const STEP_MS = 5_000; // of the series
const SILENT_MS = 13_000; // two reports are missing
const SHOWN_MS = 120_000; // how long to show a node that has left

export class Figures {
  #nodes = new Map(); // id -> {last, points}, points by time
  #lead = null; // minimum lead of this page's clock over the nodes'

  /** Add a report: a message of the topic. `receivedMs`: this page's time, for a live message. False for a known one. */
  add({ data, timestamp }, receivedMs = null) {
    const at = Date.parse(timestamp);
    if (!data?.id || !data.rates || Number.isNaN(at)) return false;
    if (receivedMs !== null) this.#lead = Math.min(this.#lead ?? Infinity, receivedMs - at);
    if (!this.#nodes.has(data.id)) this.#nodes.set(data.id, { last: { at: -Infinity }, points: [] });
    const node = this.#nodes.get(data.id);
    if (node.points.some((point) => point.at === at)) return false; // already known: history and live messages overlap
    const from = at - data.seconds * 1000;
    node.points.push({ at, from, delivered: data.rates.delivered, delay: data.delays.relay?.p99 ?? null });
    node.points.sort((a, b) => a.at - b.at);
    if (at > node.last.at) node.last = { ...data, at };
    return true;
  }

  /** Convert this page's time to the nodes' time. */
  time(pageMs) {
    return pageMs - (this.#lead ?? 0);
  }

  /** Drop reports older than the window. */
  forget(now) {
    for (const [id, node] of this.#nodes) {
      node.points = node.points.filter((point) => point.at > now - WINDOW_MS - STEP_MS);
      if (!node.points.length) this.#nodes.delete(id);
    }
  }

  clear() {
    this.#nodes.clear();
    this.#lead = null;
  }

  /** Each node's last figures with its `state` and for how many seconds it has been `silent`; by name. */
  nodes(now) {
    const all = [...this.#nodes.values()].map(({ last }) => {
      const quiet = now - last.at;
      return { ...last, state: stateOf(last, quiet), silent: quiet / 1000 };
    });
    const here = new Set(all.filter(({ state }) => !isGone(state)).map(({ name }) => name));
    return all
      .filter((node) => !isGone(node.state) || (!here.has(node.name) && (node.state === "silent" || node.silent * 1000 < SHOWN_MS)))
      .sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }) || a.started.localeCompare(b.started));
  }

  /** [{at, value}] over the window: messages delivered per second by all nodes; null without reports. */
  delivered(now) {
    return this.#series(now, (points) => sum(points.map((point) => point.delivered)));
  }

  /** [{at, value}] over the window: the slowest node's p99 from publish to delivery, ms; null without messages. */
  delay(now) {
    return this.#series(now, (points) => highest(points.map((point) => point.delay)));
  }

  #series(now, join) {
    const end = Math.floor(now / STEP_MS) * STEP_MS; // on a fixed grid, so that drawn values move but do not change
    const nodes = [...this.#nodes.values()];
    const series = [];
    for (let at = end - WINDOW_MS; at <= end; at += STEP_MS) {
      const points = nodes.map((node) => pointAt(node.points, at)).filter(Boolean);
      series.push({ at, value: points.length ? join(points) : null });
    }
    return series;
  }
}

/** The totals of all live nodes. */
export function together(nodes) {
  const here = nodes.filter(({ state }) => !isGone(state));
  const delays = (which, part) => highest(here.map((node) => node.delays[which]?.[part] ?? null));
  return {
    nodes: here.length,
    clients: sum(here.map((node) => node.clients)),
    received: sum(here.map((node) => node.rates.received)),
    delivered: sum(here.map((node) => node.rates.delivered)),
    relay: { p50: delays("relay", "p50"), p99: delays("relay", "p99") },
    loop: delays("loop", "p99"),
    redis: delays("redis", "p99"),
  };
}

/** Cache operations per second of all live nodes; null without live nodes. */
export function cached(nodes) {
  const here = nodes.filter(({ state, cache }) => !isGone(state) && cache);
  if (!here.length) return null;
  const names = Object.keys(here[0].cache);
  const all = Object.fromEntries(names.map((name) => [name, sum(here.map(({ cache }) => cache[name] ?? 0))]));
  return { ...all, asked: all.near + all.redis + all.stale + all.miss + all.unavailable };
}

/** The overall state in one sentence, with a level: good, warn, bad. `nodes`: the result of `Figures.nodes`. */
export function verdict(nodes) {
  const of = (...states) => nodes.filter(({ state }) => states.includes(state));
  const names = (found) => listed(found.map(({ name }) => name));
  const [silent, unready, leaving, moving] = [of("silent"), of("not ready"), of("draining"), of("moving")];
  const ready = of("ready", "moving").length;
  const rest = `${ready} of ${some(ready + silent.length + unready.length + leaving.length, "node")} ready`;
  if (!nodes.length) return { level: "none", says: "Waiting for the first figures…", about: "Each node reports every 5 s." };
  if (silent.length) {
    const longest = duration(Math.max(...silent.map((node) => node.silent)));
    return { level: "bad", says: `${names(silent)} ${is(silent)} silent`, about: `No figures for ${longest}; ${rest}.` };
  }
  if (unready.length) {
    const why = [...new Set(unready.flatMap((node) => node.reasons))].join("; ");
    return { level: ready ? "warn" : "bad", says: `${names(unready)} ${is(unready)} not ready`, about: `${why}; ${rest}.` };
  }
  if (leaving.length) return { level: "warn", says: `${names(leaving)} ${is(leaving)} draining`, about: `${rest}.` };
  if (!ready) return { level: "bad", says: "No node is running", about: "The last node has drained." };
  if (moving.length) return { level: "good", says: `${names(moving)} ${is(moving)} moving clients`, about: `${rest}.` };
  const freshest = Math.min(...nodes.map(({ silent: quiet }) => quiet));
  return { level: "good", says: ready === 1 ? "The only node is ready" : `All ${ready} nodes are ready`, about: `Last report ${duration(freshest)} ago.` };
}

const is = (several) => (several.length === 1 ? "is" : "are");
const isGone = (state) => state === "silent" || state === "left";
const sum = (values) => values.reduce((total, value) => total + value, 0);
const highest = (values) => values.reduce((most, value) => (value !== null && (most === null || value > most) ? value : most), null);

function stateOf(last, quiet) {
  if (quiet > SILENT_MS) return last.draining ? "left" : "silent"; // it announced its drain
  if (last.draining) return "draining";
  if (!last.ready) return "not ready";
  return last.moving ? "moving" : "ready";
}

/** The point that covers `at`; or the last one, while the next may still arrive. */
function pointAt(points, at) {
  const point = points.find((candidate) => candidate.at >= at);
  if (point) return point.from <= at + STEP_MS ? point : null;
  const last = points.at(-1);
  return last && at - last.at < SILENT_MS ? last : null;
}
