// The browser client: one socket to the cluster, kept alive; every topic in order, and the truth about what was missed.
//
//   import { Gateway } from "/gateway.js";
//   const gateway = new Gateway("/ws", { getToken });
//   gateway.subscribe("contest", { onData: ({ data }) => show(data), onGap: ({ reason }) => reload(reason) });
//   await gateway.connect();
//
// It reconnects by itself, subscribes again and recovers: on a topic with history each message is handed on once and in
// order, whatever happened between; where one cannot be had any more, there is a gap in its place.
// gateway.d.ts describes it. Times are milliseconds.

const SUBSCRIBE_TRIES = 3;
const MISSED_PONGS = 3;
const BUFFER_EVENTS = 10_000;
const REFRESH_MS = 60_000; // a token is replaced so long before its end, or in the last quarter of a short life
const REFRESH_AGAIN_MS = 5_000; // after a failure
const PING = { type: "ping" };
const TIMING = {
  baseMs: 1_000, // reconnect: the first wait is anywhere between 0 and this, and then it doubles
  capMs: 20_000,
  ackMs: 1_000, // a SUBSCRIBE without an answer is sent again after so long
  answerMs: 10_000, // any answer
  openMs: 10_000, // until the server's welcome
  probeMs: 5_000, // a sign of life, after the network changed or the machine slept
};

// ---- what can go wrong

export class GatewayError extends Error {
  name = "GatewayError";

  constructor(message, about) {
    super(message);
    Object.assign(this, about);
  }
}

/** The server answered with an ERROR; `temporary`: the same may be carried out later. */
export class Refused extends GatewayError {
  name = "Refused";

  constructor(code, message, temporary = false, reason = null) {
    super(`${code} ${message}`, { code, temporary, reason });
  }
}

/** No answer in time; what was asked may have been done or not. */
export class NoAnswer extends GatewayError {
  name = "NoAnswer";
}

/** The socket was lost before the answer; what was asked may have been done or not. */
export class Disconnected extends GatewayError {
  name = "Disconnected";
}

/** More events waited in a loop over a topic than it may hold; it has ended. */
export class TooSlow extends GatewayError {
  name = "TooSlow";
}

/** The client has ended; `code` is the server's, null if the caller left. */
export class Closed extends GatewayError {
  name = "Closed";

  constructor(code, reason) {
    super(`closed${code ? ` with ${code}` : ""}: ${reason}`, { code, reason });
  }
}

// ---- the pure parts, the same as in the Python client's place.py and pace.py

/** Where a subscriber is in one topic, and what that makes of what the server says. */
export class Place {
  away = false; // it was acknowledged, and the connection was lost since
  #joined = false;
  #position = null; // epoch and offset of the last message had

  constructor(topic) {
    this.topic = topic;
  }

  /** What SUBSCRIBE says under `recover`; null: there is nothing to recover from. */
  recover() {
    return this.away ? this.#position : null;
  }

