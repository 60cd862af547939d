/** The browser client of the gateway. Times are milliseconds. docs/reference/clients.md describes its behaviour, protocol.md the wire protocol. */

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** A message published on a topic. `offset`, `epoch` and `mark` are its position on topics with history. */
export interface Message<Data = any> {
  type: "message";
  topic: string;
  data: Data;
  /** time of the publish, ISO 8601 */
  timestamp: string;
  offset: number | null;
  epoch: string | null;
  mark: number | null;
  /** true for the last value that a new subscription receives: not a new message */
  initial: boolean;
  /** `action`, `subtype`, `priority`, `tags`, as published */
  extras: { [name: string]: Json };
}

/** Messages may be missing between the last event and the next one. */
export interface Gap {
  type: "gap";
  topic: string;
  reason: string;
}

/** The connection was lost, and all missed messages were delivered before this event. */
export interface Recovered {
  type: "recovered";
  topic: string;
}

export interface Person {
  clientId?: string;
  user?: string;
  /** the claim `info` of the client's token */
  info?: Json;
}

/** Members that joined and left the topic. With more than 1,000 members the server sends only their number. */
export interface Presence {
  type: "presence";
  topic: string;
  count: number;
  joined?: Person[];
  left?: Person[];
  timestamp: string;
}

export interface Position {
  epoch: string;
  offset: number;
  mark?: number;
}

export interface History extends Position {
  /** DATA frames, as the node sends them */
  messages: Array<{ topic: string; data: any; timestamp: string; offset: number; epoch: string; mark?: number }>;
}

/** pending: requested, or waiting for a connection; recovered: subscribed again without a loss. */
export type SubscriptionState = "pending" | "subscribed" | "recovered" | "ended";

export interface Handlers<Data = any> {
  onData?(message: Message<Data>): void;
  onPresence?(presence: Presence): void;
  onGap?(gap: Gap): void;
  /** `error`: the reason for `ended`; null if the caller closed it */
  onState?(state: SubscriptionState, error: GatewayError | null): void;
}

/** A condition on the tags of messages: a comparison of a tag, or a combination of other filters. protocol.md describes it. */
export type Filter =
  | { key: string; cmp: "eq" | "neq" | "sw" | "ew" | "ct" | "gt" | "gte" | "lt" | "lte"; val: string }
  | { key: string; cmp: "in" | "nin"; vals: string[] }
  | { key: string; cmp: "ex" | "nex" }
  | { op: "and" | "or" | "not"; nodes: Filter[] };

/** Options of the first subscription to a topic; the others must have the same filter. */
export interface SubscriptionOptions {
  /** receive only messages whose tags match */
  filter?: Filter;
  /** let the node send differences between messages, from which the client makes the messages; not with a filter */
  delta?: boolean;
}

export interface Subscription {
  readonly topic: string;
  readonly state: SubscriptionState;
  /** Settles with the first acknowledgement; rejects with `Refused`, or `Closed`. */
  readonly ready: Promise<void>;
  close(): void;
}

/** Loop over it for messages, or over `events()` for messages, gaps and presence in order. */
export interface Topic<Data = any> extends AsyncIterable<Message<Data>> {
  events(): AsyncIterableIterator<Message<Data> | Gap | Recovered | Presence>;
}

/** connected: welcomed; authenticated: the token was accepted too; waiting: until the next attempt. */
export type State = "connecting" | "connected" | "authenticated" | "waiting" | "closed";

export interface StateDetail {
  state: State;
  /** waiting, closed: the close code and the reason */
  code?: number | null;
  reason?: string;
  /** waiting: the time until the next attempt */
  waitMs?: number;
}

export interface Timing {
  /** reconnect: the first wait is random between 0 and this (1000); the bound then doubles */
  baseMs: number;
  /** the longest wait (20000) */
  capMs: number;
  /** resend a SUBSCRIBE without an answer after this time (1000), unless it recovers */
  ackMs: number;
  /** deadline of any answer (10000) */
  answerMs: number;
  /** deadline of address, connection and the server's welcome together (10000) */
  openMs: number;
  /** deadline of any message after the network changed or the machine slept (5000) */
  probeMs: number;
}

