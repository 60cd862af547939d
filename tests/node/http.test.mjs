import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { pass, turns } from "./cluster.mjs";

/** An EventSource whose server side is the test. */
class Source {
  static all = [];
  closed = false;

  constructor(url, options) {
    Object.assign(this, { url: String(url), options });
    Source.all.push(this);
  }

  close() {
    this.closed = true;
  }

  say(frame) {
    this.onmessage({ data: JSON.stringify(frame) });
  }
}

/** Requests that the test answers. */
const posts = [];

function post(url, { body, signal, ...rest }) {
  return new Promise((resolve, reject) => {
    const answer = (status, text = "") => resolve({ status, ok: status < 300, text: async () => text });
    posts.push({ url: String(url), body, answer, fail: () => reject(new TypeError("no network")), signal, ...rest });
    signal.addEventListener("abort", () => reject(signal.reason));
  });
}

let made = 0;

/** Import the module again for each test: it remembers which transport worked. */
async function open(url = "wss://gateway/ws?avoid=n1") {
  const { HttpSocket } = await import(`../../gateway/static/client/gateway.http.js?${made++}`);
  const received = [];
  const make = () => {
    const socket = new HttpSocket(url);
    socket.onmessage = ({ data }) => received.push(JSON.parse(data));
    socket.onclose = (about) => received.push(about);
    return socket;
  };
  return { socket: make(), received, make };
}

const source = () => Source.all.at(-1);
const OPEN = { type: "OPEN", stream: "n1.b.1.key" };

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout"] });
  globalThis.EventSource = Source;
  globalThis.fetch = post;
  Source.all.length = posts.length = 0;
});

afterEach(() => mock.reset() || mock.timers.reset());

test("it receives the messages of an event stream without the stream's own events", async () => {
  const { socket, received } = await open();
  assert.equal(source().url, "https://gateway/sse?avoid=n1");
  assert.deepEqual(source().options, { withCredentials: true });
  assert.equal(socket.readyState, 0);
  source().say(OPEN);
  source().say({ type: "SYSTEM", action: "welcome" });
  assert.equal(socket.readyState, 1);
  assert.deepEqual(received, [{ type: "SYSTEM", action: "welcome" }]);
});

test("it sends in order, one request at a time, each with all waiting messages", async () => {
  const { socket } = await open();
  source().say(OPEN);
  socket.send("a");
  socket.send("b");
  socket.send("c");
  assert.deepEqual(posts.map(({ url, body }) => [url, body]), [["https://gateway/say?avoid=n1", "n1.b.1.key\na"]]);
  posts[0].answer(204);
  await turns();
  assert.equal(posts[1].body, "n1.b.1.key\nb\nc");
  posts[1].answer(204);
  await turns();
  socket.send("d");
  assert.equal(posts[2].body, "n1.b.1.key\nd");
});

test("waiting messages are split into requests within the server's limit", async () => {
  const { socket } = await open();
  source().say(OPEN);
  socket.maxBytes = 20;
  ["first", "üüü", "üüü", "üüü", "x".repeat(50), "last"].forEach((text) => socket.send(text));
  const bodies = [];
  for (let at = 0; at < posts.length; at++) {
    bodies.push(posts[at].body.split("\n").slice(1));
    posts[at].answer(204);
    await turns();
  }
  assert.deepEqual(bodies, [["first"], ["üüü", "üüü"], ["üüü"], ["x".repeat(50)], ["last"]]);
});

test("after a 413 the messages go in smaller requests, and a single message that is too large closes with 1009", async () => {
  const { socket, received } = await open();
  source().say(OPEN);
  ["0", "a", "b", "c", "d", "x".repeat(10)].forEach((text) => socket.send(text));
  const taken = [];
  for (let at = 0; at < posts.length; at++) {
    const messages = posts[at].body.split("\n").slice(1);
    const fits = messages.join("\n").length <= 5;
    if (fits) taken.push(...messages);
    posts[at].answer(fits ? 204 : 413);
    await turns();
  }
  assert.deepEqual(taken, ["0", "a", "b", "c", "d"]);
  assert.deepEqual(received, [{ code: 1009, reason: "a message is larger than the server accepts" }]);
});

