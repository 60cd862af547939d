// For networks that block WebSockets: a class with a WebSocket's interface over plain HTTP. gateway.js loads it when its
// first WebSocket fails. It carries the same messages as a WebSocket.

const OPEN_MS = 3_000; // an event stream sends its name at once; after this time assume that a proxy buffers it

let buffered = !globalThis.EventSource; // event streams do not work here: use long polling

/** Receives by Server-Sent Events, or by long polling if a proxy buffers those; sends by POST. */
export class HttpSocket {
  readyState = 0;
  maxBytes = 1 << 20; // of one request; gateway.js sets the server's limit
  #url;
  #name = ""; // of the stream; every request must contain it
  #waiting = [];
  #sending = false;
  #source = null;
  #timer = null;
  #aborter = new AbortController();

  constructor(url) {
    this.#url = new URL(url);
    this.#url.protocol = this.#url.protocol.replace("ws", "http");
    if (buffered) this.#poll();
    else this.#listen();
  }

  send(text) {
    this.#waiting.push(text);
    if (!this.#sending) this.#flush();
  }

  close() {
    this.readyState = 3;
    this.#aborter.abort();
    this.#hangUp();
  }

  // ---- receiving

  #listen() {
    this.#source = new EventSource(this.#at("/sse"), { withCredentials: true });
    this.#source.onmessage = ({ data }) => this.#receive(data);
    // EventSource would reconnect by itself, but gateway.js decides when to reconnect.
    this.#source.onerror = () => (this.readyState ? this.#end(1006, "the event stream was interrupted") : this.#fetch());
    this.#timer = setTimeout(() => {
      buffered = true;
      this.#fetch();
    }, OPEN_MS);
  }

  #fetch() {
    this.#hangUp();
    this.#poll();
  }

  #hangUp() {
    clearTimeout(this.#timer);
    this.#source?.close();
  }

  async #poll() {
    try {
      while (this.readyState !== 3) {
        const answer = await this.#post("/poll", this.#name);
        if (!answer.ok) throw new Error(`a poll got status ${answer.status}`);
        const text = await answer.text();
        if (text) text.split("\n").forEach((message) => this.#receive(message));
      }
    } catch (error) {
      this.#end(1006, error.message);
    }
  }

  /** Handle a message, or OPEN and CLOSE, which a WebSocket does not need. */
  #receive(text) {
    if (this.readyState === 3) return;
    const { type, stream, code, reason } = /^{"type":"(OPEN|CLOSE)"/.test(text) ? JSON.parse(text) : {};
    if (type === "CLOSE") {
      this.#end(code, reason);
    } else if (type === "OPEN") {
      clearTimeout(this.#timer);
      this.#name = stream;
      this.readyState = 1;
    } else {
      this.onmessage({ data: text });
    }
  }

  // ---- sending

  /**
   * Send the waiting messages, one request at a time, each within `maxBytes`. If a request fails, the server may have
   * executed it, so the connection ends. After 413 the server executed nothing, and smaller requests follow.
   */
  async #flush() {
    this.#sending = true;
    try {
      while (this.#waiting.length && this.readyState === 1) {
        const messages = this.#next();
        const { status } = await this.#post("/say", [this.#name, ...messages].join("\n"));
        if (status === 413) {
          if (messages.length === 1) return this.#end(1009, "a message is larger than the server accepts");
          this.maxBytes = size(messages) / 2;
          this.#waiting.unshift(...messages);
        } else if (status !== 204) {
          throw new Error(`a message got status ${status}`);
        }
      }
    } catch (error) {
      this.#end(1006, error.message);
    } finally {
      this.#sending = false;
    }
  }

  /** Remove the messages of the next request from the waiting ones: at least one. */
  #next() {
    let count = 1, room = this.maxBytes - size([this.#waiting[0]]);
    while (count < this.#waiting.length && (room -= size([this.#waiting[count]])) >= 0) count++;
    return this.#waiting.splice(0, count);
  }

  // ---- requests

  /** An address beside the WebSocket's: for `/realtime/ws` it is `/realtime/sse`. */
  #at(path) {
    const url = new URL(this.#url);
    url.pathname = url.pathname.replace(/(\/api\/v69)?\/[^/]*\/?$/, path);
    return url;
  }

  #post(path, body) {
    const { signal } = this.#aborter;
    return fetch(this.#at(path), { method: "POST", body, credentials: "include", cache: "no-store", signal });
  }

  #end(code, reason) {
    if (this.readyState === 3) return;
    this.close();
    this.onclose({ code, reason });
  }
}

/** The size of messages in bytes, each with a line end. */
function size(messages) {
  return messages.reduce((sum, text) => sum + new TextEncoder().encode(text).length + 1, 0);
}
