// The start page: two clients of the cluster in one page, each on its own node, and their messages.

import { Gateway } from "/gateway.js";

const KEPT = 200; // rows of a feed
const SHOWN_CHARACTERS = 2_000; // of one message
const CUT_MS = 3_000;
const NUMBERS_MS = 200;
const TRIP_MS = 5_000;
const TOPIC = /^[!-)+-z|~]{1,200}$/;

const $ = (id) => document.getElementById(id);
const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const wanted = location.hash.slice(1);
let topic = TOPIC.test(wanted) && !$(wanted) ? wanted : "contest-chat-demo";
let token = null;

function element(tag, className, text) {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

function say(place, words, className = "") {
  Object.assign(place, { textContent: words, className });
}

/** A sentence for the user about an error. */
function inWords({ name, code, reason, message }, act) {
  if (name === "NoAnswer" || name === "Disconnected") return "No answer: the message may or may not have been published.";
  return {
    4004: `${topic} cannot be a topic.`,
    4010: `Only a user may ${act} ${topic}: log in with a token below.`,
    4012: `This user may not ${act} ${topic}.`,
    4029: "Too many messages: wait a moment, then try again.",
    4401: reason === "token_expired" ? "This token has expired: get a new one." : "This token is not valid on this cluster.",
    4403: `No client may ${act} ${topic} here.`,
    5030: "The cluster cannot reach Redis at the moment. The message was not published; try again.",
  }[code] ?? message;
}

/** One client: its connection, and its half of the page. */
class Pane {
  #parts = {};
  #at;
  #name;
  #avoids; // returns the node that this client avoids
  #gateway = null;
  #lastNode = "";
  #lostAt = 0;
  #last = null; // position of the last message
  #counts;
  #while = 0; // received since the reconnect
  #numbers = 0;
  #sender = 0;

  constructor(at, name, avoids) {
    const pane = $("pane").content.firstElementChild.cloneNode(true);
    for (const part of pane.querySelectorAll("[data-is]")) this.#parts[part.dataset.is] = part;
    [this.#at, this.#name, this.#avoids] = [at, name, avoids];
    this.pane = pane;
    pane.ariaLabel = pane.querySelector("h3").textContent = `Client ${name}`;
    const { feed, text, now, cut, numbers, cookie } = this.#parts;
    feed.ariaLabel = `What client ${name} has received, newest last`;
    text.ariaLabel = `Message of client ${name}`;
    text.placeholder = `Write a message as ${name}`;
    cookie.textContent = avoids ? "none: requests another node than A's" : "GW: back to the same node (HttpOnly)";
    pane.querySelector("form").addEventListener("submit", (event) => this.#send(event));
    now.addEventListener("click", () => (this.#gateway.state === "closed" ? this.start() : this.#gateway.connect().catch(() => {})));
    cut.addEventListener("click", () => this.#gateway.reconnect(CUT_MS));
    numbers.addEventListener("click", () => this.#toggleNumbers());
    $("panes").append(pane);
    setInterval(() => this.#measure(), TRIP_MS);
  }

  get node() {
    return this.#gateway?.node;
  }

  /** Start a new client; the messages of the old one stay. Resolves after the first attempt to connect. */
  start() {
    this.#gateway?.close();
    this.#counts = { received: 0, missing: 0, duplicated: 0 };
    this.#last = null;
    const url = () => {
      const node = this.#avoids?.();
      return node ? `/ws?avoid=${encodeURIComponent(node)}` : "/ws";
    };
    const gateway = (this.#gateway = new Gateway(url, { token }));
    gateway.addEventListener("state", ({ detail }) => gateway === this.#gateway && this.#show(detail));
    gateway.addEventListener("system", ({ detail }) => gateway === this.#gateway && this.#system(detail));
    gateway.subscribe(topic, {
      onData: (message) => this.#data(message),
      onPresence: ({ count }) => (this.#parts.here.textContent = count),
      onGap: ({ reason }) => {
        this.#last = null;
        this.#note("warn", `Messages may be missing here (${reason}).`);
      },
      onState: (state, error) => this.#subscription(gateway, state, error),
    });
    gateway.connect().then(() => this.#measure(), () => {});
    return new Promise((tried) => {
      gateway.addEventListener("state", ({ detail }) => detail.state !== "connecting" && tried());
    });
  }

  // ---- connection

  #show({ state, code, reason, waitMs }) {
    const { node, client, trip, now } = this.#parts;
    const here = state === "connected" || state === "authenticated";
    const name = here ? this.#gateway.node : "–";
    const wait = waitMs < 1_000 ? "at once" : `in ${Math.round(waitMs / 1000)} s`;
    const words = {
      connecting: "Connecting…",
      waiting: `Not connected${navigator.onLine ? "" : ": this machine is offline"}. Next attempt ${wait}.`,
      closed: code === 4401 ? inWords({ code, reason }) : `Disconnected by the gateway (${reason}): it asks this client not to reconnect.`,
    }[state] ?? `Connected to node ${name}`;
    this.#parts.state.textContent = words;
    node.textContent = name;
    client.textContent = here ? this.#gateway.clientId : "–";
    if (!here) trip.textContent = "–";
    now.hidden = state !== "waiting" && state !== "closed";
    now.textContent = state === "closed" ? "Connect again" : "Try now";
    for (const part of [this.pane, ...document.querySelectorAll(`#route [data-of="${this.#at}"]`)]) {
      part.classList.toggle("on", here);
      part.classList.toggle("off", state === "closed");
      if ("node" in part.dataset) part.textContent = here ? name : "node";
    }
    if (state === "connected") this.#returned(name);
    if (state === "authenticated" && token) say($("authenticated"), "Logged in.", "good");
    if (state === "waiting" && !this.#lostAt && this.#lastNode) {
      this.#lostAt = Date.now();
      this.#note("warn", `The connection to ${this.#lastNode} is lost.`);
    }
    if (state === "closed" && code === 4401) say($("authenticated"), words, "bad");
    if (state === "closed" && code === 4401) $("login").open = true;
  }

  #returned(node) {
    if (this.#lostAt) {
      const away = ((Date.now() - this.#lostAt) / 1000).toFixed(1);
      const where = node !== this.#lastNode ? "to another node" : this.#avoids ? "to the same node" : "to the same node, by its cookie";
      this.#note("good", `Reconnected after ${away} s, ${where}: ${node}.`);
    }
    this.#lostAt = 0;
    this.#while = 0;
    this.#lastNode = node;
    $("route").children[2].className = "on";
  }

  #subscription(gateway, state, error) {
    if (gateway !== this.#gateway) return;
    if (state === "recovered") {
      const count = this.#while;
      this.#note("good", `No message was missed: ${count === 1 ? "1 message was" : `${count} messages were`} recovered.`);
    }
    if (state === "subscribed" || state === "recovered") {
      gateway.presence(topic).then(({ count }) => (this.#parts.here.textContent = count), () => (this.#parts.here.textContent = "–"));
      if ($("joined").className === "bad") say($("joined"), "");
    }
    if (state === "ended" && error && gateway.state !== "closed") {
      const words = inWords(error, "subscribe to");
      say($("joined"), words, "bad");
      this.#note("bad", words);
      if (error.code === 4010) $("login").open = true;
    }
  }

  #system({ action, topics }) {
    const words = {
      degraded: ["warn", "The node has lost Redis: no new messages arrive until it is back. The connection stays open."],
      restored: ["good", "Redis is back: new messages arrive again."],
      shutdown: ["warn", "This node is shutting down; another node takes over."],
      move: ["warn", "Another node has more room and takes over."],
    }[action];
    if (action === "degraded" || action === "restored") {
      $("route").children[2].className = action === "restored" ? "on" : "off";
    }
    if (words) this.#note(...words);
  }

  async #measure() {
    const gateway = this.#gateway;
    if (document.hidden || (gateway.state !== "connected" && gateway.state !== "authenticated")) return;
    const started = performance.now();
    try {
      await gateway.request("system", "ping");
      this.#parts.trip.textContent = `${Math.max(1, Math.round(performance.now() - started))} ms`;
    } catch {} // the state shows it
  }

  // ---- messages

  #data({ data, timestamp, epoch, offset, initial }) {
    if (!initial) this.#count(epoch, offset);
    const from = data?.from;
    const text = typeof data?.text === "string" ? data.text : typeof data === "string" ? data : JSON.stringify(data);
    const cut = text.length > SHOWN_CHARACTERS ? `… (${text.length} characters)` : "";
    const row = element("li", { A: "a", B: "b" }[from] ?? "");
    row.append(element("b", "", { A: "A", B: "B" }[from] ?? "·"), element("span", "", text.slice(0, SHOWN_CHARACTERS) + cut));
    row.append(element("time", "", clock.format(Date.parse(timestamp))));
    this.#add(row);
    this.#pulse();
  }

  // On this topic every client receives every message, so a jump of the offset means a loss.
  #count(epoch, offset) {
    const [counts, last] = [this.#counts, this.#last];
    counts.received += 1;
    this.#while += 1;
    if (offset !== null && last?.epoch === epoch) {
      if (offset <= last.offset) counts.duplicated += 1;
      else counts.missing += offset - last.offset - 1;
    }
    this.#last = offset === null ? null : { epoch, offset };
    const { received, missing, duplicated } = counts;
    this.#parts.count.textContent = `${received.toLocaleString("en")} received · ${missing} missing · ${duplicated} duplicated`;
  }

  #note(kind, words) {
    const row = element("li", `note ${kind}`);
    row.append(element("span", "", words), element("time", "", clock.format(Date.now())));
    this.#parts.notice.textContent = words;
    this.#add(row);
  }

  #add(row) {
    const { feed } = this.#parts;
    const atEnd = feed.scrollHeight - feed.scrollTop - feed.clientHeight < 40;
    feed.append(row);
    while (feed.childElementCount > KEPT) feed.firstElementChild.remove();
    if (atEnd) feed.scrollTop = feed.scrollHeight;
  }

  #pulse() {
    for (const part of document.querySelectorAll(`#route [data-of="${this.#at}"]`)) {
      part.classList.add("pulse");
      part.addEventListener("animationend", () => part.classList.remove("pulse"), { once: true });
    }
  }

  async #send(event) {
    event.preventDefault();
    const { text } = this.#parts;
    if (text.value && (await this.#publish(text.value))) text.value = "";
  }

  async #publish(text) {
    const { sent } = this.#parts;
    if (this.#gateway.state === "closed") return say(sent, "Not connected: the message was not sent.", "bad");
    const waiting = setTimeout(() => say(sent, "Waiting for the connection…"), 500);
    try {
      await this.#gateway.publish(topic, { from: this.#name, text });
      say(sent, "");
      return true;
    } catch (error) {
      say(sent, inWords(error, "publish on"), "bad");
      if (error.code === 4010) $("login").open = true;
      return false;
    } finally {
      clearTimeout(waiting);
    }
  }

  #toggleNumbers() {
    const { numbers } = this.#parts;
    const on = !this.#sender;
    numbers.ariaPressed = on;
    numbers.textContent = on ? "Stop numbers" : "Send numbers";
    clearInterval(this.#sender);
    this.#sender = on && setInterval(async () => {
      if (!(await this.#publish(String(++this.#numbers))) && this.#sender) this.#toggleNumbers();
    }, NUMBERS_MS);
  }
}

// ---- the page

const a = new Pane(0, "A");
const b = new Pane(1, "B", () => a.node);

async function start() {
  $("topic").value = topic;
  document.querySelectorAll("b.topic").forEach((name) => (name.textContent = topic));
  await a.start(); // first, because B requests another node than A's
  await b.start();
}

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("topic").value.trim();
  if (!TOPIC.test(name)) return say($("joined"), "A topic has 1 to 200 visible ASCII characters without { } *", "bad");
  say($("joined"), "");
  topic = name;
  history.replaceState(null, "", `#${name}`); // a reload keeps the topic
  return start();
});

$("auth").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim() || null;
  $("token").value = "";
  say($("authenticated"), token ? "Logging in…" : "Logged out.");
  start();
});

document.querySelectorAll("b.origin").forEach((name) => (name.textContent = location.origin));
start();
