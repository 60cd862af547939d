// Overview: the overall state, figures of all nodes and of each, and the load balancer's view.

import { Chart } from "../chart.js";
import { $, h, hide, state, table, tiles, write } from "../dom.js";
import { together, verdict } from "../figures.js";
import { NONE, bytes, count, duration, listed, ms, percent, rate, some } from "../format.js";
import { parse, servers } from "../haproxy.js";

const BALANCER_MS = 3_000;
const STATUS_MS = 5_000;
const LEVELS = { ready: "good", moving: "good", draining: "warn", "not ready": "warn", silent: "bad", left: "none" };

export class Overview {
  #session;
  #operator;
  #charts;
  #timers = [];

  /** `operator`: confirms actions and shows their results. */
  constructor(session, operator) {
    this.#session = session;
    this.#operator = operator;
    this.#charts = [
      new Chart($("rate"), { title: "Messages delivered, all nodes", write: (value) => `${rate(value)}/s`, least: 10 }),
      new Chart($("delay"), { title: "p99 from publish to delivery, slowest node", write: ms, least: 5 }),
    ];
    session.addEventListener("figures", () => {
      this.draw();
      if (session.access === "refused") this.#status();
    });
    for (const type of ["who", "may"]) session.addEventListener(type, () => this.draw());
    $("rebalance").addEventListener("click", () => this.#rebalance());
    $("nodes").addEventListener("click", ({ target }) => target.dataset.drain && this.#drain(target.dataset));
  }

  show() {
    this.draw();
    this.#balancer();
    this.#status();
    this.#timers = [
      setInterval(() => this.draw(), 1_000), setInterval(() => this.#balancer(), BALANCER_MS), setInterval(() => this.#status(), STATUS_MS),
    ];
  }

  leave() {
    this.#timers.forEach(clearInterval);
  }

  draw() {
    if ($("overview").hidden) return;
    const { figures, access } = this.#session;
    const now = figures.time(Date.now());
    figures.forget(now);
    const nodes = figures.nodes(now);
    const isPublic = access === "refused" && !nodes.length;
    hide($("charts"), isPublic);
    hide($("rebalance"), isPublic);
    if (isPublic) return this.#drawPublic();
    const { level, says, about } = verdict(nodes);
    this.#show(level, says, about);
    this.#tiles(nodes);
    this.#nodes(nodes);
    this.#charts[0].show(figures.delivered(now));
    this.#charts[1].show(figures.delay(now));
  }

  #show(level, says, about) {
    $("overview").dataset.level = level;
    write($("verdict"), says);
    write($("verdict-about"), about);
  }

