import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { Closed, Disconnected, NoAnswer, Refused, TooLarge, TooSlow } from "../../gateway/static/client/gateway.js";
import { connected, make, notebook, pass, Socket, socket, turns } from "./cluster.mjs";

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
  mock.method(Math, "random", () => 0.5);
  Socket.all.length = 0;
});

afterEach(() => mock.reset() || mock.timers.reset());

const at = (offset, more = {}) => ({ epoch: "e", offset, ...more });

function jwt(seconds) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "HS256" })}.${part({ wallet_address: "ann", exp: Date.now() / 1000 + seconds })}.x`;
}

test("it reports each state while it connects", async () => {
  const { gateway, names } = make({ token: "jwt" });
  const ready = gateway.connect();
  assert.equal(socket().url, "ws://gateway/ws");
  socket().welcome({ node: "n7", clientId: "n7.b.3" });
  await turns();
  assert.deepEqual(socket().sent, [{ type: "AUTH", authToken: "jwt" }]);
  socket().authenticate();
  await ready;
  assert.deepEqual(names(), ["connecting", "connected", "authenticated"]);
  assert.deepEqual([gateway.node, gateway.clientId, gateway.state], ["n7", "n7.b.3", "authenticated"]);
});

test("without a token it is ready after the welcome", async () => {
  const { gateway, names } = make();
  const ready = gateway.connect();
  socket().welcome();
  await ready;
  assert.deepEqual(names(), ["connecting", "connected"]);
  assert.deepEqual(socket().sent, []);
});

test("one frame subscribes to all topics, and again with their positions after a cut", async () => {
  const { gateway } = make();
  const [kept, plain] = [notebook(), notebook()];
  gateway.subscribe("kept", kept.handlers);
  gateway.subscribe("plain", plain.handlers);
  gateway.connect();
  socket().welcome();
  await turns();
  assert.equal(socket().sent.length, 1);
  assert.deepEqual(socket().sent[0].topics, ["kept", "plain"]);
  assert.equal(socket().sent[0].recover, undefined);
  socket().subscribed({ kept: at(10) });
  socket().data("kept", "a", at(11));
  socket().data("plain", "b");
  socket().cut();
  await pass(1_000);
  socket().welcome();
  await turns();
  assert.deepEqual(socket().last("SUBSCRIBE").recover, { kept: at(11) });
  socket().data("kept", "a", at(11)); // a duplicate
  socket().data("kept", "c", at(12));
  socket().subscribed({ kept: at(12, { recovered: true }) });
  assert.deepEqual(kept.received, ["subscribed", "a", "pending", "c", "recovered"]);
  assert.deepEqual(plain.received, ["subscribed", "b", "pending", "gap: reconnected: a topic without history", "subscribed"]);
});

test("subscriptions of one topic share one SUBSCRIBE, until the last is closed", async () => {
  const { gateway } = await connected();
  const [first, second] = [notebook(), notebook()];
  const one = gateway.subscribe("t", first.handlers);
  await turns();
  socket().subscribed();
  const two = gateway.subscribe("t", second.handlers);
  await turns();
  socket().data("t", "last value", { initialData: true });
  socket().subscribed();
  socket().data("t", 1);
  one.close();
  assert.equal(socket().last("UNSUBSCRIBE"), undefined);
  socket().data("t", 2);
  two.close();
  two.close();
  await turns();
  assert.deepEqual(socket().frames("UNSUBSCRIBE").map(({ topics }) => topics), [["t"]]);
  socket().data("t", 3);
  assert.deepEqual(first.received, ["subscribed", 1, "ended"]);
  assert.deepEqual(second.received, ["last value", "subscribed", 1, 2, "ended"]);
  await assert.rejects(gateway.subscribe("t").close() ?? Promise.reject(new Error("closed")), /closed/);
});

test("a last value after a reconnect goes to all subscriptions", async () => {
  const { gateway } = await connected();
  const note = notebook();
  gateway.subscribe("t", note.handlers);
  await turns();
  socket().subscribed();
  socket().cut();
  await pass(1_000);
  socket().welcome();
  await turns();
  socket().data("t", "now", { initialData: true });
  socket().subscribed();
  assert.deepEqual(note.received, ["subscribed", "pending", "now", "gap: reconnected: a topic without history", "subscribed"]);
});

test("a subscription added while offline gets the last value although the others recovered", async () => {
  const { gateway } = await connected();
  const [first, second] = [notebook(), notebook()];
  gateway.subscribe("t", first.handlers);
  await turns();
  socket().subscribed({ t: at(1) });
  socket().cut();
  gateway.subscribe("t", second.handlers);
  await pass(1_000);
  socket().welcome();
  await turns();
  socket().subscribed({ t: at(1, { recovered: true }) });
  assert.deepEqual(second.received, [], "it has no last value yet, and missed nothing");
  await turns();
  assert.equal(socket().frames("SUBSCRIBE").length, 2);
  assert.equal(socket().last("SUBSCRIBE").recover, undefined);
  socket().data("t", "last value", { initialData: true, ...at(1) });
  socket().subscribed({ t: at(1) });
  await turns();
  assert.equal(socket().frames("SUBSCRIBE").length, 2);
  assert.deepEqual(first.received, ["subscribed", "pending", "recovered"]);
  assert.deepEqual(second.received, ["last value", "subscribed"]);
});

test("gaps and presence reach the subscriptions of their topic", async () => {
  const { gateway } = await connected();
  const note = notebook();
  gateway.subscribe("t", note.handlers);
  await turns();
  socket().subscribed({ t: at(5) });
  socket().say({ type: "PRESENCE", topic: "t", count: 2, joined: [{ user: "ann" }], left: [] });
  socket().say({ type: "SYSTEM", action: "gap", data: { topics: ["t", "unknown"] } });
  socket().data("t", "anything is news", at(2));
  assert.deepEqual(note.received, ["subscribed", "presence 2", "gap: the server was not subscribed to the topic", "anything is news"]);
});

test("a SUBSCRIBE without an answer is sent three times, and then the client reconnects", async () => {
  const { gateway, names } = await connected();
  gateway.subscribe("t");
  await pass(1_000);
  await pass(1_000);
  await pass(1_000);
  const sent = socket().frames("SUBSCRIBE");
  assert.equal(sent.length, 3);
  assert.equal(new Set(sent.map(({ requestId }) => requestId)).size, 1);
  await pass(6_000);
  assert.equal(gateway.state, "connected");
  await pass(1_000);
  assert.equal(names().at(-1), "waiting");
});

test("a SUBSCRIBE that recovers is sent once, since its copy would recover again", async () => {
  const { gateway } = await connected();
  gateway.subscribe("t");
  await turns();
  socket().subscribed({ t: at(1) });
  gateway.reconnect(0);
  await pass(10);
  socket().welcome();
  for (let second = 0; second < 9; second++) await pass(1_000);
  assert.deepEqual(socket().frames("SUBSCRIBE").map(({ recover }) => recover), [{ t: at(1) }]);
  await pass(1_000);
  assert.equal(gateway.state, "waiting");
});

test("a SUBSCRIBE waits while the server has lost Redis", async () => {
  const { gateway } = await connected();
  socket().say({ type: "SYSTEM", action: "degraded", data: { message: "…" } });
  const subscription = gateway.subscribe("t");
  await pass(10_000);
  await pass(10_000);
  assert.equal(gateway.state, "connected");
  assert.equal(gateway.degraded, true);
  socket().subscribed();
  await subscription.ready;
  socket().say({ type: "SYSTEM", action: "restored", data: { message: "…" } });
  assert.equal(gateway.degraded, false);
});

test("one rejected topic does not affect the others", async () => {
  const { gateway } = make();
  const subscriptions = ["a", "b", "secret", "c"].map((topic) => gateway.subscribe(topic));
  gateway.connect();
  socket().welcome();
  await turns();
  for (let at = 0; at < socket().sent.length; at++) {
    const { topics, requestId } = socket().sent[at];
    if (topics.includes("secret")) socket().refuse(4010, { requestId });
    else socket().say({ type: "ACKNOWLEDGMENT", operation: "subscribe", topics, requestId });
    await turns();
  }
  assert.deepEqual(subscriptions.map(({ state }) => state), ["subscribed", "subscribed", "ended", "subscribed"]);
  await assert.rejects(subscriptions[2].ready, (error) => error instanceof Refused && error.code === 4010);
  assert.equal(socket().sent.length, 5);
});

test("a SUBSCRIBE with a temporary error is retried later", async () => {
  const { gateway } = await connected();
  gateway.subscribe("t");
  await turns();
  socket().refuse(5030, { inReplyTo: socket().last("SUBSCRIBE").requestId, temporary: true });
  await turns();
  assert.equal(socket().frames("SUBSCRIBE").length, 1);
  await pass(500);
  assert.equal(socket().frames("SUBSCRIBE").length, 2);
});

test("a topic that is missing in the acknowledgement, or taken away, ends its subscription", async () => {
  const { gateway } = await connected();
  const [bad, taken] = [notebook(), notebook()];
  gateway.subscribe("no topic", bad.handlers);
  await turns();
  socket().subscribed({}, []);
  gateway.subscribe("taken", taken.handlers);
  await turns();
  socket().subscribed();
  socket().say({ type: "SYSTEM", action: "unsubscribed", data: { topics: ["taken"], reason: "by the operator" } });
  assert.deepEqual(bad.received, ["ended: 4004 no such topic: no topic"]);
  assert.deepEqual(taken.received, ["subscribed", "ended: 4403 by the operator"]);
});

test("each request is answered, rejected, timed out or lost on its own", async () => {
  const { gateway } = await connected();
  const answers = [
    gateway.publish("kept", 1, { action: "go" }), gateway.publish("plain", 2), gateway.request("system", "getStatus"),
    gateway.command("chat", "SEND", { a: 1 }), gateway.history("kept", { limit: 1 }), gateway.presence("kept"),
  ];
  const [kept, plain, status, command, history, presence] = socket().sent;
  assert.deepEqual(kept, { type: "PUBLISH", topic: "kept", data: 1, action: "go", requestId: kept.requestId });
  assert.deepEqual([history.action, history.data, presence.action], ["history", { limit: 1 }, "presence"]);
  socket().say({ type: "ACKNOWLEDGMENT", operation: "publish", topic: "kept", ...at(3), requestId: kept.requestId });
  socket().say({ type: "ACKNOWLEDGMENT", operation: "publish", topic: "plain", requestId: plain.requestId });
  socket().say({ type: "DATA", topic: "system", data: { up: 1 }, requestId: status.requestId });
  socket().refuse(4013, { inReplyTo: command.requestId });
  assert.deepEqual(await Promise.all(answers.slice(0, 3)), [at(3), null, { up: 1 }]);
  await assert.rejects(answers[3], Refused);
  await pass(9_000);
  const late = gateway.request("system", "ping");
  await pass(1_000);
  await assert.rejects(answers[4], NoAnswer);
  socket().cut();
  await assert.rejects(late, Disconnected);
  await assert.rejects(answers[5], NoAnswer);
});

test("a request before the connection is sent after its SUBSCRIBE", async () => {
  const { gateway } = make();
  gateway.subscribe("t");
  const asked = gateway.publish("t", 1);
  const tooLong = gateway.publish("t", 2);
  gateway.connect();
  socket().welcome();
  await turns();
  assert.deepEqual(socket().sent.map(({ type }) => type), ["SUBSCRIBE", "PUBLISH", "PUBLISH"]);
  socket().say({ type: "ACKNOWLEDGMENT", operation: "publish", requestId: socket().sent[1].requestId });
  assert.equal(await asked, null);
  await pass(10_000);
  await assert.rejects(tooLong, NoAnswer);
});

test("a request that timed out is not sent later", async () => {
  const { gateway } = make();
  const asked = gateway.publish("t", 1);
  await pass(10_000);
  await assert.rejects(asked, NoAnswer);
  gateway.connect();
  socket().welcome();
  await turns();
  assert.deepEqual(socket().sent, []);
});

test("it waits with full jitter, or for the server's delay, or not at all", async () => {
  const { gateway, states } = await connected();
  const waits = () => states.filter(({ state }) => state === "waiting").map(({ waitMs }) => waitMs);
  socket().cut();
  for (let tries = 0; tries < 6; tries++) {
    await pass(20_000);
    socket().cut();
  }
  assert.deepEqual(waits(), [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
  gateway.connect(); // now
  socket().welcome();
  await turns();
  socket().say({ type: "SYSTEM", action: "shutdown", data: { code: 1001, reconnectMs: 1234 } });
  socket().cut(3001, "shutdown");
  assert.equal(waits().at(-1), 1234);
  await pass(1234);
  socket().welcome();
  await turns();
  gateway.reconnect(3_000);
  assert.equal(waits().at(-1), 3_000);
});

test("codes 3500 to 3999 end the client and its subscriptions; other codes do not", async () => {
  for (const code of [1000, 3000, 3499, 4000]) {
    const { gateway } = await connected();
    socket().cut(code);
    assert.equal(gateway.state, "waiting", code);
    gateway.close();
  }
  const { gateway, states } = await connected();
  const note = notebook();
  gateway.subscribe("t", note.handlers);
  const asked = gateway.request("system", "ping");
  socket().cut(3503, "disconnected by the operator");
  assert.deepEqual(states.at(-1), { state: "closed", code: 3503, reason: "disconnected by the operator" });
  assert.deepEqual(note.received, ["ended: closed with 3503: disconnected by the operator"]);
  await assert.rejects(asked, Disconnected);
  await assert.rejects(gateway.connect(), Closed);
  assert.throws(() => gateway.subscribe("t"), Closed);
  const before = Socket.all.length;
  await pass(60_000);
  assert.equal(Socket.all.length, before);
});

test("a rejected token ends the client with the reason", async () => {
  const { gateway, states } = make({ token: "old" });
  const ready = gateway.connect();
  socket().welcome();
  await turns();
  socket().refuse(4401, { reason: "token_expired" });
  await assert.rejects(ready, (error) => error.code === 4401);
  assert.deepEqual(states.at(-1), { state: "closed", code: 4401, reason: "token_expired" });
});

test("an unavailable token is requested again at the next attempt", async () => {
  let asked = 0;
  const { gateway, states } = make({ getToken: async () => (asked++ ? "jwt" : Promise.reject(new Error("HTTP 503"))) });
  gateway.connect();
  socket().welcome();
  await turns();
  assert.equal(states.at(-1).reason, "no token: HTTP 503");
  await pass(500);
  socket().welcome();
  await turns();
  socket().authenticate();
  await turns();
  assert.equal(gateway.state, "authenticated");
});

test("a token is replaced a minute before its expiry, or on the server's request", async () => {
  const tokens = [];
  const getToken = () => tokens.push(jwt(3600)) && tokens.at(-1);
  const { gateway, names } = make({ getToken });
  gateway.connect();
  socket().welcome();
  await turns();
  socket().authenticate();
  await pass(3539_000 - 3);
  assert.equal(tokens.length, 1);
  await pass(1_003);
  assert.deepEqual(socket().frames("AUTH").map(({ authToken }) => authToken), tokens);
  assert.equal(tokens.length, 2);
  socket().authenticate();
  await turns();
  socket().say({ type: "SYSTEM", action: "token_expiring", data: {} });
  await turns();
  assert.equal(tokens.length, 3);
  assert.deepEqual(names(), ["connecting", "connected", "authenticated"]);
});

test("a token that never changes is sent once for each connection", async () => {
  const { gateway } = make({ token: jwt(100) });
  gateway.connect();
  socket().welcome();
  await turns();
  socket().authenticate();
  await pass(80_000);
  socket().say({ type: "SYSTEM", action: "token_expiring", data: {} });
  await pass(5_000);
  assert.equal(socket().frames("AUTH").length, 1);
  socket().cut(3005, "token expired");
  await pass(500);
  socket().welcome();
  await turns();
  assert.equal(socket().frames("AUTH").length, 1);
});

test("a failed token refresh is retried, and the connection stays open", async () => {
  let refused = false;
  const { gateway } = make({ getToken: () => (refused ? Promise.reject(new Error("offline")) : jwt(100)) });
  gateway.connect();
  socket().welcome();
  await turns();
  socket().authenticate();
  refused = true;
  await pass(75_000);
  refused = false;
  assert.equal(socket().frames("AUTH").length, 1);
  await pass(5_000);
  assert.equal(socket().frames("AUTH").length, 2);
  assert.equal(gateway.state, "authenticated");
});

test("after the machine slept, the client pings the server at once", async () => {
  const { gateway } = await connected();
  socket().silent = true;
  mock.timers.tick(3_600_000);
  assert.equal(socket().frames("ping").length, 1);
  await pass(5_000);
  assert.equal(gateway.state, "waiting");
});

test("the client leaves a server that answers no ping, and stays if any message arrives", async () => {
  const { gateway } = await connected();
  socket().silent = true;
  for (let beat = 0; beat < 6; beat++) {
    await pass(25_000);
    socket().data("t", "still here");
  }
  assert.equal(socket().frames("ping").length, 6);
  for (let beat = 0; beat < 3; beat++) await pass(25_000);
  assert.equal(gateway.state, "connected");
  await pass(25_000);
  assert.equal(gateway.state, "waiting");
});

test("after a network change, the client pings and reconnects if no answer comes", async (t) => {
  const window = new EventTarget();
  for (const name of ["addEventListener", "removeEventListener"]) globalThis[name] = window[name].bind(window);
  t.after(() => ["addEventListener", "removeEventListener"].forEach((name) => delete globalThis[name]));
  const { gateway } = await connected();
  const first = socket();
  first.silent = true;
  window.dispatchEvent(new Event("offline"));
  assert.equal(first.frames("ping").length, 1);
  first.say({ type: "pong" });
  await pass(6_000);
  assert.equal(gateway.state, "connected");
  window.dispatchEvent(new Event("offline"));
  await pass(5_000);
  assert.equal(gateway.state, "waiting");
  const before = Socket.all.length;
  window.dispatchEvent(new Event("online"));
  assert.equal(Socket.all.length, before + 1);
  gateway.close();
  window.dispatchEvent(new Event("online"));
  assert.equal(Socket.all.length, before + 1);
});

test("messages of an abandoned connection are ignored", async () => {
  const { gateway } = await connected();
  const note = notebook();
  gateway.subscribe("t", note.handlers);
  await turns();
  socket().subscribed();
  const old = socket();
  gateway.reconnect();
  old.data("t", "late");
  old.cut(3503);
  assert.equal(gateway.state, "waiting");
  assert.deepEqual(note.received, ["subscribed", "pending"]);
});

test("messages without a subscription, and system messages, are events", async () => {
  const { gateway } = await connected();
  const received = [];
  gateway.addEventListener("other", ({ detail }) => received.push(detail.data));
  gateway.addEventListener("system", ({ detail }) => received.push(detail.action));
  socket().data("wallet", 7);
  socket().say({ type: "SYSTEM", action: "degraded", data: { message: "…" } });
  assert.deepEqual(received, [7, "degraded"]);
});

test("an exception in a callback is reported and stops nothing", async () => {
  const { gateway } = await connected();
  const note = notebook();
  gateway.subscribe("t", { onData: () => { throw new Error("the caller's"); } });
  gateway.subscribe("t", note.handlers);
  await turns();
  socket().subscribed();
  socket().data("t", 1);
  assert.deepEqual(note.received.at(-1), 1);
  assert.throws(() => mock.timers.tick(0), /the caller's/);
});

test("a topic can be looped over, and leaving the loop leaves the topic", async () => {
  const { gateway } = await connected();
  const received = [];
  const reading = (async () => {
    for await (const { data } of gateway.topic("t")) {
      received.push(data);
      if (data === 3) break;
    }
  })();
  await turns();
  socket().subscribed({ t: at(0) });
  [1, 2, 3].forEach((n) => socket().data("t", n, at(n)));
  await reading;
  assert.deepEqual(received, [1, 2, 3]);
  assert.equal(socket().frames("UNSUBSCRIBE").length, 1);
});

test("a loop over events gets messages, gaps and states in order", async () => {
  const { gateway } = await connected();
  const types = [];
  const reading = (async () => {
    for await (const event of gateway.topic("t").events()) types.push(event.type);
  })();
  await turns();
  socket().subscribed({ t: at(0) });
  socket().data("t", 1, at(1));
  socket().cut();
  await pass(500);
  socket().welcome();
  await turns();
  socket().data("t", 2, at(2));
  socket().subscribed({ t: at(2, { recovered: true }) });
  socket().say({ type: "PRESENCE", topic: "t", count: 1 });
  socket().say({ type: "SYSTEM", action: "gap", data: { topics: ["t"] } });
  await turns();
  gateway.close();
  await reading;
  assert.deepEqual(types, ["message", "message", "recovered", "presence", "gap"]);
});

test("a slow loop ends alone, after its waiting messages", async () => {
  const { gateway } = await connected();
  const note = notebook();
  const loop = gateway.topic("t", { limit: 3 })[Symbol.asyncIterator]();
  gateway.subscribe("t", note.handlers);
  const first = loop.next();
  await turns();
  socket().subscribed();
  for (let n = 0; n < 6; n++) socket().data("t", n);
  assert.equal((await first).value.data, 0);
  assert.deepEqual([(await loop.next()).value.data, (await loop.next()).value.data], [1, 2]);
  await assert.rejects(loop.next(), TooSlow);
  assert.equal(note.received.at(-1), 5);
});

test("a loop over a rejected topic throws the error", async () => {
  const { gateway } = await connected();
  const first = gateway.topic("secret")[Symbol.asyncIterator]().next();
  await turns();
  socket().refuse(4012, { requestId: socket().last("SUBSCRIBE").requestId });
  await assert.rejects(first, Refused);
});

/** The HTTP socket, with the interface of gateway.http.js. */
function withFallback(options) {
  class Other extends Socket {
    other = true;
  }
  const loads = mock.fn(async () => ({ HttpSocket: Other }));
  return { ...make({ fallback: loads, ...options }), loads };
}

/** Cut the connection, and wait for the next attempt. */
async function cutAndBack() {
  const count = Socket.all.length;
  socket().cut();
  while (Socket.all.length === count) await pass(100);
}

test("if no WebSocket opens, the client tries HTTP, and then each in turn", async () => {
  const { gateway, loads } = withFallback();
  gateway.subscribe("t");
  gateway.connect();
  const kinds = [];
  for (let at = 0; at < 4; at++) {
    kinds.push(!!socket().other);
    await cutAndBack();
  }
  assert.deepEqual(kinds, [false, true, false, true]);
  await cutAndBack(); // a WebSocket's turn fails: the next attempt uses HTTP
  socket().welcome();
  await turns();
  assert.ok(socket().other);
  assert.deepEqual(socket().last("SUBSCRIBE").topics, ["t"]);
  assert.ok(loads.mock.callCount() > 0);
  await cutAndBack(); // the network may have changed
  assert.ok(!socket().other);
});

test("the client keeps to WebSockets once one has worked", async () => {
  const { gateway, loads } = withFallback();
  gateway.connect();
  socket().welcome();
  await turns();
  for (let at = 0; at < 3; at++) {
    await cutAndBack();
    assert.ok(!socket().other);
  }
  assert.equal(loads.mock.callCount(), 0);
});

test("without the HTTP module the client keeps to WebSockets", async () => {
  const { gateway } = withFallback({ fallback: async () => { throw new TypeError("no network"); } });
  gateway.connect();
  await cutAndBack();
  socket().welcome();
  await turns();
  assert.equal(gateway.state, "connected");
});

// ---- subscriptions that close and open again

const sentFor = (...types) => socket().sent.filter(({ type }) => types.includes(type)).map(({ type, topics }) => `${type} ${topics}`);

test("subscribe, close and subscribe in one turn send one SUBSCRIBE", async () => {
  const { gateway } = await connected();
  const [first, second] = [notebook(), notebook()];
  gateway.subscribe("t", first.handlers).close();
  gateway.subscribe("t", second.handlers);
  await turns();
  assert.deepEqual(sentFor("SUBSCRIBE", "UNSUBSCRIBE"), ["SUBSCRIBE t"]);
  socket().subscribed({ t: at(1) });
  socket().data("t", "a", at(2));
  assert.deepEqual(first.received, ["ended"]);
  assert.deepEqual(second.received, ["subscribed", "a"]);
});

test("subscribe and close in one turn send nothing", async () => {
  const { gateway } = await connected();
  gateway.subscribe("t").close();
  await turns();
  assert.deepEqual(socket().sent, []);
});

test("a topic closed while its SUBSCRIBE is pending is unsubscribed after the answer", async () => {
  const { gateway } = await connected();
  gateway.subscribe("t");
  const stays = gateway.subscribe("other");
  await turns();
  gateway.unsubscribe("t");
  await pass(1_000); // no answer yet
  assert.deepEqual(sentFor("SUBSCRIBE", "UNSUBSCRIBE"), ["SUBSCRIBE t,other", "SUBSCRIBE t,other"]);
  socket().subscribed();
  socket().subscribed(); // the answer to the repeated SUBSCRIBE
  await turns();
  assert.deepEqual(sentFor("UNSUBSCRIBE"), ["UNSUBSCRIBE t"]);
  assert.equal(stays.state, "subscribed");
});

test("a subscription added while a SUBSCRIBE is pending starts with its own acknowledgement", async () => {
  const { gateway } = await connected();
  const [first, second] = [notebook(), notebook()];
  const one = gateway.subscribe("t", first.handlers);
  await turns();
  one.close();
  await turns();
  gateway.subscribe("t", second.handlers);
  await turns();
  assert.deepEqual(sentFor("SUBSCRIBE", "UNSUBSCRIBE"), ["SUBSCRIBE t"]);
  socket().subscribed({ t: at(1) });
  await turns();
  assert.deepEqual(second.received, []);
  socket().data("t", "last value", { initialData: true });
  socket().subscribed({ t: at(1) });
  socket().data("t", "a", at(2));
  assert.deepEqual(sentFor("SUBSCRIBE", "UNSUBSCRIBE"), ["SUBSCRIBE t", "SUBSCRIBE t"]);
  assert.deepEqual(second.received, ["last value", "subscribed", "a"]);
});

test("close and subscribe in one turn keep the topic subscribed and lose nothing", async () => {
  const { gateway } = await connected();
  const second = notebook();
  const one = gateway.subscribe("t");
  await turns();
  socket().subscribed({ t: at(1) });
  one.close();
  gateway.subscribe("t", second.handlers);
  await turns();
  assert.deepEqual(sentFor("SUBSCRIBE", "UNSUBSCRIBE"), ["SUBSCRIBE t", "SUBSCRIBE t"]);
  socket().data("t", "a", at(2));
  socket().subscribed({ t: at(2) });
  socket().data("t", "b", at(3));
  assert.deepEqual(second.received, ["a", "subscribed", "b"]);
});

test("a subscription closed while offline is forgotten with its position", async () => {
  const { gateway } = await connected();
  const one = gateway.subscribe("t");
  await turns();
  socket().subscribed({ t: at(1) });
  socket().cut();
  one.close();
  const note = notebook();
  gateway.subscribe("t", note.handlers);
  await pass(1_000);
  socket().welcome();
  await turns();
  assert.equal(socket().last("SUBSCRIBE").recover, undefined);
  socket().subscribed({ t: at(9) });
  assert.deepEqual(note.received, ["subscribed"]);
});

test("a new epoch in a second acknowledgement is a gap before its first message", async () => {
  const { gateway } = await connected();
  const note = notebook();
  gateway.subscribe("t", note.handlers);
  await turns();
  socket().subscribed({ t: at(5) });
  gateway.subscribe("t");
  await turns();
  socket().subscribed({ t: { epoch: "f", offset: 1 } });
  socket().data("t", "a", { epoch: "f", offset: 2 });
  assert.deepEqual(note.received, ["subscribed", "gap: the history has a new epoch", "a"]);
});

test("a topic rejected for its second subscription ends for all, and is unsubscribed", async () => {
  const { gateway } = await connected();
  const note = notebook();
  gateway.subscribe("t", note.handlers);
  await turns();
  socket().subscribed();
  gateway.subscribe("t");
  await turns();
  socket().refuse(4012, { requestId: socket().last("SUBSCRIBE").requestId });
  assert.deepEqual(note.received.at(-1), "ended: 4012 refused with 4012");
  assert.deepEqual(sentFor("UNSUBSCRIBE"), ["UNSUBSCRIBE t"]);
});

test("a topic may have the name of a property of every object", async () => {
  const { gateway } = await connected();
  const notes = ["constructor", "toString", "__proto__", "valueOf"].map((topic) => {
    const note = notebook();
    gateway.subscribe(topic, note.handlers);
    return note;
  });
  await turns();
  socket().subscribed({ __proto__: null, toString: at(3) });
  gateway.reconnect(0);
  await pass(10);
  socket().welcome();
  await turns();
  assert.deepEqual(socket().last("SUBSCRIBE").topics.length, 4);
  assert.deepEqual(JSON.stringify(socket().last("SUBSCRIBE").recover), '{"toString":{"epoch":"e","offset":3}}');
  socket().subscribed({ __proto__: null, toString: at(3, { recovered: true }) });
  assert.deepEqual(notes.map(({ received }) => received.at(-1)), ["subscribed", "recovered", "subscribed", "subscribed"]);
});

test("changes made by a callback during an answer take effect", async () => {
  const { gateway } = await connected();
  const note = notebook();
  gateway.subscribe("a", { onState: (state) => state === "subscribed" && gateway.reconnect(0) });
  gateway.subscribe("b", note.handlers);
  await turns();
  socket().subscribed({ b: at(1) });
  assert.deepEqual(note.received, [], "its connection was closed before its callback");
  await pass(10);
  const before = Socket.all.length;
  gateway.addEventListener("state", ({ detail }) => detail.state === "connected" && gateway.close());
  socket().welcome();
  await turns();
  assert.deepEqual([gateway.state, socket().sent.length, Socket.all.length], ["closed", 0, before]);
});

test("SUBSCRIBE is sent before the publishes of the same turn", async () => {
  const { gateway } = await connected();
  gateway.subscribe("t");
  gateway.publish("t", 1).catch(() => {});
  assert.deepEqual(socket().sent.map(({ type }) => type), ["SUBSCRIBE", "PUBLISH"]);
});

// ---- the server's limits

/** Answer every SUBSCRIBE until none is left; return the frames. */
async function answerAll() {
  await turns();
  for (let at = 0; at < socket().frames("SUBSCRIBE").length; at++) {
    const { topics, requestId } = socket().frames("SUBSCRIBE")[at];
    socket().say({ type: "ACKNOWLEDGMENT", operation: "subscribe", topics, requestId });
    await turns();
  }
  return socket().frames("SUBSCRIBE");
}

const octets = (frame) => Buffer.byteLength(JSON.stringify(frame));

for (const messageBytes of [1_024, 65_536, 1 << 20]) {
  test(`thousands of topics are sent in frames within the server's limit: ${messageBytes}`, async () => {
    const names = Array.from({ length: 5_000 }, (_, n) => `contest-chat:${n}:${"ü".repeat(80)}`);
    const { gateway } = make();
    const subscriptions = names.map((name) => gateway.subscribe(name));
    gateway.connect();
    socket().welcome({ limits: { messageBytes, subscriptionsPerSecond: 1_500 } });
    await turns();
    assert.ok(socket().sent.reduce((sum, frame) => sum + octets(frame), 0) <= Math.min(messageBytes, 60_000), "at once");
    const frames = await answerAll();
    assert.deepEqual(frames.flatMap(({ topics }) => topics), names);
    assert.ok(frames.every((frame) => octets(frame) <= Math.min(messageBytes, 60_000)));
    assert.ok(subscriptions.every(({ state }) => state === "subscribed"));
    gateway.reconnect(0);
    await pass(10);
    socket().welcome({ limits: { messageBytes, subscriptionsPerSecond: 1_500 } });
    assert.deepEqual((await answerAll()).flatMap(({ topics }) => topics), names);
    names.forEach((name) => gateway.unsubscribe(name));
    await turns();
    assert.deepEqual(socket().frames("UNSUBSCRIBE").flatMap(({ topics }) => topics), names);
    assert.ok(socket().sent.every((frame) => octets(frame) <= messageBytes));
  });
}