  /** What to hand on of a message: nothing if it was had before. */
  take(message) {
    const { initial, epoch, offset } = message;
    if (initial || epoch === null) return [message];
    const last = this.#position;
    if (last?.epoch === epoch && offset <= last.offset) return [];
    this.#position = { epoch, offset };
    return last && last.epoch !== epoch ? [this.#gap("the history began anew"), message] : [message];
  }

  /** SUBSCRIBE was acknowledged, with this position if the topic has history. */
  acknowledged(position) {
    const wasAway = this.away;
    this.away = false;
    this.#joined = true;
    if (position) this.#position = { epoch: position.epoch, offset: position.offset };
    if (!wasAway) return [];
    if (position?.recovered === true) return [{ type: "recovered", topic: this.topic }];
    return [this.#gap(`reconnected: ${position ? "what was missed is no longer kept" : "a topic without history"}`)];
  }

  /** The server tells of a gap: what it goes on with may even have lower offsets than were had. */
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

/** Full jitter: each wait is anywhere between 0 and a bound that doubles, so that a crowd comes back spread out. */
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

  /** How long to wait now; `toldMs`: the server has said when to come. */
  ms(toldMs = null) {
    const bound = Math.min(this.#capMs, this.#baseMs * 2 ** Math.min(this.#attempt++, 32));
    return toldMs ?? this.#random() * bound;
  }

  reset() {
    this.#attempt = 0;
  }
}

/** Counts pings that nothing was heard after. Any message is a sign of life: a pong may stand behind many. */
export class Heartbeat {
  #unanswered = 0;

  /** It is time for a ping. False: too many had no answer, the server is dead. */
  ping() {
    return this.#unanswered++ < MISSED_PONGS;
  }

  heard() {
    this.#unanswered = 0;
  }
}

/** When to replace a token, in ms from now; null: it says no end that is still to come. */
export function refreshMs(token, nowMs) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
    const left = claims.exp * 1000 - nowMs;
    return left > 0 ? left - Math.min(REFRESH_MS, left / 4) : null;
  } catch {
    return null; // no JWT: the server says when it ends
  }
}

// ---- a topic's hearer

/** What one caller hears of one topic. States: pending, subscribed, recovered, ended. */
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

  /** Hear the topic no more. */
  close() {
    this.#leave(this);
  }

  // ---- for the gateway alone

