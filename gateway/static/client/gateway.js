// The browser client: keeps one connection to the cluster, delivers each topic in order, and reports gaps.
//
//   import { Gateway } from "/gateway.js";
//   const gateway = new Gateway("/ws", { getToken });
//   gateway.subscribe("contest", { onData: ({ data }) => show(data), onGap: ({ reason }) => reload(reason) });
//   await gateway.connect();
//
// It reconnects, subscribes again and recovers. On a topic with history it delivers each message once and in order; if
// messages can no longer be recovered, it delivers a gap instead. gateway.d.ts describes the API. Times are milliseconds.

const SUBSCRIBE_TRIES = 3;
const MISSED_PONGS = 3;
const TOKEN_TRIES = 3; // rejected tokens in a row, each fetched again, after which the client ends
const BUFFER_EVENTS = 10_000;
const BURST_MS = 10_000; // the server's rates are averages over this time
// Limits of one SUBSCRIBE, below the server's: so each is answered in time and counts as one message.
const SUBSCRIBE_BYTES = 60_000;
const SUBSCRIBE_TOPICS = 500;
const LIMITS = { messageBytes: 1 << 20, subscriptionsPerSecond: 1_500 }; // used if `welcome` does not state them
const DELTA_BYTES = 1 << 20; // the largest text that a delta may describe
const REFRESH_MS = 60_000; // replace a token this long before it expires, or in the last quarter of a short lifetime
const REFRESH_AGAIN_MS = 5_000; // after a failure
const PING = '{"type":"ping"}';
const TIMING = {
  baseMs: 1_000, // reconnect: the first wait is random between 0 and this; the bound then doubles
  capMs: 20_000,
  ackMs: 1_000, // resend a SUBSCRIBE without an answer after this time
  answerMs: 10_000, // deadline of any answer
  openMs: 10_000, // deadline of the server's welcome
  probeMs: 5_000, // deadline of any message after the network changed or the machine slept
};

// ---- errors

export class GatewayError extends Error {
  name = "GatewayError";

  constructor(message, about) {
    super(message);
    Object.assign(this, about);
  }
}

/** The server answered with an ERROR; with `temporary` a retry can succeed. */
export class Refused extends GatewayError {
  name = "Refused";

  constructor(code, message, temporary = false, reason = null) {
    super(`${code} ${message}`, { code, temporary, reason });
  }
}

/** No answer in time. The server may or may not have executed the request. */
export class NoAnswer extends GatewayError {
  name = "NoAnswer";
}

/** The connection was lost before the answer. The server may or may not have executed the request. */
export class Disconnected extends GatewayError {
  name = "Disconnected";
}

/** A loop over a topic had more waiting events than its limit; the loop has ended. */
export class TooSlow extends GatewayError {
  name = "TooSlow";
}

/** The message is larger than the server accepts. It was not sent. */
export class TooLarge extends GatewayError {
  name = "TooLarge";
}

/** The client has ended; `code` is the server's close code, or null if the caller closed it. */
export class Closed extends GatewayError {
  name = "Closed";

  constructor(code, reason, text = reason) {
    super(`closed${code ? ` with ${code}` : ""}: ${text}`, { code, reason });
  }
}

// ---- pure parts, the same as in the Python client's place.py and pace.py

/** A subscriber's position in one topic. Its methods return the events to deliver. */
export class Place {
  away = false; // subscribed before, and the connection was lost since
  #joined = false;
  #position = null; // epoch, offset and mark of the last delivered message

  constructor(topic) {
    this.topic = topic;
  }

  /** The position for `recover` of SUBSCRIBE, or null. */
  recover() {
    return this.away ? this.#position : null;
  }

