// The operator's session: the WebSocket for live data and the HTTP API for actions. Both accept the same credential, an
// administrator's token or an API key; a key permits what its scopes allow.

import { Gateway } from "/gateway.js";
import { Figures, TOPIC, WINDOW_MS } from "./figures.js";
import { listed } from "./format.js";

const KEPT_AS = "gateway-console-credential"; // in sessionStorage: for this tab only
const NOT_ACCEPTED = "You are signed out: the gateway no longer accepts your token or key.";
const PAGE = 1000; // messages per history request
const API_MS = 10_000;

/** The API answered with an error, or was not reachable. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { name: "ApiError", status, code });
  }
}

/** Whether this is a JWT, by its header. */
export function isToken(credential) {
  const parts = credential.split(".");
  try {
    return parts.length === 3 && "alg" in JSON.parse(atob(parts[0].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return false;
  }
}

async function ask(credential, method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: { Authorization: `Bearer ${credential}`, ...(body !== undefined && { "Content-Type": "application/json" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "omit", // only the header carries the key: no other page can use it
      signal: AbortSignal.timeout(API_MS),
    });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError(0, "no_answer", late ? `No answer within ${API_MS / 1000} s.` : "No answer: is the load balancer running?");
  }
  const document = await answer.json().catch(() => null);
  if (answer.ok) return document;
  throw new ApiError(answer.status, document?.error?.code ?? "failed", document?.error?.message ?? `The response had status ${answer.status}.`);
}

/**
 * The session. Events: `state` (of the socket), `who` (signed in or out; detail: the reason, if unexpected), `may` (the
 * scopes of the credential are known), `figures`.
 */
export class Session extends EventTarget {
  figures = new Figures();
  access = "waiting"; // to the figures: waiting, socket, refused
  gateway = null;
  #credential = null;
  #key = null; // {name, scopes} of the credential, from the API; null until known

  get signedIn() {
    return this.#credential !== null;
  }

  /** The kind of credential: an administrator's "token", an API "key", or null. */
  get kind() {
    return this.#credential && (isToken(this.#credential) ? "token" : "key");
  }

  /** Why actions with this scope are not permitted; "" if they are, or while the scopes are unknown. */
  forbids(scope) {
    if (!this.signedIn) return "Sign in first";
    const has = !this.#key || this.#key.scopes.some((one) => one === scope || one.startsWith(`${scope}:`));
    return has ? "" : `The key ${this.#key.name} lacks the scope ${scope}`;
  }

  /** The restrictions of a key in a sentence; "" if there are none, or while unknown. */
  get limits() {
    if (!this.#key) return "";
    const { name, scopes } = this.#key;
    const patterns = scopes.filter((scope) => scope.startsWith("publish:")).map((scope) => scope.slice("publish:".length));
    const lacks = ["publish", "admin"].filter((scope) => this.forbids(scope));
    const parts = [];
    if (patterns.length && !scopes.includes("publish")) parts.push(`may publish only on ${listed(patterns)}`);
    if (lacks.length) parts.push(`lacks the ${lacks.length === 1 ? "scope" : "scopes"} ${listed(lacks)}: actions that need ${lacks.length === 1 ? "it" : "them"} are disabled`);
    return parts.length ? `The key ${name} ${parts.join(", and ")}.` : "";
  }

  /** Start, with this tab's stored credential, if any. */
  start() {
    this.#enter(sessionStorage.getItem(KEPT_AS));
  }

  /** Sign in, if the API accepts the credential; otherwise throws ApiError. */
  async signIn(credential) {
    if (!/^[\x20-\x7e]+$/.test(credential)) throw new ApiError(0, "bad_credential", "This is neither a token nor a key: it has characters that a header cannot contain.");
    const key = await ask(credential, "GET", "/api/key");
    sessionStorage.setItem(KEPT_AS, credential);
    this.#enter(credential, null, key);
  }

  signOut(why = null) {
    sessionStorage.removeItem(KEPT_AS);
    this.#enter(null, why);
  }

  /** Call the API; throws ApiError. */
  async api(method, path, body) {
    if (!this.signedIn) throw new ApiError(401, "unauthorized", "Sign in first.");
    const credential = this.#credential;
    try {
      return await ask(credential, method, path, body);
    } catch (error) {
      if (error.status === 401 && credential === this.#credential) this.signOut(NOT_ACCEPTED);
      throw error;
    }
  }

  #enter(credential, why = null, key = null) {
    this.#credential = credential;
    this.#key = key;
    this.gateway?.close();
    this.figures.clear();
    this.access = "waiting";
    const gateway = (this.gateway = new Gateway("/api/ws", credential ? { token: credential } : {}));
    gateway.addEventListener("state", ({ detail }) => gateway === this.gateway && this.#onState(detail));
    gateway.addEventListener("system", () => gateway === this.gateway && this.#emit("state"));
    gateway.subscribe(TOPIC, {
      onData: (message) => this.#add([message], Date.now()),
      onState: (state) => gateway === this.gateway && this.#onFigures(gateway, state),
    });
    gateway.connect().catch(() => {}); // the state shows it
    this.#emit("who", why);
  }

  #onState(detail) {
    if (detail.state === "closed" && detail.code === 4401) {
      this.signOut(detail.reason === "token_expired" ? "You are signed out: the token has expired." : NOT_ACCEPTED);
      return;
    }
    if (detail.state === "authenticated" && !this.#key) this.#learn();
    this.#emit("state", detail);
  }

  /** Request the scopes of this tab's stored credential. */
  async #learn() {
    const credential = this.#credential;
    const key = await this.api("GET", "/api/key").catch(() => null);
    if (credential !== this.#credential || !key) return;
    this.#key = key;
    this.#emit("may");
  }

  async #onFigures(gateway, state) {
    if (state === "subscribed" || state === "recovered") {
      this.access = "socket";
      await this.#past(gateway);
    } else if (state === "ended" && gateway.state !== "closed") {
      this.access = "refused";
    }
    this.#emit("figures");
  }

  /** Read the topic's history back to the start of the window or to known reports, newest page first. */
  async #past(gateway) {
    try {
      let page = await gateway.history(TOPIC, { limit: PAGE });
      const from = Date.now() - WINDOW_MS;
      while (this.#add(page.messages) && page.messages.length === PAGE && Date.parse(page.messages[0].timestamp) > from) {
        page = await gateway.history(TOPIC, { limit: PAGE, since: Math.max(0, page.messages[0].offset - PAGE - 1) });
      }
    } catch {
      // The next connection reads it.
    }
  }

  /** Add messages; returns whether any was new. */
  #add(messages, receivedMs = null) {
    const added = messages.filter((message) => this.figures.add(message, receivedMs)).length > 0;
    if (added) this.#emit("figures");
    return added;
  }

  #emit(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