  offer(event) {
    const { type } = event;
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

/** One socket to the cluster, opened again whenever it is lost, and all that goes over it. */
export class Gateway extends EventTarget {
  state = "waiting"; // connecting, connected, authenticated, waiting, closed
  node = ""; // the server's name
  clientId = ""; // and its name for this connection
  degraded = false; // it has lost Redis, and said so
  #url;
  #getToken;
  #token = null;
  #timing;
  #WebSocket;
  #fallback; // loads another kind of socket
  #Socket; // which of the two is tried
  #chances = 1; // that it still has; without end for a WebSocket where one has come through
  #backoff;
  #topics = new Map(); // name -> {place, hearers}
  #answers = new Map(); // by request id: {resolve, reject, topics}
  #lastId = 0;
  #socket = null;
  #ready = false; // messages may go out: welcomed, and authenticated if there is a token
  #connected = deferred();
  #authenticated = null;
  #refreshing = false;
  #reconnectMs = null; // said by a server that sends us away
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
    this.#timing = { ...TIMING, ...timing };
    this.#Socket = this.#WebSocket = WebSocket;
    this.#fallback = fallback;
    this.#backoff = new Backoff(this.#timing.baseMs, this.#timing.capMs);
  }

  // ---- for the caller

  /** Connect, or try again now; resolves when messages can go out. */
  connect() {
    if (!this.#end && !this.#socket) {
      this.#watch();
      this.#open();
    }
    return this.#connected.promise;
  }

  /** Leave; all subscriptions end. */
  close() {
    this.#finish(new Closed(null, "the caller has left"));
  }

  /** Give up this connection and make a new one, as if it had been lost; `afterMs`: not before. */
  reconnect(afterMs = null) {
    if (this.#socket) this.#lost("given up", 1006, afterMs);
  }

  subscribe(topic, handlers = {}) {
    if (this.#end) throw this.#end;
    const subscription = new Subscription(topic, handlers, (leaving) => this.#leave(leaving));
    if (!this.#topics.has(topic)) this.#topics.set(topic, { place: new Place(topic), hearers: new Set() });
    this.#topics.get(topic).hearers.add(subscription);
    if (this.#ready) this.#join([topic]); // else it is among those asked for on the next connection
    return subscription;
  }

  /** Hear the topic no more: ends all its subscriptions. */
  unsubscribe(topic) {
    this.#topics.get(topic)?.hearers.forEach((subscription) => subscription.close());
  }

  /** To loop over: `for await (const message of gateway.topic("contest"))`; over `events()` for gaps and presence too. */
  topic(topic, { limit = BUFFER_EVENTS } = {}) {
    const read = (only) => this.#read(topic, limit, only);
    return { [Symbol.asyncIterator]: () => read("message"), events: () => read() };
  }

  /** Say something on a topic; its place if the topic has history. It is never sent twice. */
  async publish(topic, data, extras) {
    const { epoch, offset } = await this.#call({ ...extras, type: "PUBLISH", topic, data });
    return epoch ? { epoch, offset } : null;
  }

  async request(topic, action, parameters = {}) {
    return (await this.#call({ type: "REQUEST", topic, action, data: parameters })).data;
  }

  async command(topic, action, data = null) {
    return (await this.#call({ type: "COMMAND", topic, action, data })).data;
  }

  /** Who is on a topic. */
  presence(topic) {
    return this.request(topic, "presence");
  }

  /** A topic's last messages, or the first behind the offset `since`. */
  history(topic, range) {
    return this.request(topic, "history", range);
  }

  // ---- asking

  #call(frame) {
    return new Promise((resolve, reject) => {
      const { answerMs, ackMs } = this.#timing;
      const requestId = `j${++this.#lastId}`;
      let again, tries = 0;
      const settle = (how) => (value) => {
        clearTimeout(timer);
        clearInterval(again);
        this.#answers.delete(requestId);
        tries = SUBSCRIBE_TRIES;
        how(value);
      };
      const answer = { resolve: settle(resolve), reject: settle(reject), topics: frame.topics };
      const timer = setTimeout(() => answer.reject(new NoAnswer(`no answer to ${frame.type} in ${answerMs} ms`)), answerMs);
      const send = () => {
        if (tries++ < SUBSCRIBE_TRIES) this.#send({ ...frame, requestId });
      };
      const begin = () => {
        this.#answers.set(requestId, answer);
        send();
        if (frame.topics) again = setInterval(send, ackMs); // subscribing twice does no harm
      };
      if (this.#ready) begin(); // at once: frames of one socket are handled in order
      else this.#connected.promise.then(() => tries || begin(), answer.reject);
    });
  }

  #send(frame) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(frame)); // else its end is about to be told
  }

  // ---- topics

  /** Subscribe in one frame. If the connection is lost meanwhile, the next asks for them again. */
  async #join(topics) {
    topics = topics.filter((topic) => this.#topics.has(topic));
    if (!topics.length) return; // left meanwhile
    const places = topics.map((topic) => [topic, this.#topics.get(topic).place.recover()]).filter(([, place]) => place);
    const socket = this.#socket;
    try {
      await this.#call({ type: "SUBSCRIBE", topics, ...(places.length && { recover: Object.fromEntries(places) }) });
    } catch (error) {
      if (socket !== this.#socket) return;
      if (error instanceof Refused) this.#refused(socket, topics, error);
      else if (this.degraded) this.#join(topics); // Redis is away: another node could not either
      else this.#lost("no answer to SUBSCRIBE"); // this node cannot: perhaps another can
    }
  }

  #refused(socket, topics, refusal) {
    if (refusal.temporary) {
      setTimeout(() => socket === this.#socket && this.#join(topics), this.#backoff.ms());
    } else if (topics.length > 1) { // all or nothing: one of them is to blame
      const half = topics.length >> 1;
      this.#join(topics.slice(0, half));
      this.#join(topics.slice(half));
    } else {
      this.#drop(topics[0], refusal);
    }
  }

  #drop(topic, why) {
    const known = this.#topics.get(topic);
    this.#topics.delete(topic);
    known?.hearers.forEach((subscription) => subscription.now("ended", why));
  }

  #leave(subscription) {
    const { topic } = subscription;
    const known = this.#topics.get(topic);
    subscription.now("ended");
    if (!known?.hearers.delete(subscription) || known.hearers.size) return;
    this.#topics.delete(topic);
    if (this.#ready) this.#send({ type: "UNSUBSCRIBE", topics: [topic] });
  }

  #handOn(topic, makeEvents, concerns = () => true) {
    const known = this.#topics.get(topic);
    if (!known) return false;
    const { away } = known.place;
    for (const event of makeEvents(known.place)) {
      for (const subscription of known.hearers) {
        // A snapshot comes again with every SUBSCRIBE: it is for who has just come, or comes back.
        if (concerns(subscription) && !(event.initial && subscription.entered && !away)) subscription.offer(event);
      }
    }
    return true;
  }

  async *#read(topic, limit, only) {
    const waiting = [];
    let ended, end, wake;
    const put = (event) => {
      if (ended || (only && event.type !== only)) return;
      if (waiting.length < limit) waiting.push(event);
      else stop(new TooSlow(`${limit} events of ${topic} wait to be read`));
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
        if (state === "ended") stop(error?.code && error); // none: it was the caller's wish
      },
    });
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
    this.#now("connecting");
    this.#heartbeat = new Heartbeat();
    const url = String(new URL(this.#url(), globalThis.location?.href)).replace(/^http/, "ws");
    const socket = (this.#socket = new this.#Socket(url));
    // What a connection that was given up still says is ignored.
    socket.onmessage = ({ data }) => socket === this.#socket && this.#heard(JSON.parse(data));
    socket.onclose = ({ code, reason }) => socket === this.#socket && this.#lost(reason, code);
    this.#timer("open", () => this.#lost("no welcome"), this.#timing.openMs);
  }

  async #welcomed({ clientId, node, pingMs }) {
    const socket = this.#socket;
    this.clientId = clientId;
    this.node = node;
    this.#now("connected");
    if (this.#getToken) {
      try {
        await this.#authenticate(socket);
      } catch (error) {
        if (socket !== this.#socket) return;
        if (error instanceof Refused) this.#finish(new Closed(error.code, error.reason ?? error.message));
        else this.#lost(`no token: ${error.message}`);
        return;
      }
      if (socket !== this.#socket) return;
      this.#now("authenticated");
    }
    this.#forget("open");
    this.#chances = this.#Socket === this.#WebSocket ? Infinity : 1;
    this.#backoff.reset();
    this.#ready = true;
    this.#join([...this.#topics.keys()]);
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

  /** A dead network closes no socket for minutes: ask, and believe silence. */
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
      if (type === "online") this.#chances = 2; // perhaps another network: this connection may be lost, and one attempt
      if (this.#socket) this.#probe();
      else if (type !== "offline" && !globalThis.document?.hidden) this.connect();
    };
    for (const type of ["online", "offline", "pageshow", "visibilitychange"]) addEventListener(type, look, { signal });
  }

  async #authenticate(socket) {
    this.#authenticated = deferred();
    const token = await this.#getToken();
    if (socket !== this.#socket) return;
    if (this.#ready && token === this.#token) throw new GatewayError("the same token"); // nothing to say: ask again later
    this.#token = token;
    this.#send({ type: "AUTH", authToken: token });
    await this.#authenticated.promise;
    const ms = refreshMs(token, Date.now());
    if (ms !== null) this.#timer("refresh", () => this.#refresh(), Math.max(1_000, ms));
  }

  async #refresh() {
    if (this.#refreshing || !this.#ready) return;
    const socket = this.#socket;
    this.#refreshing = true;
    try {
      await this.#authenticate(socket);
    } catch {
      // The old token still holds; when it ends the server closes, and the next connection asks again.
      if (socket === this.#socket) this.#timer("refresh", () => this.#refresh(), REFRESH_AGAIN_MS);
    } finally {
      this.#refreshing = false;
    }
  }

  #lost(reason, code = 1006, toldMs = this.#reconnectMs) {
    if (code >= 3500 && code < 4000) return this.#finish(new Closed(code, reason));
    this.#hangUp();
    if (!--this.#chances) this.#change();
    const waitMs = this.#backoff.ms(toldMs);
    this.#reconnectMs = null;
    this.#timer("open", () => this.#open(), waitMs);
    for (const { place, hearers } of this.#topics.values()) {
      place.disconnected();
      hearers.forEach((subscription) => subscription.now("pending"));
    }
    this.#now("waiting", { code, reason, waitMs });
  }

  /** There are networks that let no WebSocket through: try the other kind next, in turn. */
  async #change() {
    this.#chances = 1;
    try {
      const { HttpSocket } = await this.#fallback();
      this.#Socket = this.#Socket === HttpSocket ? this.#WebSocket : HttpSocket;
    } catch {
      // There is none, or it can be had as little as anything else.
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
    this.#authenticated?.reject(lost);
    for (const answer of this.#answers.values()) answer.reject(lost);
  }

  #finish(end) {
    if (this.#end) return;
    this.#end = end;
    this.#hangUp();
    this.#listening?.abort();
    this.#connected.reject(end);
    for (const topic of this.#topics.keys()) this.#drop(topic, end);
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

  // ---- what the server says

  #heard(frame) {
    const { type, topic, requestId = frame.inReplyTo } = frame;
    const answer = this.#answers.get(requestId);
    this.#heartbeat.heard();
    this.#forget("probe");
    if (type === "DATA" && !answer) {
      const message = toMessage(frame);
      if (!this.#handOn(topic, (place) => place.take(message))) this.#emit("other", message);
    } else if (type === "PRESENCE") {
      this.#handOn(topic, () => [{ ...frame, type: "presence" }]);
    } else if (type === "SYSTEM") {
      this.#system(frame.action, frame.data ?? {});
    } else if (frame.operation === "authenticate") {
      this.#authenticated?.resolve();
    } else if (type === "ERROR") {
      const refusal = new Refused(frame.code, frame.message, frame.temporary, frame.reason);
      if (frame.code === 4401) this.#authenticated?.reject(refusal);
      else answer?.reject(refusal);
    } else {
      if (frame.operation === "subscribe") this.#subscribed(answer?.topics ?? [], frame); // none: it was sent twice
      answer?.resolve(frame);
    }
  }

  #system(action, about) {
    for (const topic of about.topics ?? []) {
      if (action === "gap") this.#handOn(topic, (place) => place.lost("the server could not hear the topic"));
      if (action === "unsubscribed") this.#drop(topic, new Refused(4403, about.reason));
    }
    this.#reconnectMs = about.reconnectMs ?? this.#reconnectMs; // shutdown, move
    this.degraded = action === "degraded" || (this.degraded && action !== "restored");
    if (action === "token_expiring") this.#refresh();
    if (action === "welcome") this.#welcomed(about);
    this.#emit("system", { action, ...about });
  }

  #subscribed(asked, { topics, positions = {} }) {
    const heard = new Set(topics);
    for (const topic of asked) {
      if (!heard.has(topic)) this.#drop(topic, new Refused(4004, `no such topic: ${topic}`));
      this.#handOn(topic, (place) => place.acknowledged(positions[topic]), (subscription) => subscription.entered); // newcomers missed nothing
      // After a recovery the server sends no last value: ask again, for the newcomers'.
      const recovered = positions[topic]?.recovered;
      const hearers = [...(this.#topics.get(topic)?.hearers ?? [])];
      if (recovered && hearers.some(({ entered }) => !entered)) this.#join([topic]);
      for (const subscription of hearers) {
        if (subscription.state === "pending" && (subscription.entered || !recovered)) subscription.now("subscribed");
      }
    }
  }
}

/** The message that a DATA frame carries. */
function toMessage({ type: _, topic, data = null, timestamp, offset = null, epoch = null, initialData, ...extras }) {
  return { type: "message", topic, data, timestamp, offset, epoch, initial: !!initialData, extras };
}

/** Call back; a fault of the caller's is reported as one, and stops nothing here. */
function guarded(handler, ...values) {
  try {
    handler?.(...values);
  } catch (error) {
    setTimeout(() => {
      throw error;
    }, 0);
  }
}

/** A promise that is settled from outside; one that nobody waits for is no fault. */
function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {});
  return made;
}
