// Who the operator is, and the two ways to the cluster: the socket, over which the console lives, and the HTTP API,
// by which it acts. A credential is an admin's token, good for both, or an API key, good for the second.

import { Gateway } from "/gateway.js";
import { Figures, TOPIC, WINDOW_MS } from "./figures.js";

const KEPT_AS = "gateway-console-credential"; // of this tab alone, and gone with it
const POLL_MS = 5_000;
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
 * The session. Events: `state` (the socket's), `who` (signed in or out; detail: why, if not asked for), `figures`.
 */
export class Session extends EventTarget {
  figures = new Figures();
  hears = "waiting"; // how the figures come: waiting, socket, api, refused
  gateway = null;
  #credential = null;
  #poll = null;
  #newest = null; // offset of the last message that the API gave

  get signedIn() {
    return this.#credential !== null;
  }

  /** What the credential is: an admin's "token", an API "key", or null. */
  get kind() {
    return this.#credential && (isToken(this.#credential) ? "token" : "key");
  }

  /** Begin, with the credential that this tab has, if any. */
  start() {
    this.#enter(sessionStorage.getItem(KEPT_AS));
  }

  /** Take a credential, once the API has accepted it; raises ApiError. */
  async signIn(credential) {
    if (!/^[\x20-\x7e]+$/.test(credential)) throw new ApiError(0, "bad_credential", "That is neither a token nor a key: a header could not carry it.");
    await ask(credential, "GET", "/api/nodes");
    sessionStorage.setItem(KEPT_AS, credential);
    this.#enter(credential);
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
      if (error.status === 401 && credential === this.#credential) this.signOut("You are signed out: the gateway no longer takes what you signed in with.");
      throw error;
    }
  }

  #enter(credential, why = null) {
    this.#credential = credential;
    this.gateway?.close();
    clearInterval(this.#poll);
    this.figures.clear();
    this.hears = "waiting";
    const gateway = (this.gateway = new Gateway("/ws", this.kind === "token" ? { token: credential } : {}));
    gateway.addEventListener("state", ({ detail }) => gateway === this.gateway && this.#onState(detail));
    gateway.addEventListener("system", () => gateway === this.gateway && this.#tell("state"));
    gateway.subscribe(TOPIC, {
      onData: (message) => this.#add([message], Date.now()),
      onState: (state, error) => gateway === this.gateway && this.#onFigures(gateway, state, error),
    });
    gateway.connect().catch(() => {}); // its state says so
    this.#tell("who", why);
  }

  #onState(detail) {
    const badToken = detail.state === "closed" && detail.code === 4401;
    if (badToken) this.signOut(`You are signed out: ${detail.reason === "token_expired" ? "the token has expired" : "the token is not valid here"}.`);
    else this.#tell("state", detail);
  }

  async #onFigures(gateway, state, error) {
    if (state === "subscribed" || state === "recovered") {
      this.hears = "socket";
      await this.#past((range) => gateway.history(TOPIC, range));
    } else if (state === "ended" && gateway.state !== "closed") {
      this.refusal = error;
      this.hears = this.signedIn ? "api" : "refused";
      if (this.signedIn) {
        const read = (range) => this.api("GET", `/api/topics/${TOPIC}/history?${new URLSearchParams(range)}`);
        this.#poll = setInterval(() => this.#news(read), POLL_MS);
        await this.#past(read);
      }
    }
    this.#tell("figures");
  }

  /** Read the topic back to the beginning of the window, or to what is known: the newest page first. */
  async #past(read) {
    try {
      let page = await read({ limit: PAGE });
      const from = Date.now() - WINDOW_MS;
      this.#newest = page.offset;
      while (this.#add(page.messages) && page.messages.length === PAGE && Date.parse(page.messages[0].timestamp) > from) {
        page = await read({ limit: PAGE, since: Math.max(0, page.messages[0].offset - PAGE - 1) });
      }
    } catch {
      this.#newest = null; // it is read with the next connection, or the next poll
    }
  }

  /** Read what came since the last time. */
  async #news(read) {
    if (this.#newest === null) return this.#past(read);
    try {
      const page = await read({ limit: PAGE, since: this.#newest });
      this.#newest = page.offset < this.#newest ? null : (page.messages.at(-1)?.offset ?? this.#newest); // null: numbered anew
      this.#add(page.messages, Date.now());
    } catch {
      // The next poll reads on from here.
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