test("subscriptions stay within the server's rate, and other messages do not wait for them", async () => {
  const { gateway } = make();
  for (let n = 0; n < 30; n++) gateway.subscribe(`t${n}`);
  gateway.connect();
  socket().welcome({ limits: { subscriptionsPerSecond: 1 } });
  const asked = () => socket().frames("SUBSCRIBE").flatMap(({ topics }) => topics).length;
  await answerAll();
  assert.equal(asked(), 9);
  gateway.publish("t", 1).catch(() => {});
  assert.equal(socket().frames("PUBLISH").length, 1);
  for (let second = 1; second < 40; second++) {
    await pass(1_000);
    await answerAll();
    assert.ok(asked() <= 10 + second);
  }
  assert.equal(asked(), 30);
});

test("a SUBSCRIBE over the server's rate is retried when the rate allows it", async () => {
  const { gateway } = await connected({}, { limits: { subscriptionsPerSecond: 10 } });
  for (let n = 0; n < 50; n++) gateway.subscribe(`t${n}`);
  await turns();
  socket().refuse(4029, { inReplyTo: socket().last("SUBSCRIBE").requestId, temporary: true });
  await pass(5_000);
  assert.equal(socket().frames("SUBSCRIBE").length, 1);
  await pass(6_000);
  assert.equal(socket().frames("SUBSCRIBE").length, 2);
});