  /** The events for a message; none if it is a duplicate. */
  take(message) {
    const { initial, epoch, offset, mark } = message;
    if (initial || epoch === null) return [message];
    const last = this.#position;
    if (last?.epoch === epoch && offset <= last.offset) return [];
    this.#position = toPosition({ epoch, offset, mark });
    // At offset 0 the topic had no message yet; its first message brings the epoch.
    return last?.offset && last.epoch !== epoch ? [this.#gap("the history has a new epoch"), message] : [message];
  }

  /** SUBSCRIBE was acknowledged, with a position if the topic has history. */
  acknowledged(position) {
    const wasAway = this.away;
    // On one connection only messages move the position. Otherwise a second acknowledgement would hide a new epoch.
    const known = this.#joined && !wasAway && this.#position;
    this.away = false;
    this.#joined = true;
    if (position && !known) this.#position = toPosition(position);
    if (!wasAway) return [];
    if (position?.recovered === true) return [{ type: "recovered", topic: this.topic }];
    return [this.#gap(`reconnected: ${position ? "what was missed is no longer kept" : "a topic without history"}`)];
  }

  /** The server reported a gap; the following messages may have lower offsets. */
  lost(reason) {
    this.#position = null;
    return [this.#gap(reason)];
  }

  /** The connection is lost. */
  disconnected() {
    this.away = this.#joined;
  }

  #gap(reason) {
    return { type: "gap", topic: this.topic, reason };
  }
}

/** Full jitter: each wait is random between 0 and a bound that doubles, so that many clients reconnect spread out. */
export class Backoff {
  #attempt = 0;
  #baseMs;
  #capMs;
  #random;

  constructor(baseMs, capMs, random = Math.random) {
    this.#baseMs = baseMs;
    this.#capMs = capMs;
    this.#random = random;
  }

  /** The next wait; `serverMs`: the wait that the server requested. */
  ms(serverMs = null) {
    const bound = Math.min(this.#capMs, this.#baseMs * 2 ** Math.min(this.#attempt++, 32));
    return serverMs ?? this.#random() * bound;
  }

  reset() {
    this.#attempt = 0;
  }
}

/** The length of a text in UTF-8 bytes. */
const bytes = (text) => new TextEncoder().encode(text).length;

/** The text that a delta in Fossil's format describes, from the text `base`; all are bytes of UTF-8. Throws if it does not apply. */
export function applyDelta(base, delta) {
  const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
  let at = 0, filled = 0, sum = 0;
  const check = (good) => {
    if (!good) throw new GatewayError("the delta does not apply");
  };
  const number = (ends) => { // in base 64, and the character behind it, one of `ends`
    let value = 0, digit;
    for (; (digit = digits.indexOf(String.fromCharCode(delta[at]))) >= 0; at++) value = value * 64 + digit;
    const end = String.fromCharCode(delta[at++]);
    check(ends.includes(end));
    return [value, end];
  };
  const [size] = number("\n");
  check(size <= DELTA_BYTES);
  const text = new Uint8Array(size);
  for (;;) {
    const [count, command] = number("@:;");
    if (command === ";") { // the checksum: the sum of the text as big-endian numbers of 32 bits
      for (let index = 0; index < size; index++) sum = (sum + (text[index] << (24 - 8 * (index % 4)))) >>> 0;
      check(at === delta.length && filled === size && count === sum);
      return text;
    }
    const start = command === "@" ? number(",")[0] : at;
    const part = (command === "@" ? base : delta).subarray(start, start + count);
    if (command === ":") at += count;
    check(part.length === count && filled + count <= size);
    text.set(part, filled);
    filled += count;
  }
}

/**
 * Split topics into batches, each for one SUBSCRIBE or UNSUBSCRIBE of at most `maxBytes`. `recover(topic)` returns the
 * position to send with it, or null. A single topic that is too large gets its own batch.
 */
export function* batches(topics, recover, maxBytes, maxTopics = SUBSCRIBE_TOPICS) {
  let batch = [], size = 100; // bytes of the rest of the message
  for (const topic of topics) {
    const place = recover(topic);
    const name = bytes(JSON.stringify(topic)) + 1;
    const more = name + (place ? name + bytes(JSON.stringify(place)) + 1 : 0);
    if (batch.length && (size + more > maxBytes || batch.length >= maxTopics)) {
      yield batch;
      batch = [];
      size = 100;
    }
    batch.push(topic);
    size += more;
  }
  if (batch.length) yield batch;
}

/** Limits a rate to nine tenths of the server's, averaged over BURST_MS. `nowMs` may come from any clock. */
export class Pace {
  #spentMs = -Infinity; // the time at which the rate permits everything sent so far
  #perMs;

  constructor(perSecond) {
    this.#perMs = (perSecond * 0.9) / 1_000;
    this.most = Math.floor(this.#perMs * BURST_MS); // at once
  }

  /** The wait before `count` more may be sent. */
  ms(count, nowMs) {
    return Math.min(Math.max(this.#after(count, nowMs) - nowMs, 0), BURST_MS); // bounded, because the clock may be set back
  }

  take(count, nowMs) {
    this.#spentMs = this.#after(count, nowMs);
  }

  /** The server rejected a message: the burst is used up. */
  refused(nowMs) {
    this.#spentMs = Math.max(this.#spentMs, nowMs);
  }

  #after(count, nowMs) {
    return Math.max(this.#spentMs, nowMs - BURST_MS) + count / this.#perMs;
  }
}

/** Counts pings without an answer. Any message counts as an answer, because a pong may arrive after many others. */
export class Heartbeat {
  #unanswered = 0;

  /** Counts a ping. False if too many had no answer: the server is dead. */
  ping() {
    return this.#unanswered++ < MISSED_PONGS;
  }

  received() {
    this.#unanswered = 0;
  }
}

/** When to replace a token, in ms from now; null if it states no future expiry. */
export function refreshMs(token, nowMs) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
    const left = claims.exp * 1000 - nowMs;
    return left > 0 ? left - Math.min(REFRESH_MS, left / 4) : null;
  } catch {
    return null; // not a JWT: the server announces its expiry
  }
}

// ---- a subscription

/** One caller's subscription to a topic. States: pending, subscribed, recovered, ended. */
export class Subscription {
  state = "pending";
  entered = false; // acknowledged once
  #handlers;
  #leave;
  #opened = deferred();

  constructor(topic, handlers, leave) {
    this.topic = topic;
    this.ready = this.#opened.promise;
    this.#handlers = handlers;
    this.#leave = leave;
  }

  /** End the subscription. */
  close() {
    this.#leave(this);
  }

  // ---- used by Gateway only

  offer(event) {
    const { type } = event;
    if (this.state === "ended") return;
    if (type === "recovered") this.now(type);
    else guarded(this.#handlers[{ message: "onData", presence: "onPresence", gap: "onGap" }[type]], event);
  }

  now(state, error = null) {
    if (this.state === "ended" || this.state === state) return;
    this.state = state;
    if (state === "ended") {
      this.#opened.reject(error ?? new Closed(null, "unsubscribed"));
    } else if (state !== "pending") {
      this.entered = true;
      this.#opened.resolve();
    }
    guarded(this.#handlers.onState, state, error);
  }
}

// ---- the client

/** One connection to the cluster, reopened whenever it is lost, and all requests over it. */
export class Gateway extends EventTarget {
  state = "waiting"; // connecting, connected, authenticated, waiting, closed
  node = ""; // the server's name
  clientId = ""; // the server's name for this connection
  degraded = false; // the server reported that it lost Redis
  #url;
  #getToken;
  #token = null;
  #timing;
  #WebSocket;
  #fallback; // loads the HTTP socket class
  #Socket; // the class in use
  #chances = 1; // remaining attempts with this class; Infinity after a WebSocket has worked
  #backoff;
  #topics = new Map(); // name -> {topic, place, subscriptions, covered, asked, joined}
  #changed = new Set(); // entries that may need a SUBSCRIBE or UNSUBSCRIBE
  #syncing = false; // #sync will run at the end of this turn
  #asked = new Map(); // SUBSCRIBEs without an answer, by request id: {entries, text, size, tries, refusals}
  #answers = new Map(); // other calls, by request id: {resolve, reject}
  #limits = LIMITS;
  #pace;
  #lastId = 0;
  #socket = null;
  #ready = false; // messages may be sent: welcomed, and authenticated if there is a token
  #connected = deferred();
  #authenticated = null;
  #refreshing = null; // the socket on which the token is being replaced
  #tokenTries; // rejected tokens in a row after which the client ends
  #refusals = 0; // rejected tokens in a row
  #reconnectMs = null; // requested by a draining or rebalancing server
  #heartbeat;
  #timers = {};
  #end = null;
  #listening = null;

  constructor(
    url,
    {
      token,
      getToken = token && (() => token),
      timing,
      WebSocket = globalThis.WebSocket,
      fallback = () => import("./gateway.http.js"),
    } = {},
  ) {
    super();
    this.#url = typeof url === "function" ? url : () => url;
    this.#getToken = getToken;
    this.#tokenTries = token === undefined ? TOKEN_TRIES : 1; // do not retry a constant token
    this.#timing = { ...TIMING, ...timing };
    this.#Socket = this.#WebSocket = WebSocket;
    this.#fallback = fallback;
    this.#backoff = new Backoff(this.#timing.baseMs, this.#timing.capMs);
  }

  // ---- public methods

  /** Connect, or retry at once; resolves when messages can be sent. */
  connect() {
    if (!this.#end && !this.#socket) {
      this.#watch();
      this.#open();
    }
    return this.#connected.promise;
  }

  /** Close the client; all subscriptions end. */
  close() {
    this.#finish(new Closed(null, "closed by the caller"));
  }

  /** Drop this connection and reconnect; `afterMs`: the time to wait before. */
  reconnect(afterMs = null) {
    if (this.#socket) this.#lost("reconnect requested", 1006, afterMs);
  }

  subscribe(topic, handlers = {}, { filter, delta } = {}) {
    if (this.#end) throw this.#end;
    const options = { filter, delta: delta ? "fossil" : undefined };
    const subscription = new Subscription(topic, handlers, (leaving) => this.#leave(leaving));
    if (!this.#topics.has(topic)) this.#topics.set(topic, { topic, place: new Place(topic), subscriptions: new Set() });
    const known = this.#topics.get(topic);
    if (!known.subscriptions.size) Object.assign(known, { options, group: JSON.stringify(options) });
    else if (JSON.stringify(known.options.filter) !== JSON.stringify(filter)) {
      throw new GatewayError(`${topic} has a subscription with another filter`);
    }
    known.subscriptions.add(subscription);
    this.#touch(known);
    return subscription;
  }

  /** End all subscriptions to the topic. */
  unsubscribe(topic) {
    for (const subscription of [...(this.#topics.get(topic)?.subscriptions ?? [])]) subscription.close();
  }

  /** For loops: `for await (const message of gateway.topic("contest"))`; `events()` also yields gaps and presence. */
  topic(topic, { limit = BUFFER_EVENTS, ...options } = {}) {
    const read = (only) => this.#read(topic, limit, options, only);
    return { [Symbol.asyncIterator]: () => read("message"), events: () => read() };
  }

  /** Publish; returns the position if the topic has history. The client never sends it twice. */
  async publish(topic, data, extras) {
    const position = await this.#call({ ...extras, type: "PUBLISH", topic, data });
    return position.epoch ? toPosition(position) : null;
  }

  async request(topic, action, parameters = {}) {
    return (await this.#call({ type: "REQUEST", topic, action, data: parameters })).data;
  }

  async command(topic, action, data = null) {
    return (await this.#call({ type: "COMMAND", topic, action, data })).data;
  }

  /** The members of a topic; with `{ clients: true }` its clients, each with its user. */
  presence(topic, range) {
    return this.request(topic, "presence", range);
  }

  /** A topic's last messages, or the first after the offset `since`. */
  history(topic, range) {
    return this.request(topic, "history", range);
  }

  // ---- requests

  #call(frame) {
    return new Promise((resolve, reject) => {
      const { answerMs } = this.#timing;
      const requestId = `j${++this.#lastId}`;
      const text = JSON.stringify({ ...frame, requestId });
      let settled = false;
      const settle = (how) => (value) => {
        clearTimeout(timer);
        this.#answers.delete(requestId);
        settled = true;
        how(value);
      };
      const answer = { resolve: settle(resolve), reject: settle(reject) };
      const timer = setTimeout(() => answer.reject(new NoAnswer(`no answer to ${frame.type} in ${answerMs} ms`)), answerMs);
      const send = () => {
        const most = this.#limits.messageBytes, size = bytes(text);
        if (size > most) {
          answer.reject(new TooLarge(`${frame.type} has ${size} bytes; the server accepts at most ${most}`));
        } else {
          this.#sync(); // the server handles messages in order: send an earlier SUBSCRIBE first
          this.#answers.set(requestId, answer);
          this.#send(text);
        }
      };
      if (this.#ready) send();
      else this.#connected.promise.then(() => settled || send(), answer.reject);
    });
  }

  #unsubscribe(topics) {
    this.#send(JSON.stringify({ type: "UNSUBSCRIBE", topics }));
  }

  #send(text) {
    if (this.#socket?.readyState === 1) this.#socket.send(text); // otherwise its close event follows
  }

  // ---- topics
  //
  // A topic has at most one unanswered SUBSCRIBE, and no UNSUBSCRIBE is sent before its answer. So the client always
  // knows whether the server sends a topic, however often the caller subscribes and closes.

  /** Record a change of a topic's subscriptions. The changes of one event loop turn are sent together at its end. */
  #touch(known) {
    this.#changed.add(known);
    if (!this.#syncing) queueMicrotask(() => this.#sync());
    this.#syncing = true;
  }

  /** Unsubscribe from topics without subscriptions; subscribe to topics with a pending one, within the limits. */
  #sync() {
    this.#syncing = false;
    if (!this.#ready) return; // the next connection subscribes to all
    const left = [];
    for (const known of this.#changed) {
      const { topic, asked, subscriptions, joined } = known;
      if (this.#topics.get(topic) === known && !asked) { // otherwise it has ended, or its answer calls this again
        if ([...subscriptions].some(({ state }) => state === "pending")) continue;
        if (!subscriptions.size) {
          this.#topics.delete(topic);
          if (joined) left.push(topic);
        }
      }
      this.#changed.delete(known);
    }
    const most = this.#limits.messageBytes;
    for (const topics of batches(left, () => null, most)) this.#unsubscribe(topics);
    const entries = new Map([...this.#changed].map((known) => [known.topic, known]));
    const recover = (topic) => entries.get(topic).place.recover();
    const limits = [Math.min(most, SUBSCRIBE_BYTES), Math.min(SUBSCRIBE_TOPICS, this.#pace.most)];
    const groups = new Map(); // the topics of one SUBSCRIBE have the same options
    for (const { topic, group } of entries.values()) {
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(topic);
    }
    for (const group of groups.values()) {
      for (const topics of batches(group, recover, ...limits)) {
        const waitMs = this.#pace.ms(topics.length, Date.now());
        if (waitMs > 0) return this.#timer("sync", () => this.#sync(), waitMs);
        if (!this.#ask(topics.map((topic) => entries.get(topic)), limits[0]) || !this.#ready) return;
      }
    }
    if (!this.#asked.size) this.#backoff.reset(); // everything is acknowledged
  }

  /** Send a SUBSCRIBE. False if it must wait, because more than `window` bytes would be unanswered. */
  #ask(entries, window = Infinity) {
    const requestId = `j${++this.#lastId}`;
    const topics = entries.map(({ topic }) => topic);
    const places = entries.map(({ topic, place }) => [topic, place.recover()]).filter(([, place]) => place);
    const recover = places.length ? Object.fromEntries(places) : undefined;
    const text = JSON.stringify({ type: "SUBSCRIBE", topics, ...entries[0].options, recover, requestId });
    const size = bytes(text), most = this.#limits.messageBytes;
    if (size > most) {
      this.#drop(topics[0], new TooLarge(`SUBSCRIBE has ${size} bytes; the server accepts at most ${most}`)); // the only topic
      return true;
    }
    const waiting = [...this.#asked.values()].reduce((sum, other) => sum + other.size, 0);
    if (waiting && waiting + size > window) return false;
    const ask = { requestId, entries, text, size, recover, tries: 0, refusals: 0 };
    for (const known of entries) {
      this.#changed.delete(known);
      known.asked = true;
      known.covered = [...known.subscriptions];
    }
    this.#asked.set(requestId, ask);
    this.#transmit(ask);
    if (!waiting) this.#await();
    return true;
  }

  #transmit(ask) {
    ask.tries++;
    this.#pace.take(ask.entries.length, Date.now());
    this.#send(ask.text);
  }

  /** While SUBSCRIBEs have no answer, resend the oldest; after `answerMs` drop the connection. */
  #await(since = Date.now()) {
    const { ackMs, answerMs } = this.#timing;
    this.#forget("ack");
    if (!this.#asked.size) return;
    this.#timer("ack", () => {
      const ask = [...this.#asked.values()].find(({ entries }) => entries.some(({ subscriptions }) => subscriptions.size));
      if (!ask || this.degraded) return this.#await(); // without Redis another node could not answer either
      // Send a SUBSCRIBE with `recover` only once: a copy would make the server send the same messages again.
      if (!ask.recover && ask.tries < SUBSCRIBE_TRIES && !this.#pace.ms(ask.entries.length, Date.now())) this.#transmit(ask);
      else if (Date.now() - since >= answerMs) return this.#lost("no answer to SUBSCRIBE");
      this.#await(since);
    }, ackMs);
  }

  #refused(ask, refusal) {
    if (ask.tries > ++ask.refusals) return; // another copy of it may be acknowledged
    const socket = this.#socket;
    const again = (known) => {
      known.asked = false;
      this.#touch(known);
    };
    const entries = ask.entries.filter((known) => known.subscriptions.size || again(known)); // the others were closed meanwhile
    this.#asked.delete(ask.requestId);
    this.#await();
    if (refusal.temporary) {
      if (refusal.code === 4029) this.#pace.refused(Date.now());
      setTimeout(() => socket === this.#socket && entries.forEach(again), this.#backoff.ms());
    } else if (ask.entries.length > 1) { // rejected as a whole: find the rejected topic by bisection
      const half = (entries.length + 1) >> 1;
      for (const some of [entries.slice(0, half), entries.slice(half)]) if (some.length) this.#ask(some);
    } else {
      for (const known of entries) {
        if (known.joined) this.#unsubscribe([known.topic]);
        known.asked = false;
        this.#drop(known.topic, refusal);
      }
    }
  }

  #drop(topic, why) {
    const known = this.#topics.get(topic);
    if (!known) return;
    const { subscriptions, asked } = known;
    Object.assign(known, { place: new Place(topic), subscriptions: new Set(), joined: false });
    if (!asked) this.#topics.delete(topic); // otherwise its answer removes it
    for (const subscription of subscriptions) subscription.now("ended", why);
  }

  #leave(subscription) {
    const { topic } = subscription;
    const known = this.#topics.get(topic);
    subscription.now("ended");
    if (!known?.subscriptions.delete(subscription) || known.subscriptions.size) return;
    if (this.#ready) this.#touch(known);
    else this.#topics.delete(topic);
  }

  #deliver(topic, makeEvents, concerns = () => true) {
    const known = this.#topics.get(topic);
    if (!known) return false;
    const { away } = known.place, socket = this.#socket;
    for (const event of makeEvents(known.place)) {
      for (const subscription of [...known.subscriptions]) { // a callback may subscribe or reconnect
        if (event.type === "recovered" && socket !== this.#socket) break;
        // Every SUBSCRIBE repeats the snapshot: deliver it only to new subscriptions, or after a reconnect.
        if (concerns(subscription) && !(event.initial && subscription.entered && !away)) subscription.offer(event);
      }
    }
    return true;
  }

  async *#read(topic, limit, options, only) {
    const waiting = [];
    let ended, end, wake;
    const put = (event) => {
      if (ended || (only && event.type !== only)) return;
      if (waiting.length < limit) waiting.push(event);
      else stop(new TooSlow(`the loop over ${topic} has ${limit} waiting events, its limit`));
      wake?.();
    };
    const stop = (error) => {
      if (!ended) [ended, end] = [true, error];
      subscription.close();
      wake?.();
    };
    const subscription = this.subscribe(topic, {
      onData: put,
      onPresence: put,
      onGap: put,
      onState(state, error) {
        if (state === "recovered") put({ type: state, topic });
        if (state === "ended") stop(error?.code && error); // no error: the caller closed it
      },
    }, options);
    try {
      while (!ended || waiting.length) {
        if (waiting.length) yield waiting.shift();
        else await new Promise((resolve) => (wake = resolve));
      }
      if (end) throw end;
    } finally {
      subscription.close();
    }
  }

  // ---- the connection

  #open() {
    const attempt = (this.#socket = { close() {} }); // a placeholder until the address is known
    const dial = (address) => attempt === this.#socket && this.#dial(address);
    const fail = (error) => attempt === this.#socket && this.#lost(`cannot connect: ${error?.message ?? error}`);
    this.#heartbeat = new Heartbeat();
    this.#timer("open", () => this.#lost("no welcome"), this.#timing.openMs);
    this.#now("connecting");
    try {
      const address = this.#url();
      if (typeof address?.then === "function") Promise.resolve(address).then(dial).catch(fail);
      else dial(address);
    } catch (error) {
      fail(error);
    }
  }

  #dial(address) {
    this.#chances--;
    const url = String(new URL(address, globalThis.location?.href)).replace(/^http/, "ws");
    const socket = (this.#socket = new this.#Socket(url));
    // Ignore events of a connection that was dropped.
    socket.onmessage = ({ data }) => {
      if (socket !== this.#socket) return;
      try {
        this.#receive(JSON.parse(data));
      } catch (error) { // messages may be lost, so reconnect
        this.#lost(`invalid message: ${error.message}`);
      }
    };
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#lost(reason, code);
  }

  async #welcomed({ clientId, node, pingMs = 25_000, limits }) {
    const socket = this.#socket;
    this.#forget("open");
    this.#limits = { ...LIMITS, ...limits };
    this.#pace = new Pace(this.#limits.subscriptionsPerSecond);
    socket.maxBytes = this.#limits.messageBytes; // for HttpSocket, which sends several messages in one request
    this.#chances = this.#Socket === this.#WebSocket ? Infinity : 0;
    this.clientId = clientId;
    this.node = node;
    this.#now("connected");
    if (socket === this.#socket && this.#getToken) {
      try {
        if (await this.#authenticate(socket)) this.#now("authenticated");
      } catch (error) {
        if (socket !== this.#socket) return;
        // The token may have expired, or the server cannot verify it now. The next connection fetches another.
        if (error instanceof Refused && !error.temporary && ++this.#refusals >= this.#tokenTries) {
          this.#finish(new Closed(error.code, error.reason ?? error.message, error.message.slice(5)));
        } else {
          this.#lost(`no token: ${error?.message ?? error}`);
        }
        return;
      }
    }
    if (socket !== this.#socket) return;
    this.#ready = true;
    for (const known of this.#topics.values()) this.#changed.add(known);
    this.#sync();
    this.#connected.resolve();
    this.#beat(pingMs);
  }

  #beat(pingMs) {
    const started = Date.now();
    this.#timer("beat", () => {
      if (!this.#heartbeat.ping()) return this.#lost("no pong");
      if (Date.now() - started > 2 * pingMs) this.#probe(); // the machine slept
      else this.#send(PING);
      this.#beat(pingMs);
    }, pingMs);
  }

  /** A broken network closes no socket for minutes: send a ping, and treat silence as a lost connection. */
  #probe() {
    if (!this.#ready || this.#timers.probe) return;
    this.#send(PING);
    this.#timer("probe", () => this.#lost("no answer"), this.#timing.probeMs);
  }

  #watch() {
    if (this.#listening || !globalThis.addEventListener) return;
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    const look = ({ type }) => {
      if (type === "online") this.#chances = 1; // perhaps another network: one more attempt with this class
      if (this.#socket) this.#probe();
      else if (type !== "offline" && !globalThis.document?.hidden) this.connect();
    };
    for (const type of ["online", "offline", "pageshow", "visibilitychange"]) addEventListener(type, look, { signal });
  }

  /** Log in with a token, if there is one. */
  async #authenticate(socket) {
    const { answerMs } = this.#timing;
    const token = await within(answerMs, (async () => this.#getToken())(), "getToken returned no token");
    if (socket !== this.#socket) return false;
    if (this.#ready && (!token || token === this.#token)) throw new GatewayError("getToken returned no new token"); // retried later
    if (!token) return false; // the user of the cookie, or an anonymous client
    if (typeof token !== "string") throw new TypeError(`getToken must return a string, not a ${typeof token}`);
    this.#authenticated = deferred();
    this.#send(JSON.stringify({ type: "AUTH", authToken: token }));
    await within(answerMs, this.#authenticated.promise, "no answer to AUTH");
    if (socket !== this.#socket) return false;
    this.#token = token;
    this.#refusals = 0;
    const ms = refreshMs(token, Date.now());
    if (ms !== null) this.#timer("refresh", () => this.#refresh(), Math.max(1_000, ms));
    return true;
  }

  async #refresh() {
    const socket = this.#socket;
    if (this.#refreshing === socket || !this.#ready) return;
    this.#refreshing = socket;
    try {
      await this.#authenticate(socket);
    } catch {
      // The old token is still valid; when it expires the server closes, and the next connection fetches another.
      if (socket === this.#socket) this.#timer("refresh", () => this.#refresh(), REFRESH_AGAIN_MS);
    } finally {
      if (this.#refreshing === socket) this.#refreshing = null;
    }
  }

  #lost(reason, code = 1006, serverMs = this.#reconnectMs) {
    if (code >= 3500 && code < 4000) return this.#finish(new Closed(code, reason));
    this.#hangUp();
    if (this.#chances < 1) this.#change();
    const waitMs = this.#backoff.ms(serverMs);
    this.#reconnectMs = null;
    this.#timer("open", () => this.#open(), waitMs);
    this.#now("waiting", { code, reason, waitMs });
    for (const { subscriptions } of this.#topics.values()) subscriptions.forEach((subscription) => subscription.now("pending"));
  }

  /** Some networks block WebSockets: alternate between WebSocket and HTTP. */
  async #change() {
    this.#chances = 1;
    try {
      const { HttpSocket } = await this.#fallback();
      this.#Socket = this.#Socket === HttpSocket ? this.#WebSocket : HttpSocket;
    } catch {
      // There is no fallback, or it could not be loaded.
    }
  }

  #hangUp() {
    const socket = this.#socket;
    const lost = new Disconnected("the connection was lost before an answer");
    this.#socket = null;
    socket?.close();
    for (const name in this.#timers) this.#forget(name);
    if (this.#ready) this.#connected = deferred();
    this.#ready = this.degraded = false;
    for (const known of this.#topics.values()) {
      Object.assign(known, { asked: false, joined: false });
      known.place.disconnected();
      if (!known.subscriptions.size) this.#topics.delete(known.topic);
    }
    this.#asked.clear();
    this.#changed.clear();
    this.#authenticated?.reject(lost);
    for (const answer of this.#answers.values()) answer.reject(lost);
  }

  #finish(end) {
    if (this.#end) return;
    this.#end = end;
    this.#hangUp();
    this.#listening?.abort();
    this.#connected.reject(end);
    for (const topic of [...this.#topics.keys()]) this.#drop(topic, end);
    this.#now("closed", { code: end.code, reason: end.reason });
  }

  #now(state, about) {
    this.state = state;
    this.#emit("state", { state, ...about });
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #timer(name, act, ms) {
    this.#forget(name);
    this.#timers[name] = setTimeout(act, Math.min(ms, 2 ** 31 - 1));
  }

  #forget(name) {
    clearTimeout(this.#timers[name]);
    delete this.#timers[name];
  }

  // ---- messages from the server

  #receive(frame) {
    const { type, topic, requestId = frame.inReplyTo } = frame;
    const answer = this.#answers.get(requestId), ask = this.#asked.get(requestId);
    this.#heartbeat.received();
    this.#forget("probe");
    if (type === "DATA" && !answer) {
      if (frame.delta !== undefined && !this.#expand(this.#topics.get(topic), frame)) return;
      const message = toMessage(frame);
      if (!this.#deliver(topic, (place) => place.take(message))) this.#emit("other", message);
    } else if (type === "PRESENCE") {
      this.#deliver(topic, () => [{ ...frame, type: "presence" }]);
    } else if (type === "SYSTEM") {
      this.#system(frame.action, frame.data ?? {});
    } else if (frame.operation === "authenticate") {
      this.#authenticated?.resolve();
    } else if (type === "ERROR") {
      const refusal = new Refused(frame.code, frame.message, frame.temporary, frame.reason);
      if (ask) this.#refused(ask, refusal);
      else if (answer) answer.reject(refusal);
      else if (frame.code === 4401 || refusal.temporary) this.#authenticated?.reject(refusal); // AUTH has no id
    } else {
      if (ask) this.#subscribed(ask, frame);
      else if (frame.operation === "subscribe") { // a second answer; the topic may have ended since the first
        const ended = frame.topics.filter((name) => !this.#topics.has(name));
        if (ended.length) this.#unsubscribe(ended);
      }
      answer?.resolve(frame);
    }
  }

  /** Replace the delta in a frame by the data. False if it does not apply: the client then subscribes again and recovers. */
  #expand(known, frame) {
    if (!known) return false; // its subscriptions are closed
    const raw = new TextEncoder().encode(frame.data);
    try {
      known.base = frame.delta ? applyDelta(known.base, raw) : raw;
    } catch {
      known.base = null;
      known.place.disconnected();
      for (const subscription of [...known.subscriptions]) subscription.now("pending");
      this.#touch(known);
      return false;
    }
    frame.data = JSON.parse(new TextDecoder().decode(known.base));
    delete frame.delta;
    return true;
  }

  #system(action, about) {
    for (const topic of about.topics ?? []) {
      if (action === "gap") this.#deliver(topic, (place) => place.lost("the server was not subscribed to the topic"));
      if (action === "unsubscribed") this.#drop(topic, new Refused(4403, about.reason));
    }
    this.#reconnectMs = about.reconnectMs ?? this.#reconnectMs; // shutdown, move
    this.degraded = action === "degraded" || (this.degraded && action !== "restored");
    if (action === "token_expiring") this.#refresh();
    if (action === "welcome") this.#welcomed(about);
    this.#emit("system", { action, ...about });
  }

  #subscribed(ask, { topics, positions = {} }) {
    const socket = this.#socket, subscribed = new Set(topics);
    this.#asked.delete(ask.requestId);
    this.#await();
    for (const known of ask.entries) {
      if (socket !== this.#socket) return; // a callback dropped the connection
      const { topic, place, covered } = known;
      const position = Object.hasOwn(positions, topic) ? positions[topic] : null; // a topic may be named "constructor"
      known.asked = false;
      this.#touch(known);
      known.joined ||= subscribed.has(topic);
      if (!known.joined) {
        this.#drop(topic, new Refused(4004, `no such topic: ${topic}`));
        continue;
      }
      this.#deliver(topic, () => place.acknowledged(position), ({ entered }) => entered); // new subscriptions missed nothing
      for (const subscription of covered) {
        if (socket !== this.#socket) return;
        // After a recovery the server sends no last value, so new subscriptions need another SUBSCRIBE.
        if (subscription.state === "pending" && (subscription.entered || !position?.recovered)) subscription.now("subscribed");
      }
    }
  }
}

/** A position as SUBSCRIBE expects it; servers before 0.2 send no mark. */
function toPosition({ epoch, offset, mark }) {
  return { epoch, offset, ...(mark != null && { mark }) };
}

/** The message of a DATA frame. */
function toMessage({ type: _, topic, data = null, timestamp, initialData, ...more }) {
  const { offset = null, epoch = null, mark = null, ...extras } = more;
  return { type: "message", topic, data, timestamp, offset, epoch, mark, initial: !!initialData, extras };
}

/** Call a handler; report its exception without interrupting the client. */
function guarded(handler, ...values) {
  try {
    handler?.(...values);
  } catch (error) {
    setTimeout(() => {
      throw error;
    }, 0);
  }
}

/** The promise's result, or a rejection after `ms`. */
function within(ms, promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new NoAnswer(`${what} in ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A promise with its resolve and reject functions; an unobserved rejection is not an error. */
function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {});
  return made;
}
