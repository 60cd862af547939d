/**
 * The messages on a socket, for clients that do without gateway.js. Made from /api/asyncapi.json.
 * `python -m tests.typescript` in the project writes this file.
 */

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

export type Position = { epoch: string; offset: number; mark?: number | null };
export type Member = { clientId: string; user: string | null; info?: Json };
export type Filter =
  | { key: string; cmp: "eq" | "neq" | "sw" | "ew" | "ct" | "gt" | "gte" | "lt" | "lte"; val: string }
  | { key: string; cmp: "in" | "nin"; vals: Array<string> }
  | { key: string; cmp: "ex" | "nex" }
  | { op: "and" | "or" | "not"; nodes: Array<Filter> };
export type Limits = { messageBytes: number; topics: number; messagesPerSecond: number; subscriptionsPerSecond: number };

/** Log in */
export type Auth = { type: "AUTH"; authToken: string };

/** Subscribe to topics, and recover what was missed since the positions in `recover` */
export type Subscribe = { type: "SUBSCRIBE"; topics: Array<string>; requestId?: string | number; authToken?: string; tokens?: Array<string>; recover?: { [name: string]: Position }; filter?: Filter; delta?: "fossil" };

/** Unsubscribe from topics */
export type Unsubscribe = { type: "UNSUBSCRIBE"; topics: Array<string>; requestId?: string | number };

/** Publish a message */
export type Publish = { type: "PUBLISH"; topic: string; data: Json; action?: string; subtype?: string; priority?: string | number; tags?: { [name: string]: string }; requestId?: string | number };

/** Ask for an answer: history (limit at most 1000), presence, or what the back end answers */
export type Request = { type: "REQUEST"; topic: string; action: string; data?: { [name: string]: Json }; requestId?: string | number };

/** Have the back end carry out an action */
export type Command = { type: "COMMAND"; topic: string; action: string; data?: Json; requestId?: string | number };

/** Log lines of a browser */
export type Logs = { type: "LOGS"; logs: Array<{ [name: string]: Json }> };

/** Ask for a pong */
export type Ping = { type: "ping"; timestamp?: Json };

export type ClientMessage =
  | Auth
  | Subscribe
  | Unsubscribe
  | Publish
  | Request
  | Command
  | Logs
  | Ping;

/** A message on a topic; with its position if the topic has history */
export type Data = { type: "DATA"; topic: string; data: Json; timestamp: string; action?: string; subtype?: string; priority?: string | number; tags?: { [name: string]: string }; sender?: Member; offset?: number; epoch?: string; mark?: number; initialData?: true };

/** A message for a subscriber that receives deltas: data is a delta, or the JSON text of the data */
export type DeltaData = { type: "DATA"; topic: string; data: string; timestamp: string; delta: boolean; action?: string; subtype?: string; priority?: string | number; tags?: { [name: string]: string }; offset?: number; epoch?: string; mark?: number };

/** The answer to a REQUEST */
export type Answer = { type: "DATA"; topic: string; data: Json; timestamp: string; action: string; requestId?: string | number };

/** Members joined or left a topic with presence */
export type Presence = { type: "PRESENCE"; topic: string; count: number; timestamp: string; joined?: Array<Member>; left?: Array<Member> };

/** From now on every message of these topics arrives, or a gap */
export type Subscribed = { type: "ACKNOWLEDGMENT"; operation: "subscribe"; topics: Array<string>; status: "success"; message: string; timestamp: string; requestId?: string | number; positions?: { [name: string]: { epoch: string; offset: number; mark?: number | null; recovered?: boolean } } };

/** An UNSUBSCRIBE is carried out */
export type Unsubscribed = { type: "ACKNOWLEDGMENT"; operation: "unsubscribe"; topics: Array<string>; timestamp: string; requestId?: string | number };

/** A PUBLISH is in Redis */
export type Published = { type: "ACKNOWLEDGMENT"; operation: "publish"; topic: string; timestamp: string; offset?: number; epoch?: string; mark?: number; requestId?: string | number };

