// How it is: the verdict, the figures of all nodes together and of each, and what the load balancer thinks of them.

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

  /** `operator`: by whom what is done here is confirmed, and to whom it is told how it went. */
  constructor(session, operator) {
    this.#session = session;
    this.#operator = operator;
    this.#charts = [
      new Chart($("rate"), { title: "Messages delivered, all nodes", write: (value) => `${rate(value)}/s`, least: 10 }),
      new Chart($("delay"), { title: "p99 from publish to delivery, slowest node", write: ms, least: 5 }),
    ];
    session.addEventListener("figures", () => {
      this.draw();
      if (session.hears === "refused") this.#status();
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
    const { figures, hears } = this.#session;
    const now = figures.time(Date.now());
    figures.forget(now);
    const nodes = figures.nodes(now);
    const isPublic = hears === "refused" && !nodes.length;
    hide($("charts"), isPublic);
    hide($("rebalance"), isPublic);
    if (isPublic) return this.#drawPublic();
    const { level, says, about } = verdict(nodes);
    this.#say(level, says, about);
    this.#tiles(nodes);
    this.#nodes(nodes);
    this.#charts[0].show(figures.delivered(now));
    this.#charts[1].show(figures.delay(now));
  }

  #say(level, says, about) {
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
      ["Redis p99", ...split(ms(all.redis)), "there and back, slowest node"],
    ]);
  }

  #nodes(nodes) {
    hide($("nodes-empty"), nodes.length > 0);
    write($("nodes-empty"), "No node has told its figures yet.");
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
    write($("nodes-empty"), "The nodes tell their figures to administrators alone.");
  }

  async #status() {
    const { gateway, hears } = this.#session;
    if ($("overview").hidden || hears !== "refused" || gateway.state === "closed") return;
    const status = await gateway.request("system", "getStatus").catch(() => null);
    if (!status || this.#session.hears !== "refused") return;
    const well = status.status === "ok";
    this.#say(well ? "good" : "warn", `Node ${status.node} ${well ? "is well" : `says: ${status.status}`}`, "What any client may ask of the node that serves this page.");
    tiles($("tiles"), [
      ["Clients", count(status.clients), "", `on ${status.node}`],
      ["Topics", count(status.topics), "", "that its clients hear"],
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
      write($("servers-empty"), "HAProxy's statistics are not here: open the console at its internal port (8404).");
      return write($("servers-about"), "");
    }
    write($("servers-empty"), "HAProxy knows no server.");
    const up = found.filter(({ level }) => level === "good").length;
    write($("servers-about"), `${up} of ${found.length} up`);
    const names = new Map(this.#session.figures.nodes(Date.now()).map(({ address, name }) => [address, name]));
    table($("servers").tBodies[0], found, ({ name }) => name, [
      ["Server", "name", ({ name, address }) => (names.has(address) ? `${name} · ${names.get(address)}` : address ? `${name} · ${address}` : name)],
      ["State", "state", ({ status, level }, cell) => state(cell, status, level)],
      ["Check", "", ({ check }) => check],
      ["Sockets", "n", ({ current }) => count(current)],
      ["Most", "n", ({ most }) => count(most)],
      ["Ever", "n", ({ total }) => count(total)],
      ["Errors", "n", ({ errors }) => count(errors)],
      ["Retries", "n", ({ retries }) => count(retries)],
      ["In this state", "", ({ seconds }) => duration(seconds)],
    ]);
  }

  // ---- what is done here

  async #drain({ drain, name, clients }) {
    const about = `It takes no new clients, sends its ${some(Number(clients), "client")} to other nodes a few at a time, and ends. Its supervisor starts it again.`;
    if (!(await this.#operator.confirms(`Drain ${name}?`, about, `Drain ${name}`))) return;
    await this.#operator.acts(`${name} has been told to drain.`, () => this.#session.api("POST", `/api/nodes/${encodeURIComponent(drain)}/drain`));
  }

  async #rebalance() {
    const about = "Nodes above the mean send their surplus to those below it, spread over this time. Clients reconnect by themselves.";
    const seconds = await this.#operator.confirms("Rebalance the clients?", about, "Rebalance", 60);
    if (seconds === null) return;
    const said = ({ moves, after }) => {
      if (!moves.length) return "The clients are spread evenly already: nothing moves.";
      const from = moves.map(({ node, clients }) => `${node.replace(/\.[^.]*$/, "")} gives ${some(clients, "client")}`);
      return `${listed(from)} away${after ? `, from ${duration(after)} on` : ""}.`;
    };
    await this.#operator.acts(said, () => this.#session.api("POST", "/api/rebalance", { seconds }));
  }
}

const wordOf = ({ state: word, silent, reasons }) => {
  if (word === "silent") return `silent for ${duration(silent)}`;
  return word === "not ready" ? `not ready: ${reasons.join("; ")}` : word === "moving" ? "ready, giving clients away" : word;
};

/** A figure and its unit, apart. */
function split(text) {
  const at = text.lastIndexOf(" ");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}
