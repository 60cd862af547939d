// Who the operator is, and the two ways to the cluster: the socket, over which the console lives, and the HTTP API,
// by which it acts. A credential, an admin's token or an API key, is good for both; a key for what its scopes allow.

import { Gateway } from "/gateway.js";
import { Figures, TOPIC, WINDOW_MS } from "./figures.js";
import { listed } from "./format.js";

const KEPT_AS = "gateway-console-credential"; // of this tab alone, and gone with it
const NOT_TAKEN = "You are signed out: the gateway no longer takes what you signed in with.";
const PAGE = 1000; // messages of a topic's history in one answer
const API_MS = 10_000;

/** What the API, or the way to it, said no with. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { name: "ApiError", status, code });
  }
}

/** Whether this is a JWT: its header says so. */
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
      credentials: "omit", // a key in a header and nothing else: no other page can act in our name
      signal: AbortSignal.timeout(API_MS),
    });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError(0, "no_answer", late ? `No answer within ${API_MS / 1000} s.` : "Nothing answers there: is the load balancer up?");
  }
  const said = await answer.json().catch(() => null);
  if (answer.ok) return said;
  throw new ApiError(answer.status, said?.error?.code ?? "failed", said?.error?.message ?? `The answer was ${answer.status}.`);
}

/**
 * The session. Events: `state` (the socket's), `who` (signed in or out; detail: why, if not asked for), `may` (what
 * the credential is good for is known now), `figures`.
 */
export class Session extends EventTarget {
  figures = new Figures();
  hears = "waiting"; // how the figures come: waiting, socket, refused
  gateway = null;
  #credential = null;
  #key = null; // {name, scopes}: what the API says of the credential; null: not yet

  get signedIn() {
    return this.#credential !== null;
  }

  /** What the credential is: an admin's "token", an API "key", or null. */
  get kind() {
    return this.#credential && (isToken(this.#credential) ? "token" : "key");
  }

  /** Why what takes this scope is not to be done here; "": it may be. Where the API has not said, it will when asked. */
  forbids(scope) {
    if (!this.signedIn) return "Sign in first";
    const has = !this.#key || this.#key.scopes.some((one) => one === scope || one.startsWith(`${scope}:`));
    return has ? "" : `The key ${this.#key.name} has not the scope ${scope}`;
  }

  /** What a key cannot do, in a sentence; "": there is nothing, or nothing is known yet. */
  get limits() {
    if (!this.#key) return "";
    const { name, scopes } = this.#key;
    const patterns = scopes.filter((scope) => scope.startsWith("publish:")).map((scope) => scope.slice("publish:".length));
    const lacks = ["publish", "admin"].filter((scope) => this.forbids(scope));
    const said = [];
    if (patterns.length && !scopes.includes("publish")) said.push(`publishes on ${listed(patterns)} alone`);
    if (lacks.length) said.push(`has not the ${lacks.length === 1 ? "scope" : "scopes"} ${listed(lacks)}: what takes more is switched off`);
    return said.length ? `The key ${name} ${said.join(", and ")}.` : "";
  }

  /** Begin, with the credential that this tab has, if any. */
  start() {
    this.#enter(sessionStorage.getItem(KEPT_AS));
  }

  /** Take a credential, once the API has accepted it; raises ApiError. */
  async signIn(credential) {
    if (!/^[\x20-\x7e]+$/.test(credential)) throw new ApiError(0, "bad_credential", "That is neither a token nor a key: a header could not carry it.");
    const key = await ask(credential, "GET", "/api/key");
    sessionStorage.setItem(KEPT_AS, credential);
    this.#enter(credential, null, key);
  }

  signOut(why = null) {
    sessionStorage.removeItem(KEPT_AS);
    this.#enter(null, why);
  }

  /** What the API answers; raises ApiError. */
  async api(method, path, body) {
    if (!this.signedIn) throw new ApiError(401, "unauthorized", "Sign in first.");
    const credential = this.#credential;
    try {
      return await ask(credential, method, path, body);
    } catch (error) {
      if (error.status === 401 && credential === this.#credential) this.signOut(NOT_TAKEN);
      throw error;
    }
  }

  #enter(credential, why = null, key = null) {
    this.#credential = credential;
    this.#key = key;
    this.gateway?.close();
    this.figures.clear();
    this.hears = "waiting";
    const gateway = (this.gateway = new Gateway("/api/ws", credential ? { token: credential } : {}));
    gateway.addEventListener("state", ({ detail }) => gateway === this.gateway && this.#onState(detail));
    gateway.addEventListener("system", () => gateway === this.gateway && this.#tell("state"));
    gateway.subscribe(TOPIC, {
      onData: (message) => this.#add([message], Date.now()),
      onState: (state) => gateway === this.gateway && this.#onFigures(gateway, state),
    });
    gateway.connect().catch(() => {}); // its state says so
    this.#tell("who", why);
  }

  #onState(detail) {
    if (detail.state === "closed" && detail.code === 4401) {
      this.signOut(detail.reason === "token_expired" ? "You are signed out: the token has expired." : NOT_TAKEN);
      return;
    }
    if (detail.state === "authenticated" && !this.#key) this.#learn();
    this.#tell("state", detail);
  }

  /** Ask what the credential that this tab had is good for. */
  async #learn() {
    const credential = this.#credential;
    const key = await this.api("GET", "/api/key").catch(() => null);
    if (credential !== this.#credential || !key) return;
    this.#key = key;
    this.#tell("may");
  }

  async #onFigures(gateway, state) {
    if (state === "subscribed" || state === "recovered") {
      this.hears = "socket";
      await this.#past(gateway);
    } else if (state === "ended" && gateway.state !== "closed") {
      this.hears = "refused";
    }
    this.#tell("figures");
  }

  /** Read the topic back to the beginning of the window, or to what is known: the newest page first. */
  async #past(gateway) {
    try {
      let page = await gateway.history(TOPIC, { limit: PAGE });
      const from = Date.now() - WINDOW_MS;
      while (this.#add(page.messages) && page.messages.length === PAGE && Date.parse(page.messages[0].timestamp) > from) {
        page = await gateway.history(TOPIC, { limit: PAGE, since: Math.max(0, page.messages[0].offset - PAGE - 1) });
      }
    } catch {
      // It is read with the next connection.
    }
  }

  /** Whether any of them was news. */
  #add(messages, receivedMs = null) {
    const news = messages.filter((message) => this.figures.add(message, receivedMs)).length > 0;
    if (news) this.#tell("figures");
    return news;
  }

  #tell(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