test("a message over the server's limit is not sent and gives an error", async () => {
  const { gateway } = await connected({}, { limits: { messageBytes: 1_024 } });
  const large = "ü".repeat(500);
  for (const asked of [gateway.publish("t", large), gateway.request("t", large), gateway.command("t", "a", large)]) {
    await assert.rejects(asked, (error) => error instanceof TooLarge && /10\d\d bytes.* 1024/.test(error.message));
  }
  await assert.rejects(gateway.subscribe("t".repeat(2_000)).ready, TooLarge);
  assert.deepEqual(socket().sent, []);
  gateway.publish("t", "ü".repeat(450)).catch(() => {});
  assert.equal(socket().sent.length, 1);
});

test("a value that is no JSON is rejected at once", async () => {
  const { gateway } = make();
  await assert.rejects(gateway.publish("t", 1n), TypeError);
});

test("the client waits ever longer for a server that cuts each connection after its welcome", async () => {
  const { gateway, states } = make();
  gateway.subscribe("t");
  gateway.connect();
  for (let n = 0; n < 6; n++) {
    socket().welcome();
    await turns();
    socket().cut(1009, "too large");
    await pass(10_000);
  }
  const waits = states.filter(({ state }) => state === "waiting").map(({ waitMs }) => waitMs);
  assert.deepEqual(waits, [500, 1_000, 2_000, 4_000, 8_000, 10_000]);
  socket().welcome();
  await turns();
  socket().subscribed();
  await turns();
  socket().cut();
  assert.equal(states.at(-1).waitMs, 500, "the backoff restarts after a stable connection");
});

