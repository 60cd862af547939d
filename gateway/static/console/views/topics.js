// Topics: subscribers, members, history and live messages; and a form to publish.

import { $, each, facts, h, hide, onSubmit, write } from "../dom.js";
import { count, listed, some } from "../format.js";

const LIST_MS = 5_000;
const LISTED = 500; // topics; use the filter for others
const TYPING_MS = 200; // delay between the last key and the API request
const KEPT = 200; // messages shown
const PAST = 50; // of these from the history
const SHOWN_CHARACTERS = 2_000; // of one message
const NO_PERMISSION = new Set([4010, 4012, 4403]); // the socket's user has no permission
/** The address of a topic in the console. The browser encodes what else a fragment cannot hold. */
export const hashOf = (topic) => `#topics/${topic.replaceAll("%", "%25")}`;

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch { // a lone %, typed by hand
    return "";
  }
}

const TOPIC = /^[!-)+-z|~]{1,200}$/;

export class Topics {
  #session;
  #operator;
  #timer = null;
  #topics = []; // the first topics that match the filter
  #more = false; // more topics match
  #typing = null;
  #open = null; // {topic, subscription}
  #messages = []; // newest first
  #seen = new Set(); // positions of the messages: history and live messages overlap
  #lastKey = 0;
  #held = null; // while paused: the number of new messages

