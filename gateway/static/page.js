// The start page: one socket, its topics, and what arrives. It shows the wire; it is no library.

const KEPT = 200; // rows of the feed
const SHOWN_CHARACTERS = 4_000; // of one message
const DEAD_MS = 10_000; // an answer that takes longer will not come
const FIRST_WAIT_MS = 1_000;
const LAST_WAIT_MS = 20_000;
const TOPIC = /^[A-Za-z0-9_:.\-/]{1,200}$/;

const $ = (id) => document.getElementById(id);
const element = (tag, className, text) => Object.assign(document.createElement(tag), { className, textContent: text });

// ---- the connection

const wanted = location.hash.slice(1).split(",").filter((name) => TOPIC.test(name));
const topics = new Map((wanted.length ? wanted : ["lobby"]).map((name) => [name, false])); // name -> confirmed
const asked = new Map(); // requestId -> {does, topic}
let socket = null; // the one that counts; what any other still says is ignored
let token = null;
let lastId = 0;
let open = false; // welcomed
let lostAt = 0;
let attempts = 0; // since a connection that lived long enough for a pong
let wishedMs = null; // the server's own idea of the next wait
let retry, watchdog, pinger;

function connect() {
  clearTimeout(retry);
  show("connecting", "Connecting…");
  const mine = new WebSocket(new URL("/ws", location.origin.replace(/^http/, "ws")));
  mine.onmessage = ({ data }) => mine === socket && receive(JSON.parse(data));
  mine.onclose = ({ code, reason }) => mine === socket && lost(code, reason);
  socket = mine;
  expectAnswer();
}

// A dead network closes no socket for minutes, so silence after a question counts as the end.
function expectAnswer() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => lost(1006, "no answer"), DEAD_MS);
}

function lost(code, reason) {
  clearTimeout(watchdog);
  clearInterval(pinger);
  const dead = socket;
  socket = null;
  dead.close();
  if ([...asked.values()].some(({ does }) => does === "publish")) {
    say("published", "The connection broke before the answer: it may have been published or not.", "bad");
  }
  asked.clear();
  for (const name of topics.keys()) topics.set(name, false);
  showTopics();
  if (open) lostAt = Date.now();
  open = false;
  const because = reason ? ` (${reason})` : "";
  if (code >= 3500 && code <= 3999) {
    return show("stopped", `Disconnected by the gateway${because}: it asks not to come back.`);
  }
  // Full jitter: pages that lost one node must not come to the next in step.
  const wait = wishedMs ?? Math.random() * Math.min(LAST_WAIT_MS, FIRST_WAIT_MS * 2 ** attempts);
  attempts += 1;
  wishedMs = null;
  retry = setTimeout(connect, wait);
  show("waiting", `Not connected${because}. Trying again ${wait < 1500 ? "at once" : `in ${Math.round(wait / 1000)} s`}.`);
}

function send(message) {
  if (open) socket.send(JSON.stringify(message));
  return open;
}

function ask(does, topic, message) {
  const sent = send({ ...message, requestId: ++lastId });
  if (sent) asked.set(lastId, { does, topic });
  return sent;
}

const subscribe = (topic) => ask("subscribe", topic, { type: "SUBSCRIBE", topics: [topic] });
const ping = () => send({ type: "ping", timestamp: Date.now() }) && expectAnswer();

function receive(message) {
  clearTimeout(watchdog);
  switch (message.type) {
    case "DATA": return add(message);
    case "SYSTEM": return onSystem(message.action, message.data);
    case "ACKNOWLEDGMENT": return onDone(message);
    case "ERROR": return onError(message);
    case "pong":
      attempts = 0;
      $("trip").textContent = `${Date.now() - message.timestamp} ms`;
  }
}

function onSystem(action, data) {
  const names = data?.topics?.join(", ");
  switch (action) {
    case "welcome": return onWelcome(data);
    case "gap": return names && note("warn", `Messages on ${names} may be missing: the node was cut off for a while.`);
    case "degraded": return note("warn", "The node has lost Redis: nothing new arrives until it is back. You stay connected.");
    case "restored": return note("good", "Redis is back: messages flow again.");
    case "shutdown":
      wishedMs = data.reconnectMs ?? null;
      return note("warn", "This node is leaving; another one takes over.");
    case "move":
      wishedMs = data.reconnectMs ?? null;
      return note("warn", "Another node has more room and takes over.");
    case "unsubscribed":
      data.topics.forEach((name) => topics.delete(name));
      showTopics();
      return note("warn", `You no longer hear ${names}: ${data.reason}.`);
  }
}

function onWelcome({ clientId, node, pingMs }) {
  open = true;
  $("node").textContent = node;
  $("client").textContent = clientId;
  document.title = `${node} · WebSocket gateway`;
  show("open", `Connected to node ${node}`);
  if (token) send({ type: "AUTH", authToken: token });
  [...topics.keys()].forEach(subscribe); // a frame each: one that is refused refuses no other
  if (lostAt) {
    const gone = ((Date.now() - lostAt) / 1000).toFixed(1);
    note("good", `Connected again after ${gone} s, to node ${node}. What was published meanwhile did not reach this page.`);
  }
  setTimeout(ping, 1000); // not now: the page is still busy, and the round trip would be its own
  pinger = setInterval(ping, pingMs ?? 25_000);
}

function onDone({ operation, topics: names, topic, requestId }) {
  asked.delete(requestId);
  if (operation === "subscribe") {
    names.filter((name) => topics.has(name)).forEach((name) => topics.set(name, true));
    showTopics();
  } else if (operation === "publish") {
    say("published", `Published on ${topic}.${topics.has(topic) ? "" : " Subscribe to it to see it here."}`, "good");
  } else if (operation === "authenticate") {
    say("authenticated", "Logged in.", "good");
  }
}

