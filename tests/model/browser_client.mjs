// gateway.js as the model's player sees it: a step comes as a line, what the client did upon it goes out as a line.
// Time stands still but for the step `time`.

import { createInterface } from "node:readline";
import { mock } from "node:test";
import { Closed, Gateway } from "../../gateway/static/client/gateway.js";

const immediate = setImmediate;
let events, gateway, handles, token, tokens, socket;

const note = (...event) => events.push(event);
const turns = () => new Promise((resolve) => immediate(resolve)); // after all that waits for its turn alone

class Socket {
  readyState = 1;

  constructor() {
    socket = this;
    note("open");
  }

  send(text) {
    note("send", text);
  }

  close() {
    if (this.readyState === 1) note("shut");
    this.readyState = 3;
  }
}

function getToken() {
  if (token === "fails") throw new Error("no token now");
  if (token === "never") return new Promise(() => {});
  if (token === "fresh") tokens++;
  return `t${tokens}`;
}

/** What a callback does: the caller's code runs amid ours. */
const reactions = {
  close(handle) {
    note("did", "close", handle);
    handles.get(handle).close();
  },
  again(handle, topic) {
    const next = handles.size;
    try {
      steps.subscribe(next, topic);
      note("did", "subscribe", next, topic);
    } catch (error) {
      if (!(error instanceof Closed)) throw error;
    }
  },
  swap(handle, topic) {
    reactions.close(handle);
    reactions.again(handle, topic);
  },
  all(_, topic) {
    note("did", "unsubscribe", topic);
    gateway.unsubscribe(topic);
  },
  reconnect: () => gateway.reconnect(0),
};

const steps = {
  async start(withToken) {
    gateway?.close();
    await turns();
    mock.timers.reset();
    mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
    events = [];
    [handles, token, tokens, socket] = [new Map(), "fresh", 1, null];
    gateway = new Gateway("ws://gateway/ws", { WebSocket: Socket, fallback: null, getToken: withToken ? getToken : undefined });
    gateway.addEventListener("state", ({ detail }) => note("state", detail.state));
  },
  connect: () => void gateway.connect().catch(() => {}),
  reconnect: () => gateway.reconnect(),
  subscribe(handle, topic, on, reaction) {
    const notify = (event, value) => {
      note("notified", handle, event, value);
      if (event !== on) return;
      on = null; // once
      reactions[reaction](handle, topic);
    };
    handles.set(handle, gateway.subscribe(topic, {
      onData: ({ data, initial }) => notify(initial ? "initial" : "message", data),
      onGap: () => notify("gap"),
      onState: (state, error) => state !== "pending" && notify(state, error?.name),
    }));
  },
  close: (handle) => handles.get(handle).close(),
  say(id, topic) {
    const answered = (how) => () => note("answered", id, how);
    gateway.publish(topic, "said").then(answered("resolved"), answered("rejected"));
  },
  token: (how) => void (token = how),
  deliver: (text) => socket.onmessage({ data: text }),
  cut(code) {
    socket.readyState = 3;
    socket.onclose({ code, reason: "cut" });
  },
  async time(ms) {
    for (let left = ms; left > 0; left -= 250) {
      mock.timers.tick(Math.min(left, 250));
      await turns();
    }
  },
  end: () => gateway.close(),
};

mock.method(Math, "random", () => 0.5);
process.on("uncaughtException", (error) => note("fault", String(error.stack)));
process.on("unhandledRejection", (error) => note("fault", String(error?.stack ?? error)));

for await (const line of createInterface({ input: process.stdin })) {
  const [word, ...values] = JSON.parse(line);
  await steps[word](...values);
  await turns();
  await turns();
  process.stdout.write(`${JSON.stringify(events)}\n`);
  events = [];
}
