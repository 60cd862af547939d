// Node's `ws` with Redis: node ws_server.mjs <port> <redis port>
import { createRequire } from "node:module";

const require = createRequire(process.env.BENCH_MODULES);
const { WebSocketServer, WebSocket } = require("ws");
const { createClient } = require("redis");

const [port, redisPort] = process.argv.slice(2).map(Number);
const members = new Map();

const bus = createClient({ socket: { host: "127.0.0.1", port: redisPort } });
await bus.connect();
await bus.pSubscribe("bench:*", (text, channel) => {
  for (const socket of members.get(channel.slice(6)) ?? []) {
    if (socket.readyState === WebSocket.OPEN) socket.send(text);
  }
});

new WebSocketServer({ host: "127.0.0.1", port, path: "/ws", backlog: 4096 }).on("connection", (socket) => {
  const subscribed = new Set();
  socket.on("error", () => {});
  socket.on("message", (data) => {
    for (const topic of JSON.parse(data).topics) {
      if (!members.has(topic)) members.set(topic, new Set());
      members.get(topic).add(socket);
      subscribed.add(topic);
    }
    socket.send(JSON.stringify({ type: "ACKNOWLEDGMENT", operation: "subscribe", status: "success" }));
  });
  socket.on("close", () => subscribed.forEach((topic) => members.get(topic).delete(socket)));
});