// ---- unavailable addresses

test("an unavailable address is a failed attempt like any other", async () => {
  class Unwilling extends Socket {
    constructor(url) {
      if (url.includes("unwilling")) throw new SyntaxError("not this one");
      super(url);
    }
  }
  const hangs = new Promise(() => {});
  const answers = [
    () => { throw new Error("no list yet"); }, () => Promise.reject(new Error("HTTP 503")), () => "http://[", () => "ws://unwilling/ws",
    () => undefined, () => hangs, async () => "https://site.example/realtime/ws",
  ];
  const { gateway, states } = make({ WebSocket: Unwilling, fallback: null });
  const client = new gateway.constructor(() => answers.shift()(), { WebSocket: Unwilling, fallback: async () => { throw 0; } });
  client.addEventListener("state", ({ detail }) => states.push(detail));
  const ready = client.connect();
  while (!Socket.all.length) await pass(1_000);
  assert.equal(socket().url, "wss://site.example/realtime/ws");
  socket().welcome();
  await ready;
  const reasons = states.filter(({ state }) => state === "waiting").map(({ reason }) => reason);
  assert.deepEqual([reasons[0], reasons[1], reasons[3], reasons[5]], [
    "cannot connect: no list yet", "cannot connect: HTTP 503", "cannot connect: not this one", "no welcome",
  ]);
  assert.equal(reasons.length, 6);
});