  #tiles(nodes) {
    const all = together(nodes);
    tiles($("tiles"), [
      ["Clients", count(all.clients), "", `on ${some(all.nodes, "node")}`],
      ["Delivered", rate(all.delivered), "/s", "messages to clients"],
      ["Received", rate(all.received), "/s", "messages from clients"],
      ["Delay p99", ...split(ms(all.relay.p99)), `publish to delivery; half within ${ms(all.relay.p50)}`],
      ["Loop lag p99", ...split(ms(all.loop)), "slowest node"],
      ["Redis p99", ...split(ms(all.redis)), "round trip, slowest node"],
    ]);
  }

  #nodes(nodes) {
    hide($("nodes-empty"), nodes.length > 0);
    write($("nodes-empty"), "No node has reported figures yet.");
    hide($("nodes"), !nodes.length);
    const most = Math.max(1, ...nodes.map(({ clients }) => clients));
    const gone = ({ state: now }) => now === "silent" || now === "left";
    const unless = (figure) => (node) => (gone(node) ? NONE : figure(node));
    table($("nodes").tBodies[0], nodes, ({ id }) => id, [
      ["Node", "name", (node, cell) => {
        cell.title = `${node.id}, version ${node.version}, ${node.address}`;
        return node.name;
      }],
      ["State", "state", (node, cell) => state(cell, wordOf(node), LEVELS[node.state])],
      ["Clients", "n bar", (node, cell) => {
        cell.style.setProperty("--part", gone(node) ? 0 : node.clients / most);
        return gone(node) ? NONE : count(node.clients);
      }],
      ["Topics", "n", unless(({ topics }) => count(topics))],
      ["In", "n", unless(({ rates }) => `${rate(rates.received)}/s`)],
      ["Out", "n", unless(({ rates }) => `${rate(rates.delivered)}/s`)],
      ["Relay p99", "n", unless(({ delays }) => ms(delays.relay?.p99))],
      ["Loop p99", "n", unless(({ delays }) => ms(delays.loop?.p99))],
      ["CPU", "n", unless(({ cpu }) => percent(cpu))],
      ["Memory", "n", unless(({ memoryBytes }) => bytes(memoryBytes))],
      ["Up", "", unless((node) => duration((node.at - Date.parse(node.started)) / 1000))],
      ["", "act", (node, cell) => {
        const button = cell.firstElementChild ?? cell.appendChild(h("button", { type: "button", textContent: "Drain…" }));
        Object.assign(button.dataset, { drain: node.id, name: node.name, clients: node.clients });
        button.setAttribute("aria-label", `Drain ${node.name}`);
        hide(button, gone(node));
        button.title = this.#session.forbids("admin");
        button.disabled = Boolean(button.title) || node.draining;
      }],
    ]);
  }

  // ---- without a credential

  #drawPublic() {
    hide($("nodes"), true);
    hide($("nodes-empty"), false);
    write($("nodes-empty"), "Only administrators can see the nodes' figures.");
  }

  async #status() {
    const { gateway, access } = this.#session;
    if ($("overview").hidden || access !== "refused" || gateway.state === "closed") return;
    const status = await gateway.request("system", "getStatus").catch(() => null);
    if (!status || this.#session.access !== "refused") return;
    const healthy = status.status === "ok";
    this.#show(healthy ? "good" : "warn", `Node ${status.node} ${healthy ? "is healthy" : `reports: ${status.status}`}`, "Public status of the node that serves this page.");
    tiles($("tiles"), [
      ["Clients", count(status.clients), "", `on ${status.node}`],
      ["Topics", count(status.topics), "", "with local subscribers"],
      ["Up", duration(status.uptimeSeconds), "", `version ${status.version}`],
    ]);
  }

  // ---- the load balancer's view, from its own statistics on the same port

  async #balancer() {
    let found = null;
    try {
      const answer = await fetch("/stats;csv", { signal: AbortSignal.timeout(5_000), credentials: "omit" });
      if (answer.ok) found = servers(parse(await answer.text()));
    } catch {
      // below
    }
    hide($("servers"), !found?.length);
    hide($("servers-empty"), Boolean(found?.length));
    if (!found) {
      write($("servers-empty"), "HAProxy's statistics are not available here: open the console on its internal port (8404).");
      return write($("servers-about"), "");
    }
    write($("servers-empty"), "HAProxy has no servers.");
    const up = found.filter(({ level }) => level === "good").length;
    write($("servers-about"), `${up} of ${found.length} up`);
    const names = new Map(this.#session.figures.nodes(Date.now()).map(({ address, name }) => [address, name]));
    table($("servers").tBodies[0], found, ({ name }) => name, [
      ["Server", "name", ({ name, address }) => (names.has(address) ? `${name} · ${names.get(address)}` : address ? `${name} · ${address}` : name)],
      ["State", "state", ({ status, level }, cell) => state(cell, status, level)],
      ["Check", "", ({ check }) => check],
      ["Sockets", "n", ({ current }) => count(current)],
      ["Max", "n", ({ most }) => count(most)],
      ["Total", "n", ({ total }) => count(total)],
      ["Errors", "n", ({ errors }) => count(errors)],
      ["Retries", "n", ({ retries }) => count(retries)],
      ["In this state", "", ({ seconds }) => duration(seconds)],
    ]);
  }

  // ---- actions

  async #drain({ drain, name, clients }) {
    const about = `It accepts no new clients, closes its ${some(Number(clients), "client")} a few at a time so that they reconnect to other nodes, and exits. Its supervisor restarts it.`;
    if (!(await this.#operator.confirms(`Drain ${name}?`, about, `Drain ${name}`))) return;
    await this.#operator.acts(`${name} starts to drain.`, () => this.#session.api("POST", `/api/nodes/${encodeURIComponent(drain)}/drain`));
  }

  async #rebalance() {
    const about = "Nodes with more clients than the mean move their surplus to other nodes, spread over this time. Clients reconnect by themselves.";
    const seconds = await this.#operator.confirms("Rebalance the clients?", about, "Rebalance", 60);
    if (seconds === null) return;
    const done = ({ moves, after }) => {
      if (!moves.length) return "The clients are already spread evenly: no client moves.";
      const from = moves.map(({ node, clients }) => `${node.replace(/\.[^.]*$/, "")} moves ${some(clients, "client")}`);
      return `${listed(from)}${after ? `, starting in ${duration(after)}` : ""}.`;
    };
    await this.#operator.acts(done, () => this.#session.api("POST", "/api/rebalance", { seconds }));
  }
}

const wordOf = ({ state: word, silent, reasons }) => {
  if (word === "silent") return `silent for ${duration(silent)}`;
  return word === "not ready" ? `not ready: ${reasons.join("; ")}` : word === "moving" ? "ready, moving clients" : word;
};

/** Split a figure from its unit. */
function split(text) {
  const at = text.lastIndexOf(" ");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}
