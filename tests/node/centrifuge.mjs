// A client of the npm package `centrifuge`. It prints what it is told, a JSON text per line, until its input ends.

import { Centrifuge as JsonClient } from "centrifuge";
import { Centrifuge as ProtobufClient } from "centrifuge/build/protobuf";
import { EventSource } from "eventsource";
import WebSocket from "ws";

const { root, kind, protobuf, tokens, options } = JSON.parse(process.argv[2]);
const SECONDS = 20;

const say = (event, about = {}) => console.log(JSON.stringify({ event, ...about }));
const read = (data) => (protobuf ? JSON.parse(new TextDecoder().decode(data)) : data);
const write = (value) => (protobuf ? new TextEncoder().encode(JSON.stringify(value)) : value);

const endpoint = `${kind === "websocket" ? root.replace("http", "ws") : root}/connection/${kind}`;
const client = new (protobuf ? ProtobufClient : JsonClient)([{ transport: kind, endpoint }], {
  websocket: WebSocket, eventsource: EventSource, fetch, readableStream: ReadableStream,
  emulationEndpoint: `${root}/emulation`, minReconnectDelay: 50, maxReconnectDelay: 500,
  getToken: async () => {
    say("token");
    return tokens.length > 1 ? tokens.shift() : tokens[0];
  },
});
client.on("connected", ({ client: id, transport }) => say("connected", { id, transport }));
client.on("disconnected", ({ code }) => say("disconnected", { code }));

const topic = client.newSubscription("chat", {
  joinLeave: true, recoverable: true, positioned: true, ...options,
});
topic.on("publication", ({ data, offset, tags }) => say("publication", { data: read(data), offset, tags }));
topic.on("subscribed", ({ wasRecovering, recovered }) => say("subscribed", { wasRecovering, recovered }));
topic.on("unsubscribed", ({ code }) => say("unsubscribed", { code }));
topic.on("join", ({ info }) => say("join", { id: info.client, user: info.user }));
topic.on("leave", ({ info }) => say("leave", { id: info.client }));

topic.subscribe();
client.connect();
await topic.ready(SECONDS * 1000);
const { clients } = await topic.presence();
const { numClients, numUsers } = await topic.presenceStats();
await topic.publish(write({ from: "js" }));
const { publications } = await topic.history({ limit: 10 });
const refused = await client.rpc("method", write({})).catch(({ code }) => code);
say("asked", {
  ids: Object.keys(clients), numClients, numUsers, kept: publications.map(({ data }) => read(data)), refused,
});

process.stdin.resume().on("end", () => {
  say("ended", { deltas: topic.deltaStats().numDeltaPayloads });
  client.disconnect();
  setTimeout(() => process.exit(0), 100);
});
