// Where a network lets no WebSocket through: a socket's manners over plain HTTP. gateway.js loads this when its socket
// fails before it ever worked. What goes over it is what goes over the socket, a message at a time.

const OPEN_MS = 3_000; // an event stream says its name at once; who says nothing for so long is held back by a proxy

let held = !globalThis.EventSource; // event streams do not come through here, so messages are fetched

/** Server-Sent Events, or long polling where those do not come through; what is said goes by POST. */
export class HttpSocket {
  readyState = 0;
  maxBytes = 1 << 20; // of the messages in one request; gateway.js sets the server's limit
  #url;
  #name = ""; // the stream's, which whoever speaks in it must know
  #waiting = [];
  #speaking = false;
  #source = null;
  #timer = null;
  #aborter = new AbortController();

  constructor(url) {
    this.#url = new URL(url);
    this.#url.protocol = this.#url.protocol.replace("ws", "http");
    if (held) this.#poll();
    else this.#listen();
  }

  send(text) {
    this.#waiting.push(text);
    if (!this.#speaking) this.#speak();
  }

  close() {
    this.readyState = 3;
    this.#aborter.abort();
    this.#hangUp();
  }

  // ---- hearing

  #listen() {
    this.#source = new EventSource(this.#at("/sse"), { withCredentials: true });
    this.#source.onmessage = ({ data }) => this.#hear(data);
    // It would come back by itself, but when to come back is for others to say.
    this.#source.onerror = () => (this.readyState ? this.#end(1006, "the event stream broke off") : this.#fetch());
    this.#timer = setTimeout(() => {
      held = true;
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
        if (!answer.ok) throw new Error(`a poll was answered with ${answer.status}`);
        const text = await answer.text();
        if (text) text.split("\n").forEach((message) => this.#hear(message));
      }
    } catch (error) {
      this.#end(1006, error.message);
    }
  }

  /** A message, or one of the two that a socket has no need of. */
  #hear(text) {
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

  // ---- speaking

  /**
   * Send what waits, one request at a time, each within `maxBytes`. When a request fails it is not known what was
   * carried out, so the connection ends. After 413 nothing was carried out, and smaller requests are tried.
   */
  async #speak() {
    this.#speaking = true;
    try {
      while (this.#waiting.length && this.readyState === 1) {
        const messages = this.#next();
        const { status } = await this.#post("/say", [this.#name, ...messages].join("\n"));
        if (status === 413) {
          if (messages.length === 1) return this.#end(1009, "a message is larger than the server accepts");
          this.maxBytes = size(messages) / 2;
          this.#waiting.unshift(...messages);
        } else if (status !== 204) {
          throw new Error(`a message was answered with ${status}`);
        }
      }
    } catch (error) {
      this.#end(1006, error.message);
    } finally {
      this.#speaking = false;
    }
  }

  /** Remove the messages of the next request from those that wait: at least one. */
  #next() {
    let count = 1, room = this.maxBytes - size([this.#waiting[0]]);
    while (count < this.#waiting.length && (room -= size([this.#waiting[count]])) >= 0) count++;
    return this.#waiting.splice(0, count);
  }

  // ---- both

  /** The address beside the WebSocket's: for `/realtime/ws` it is `/realtime/sse`. */
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
