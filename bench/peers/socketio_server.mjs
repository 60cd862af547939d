// Socket.IO 4 with its Redis adapter: node socketio_server.mjs <port> <redis port>
import { createServer } from "node:http";
import { createRequire } from "node:module";

const require = createRequire(process.env.BENCH_MODULES);
const { Server } = require("socket.io");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");

const [port, redisPort] = process.argv.slice(2).map(Number);
const redis = createClient({ socket: { host: "127.0.0.1", port: redisPort } });
const bus = redis.duplicate();
await Promise.all([redis.connect(), bus.connect()]);

const server = createServer();
const io = new Server(server, { transports: ["websocket"], adapter: createAdapter(redis, bus), serveClient: false });
io.on("connection", (socket) => {
  socket.on("subscribe", (topic, done) => {
    socket.join(topic);
    done(true);
  });
});
server.listen({ host: "127.0.0.1", port, backlog: 4096 });