test("an address that comes too late opens no connection", async () => {
  const waiting = [];
  const { gateway } = make();
  const client = new gateway.constructor(() => new Promise((resolve) => waiting.push(resolve)), { WebSocket: Socket });
  client.connect();
  client.connect();
  assert.equal(waiting.length, 1);
  await pass(10_000);
  await pass(1_000);
  assert.equal(waiting.length, 2);
  waiting[0]("ws://late/ws");
  await turns();
  assert.equal(Socket.all.length, 0);
  client.close();
  waiting[1]("ws://closed/ws");
  await turns();
  assert.equal(Socket.all.length, 0);
});

test("a failed address or token does not count as a failed WebSocket", async () => {
  let tries = 0;
  const getToken = () => { if (tries++ < 2) throw new Error("not yet"); return "jwt"; };
  const { gateway, loads } = withFallback({ getToken });
  gateway.connect();
  for (let n = 0; n < 2; n++) {
    socket().welcome();
    await pass(2_000);
  }
  assert.ok(!socket().other);
  assert.equal(loads.mock.callCount(), 0);
});

// ---- tokens

for (const none of [null, undefined, ""]) {
  test(`a client without a token (${JSON.stringify(none)}) goes on without`, async () => {
    const { gateway, names } = make({ getToken: async () => none });
    const ready = gateway.connect();
    socket().welcome();
    await ready;
    assert.deepEqual(names(), ["connecting", "connected"]);
    assert.deepEqual(socket().frames("AUTH"), []);
  });
}

