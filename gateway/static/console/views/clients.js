// Clients: search, details, unsubscribe from a topic, disconnect.

import { $, each, facts, h, hide, onSubmit, table, write } from "../dom.js";
import { count, duration, some } from "../format.js";
import { hashOf } from "./topics.js";

const PAGE = 100;

const since = (time) => duration((Date.now() - Date.parse(time)) / 1000);

export class Clients {
  #session;
  #operator;
  #found = [];
  #next = null; // cursor of the next page
  #query = {};
  #client = null; // the selected client
  #asked = 0; // number of the last request; older answers are ignored

  constructor(session, operator) {
    this.#session = session;
    this.#operator = operator;
    onSubmit($("find-client"), () => {
      const [by, text] = [$("find-by").value, $("find-text").value.trim()];
      const hash = `#clients${text ? `?${new URLSearchParams({ [by]: text })}` : ""}`;
      if (location.hash === hash) this.show(hash.split("?")[1] ?? "");
      else location.hash = hash;
    });
    $("clients-more").addEventListener("click", () => this.#read(this.#next));
    $("disconnect").addEventListener("click", () => this.#disconnect());
    $("disconnect-user").addEventListener("click", () => this.#disconnectUser());
    session.addEventListener("who", () => !$("clients").hidden && this.#find());
  }

  /** `query`: the search in the address, such as "user=ann". */
  show(query) {
    this.#query = Object.fromEntries(new URLSearchParams(query));
    const [by = "user", text = ""] = Object.entries(this.#query)[0] ?? [];
    $("find-by").value = by;
    $("find-text").value = text;
    this.#find();
  }

  leave() {}

  async #find() {
    this.#found = [];
    this.#next = null;
    this.#choose(null);
    if (!this.#session.signedIn) return this.#draw("Only administrators can list clients: sign in.");
    if (!this.#query.id) return this.#read(null);
    const asked = ++this.#asked;
    try {
      const client = await this.#session.api("GET", `/api/clients/${encodeURIComponent(this.#query.id)}`);
      if (asked !== this.#asked) return;
      this.#found = [client];
      this.#draw();
      this.#choose(client);
    } catch (error) {
      if (asked === this.#asked) this.#draw(error.message);
    }
  }

  async #read(cursor) {
    const asked = ++this.#asked;
    try {
      const query = new URLSearchParams({ ...this.#query, limit: PAGE, ...(cursor && { cursor }) });
      const page = await this.#session.api("GET", `/api/clients?${query}`);
      if (asked !== this.#asked) return;
      this.#found.push(...page.clients);
      this.#next = page.next;
      this.#draw(this.#found.length ? "" : "No connected client matches.");
    } catch (error) {
      if (asked === this.#asked) this.#draw(error.message);
    }
  }

  #draw(empty = "") {
    write($("clients-empty"), empty);
    write($("clients-count"), this.#found.length ? `${some(this.#found.length, "client")}${this.#next ? ", and more" : ""}` : "");
    hide($("clients-more"), !this.#next);
    hide($("client-list"), !this.#found.length);
    table($("client-list").tBodies[0], this.#found, ({ id }) => id, [
      ["Client", "name", (client, cell, row) => {
        const button = cell.firstElementChild ?? cell.appendChild(h("button", { type: "button", className: "quiet code" }));
        write(button, client.id);
        button.onclick = () => this.#look(client.id);
        row.dataset.chosen = client.id === this.#client?.id;
      }],
      ["User", "", ({ user, role }) => (user ? `${user}${role && role !== "user" ? ` (${role})` : ""}` : "–")],
      ["Address", "code", ({ ip }) => ip],
      ["Topics", "n", ({ topics }) => count(topics.length)],
      ["Connected for", "", ({ connectedAt }) => since(connectedAt)],
    ]);
  }

  async #look(id) {
    try {
      this.#choose(await this.#session.api("GET", `/api/clients/${encodeURIComponent(id)}`));
    } catch (error) {
      this.#operator.notify(error.message, "bad");
      if (error.status === 404) this.#remove(({ id: other }) => other === id);
    }
  }

  #choose(client) {
    this.#client = client;
    write($("client-title"), client ? client.id : "No client is selected");
    facts($("client-facts"), client ? [
      ["User", client.user ?? "anonymous"], ["Role", client.role ?? "–"], ["Node", client.node],
      ["Address", client.ip], ["Connected", `${since(client.connectedAt)} ago, ${new Date(client.connectedAt).toLocaleString()}`],
      ["Program", client.userAgent || "–"],
      ["Transport", client.transport],
    ] : []);
    hide($("client-acts"), !client);
    hide($("disconnect-user"), !client?.user);
    hide($("client-topics-title"), !client);
    write($("client-topics-title"), client ? `Subscribed to ${some(client.topics.length, "topic")}` : "");
    const why = this.#session.forbids("admin");
    const make = (topic) => {
      const button = h("button", { type: "button", className: "quiet", textContent: "Unsubscribe…", onclick: () => this.#unsubscribe(topic) });
      Object.assign(button, { title: why, disabled: Boolean(why) }).dataset.scope = "admin";
      return h("li", {}, h("a", { href: hashOf(topic), className: "code", textContent: topic }), button);
    };
    each($("client-topics"), client?.topics ?? [], (topic) => topic, make, () => {});
    for (const row of $("client-list").tBodies[0].rows) row.dataset.chosen = row.dataset.key === client?.id;
  }

  #remove(gone) {
    this.#found = this.#found.filter((client) => !gone(client));
    this.#draw(this.#found.length ? "" : "No matching client is left.");
    if (this.#client && gone(this.#client)) this.#choose(null);
  }

  // ---- actions

  async #unsubscribe(topic) {
    const { id } = this.#client;
    if (!(await this.#operator.confirms(`Unsubscribe this client from ${topic}?`, `${id} is notified, and receives no more messages on it unless it subscribes again.`, "Unsubscribe"))) return;
    const path = `/api/clients/${encodeURIComponent(id)}/topics/${encodeURIComponent(topic)}`;
    if (!(await this.#operator.acts(`${id} is unsubscribed from ${topic}.`, () => this.#session.api("DELETE", path)))) return;
    if (this.#client?.id === id) this.#choose({ ...this.#client, topics: this.#client.topics.filter((name) => name !== topic) });
  }

  async #disconnect() {
    const { id } = this.#client;
    if (!(await this.#operator.confirms("Disconnect this client?", `The node closes the socket of ${id} with 3503, which asks it not to reconnect.`, "Disconnect"))) return;
    if (await this.#operator.acts(`${id} is disconnected.`, () => this.#session.api("DELETE", `/api/clients/${encodeURIComponent(id)}`))) {
      this.#remove((client) => client.id === id);
    }
  }

  async #disconnectUser() {
    const { user } = this.#client;
    if (!(await this.#operator.confirms(`Disconnect ${user} everywhere?`, "All nodes close the sockets of this user with 3503, which asks the clients not to reconnect.", "Disconnect all"))) return;
    const done = ({ disconnected }) => `${some(disconnected.length, "client")} of ${user} ${disconnected.length === 1 ? "is" : "are"} disconnected.`;
    if (await this.#operator.acts(done, () => this.#session.api("DELETE", `/api/users/${encodeURIComponent(user)}/clients`))) {
      this.#remove((client) => client.user === user);
    }
  }
}