for (const [address, sse] of [
  ["wss://site/realtime/ws", "https://site/realtime/sse"], ["wss://site/realtime/ws/?avoid=n1", "https://site/realtime/sse?avoid=n1"],
  ["ws://site/api/v69/ws", "http://site/sse"], ["wss://site:1/a/b/api/v69/ws", "https://site:1/a/b/sse"], ["wss://site", "https://site/sse"],
]) {
  test(`requests go beside the WebSocket: ${address}`, async () => {
    const { socket } = await open(address);
    assert.equal(source().url, sse);
    source().onerror();
    assert.equal(posts[0].url, sse.replace("/sse", "/poll"));
    posts[0].answer(200, JSON.stringify(OPEN));
    await turns();
    socket.send("a");
    assert.equal(posts.at(-1).url, sse.replace("/sse", "/say"));
  });
}

for (const [how, end] of [["refused", (sent) => sent.answer(410)], ["lost", (sent) => sent.fail()]]) {
  test(`a message that is ${how} closes the socket, since the client cannot know what the server received`, async () => {
    const { socket, received } = await open();
    source().say(OPEN);
    socket.send("a");
    end(posts[0]);
    await turns();
    assert.equal(received.at(-1).code, 1006);
    assert.ok(source().closed);
    assert.equal(socket.readyState, 3);
  });
}

test("it closes with the server's code, or when the stream breaks off, and does not reconnect by itself", async () => {
  const { received } = await open();
  source().say(OPEN);
  source().say({ type: "CLOSE", code: 3001, reason: "shutdown" });
  source().onerror();
  assert.deepEqual(received, [{ code: 3001, reason: "shutdown" }]);
  assert.ok(source().closed);

  const other = await open();
  source().say(OPEN);
  source().onerror();
  assert.equal(other.received[0].code, 1006);
  assert.ok(source().closed);
});

test("it polls if event streams are rejected", async () => {
  const { socket, received } = await open();
  source().onerror();
  assert.deepEqual([posts[0].url, posts[0].body], ["https://gateway/poll?avoid=n1", ""]);
  posts[0].answer(200, `${JSON.stringify(OPEN)}\n{"type":"SYSTEM"}`);
  await turns();
  assert.equal(posts[1].body, "n1.b.1.key");
  posts[1].answer(200); // no message: the client asks again, as a keepalive
  await turns();
  posts[2].answer(200, '{"type":"DATA"}\n{"type":"CLOSE","code":3503,"reason":"by the operator"}');
  await turns();
  assert.deepEqual(received, [{ type: "SYSTEM" }, { type: "DATA" }, { code: 3503, reason: "by the operator" }]);
  assert.equal(posts.length, 3);
  assert.equal(socket.readyState, 3);
});

test("it polls if a proxy delays event streams, and from then on at once", async () => {
  const { make } = await open();
  await pass(2_900);
  assert.equal(posts.length, 0);
  await pass(200);
  assert.ok(source().closed);
  assert.equal(posts.length, 1);
  make();
  assert.equal(Source.all.length, 1);
  assert.equal(posts.length, 2);
});

test("a failed poll closes the socket", async () => {
  const { received } = await open();
  source().onerror();
  posts[0].answer(200, JSON.stringify(OPEN));
  await turns();
  posts[1].answer(410);
  await turns();
  assert.equal(received.at(-1).code, 1006);
});

test("a closed socket receives nothing more, and aborts its request", async () => {
  const { socket, received } = await open();
  source().onerror();
  posts[0].answer(200, JSON.stringify(OPEN));
  await turns();
  socket.close();
  await turns();
  assert.ok(posts[1].signal.aborted);
  assert.deepEqual(received, []);
});
