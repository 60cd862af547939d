// Background services: state, dependencies, dependants and instances.

import { $, facts, hide, state, table, write } from "../dom.js";
import { NONE, count, duration, listed, ms, some } from "../format.js";
import { BOX, layout } from "../graph.js";
import { svg } from "../svg.js";

const TOPIC = "service"; // each message contains all services
const LIST_MS = 5_000;
const SOON_MS = 200; // several changes arrive together
const LEVELS = { active: "good", starting: "warn", degraded: "warn", error: "bad", offline: "bad", stopped: "none", disabled: "none" };

export class Services {
  #session;
  #operator;
  #timer = null;
  #soon = null;
  #subscription = null;
  #services = [];
  #chosen = ""; // a service's name
  #shown = null; // the service to which the graph was scrolled

  constructor(session, operator) {
    this.#session = session;
    this.#operator = operator;
    $("remove-service").addEventListener("click", () => this.#remove());
    session.addEventListener("who", () => {
      if ($("services").hidden) return;
      this.#services = [];
      this.#listen();
      this.#read();
    });
  }

  /** `name`: the service that the address names, or "". */
  show(name) {
    this.#chosen = name;
    this.leave();
    this.#timer = setInterval(() => this.#read(), LIST_MS);
    this.#listen();
    this.#read();
  }

  leave() {
    clearInterval(this.#timer);
    clearTimeout(this.#soon);
    this.#subscription?.close();
  }

  #listen() {
    this.#subscription?.close();
    this.#subscription = this.#session.gateway.subscribe(TOPIC, { onData: ({ data }) => this.#onMessage(data) });
  }

  /** The topic gives a short summary at once; the API gives the full records a moment later. */
  #onMessage({ services }) {
    if (!this.#session.signedIn) return this.#draw(services.map((service) => ({ ...service, instances: [] })));
    clearTimeout(this.#soon);
    this.#soon = setTimeout(() => this.#read(), SOON_MS);
  }

  async #read() {
    if (!this.#session.signedIn) return this.#services.length || this.#draw([], "Only administrators can see services: sign in.");
    try {
      const { services } = await this.#session.api("GET", "/api/services");
      this.#draw(services, services.length ? "" : "No service has reported yet.");
    } catch (error) {
      this.#draw(this.#services, error.message);
    }
  }

  #draw(services, empty = "") {
    this.#services = services;
    const bad = services.filter(({ status }) => LEVELS[status] === "bad").map(({ service }) => service);
    write($("services-count"), services.length ? `${some(services.length, "service")}${bad.length ? `; ${listed(bad)} in trouble` : ""}` : "");
    write($("services-empty"), empty);
    this.#drawGraph(services);
    this.#drawOne(services.find(({ service }) => service === this.#chosen));
  }

  #drawGraph(services) {
    const { width, height, boxes, edges } = layout(services);
    const drawn = JSON.stringify([boxes, this.#chosen]);
    if ($("graph").dataset.drawn === drawn) return; // a redrawn link would lose the focus
    const focused = document.activeElement?.closest?.("#graph a")?.getAttribute("href");
    $("graph").dataset.drawn = drawn;
    hide($("graph"), !boxes.length);
    const related = (edge) => edge.from === this.#chosen || edge.to === this.#chosen;
    const lines = edges.map((edge) => svg("path", { class: related(edge) ? "edge chosen" : "edge", d: edge.path }));
    const links = boxes.map(({ service, status, x, y }) => {
      const word = status ?? "no reports";
      return svg("a", {
        href: `#services/${service}`, "aria-label": `${service}: ${word}`, "data-level": LEVELS[status] ?? "none",
        ...(service === this.#chosen && { "aria-current": "true" }),
      },
      svg("title", {}, service),
      svg("rect", { x, y, width: BOX.width, height: BOX.height, rx: 8 }),
      svg("circle", { cx: x + 16, cy: y + 31, r: 4.5 }),
      svg("text", { class: "name", x: x + 10, y: y + 19 }, service.length > 26 ? `${service.slice(0, 25)}…` : service),
      svg("text", { class: "status", x: x + 26, y: y + 35 }, word));
    });
    $("graph").replaceChildren(svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` }, ...lines, ...links));
    const chosen = boxes.find(({ service }) => service === this.#chosen);
    if (chosen && this.#shown !== this.#chosen) $("graph").scrollLeft = chosen.x - ($("graph").clientWidth - BOX.width) / 2;
    this.#shown = chosen?.service;
    if (focused) $("graph").querySelector(`a[href="${focused}"]`)?.focus();
  }

  #drawOne(service) {
    hide($("service"), !service);
    if (!service) return;
    const { service: name, status, running, instances, dependsOn, lastError } = service;
    const needed = this.#services.filter((other) => other.dependsOn.includes(name)).map((other) => other.service);
    write($("service-title"), name);
    facts($("service-facts"), [
      ["State", status], ["Running", `${some(running ?? 0, "instance")} of ${count(instances.length)}`],
      ["Depends on", listed(dependsOn) || "none"], ["Required by", listed(needed) || "none"], ["Last error", lastError ?? "none"],
    ]);
    table($("instances").tBodies[0], instances, ({ instance }) => instance, [
      ["Instance", "name", ({ instance }) => instance],
      ["State", "state", (one, cell) => state(cell, wordOf(one), LEVELS[one.status])],
      ["Operations", "n", ({ stats }) => (stats?.operations === undefined ? NONE : count(stats.operations))],
      ["Failures", "n", ({ stats }) => (stats?.failures === undefined ? NONE : count(stats.failures))],
      ["p99", "n", ({ stats }) => ms(stats?.p99Ms)],
      ["Breaker", "", ({ stats }) => stats?.breaker ?? NONE],
      ["Last check", "", ({ lastCheck }) => (lastCheck ? `${duration((Date.now() - Date.parse(lastCheck)) / 1000)} ago` : NONE)],
      ["Last error", "", ({ lastError: error }) => error ?? NONE],
    ]);
  }

  async #remove() {
    const name = this.#chosen;
    const about = "All its records are removed. A running instance reports it again.";
    if (!(await this.#operator.confirms(`Remove ${name}?`, about, "Remove"))) return;
    await this.#operator.acts(`${name} is removed.`, () => this.#session.api("DELETE", `/api/services/${name}`));
    await this.#read();
  }
}

function wordOf({ status, singleton, standby, running, token, waitsFor }) {
  if (waitsFor) return `${status}, waits for ${waitsFor}`;
  if (standby) return `${status}, stands by`;
  return singleton && running ? `${status}, leads${token === undefined ? "" : ` (token ${token})`}` : status;
}