function onError({ code, message, reason, requestId, inReplyTo }) {
  const { does, topic } = asked.get(requestId ?? inReplyTo) ?? {};
  asked.delete(requestId ?? inReplyTo);
  const act = does === "publish" ? "publish on" : "listen to";
  const words = {
    4010: `Only a user may ${act} ${topic}: log in with a token.`,
    4012: `Only an admin may ${act} ${topic}.`,
    4029: "That was too fast: wait a moment, then try again.",
    4401: reason === "token_expired" ? "This token has expired: get a new one." : "This token is not valid here.",
    5030: "The cluster cannot reach Redis just now. Nothing was done; try again.",
  }[code] ?? `${message}.`;
  if (code === 4010 || code === 4401) $("login").open = true;
  if (code === 4401) token = null;
  if (does === "subscribe") topics.delete(topic);
  showTopics();
  const place = code === 4401 ? "authenticated" : { subscribe: "subscribed", publish: "published" }[does];
  if (place) say(place, words, "bad");
  else note("warn", words);
}

// ---- what is seen

function show(state, words) {
  document.body.dataset.state = state;
  $("state").textContent = words;
  $("connect").hidden = state === "open" || state === "connecting";
  if (state !== "open") $("trip").textContent = $("client").textContent = "–";
}

function say(place, words, className) {
  Object.assign($(place), { textContent: words, className });
}

function showTopics() {
  $("topics").replaceChildren(...[...topics].map(([name, confirmed]) => {
    const item = element("li", confirmed ? "" : "pending");
    const leave = element("button", "", "×");
    leave.type = "button";
    leave.ariaLabel = leave.title = `Unsubscribe from ${name}`;
    leave.onclick = () => {
      topics.delete(name);
      ask("unsubscribe", name, { type: "UNSUBSCRIBE", topics: [name] });
      showTopics();
      $("topic").focus();
    };
    item.append(label(name), leave);
    return item;
  }));
  const hash = `#${[...topics.keys()]}`;
  if (location.hash !== hash) history.replaceState(null, "", hash); // a reload comes back to the same topics
}

function label(topic) {
  const made = element("span", "topic", topic);
  let hash = 0;
  for (const character of topic) hash = (hash * 31 + character.charCodeAt(0)) >>> 0;
  made.style.setProperty("--hue", hash * 137.5 % 360); // the golden angle keeps neighbours apart
  return made;
}

const clock = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const fresh = []; // what has arrived since the feed was drawn
let [frame, paused, received, pulse] = [0, false, 0, null];

function note(kind, words) {
  $("notice").textContent = words;
  add({ kind, words });
}

// A busy topic brings thousands a second: rows are made once a frame, and only those that stay.
function add(message) {
  fresh.push({ ...message, arrived: Date.now() });
  if (fresh.length > KEPT) fresh.shift();
  if (message.type === "DATA") received += 1;
  frame ||= requestAnimationFrame(draw);
}

function draw() {
  frame = 0;
  $("count").textContent = received ? `${received.toLocaleString("en")} received` : "";
  $("pause").textContent = paused ? `Resume (${fresh.length} new)` : "Pause";
  if (paused || !fresh.length) return;
  if (pulse?.playState !== "running" && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
    pulse = $("route").animate({ "--at": [1, 0], opacity: [1, 1] }, { duration: 500, pseudoElement: "::after" });
  }
  $("feed").prepend(...fresh.splice(0).reverse().map(row));
  while ($("feed").childElementCount > KEPT) $("feed").lastElementChild.remove();
}

function row({ kind, words, topic, data, timestamp, arrived }) {
  const item = element("li", kind ? `note ${kind}` : "");
  const sent = kind ? arrived : Date.parse(timestamp);
  const time = element("time", "", clock.format(sent));
  if (kind) {
    item.append(time, element("span", "data", words));
    return item;
  }
  const text = typeof data === "string" ? data : JSON.stringify(data);
  const cut = text.length > SHOWN_CHARACTERS ? `… (${text.length} characters)` : "";
  const delay = element("span", "delay", `${arrived - sent} ms`);
  delay.title = "from publication to arrival; exact if both clocks agree";
  item.append(time, label(topic), delay, element("span", "data", text.slice(0, SHOWN_CHARACTERS) + cut));
  return item;
}

// ---- what a person does

function onSubmit(form, act) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

onSubmit("subscribe", () => {
  const topic = $("topic").value;
  if (!topics.has(topic)) topics.set(topic, false);
  say("subscribed", subscribe(topic) ? "" : "Not connected just now: it follows with the connection.", "");
  showTopics();
  $("topic").value = "";
});

onSubmit("publish", () => {
  const [topic, text] = [$("to").value, $("data").value];
  let data = text;
  try {
    data = JSON.parse(text);
  } catch {} // plain text, then
  const sent = ask("publish", topic, { type: "PUBLISH", topic, data });
  say("published", sent ? "" : "Not connected just now: nothing was published.", "bad");
});

onSubmit("auth", () => {
  token = $("token").value.trim();
  say("authenticated", send({ type: "AUTH", authToken: token }) ? "" : "It is sent with the next connection.", "");
  $("token").value = "";
});

$("to").addEventListener("input", ({ target }) => {
  document.querySelectorAll("pre b").forEach((name) => name.textContent = TOPIC.test(target.value) ? target.value : "lobby");
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  draw();
});
$("connect").addEventListener("click", connect);
addEventListener("online", () => document.body.dataset.state === "waiting" && connect());

showTopics();
connect();