  constructor(session, operator) {
    this.#session = session;
    this.#operator = operator;
    $("topic-name").addEventListener("input", () => {
      clearTimeout(this.#typing);
      this.#typing = setTimeout(() => this.#list(), TYPING_MS);
      this.#drawList();
    });
    onSubmit($("find-topic"), () => (location.hash = hashOf($("topic-name").value)));
    onSubmit($("publish"), () => this.#publish());
    $("publish-to").addEventListener("change", ({ target }) => {
      $("publish-whom").disabled = !target.value;
      $("publish-whom").required = Boolean(target.value);
      if (!target.value) $("publish-whom").value = "";
    });
    $("topic-pause").addEventListener("click", () => this.#pause());
    session.addEventListener("who", () => {
      if ($("topics").hidden) return;
      this.#list();
      if (this.#open) this.#listen(this.#open.topic);
    });
  }

  /** `text`: the topic in the address, percent-encoded, or "". */
  show(text) {
    const topic = decoded(text);
    this.#list();
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#refresh(), LIST_MS);
    if (TOPIC.test(topic)) this.#listen(topic);
    else this.#close();
  }

  leave() {
    clearInterval(this.#timer);
    clearTimeout(this.#typing);
    this.#close();
  }

  // ---- the list

  #refresh() {
    this.#list();
    if (this.#open) this.#facts(this.#open);
  }

  async #list() {
    if (!this.#session.signedIn) {
      this.#topics = [];
      this.#drawList("Only administrators can list topics. You can open a topic by its name.");
      return;
    }
    const contains = $("topic-name").value.slice(0, 200);
    try {
      const found = await this.#session.api("GET", `/api/topics?${new URLSearchParams({ limit: LISTED, ...(contains && { contains }) })}`);
      if (contains !== $("topic-name").value.slice(0, 200)) return; // the filter has changed, and another request follows
      this.#topics = found.topics;
      this.#more = found.next !== null;
      this.#drawList(this.#topics.length || contains ? "" : "No topic has subscribers at the moment.");
    } catch (error) {
      this.#drawList(error.message);
    }
  }

  #drawList(empty = "") {
    const wanted = $("topic-name").value;
    const found = this.#topics.filter(({ topic }) => topic.includes(wanted));
    found.sort((a, b) => b.subscribers - a.subscribers || a.topic.localeCompare(b.topic, "en", { numeric: true }));
    write($("topics-count"), this.#topics.length ? some(this.#topics.length, "topic") + (this.#more ? " and more" : "") : "");
    const rest = this.#more ? "There are more topics: use the filter." : "";
    const none = wanted && !found.length ? `No topic with subscribers has “${wanted}” in its name; Open shows it anyway.` : "";
    write($("topics-empty"), empty || rest || none);
    const make = ({ topic }) => h("li", {}, h("a", { href: hashOf(topic) }, h("span", { className: "code", textContent: topic }), h("b")));
    each($("topic-list"), found, ({ topic }) => topic, make, (item, { topic, subscribers }) => {
      write(item.firstChild.lastChild, count(subscribers));
      item.firstChild.lastChild.title = some(subscribers, "subscriber");
      if (topic === this.#open?.topic) item.firstChild.setAttribute("aria-current", "true");
      else item.firstChild.removeAttribute("aria-current");
    });
  }

  // ---- the open topic

  async #listen(topic) {
    this.#close();
    const open = (this.#open = { topic, subscription: null, history: false });
    write($("topic-title"), topic);
    $("publish-topic").value = topic;
    this.#show("Subscribing…");
    const { gateway } = this.#session;
    await this.#past(open); // first, so that live messages come after the history
    if (open !== this.#open) return;
    open.subscription = gateway.subscribe(topic, {
      onData: (message) => this.#add(open, [message]),
      onPresence: () => this.#facts(open),
      onGap: ({ reason }) => this.#add(open, [{ note: `Messages may be missing: ${reason}.`, timestamp: new Date().toISOString() }]),
      onState: (state, error) => open === this.#open && this.#onState(state, error),
    });
    this.#drawList();
    this.#facts(open);
  }

  #onState(state, error) {
    if (state === "ended") this.#show(error ? `Not subscribed: ${error.message.replace(/^\d+ /, "")}` : "");
    else this.#show(state === "pending" ? "Not connected; the page reconnects by itself." : "Live.");
  }

  async #past(open) {
    const page = await this.#of(open.topic, "history", { limit: PAST });
    open.history = page !== null;
    if (page) this.#add(open, page.messages);
  }

  /** The topic's "history" or "presence"; null if there is none, or no permission. */
  async #of(topic, what, parameters = {}) {
    const { gateway, signedIn } = this.#session;
    try {
      return await gateway.request(topic, what, parameters);
    } catch (error) {
      if (!signedIn || !NO_PERMISSION.has(error.code)) return null;
    }
    return this.#session.api("GET", `/api/topics/${encodeURIComponent(topic)}/${what}?${new URLSearchParams(parameters)}`).catch(() => null);
  }

  async #facts(open) {
    const { signedIn } = this.#session;
    const pairs = [];
    if (signedIn) {
      const { subscribers, nodes } = await this.#session.api("GET", `/api/topics/${encodeURIComponent(open.topic)}`).catch(() => ({ subscribers: null, nodes: {} }));
      const where = Object.entries(nodes).map(([id, number]) => `${id.replace(/\.[^.]*$/, "")}: ${count(number)}`);
      if (subscribers !== null) pairs.push(["Subscribers", [count(subscribers), ...where].join(" · ")]);
    }
    const presence = await this.#of(open.topic, "presence");
    if (presence) {
      const names = (presence.members ?? []).slice(0, 8).map(({ user, clientId }) => user ?? clientId);
      const others = presence.count - names.length;
      pairs.push(["Present", presence.count ? `${count(presence.count)}: ${listed(others ? [...names, some(others, "other")] : names)}` : "none"]);
    }
    pairs.push(["History", open.history ? "kept" : "none"]);
    if (open === this.#open) facts($("topic-facts"), pairs);
  }

  #close() {
    this.#open?.subscription?.close();
    this.#open = null;
    this.#messages = [];
    this.#seen.clear();
    this.#held = null;
    this.#drawTail();
    write($("topic-title"), "No topic is open");
    this.#show("Select a topic from the list, or type its name.");
    facts($("topic-facts"), []);
  }

  #show(text) {
    write($("topic-state"), text);
  }

  #add(open, messages) {
    if (open !== this.#open) return;
    for (const message of messages) {
      const place = message.offset === undefined || message.offset === null ? null : `${message.epoch} ${message.offset}`;
      if (place !== null && this.#seen.has(place)) continue;
      if (place !== null) this.#seen.add(place);
      this.#messages.unshift({ ...message, key: ++this.#lastKey });
      if (this.#held !== null) this.#held += 1;
    }
    this.#messages.length = Math.min(this.#messages.length, KEPT);
    if (this.#seen.size > 20 * KEPT) this.#seen = new Set([...this.#seen].slice(-KEPT));
    if (!open.drawing) {
      open.drawing = true; // draw at most once per frame
      requestAnimationFrame(() => {
        open.drawing = false;
        this.#drawTail();
      });
    }
  }

  #pause() {
    this.#held = this.#held === null ? 0 : null;
    this.#drawTail();
  }

  #drawTail() {
    const button = $("topic-pause");
    button.setAttribute("aria-pressed", String(this.#held !== null));
    write(button, this.#held === null ? "Pause" : `Resume (${count(this.#held)} new)`);
    hide(button, this.#open === null);
    if (this.#held !== null && this.#held > 0) return;
    const make = () => h("li", {}, h("time"), h("small"), h("pre"));
    each($("tail"), this.#messages, ({ key }) => key, make, (item, message) => {
      if (item.dataset.drawn) return; // a message does not change
      item.dataset.drawn = "1";
      item.classList.toggle("note", Boolean(message.note));
      const at = new Date(message.timestamp);
      item.children[0].dateTime = message.timestamp;
      write(item.children[0], Number.isNaN(at.getTime()) ? "" : at.toLocaleTimeString([], { hour12: false }));
      write(item.children[1], message.offset ?? "");
      const text = message.note ?? JSON.stringify(message.data);
      write(item.children[2], text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}… (${count(text.length)} characters)` : text);
    });
  }

  // ---- publish

  async #publish() {
    const [topic, text, to] = [$("publish-topic").value, $("publish-data").value, $("publish-to").value];
    let data = text;
    let how = "";
    try {
      data = JSON.parse(text);
    } catch {
      how = " as plain text, because it is not JSON";
    }
    const output = $("published");
    try {
      const [result] = (await this.#session.api("POST", "/api/publish", { topic, data, ...(to && { to: { [to]: $("publish-whom").value } }) })).results;
      output.className = "good";
      write(output, `Published${result.offset ? ` as number ${count(result.offset)}` : ""}${how}.`);
    } catch (error) {
      output.className = "bad";
      write(output, error.message);
    }
  }
}
