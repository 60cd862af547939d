// A client with gateway.js. It prints what it receives, a JSON text per line, until its input ends.

import { createInterface } from "node:readline";
import WebSocket from "ws";
import { Gateway } from "./gateway.js";

const { url, topics } = JSON.parse(process.argv[2]);

const say = (event, about) => console.log(JSON.stringify({ event, ...about }));
const gateway = new Gateway(url, { WebSocket, timing: { baseMs: 50, capMs: 500 } });
for (const [topic, options] of Object.entries(topics)) {
  gateway.subscribe(topic, {
    onData: ({ data, offset, extras }) => say("data", { topic, data, offset, extras }),
    onGap: ({ reason }) => say("gap", { topic, reason }),
    onState: (state, error) => say(state, { topic, reason: error?.message }),
  }, options);
}
gateway.connect();
// Lines of the input are numbers: reconnect after so many milliseconds.
createInterface(process.stdin).on("line", (ms) => gateway.reconnect(Number(ms))).on("close", () => gateway.close());