/** An AUTH was accepted */
export type Authenticated = { type: "ACKNOWLEDGMENT"; operation: "authenticate"; status: "success"; message: string; timestamp: string };

/** The back end has carried out a COMMAND */
export type CommandDone = { type: "ACKNOWLEDGMENT"; operation: "command"; topic: string; action: string; status: "success"; timestamp: string; data?: Json; requestId?: string | number };

/** LOGS were received */
export type LogsAccepted = { type: "ACKNOWLEDGMENT"; topic: "logs"; message: string; count: number; timestamp: string };

/** The answer to REQUEST system/ping */
export type SystemPong = { type: "RESPONSE"; topic: "system"; action: "pong"; data: { timestamp: string }; requestId?: string | number };

/** The answer to a ping, with its timestamp */
export type Pong = { type: "pong"; timestamp: Json };

/** A command is refused; the socket stays open. Only some codes carry requestId, the others inReplyTo */
export type Error = { type: "ERROR"; code: 4000 | 4001 | 4002 | 4003 | 4004 | 4005 | 4006 | 4007 | 4009 | 4010 | 4011 | 4012 | 4013 | 4014 | 4015 | 4016 | 4029 | 4401 | 4403 | 5000 | 5001 | 5030; error: string; message: string; timestamp: string; reason?: string; temporary?: true; requestId?: string | number; inReplyTo?: string | number };

/** The first message on a socket */
export type Welcome = { type: "SYSTEM"; topic: "system"; action: "welcome"; data: { clientId: string; node: string; version: string; pingMs: number; limits: Limits }; timestamp: string };

/** The back end has subscribed the client */
export type SubscribedByServer = { type: "SYSTEM"; topic: "system"; action: "subscribed"; data: { topics: Array<string>; positions?: { [name: string]: Position }; data?: Json }; timestamp: string };

/** The gateway has unsubscribed the client */
export type SubscriptionsEnded = { type: "SYSTEM"; topic: "system"; action: "unsubscribed"; data: { topics: Array<string>; reason: string }; timestamp: string };

/** The client's token expires soon */
export type TokenExpiring = { type: "SYSTEM"; topic: "system"; action: "token_expiring"; data: { expires: string; message: string }; timestamp: string };

/** Messages of these topics may be missing */
export type Gap = { type: "SYSTEM"; topic: "system"; action: "gap"; data: { topics: Array<string> }; timestamp: string };

/** Redis is unreachable; no messages arrive */
export type Degraded = { type: "SYSTEM"; topic: "system"; action: "degraded"; data: { message: string }; timestamp: string };

/** Redis is back */
export type Restored = { type: "SYSTEM"; topic: "system"; action: "restored"; data: { message: string }; timestamp: string };

/** The node leaves: reconnect after reconnectMs */
export type Shutdown = { type: "SYSTEM"; topic: "system"; action: "shutdown"; data: { message: string; code: number; reconnectMs: number }; timestamp: string };

/** Another node has more room: reconnect after reconnectMs */
export type Move = { type: "SYSTEM"; topic: "system"; action: "move"; data: { message: string; code: number; reconnectMs: number }; timestamp: string };

/** The first message of a stream over HTTP */
export type StreamOpened = { type: "OPEN"; stream: string };

/** The last message of a stream over HTTP */
export type StreamClosed = { type: "CLOSE"; code: number; reason: string };

export type ServerMessage =
  | Data
  | DeltaData
  | Answer
  | Presence
  | Subscribed
  | Unsubscribed
  | Published
  | Authenticated
  | CommandDone
  | LogsAccepted
  | SystemPong
  | Pong
  | Error
  | Welcome
  | SubscribedByServer
  | SubscriptionsEnded
  | TokenExpiring
  | Gap
  | Degraded
  | Restored
  | Shutdown
  | Move
  | StreamOpened
  | StreamClosed;
