/** The browser client of the gateway. Times are milliseconds; what it does is told in gateway.js, the wire in protocol.md. */

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** Something published on a topic. `offset`, `epoch` and `mark`: its place, on topics with history. */
export interface Message<Data = any> {
  type: "message";
  topic: string;
  data: Data;
  /** ISO 8601, of the publish */
  timestamp: string;
  offset: number | null;
  epoch: string | null;
  mark: number | null;
  /** the last value, which came with the subscription: not news */
  initial: boolean;
  /** `action`, `subtype`, `priority`, as published */
  extras: { [name: string]: Json };
}

/** Messages may be missing between what was handed on before this and what comes after. */
export interface Gap {
  type: "gap";
  topic: string;
  reason: string;
}

/** The connection was lost, and nothing was missed: the messages before this made it good. */
export interface Recovered {
  type: "recovered";
  topic: string;
}

export interface Person {
  clientId?: string;
  user?: string;
}

/** Who came to the topic and who left it. Where there are very many, only their number is told. */
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
  /** DATA frames, as they were sent */
  messages: Array<{ topic: string; data: any; timestamp: string; offset: number; epoch: string; mark?: number }>;
}

/** pending: asked for, or waiting for a connection; recovered: subscribed again, and nothing was missed. */
export type SubscriptionState = "pending" | "subscribed" | "recovered" | "ended";

export interface Handlers<Data = any> {
  onData?(message: Message<Data>): void;
  onPresence?(presence: Presence): void;
  onGap?(gap: Gap): void;
  /** `error`: why it ended; null if it was closed */
  onState?(state: SubscriptionState, error: GatewayError | null): void;
}

export interface Subscription {
  readonly topic: string;
  readonly state: SubscriptionState;
  /** Settles with the first acknowledgement; rejects with `Refused`, or `Closed`. */
  readonly ready: Promise<void>;
  close(): void;
}

/** Loop over it for its messages, or over `events()` for gaps and presence too, each where it belongs. */
export interface Topic<Data = any> extends AsyncIterable<Message<Data>> {
  events(): AsyncIterableIterator<Message<Data> | Gap | Recovered | Presence>;
}

/** connected: welcomed; authenticated: and the token was accepted; waiting: until it tries again. */
export type State = "connecting" | "connected" | "authenticated" | "waiting" | "closed";

export interface StateDetail {
  state: State;
  /** waiting, closed: the close code, and why */
  code?: number | null;
  reason?: string;
  /** waiting: until it tries again */
  waitMs?: number;
}

export interface Timing {
  /** reconnect: the first wait is anywhere between 0 and this (1000), and then it doubles */
  baseMs: number;
  /** the longest wait (20000) */
  capMs: number;
  /** a SUBSCRIBE without an answer is sent again after this time (1000), unless it recovers */
  ackMs: number;
  /** any answer (10000) */
  answerMs: number;
  /** until there is an address, a connection and the server's welcome (10000) */
  openMs: number;
  /** a sign of life, after the network changed or the machine slept (5000) */
  probeMs: number;
}

export interface Options {
  /** A token that never changes. */
  token?: string;
  /**
   * Gives a token. Called at each connection, and before the current token expires; it has 10 s (`answerMs`). Without a
   * token (null) the client continues as the user of the cookie, or as an anonymous client. After an error, or when the
   * server refuses the token, it is called again at the next attempt.
   */
  getToken?(): string | null | undefined | Promise<string | null | undefined>;
  timing?: Partial<Timing>;
  /** The WebSocket class, where there is no global one. */
  WebSocket?: new (url: string) => any;
  /** Gives a module whose `HttpSocket` is tried where WebSockets do not come through (gateway.http.js); null: nothing is. */
  fallback?: null | (() => Promise<{ HttpSocket: new (url: string) => any }>);
}

export interface GatewayEvents {
  state: CustomEvent<StateDetail>;
  /** What the server says of itself: welcome, degraded, restored, shutdown, move, gap, unsubscribed, token_expiring. */
  system: CustomEvent<{ action: string; [name: string]: any }>;
  /** A message for this user or client on a topic nobody subscribed to here. */
  other: CustomEvent<Message>;
}

/** One socket to the cluster, opened again whenever it is lost, and all that goes over it. */
export class Gateway extends EventTarget {
  /**
   * `url`: ws:, wss:, http:, https: or relative to the page; or a function that gives one, or a promise of one, called
   * before each connection. If it fails, so does the attempt: event `state`, `waiting`, with the reason.
   */
  constructor(url: string | URL | (() => string | URL | Promise<string | URL>), options?: Options);
  readonly state: State;
  /** The node that serves this connection. */
  readonly node: string;
  /** The server's name for this connection. */
  readonly clientId: string;
  /** The node has lost Redis, and said so; it says so when it is back. */
  readonly degraded: boolean;
  /** Connect, or try again now. Resolves when messages can go out; rejects with `Closed`. */
  connect(): Promise<void>;
  /** Leave; all subscriptions end. */
  close(): void;
  /** Give up this connection and make a new one, as if it had been lost; `afterMs`: not before. */
  reconnect(afterMs?: number): void;
  /** Hear a topic, as often as wanted: there is one subscription on the wire. Throws `Closed` after the end. */
  subscribe<Data = any>(topic: string, handlers?: Handlers<Data>): Subscription;
  /** End all subscriptions to a topic. */
  unsubscribe(topic: string): void;
  /** Hear a topic in a loop. Throws `TooSlow` when more than `limit` (10000) events wait, `Refused`, or `Closed`. */
  topic<Data = any>(topic: string, options?: { limit?: number }): Topic<Data>;
  /** Its place if the topic has history. Rejects with `Refused`, `TooLarge`, `NoAnswer`, `Disconnected` or `Closed`, as the others. */
  publish(
    topic: string,
    data: Json,
    extras?: { action?: string; subtype?: string; priority?: string | number },
  ): Promise<Position | null>;
  request<Answer = any>(topic: string, action: string, parameters?: { [name: string]: Json }): Promise<Answer>;
  command<Answer = any>(topic: string, action: string, data?: Json): Promise<Answer>;
  presence(topic: string): Promise<{ count: number; members: Person[] }>;
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

/** The server answered with an ERROR; `temporary`: the same may be carried out later. */
export class Refused extends GatewayError {
  readonly code: number;
  readonly temporary: boolean;
  /** of a token: `token_expired`, `token_invalid` or `token_required` */
  readonly reason: string | null;
}

/** No answer in time; what was asked may have been done or not. */
export class NoAnswer extends GatewayError {}

/** The socket was lost before the answer; what was asked may have been done or not. */
export class Disconnected extends GatewayError {}

/** The message is larger than the server accepts. It was not sent. */
export class TooLarge extends GatewayError {}

/** More events waited in a loop over a topic than it may hold; it has ended. */
export class TooSlow extends GatewayError {}

/** The client has ended; `code` is the server's, null if the caller left. */
export class Closed extends GatewayError {
  readonly code: number | null;
  readonly reason: string;
}