for (const [what, answer] of [["never comes", () => new Promise(() => {})], ["is no text", () => 7], ["fails oddly", () => Promise.reject()]]) {
  test(`a token that ${what} is requested again at the next attempt`, async () => {
    let asked = 0;
    const { gateway } = make({ getToken: () => (asked++ ? "jwt" : answer()) });
    gateway.connect();
    socket().welcome();
    await pass(10_000);
    await pass(1_000);
    socket().welcome();
    await turns();
    socket().authenticate();
    await turns();
    assert.equal(gateway.state, "authenticated");
  });
}

test("a rejected token is replaced; a second rejection in a row ends the client", async () => {
  const tokens = ["old", "new", "bad", "bad", "bad"];
  const { gateway, states } = make({ getToken: () => tokens.shift() });
  const ready = gateway.connect();
  const refuse = async () => {
    socket().welcome();
    await turns();
    socket().refuse(4401, { reason: "token_expired" });
    await pass(5_000);
  };
  await refuse();
  socket().welcome();
  await turns();
  assert.equal(socket().last("AUTH").authToken, "new");
  socket().authenticate();
  await ready;
  socket().cut();
  await pass(5_000);
  await refuse();
  await refuse();
  assert.notEqual(gateway.state, "closed");
  await refuse();
  assert.deepEqual(states.at(-1), { state: "closed", code: 4401, reason: "token_expired" });
});