export interface Options {
  /** A token that never changes. */
  token?: string;
  /**
   * Returns a token. The client calls it for each connection and before the current token expires; it has 10 s
   * (`answerMs`). Without a token (null) the client acts as the user of the cookie, or as an anonymous client. After an
   * error, or if the server rejects the token, the client calls it again at the next attempt.
   */
  getToken?(): string | null | undefined | Promise<string | null | undefined>;
  timing?: Partial<Timing>;
  /** The WebSocket class, if there is no global one. */
  WebSocket?: new (url: string) => any;
  /** Loads the module whose `HttpSocket` is used where WebSockets are blocked (gateway.http.js); null for none. */
  fallback?: null | (() => Promise<{ HttpSocket: new (url: string) => any }>);
}

export interface GatewayEvents {
  state: CustomEvent<StateDetail>;
  /** A notice from the server: welcome, degraded, restored, shutdown, move, gap, unsubscribed, token_expiring. */
  system: CustomEvent<{ action: string; [name: string]: any }>;
  /** A message for this user or client on a topic without a subscription here. */
  other: CustomEvent<Message>;
}

/** One connection to the cluster, reopened whenever it is lost, and all requests over it. */
export class Gateway extends EventTarget {
  /**
   * `url`: ws:, wss:, http:, https: or relative to the page; or a function that returns one, or a promise of one, called
   * before each connection. If it fails, the attempt fails: event `state`, `waiting`, with the reason.
   */
  constructor(url: string | URL | (() => string | URL | Promise<string | URL>), options?: Options);
  readonly state: State;
  /** The node that serves this connection. */
  readonly node: string;
  /** The server's name for this connection. */
  readonly clientId: string;
  /** The node reported that it lost Redis; false again after `restored`. */
  readonly degraded: boolean;
  /** Connect, or retry at once. Resolves when messages can be sent; rejects with `Closed`. */
  connect(): Promise<void>;
  /** Close the client; all subscriptions end. */
  close(): void;
  /** Drop this connection and reconnect; `afterMs`: the time to wait before. */
  reconnect(afterMs?: number): void;
  /** Subscribe to a topic; several subscriptions share one on the wire. Throws `Closed` after the client has ended. */
  subscribe<Data = any>(topic: string, handlers?: Handlers<Data>, options?: SubscriptionOptions): Subscription;
  /** End all subscriptions to a topic. */
  unsubscribe(topic: string): void;
  /** A topic for loops, which throw `TooSlow` when more than `limit` (10000) events wait, `Refused`, or `Closed`. */
  topic<Data = any>(topic: string, options?: { limit?: number } & SubscriptionOptions): Topic<Data>;
  /** Resolves with the position if the topic has history. Like the other requests it rejects with `Refused`, `TooLarge`, `NoAnswer`, `Disconnected` or `Closed`. */
  publish(
    topic: string,
    data: Json,
    extras?: { action?: string; subtype?: string; priority?: string | number; tags?: { [name: string]: string } },
  ): Promise<Position | null>;
  request<Answer = any>(topic: string, action: string, parameters?: { [name: string]: Json }): Promise<Answer>;
  command<Answer = any>(topic: string, action: string, data?: Json): Promise<Answer>;
  presence(topic: string): Promise<{ count: number; members: Person[] }>;
  presence(topic: string, range: { clients: true }): Promise<{ count: number; clients: Person[] }>;
  history(topic: string, range?: { limit?: number; since?: number; reverse?: boolean }): Promise<History>;
  addEventListener<Type extends keyof GatewayEvents>(
    type: Type,
    listener: (event: GatewayEvents[Type]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

export class GatewayError extends Error {}

/** The server answered with an ERROR; with `temporary` a retry can succeed. */
export class Refused extends GatewayError {
  readonly code: number;
  readonly temporary: boolean;
  /** for a token: `token_expired`, `token_invalid` or `token_required` */
  readonly reason: string | null;
}

/** No answer in time. The server may or may not have executed the request. */
export class NoAnswer extends GatewayError {}

/** The connection was lost before the answer. The server may or may not have executed the request. */
export class Disconnected extends GatewayError {}

/** The message is larger than the server accepts. It was not sent. */
export class TooLarge extends GatewayError {}

/** A loop over a topic had more waiting events than its limit; the loop has ended. */
export class TooSlow extends GatewayError {}

/** The client has ended; `code` is the server's close code, or null if the caller closed it. */
export class Closed extends GatewayError {
  readonly code: number | null;
  readonly reason: string;
}
