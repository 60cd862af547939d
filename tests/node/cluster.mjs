// A fake server for each test: sockets in memory, and timers that advance only when the test says so.

import { mock } from "node:test";
import { Gateway } from "../../gateway/static/client/gateway.js";

export const NOW = "2026-01-31T12:00:00.000Z";

/** A WebSocket whose server side is the test. */
export class Socket {
  static all = [];
  readyState = 0;
  sent = [];
  silent = false; // answers no ping

  constructor(url) {
    this.url = url;
    Socket.all.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
    if (this.last("ping") === this.sent.at(-1) && !this.silent) queueMicrotask(() => this.say({ type: "pong" }));
  }

  close() {
    this.readyState = 3;
  }

  // ---- what the server does

  say(frame) {
    this.onmessage({ data: JSON.stringify(frame) });
  }

  welcome(about = {}) {
    this.readyState = 1;
    this.say({ type: "SYSTEM", action: "welcome", data: { clientId: "n1.b.1", node: "n1", pingMs: 25_000, ...about } });
  }

  authenticate() {
    this.say({ type: "ACKNOWLEDGMENT", operation: "authenticate", status: "success" });
  }

  /** Acknowledge the last SUBSCRIBE. */
  subscribed(positions, topics = this.last("SUBSCRIBE").topics) {
    const { requestId } = this.last("SUBSCRIBE");
    this.say({ type: "ACKNOWLEDGMENT", operation: "subscribe", topics, requestId, positions });
  }

  data(topic, data, place = {}) {
    this.say({ type: "DATA", topic, data, timestamp: NOW, ...place });
  }

  refuse(code, about = {}) {
    this.say({ type: "ERROR", code, message: `refused with ${code}`, ...about });
  }

  cut(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
  }

  frames(type) {
    return this.sent.filter((frame) => frame.type === type);
  }

  last(type) {
    return this.frames(type).at(-1);
  }
}

/** The client's newest connection. */
export const socket = () => Socket.all.at(-1);

/** Run all pending microtasks. */
export async function turns() {
  for (let turn = 0; turn < 30; turn++) await null;
}

/** Advance time in steps: a client that sees a whole minute pass at once assumes that the machine slept. */
export async function pass(ms) {
  await turns();
  for (let left = ms; left > 0; left -= 10_000) {
    mock.timers.tick(Math.min(left, 10_000));
    await turns();
  }
}

/** A client, and the states that it reports. */
export function make(options = {}) {
  const gateway = new Gateway("ws://gateway/ws", { WebSocket: Socket, ...options });
  const states = [];
  gateway.addEventListener("state", ({ detail }) => states.push(detail));
  return { gateway, states, names: () => states.map(({ state }) => state) };
}

/** A client that is connected. */
export async function connected(options, welcome) {
  const made = make(options);
  made.gateway.connect();
  socket().welcome(welcome);
  await turns();
  return made;
}

/** Records all callbacks of a subscription. */
export function notebook() {
  const received = [];
  return {
    received,
    handlers: {
      onData: ({ data }) => received.push(data),
      onPresence: ({ count }) => received.push(`presence ${count}`),
      onGap: ({ reason }) => received.push(`gap: ${reason}`),
      onState: (state, error) => received.push(error ? `${state}: ${error.message}` : state),
    },
  };
}