test("the client retries while the server cannot verify its token", async () => {
  const { gateway } = make({ token: "jwt" });
  gateway.connect();
  for (let n = 0; n < 5; n++) {
    socket().welcome();
    await turns();
    socket().refuse(5030, { temporary: true });
    await pass(10_000);
  }
  socket().welcome();
  await turns();
  socket().authenticate();
  await turns();
  assert.equal(gateway.state, "authenticated");
});

test("a refresh that never ends blocks neither the next one nor the next connection's", async () => {
  const answers = [jwt(100), new Promise(() => {}), jwt(200), new Promise(() => {}), jwt(300), jwt(400)];
  const { gateway } = make({ getToken: () => answers.shift() });
  gateway.connect();
  socket().welcome();
  await turns();
  socket().authenticate();
  await pass(75_000);
  await pass(10_000);
  await pass(5_000);
  assert.equal(socket().frames("AUTH").length, 2);
  socket().authenticate();
  await turns();
  socket().say({ type: "SYSTEM", action: "token_expiring", data: {} }); // never comes
  socket().cut(3005, "token expired");
  await pass(1_000);
  socket().welcome();
  await turns();
  socket().authenticate();
  await turns();
  socket().say({ type: "SYSTEM", action: "token_expiring", data: {} });
  await turns();
  assert.equal(socket().frames("AUTH").length, 2);
});

test("a refresh that gives no token keeps the old one", async () => {
  const answers = [jwt(100), null, jwt(200)];
  const { gateway } = make({ getToken: () => answers.shift() });
  gateway.connect();
  socket().welcome();
  await turns();
  socket().authenticate();
  await pass(76_000);
  assert.equal(socket().frames("AUTH").length, 1);
  await pass(5_000);
  assert.equal(socket().frames("AUTH").length, 2);
  assert.equal(gateway.state, "authenticated");
});

// ---- filters and deltas

const BUYS = { key: "side", cmp: "eq", val: "buy" };
// A delta from TEXTS[0] to TEXTS[1], as the node makes it.
const TEXTS = ['{"n":1,"text":"the same é in each message"}', '{"n":2,"text":"the same é in each message"}'];
const DELTA = 'h\n6:{"n":2b@6,1spFRK;';

test("topics with the same options share a SUBSCRIBE", async () => {
  const { gateway } = await connected();
  for (const number of [0, 1]) {
    gateway.subscribe(`plain${number}`);
    gateway.subscribe(`buys${number}`, {}, { filter: BUYS });
    gateway.subscribe(`deltas${number}`, {}, { delta: true });
  }
  await turns();
  assert.deepEqual(socket().sent.map(({ topics, filter, delta }) => [topics, filter, delta]), [
    [["plain0", "plain1"], undefined, undefined],
    [["buys0", "buys1"], BUYS, undefined],
    [["deltas0", "deltas1"], undefined, "fossil"],
  ]);
});

test("subscriptions of a topic share its filter, until all are closed", async () => {
  const { gateway } = await connected();
  gateway.subscribe("t", {}, { filter: BUYS });
  gateway.subscribe("t", {}, { filter: { ...BUYS } });
  assert.throws(() => gateway.subscribe("t"), /another filter/);
  gateway.unsubscribe("t");
  gateway.subscribe("t");
  await turns();
  assert.deepEqual(socket().sent.map(({ filter }) => filter), [undefined]);
});

test("messages are made from deltas", async () => {
  const { gateway } = await connected();
  const note = notebook();
  gateway.subscribe("t", note.handlers, { delta: true });
  await turns();
  socket().subscribed();
  socket().data("t", TEXTS[0], { delta: false });
  socket().data("t", "direct"); // without `delta`: the base stays
  socket().data("t", DELTA, { delta: true });
  assert.deepEqual(note.received, ["subscribed", JSON.parse(TEXTS[0]), "direct", JSON.parse(TEXTS[1])]);
});

test("a loop over a topic may have deltas", async () => {
  const { gateway } = await connected();
  const loop = gateway.topic("t", { delta: true })[Symbol.asyncIterator]();
  const first = loop.next();
  await turns();
  assert.equal(socket().last("SUBSCRIBE").delta, "fossil");
  socket().subscribed();
  socket().data("t", TEXTS[0], { delta: false });
  assert.deepEqual((await first).value.data, JSON.parse(TEXTS[0]));
  await loop.return();
});

for (const history of [true, false]) {
  test(`after a delta that does not apply, the client subscribes again and recovers: history ${history}`, async () => {
    const { gateway } = await connected();
    const note = notebook();
    const place = (offset, more) => (history ? at(offset, more) : {});
    const positions = (offset, more) => (history ? { t: at(offset, more) } : undefined);
    gateway.subscribe("t", note.handlers, { delta: true });
    await turns();
    socket().subscribed(positions(0));
    socket().data("t", '"one"', { delta: false, ...place(1) });
    socket().data("t", DELTA, { delta: true, ...place(2) });
    socket().data("t", "no delta", { delta: true, ...place(3) }); // before the answer
    await turns();
    assert.deepEqual(socket().frames("SUBSCRIBE").map(({ recover }) => recover), [undefined, history ? { t: at(1) } : undefined]);
    if (history) for (const offset of [2, 3]) socket().data("t", `missed ${offset}`, at(offset));
    socket().subscribed(positions(3, { recovered: true }));
    socket().data("t", '"four"', { delta: false, ...place(4) });
    const between = history ? ["missed 2", "missed 3", "recovered"] : ["gap: reconnected: a topic without history", "subscribed"];
    assert.deepEqual(note.received, ["subscribed", "one", "pending", ...between, "four"]);
  });
}
