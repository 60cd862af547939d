// The shared cache: its current figures, and single entries.

import { $, hide, onSubmit, tiles, write } from "../dom.js";
import { cached } from "../figures.js";
import { bytes, duration, percent, rate } from "../format.js";

export class Cache {
  #session;
  #operator;

  constructor(session, operator) {
    this.#session = session;
    this.#operator = operator;
    session.addEventListener("figures", () => this.#draw());
    session.addEventListener("who", () => {
      this.#draw();
      this.#show("");
    });
    onSubmit($("find-entry"), () => this.#look());
    $("entry-delete").addEventListener("click", () => $("find-entry").reportValidity() && this.#delete());
    $("entry-clear").addEventListener("click", () => this.#clear());
  }

  show() {
    this.#draw();
  }

  leave() {}

  #draw() {
    if ($("cache").hidden) return;
    const { figures, access } = this.#session;
    const all = cached(figures.nodes(figures.time(Date.now())));
    hide($("cache-tiles"), !all);
    write($("cache-empty"), all ? "" : access === "refused" ? "Only administrators can see the figures: sign in." : "Waiting for the first figures…");
    if (!all) return;
    const part = (value) => (all.asked ? percent(value / all.asked) : "–");
    tiles($("cache-tiles"), [
      ["Reads", rate(all.asked), "/s", "values, by all nodes"],
      ["Hits", part(all.near + all.redis + all.stale), "", `${part(all.near)} without a read from Redis`],
      ["Misses", rate(all.miss), "/s", all.unavailable ? `and ${rate(all.unavailable)}/s without Redis` : "not in the cache"],
      ["Loads", rate(all.loads), "/s", `${rate(all.waits)}/s waited for another load`],
      ["From Redis", bytes(all.readBytes), "/s", "values read"],
      ["To Redis", bytes(all.writtenBytes), "/s", "values written"],
    ]);
  }

  // ---- one entry

  #show(text, level = "") {
    $("entry-state").className = level;
    write($("entry-state"), text);
    hide($("entry"), true);
  }

  async #look() {
    try {
      const { value, ttlSeconds } = await this.#session.api("GET", path($("entry-key").value));
      this.#show(ttlSeconds === null ? "Does not expire." : `Expires in ${duration(ttlSeconds)}.`);
      write($("entry"), JSON.stringify(value, null, 2));
      hide($("entry"), false);
    } catch (error) {
      this.#show(error.message, "bad");
    }
  }

  async #delete() {
    const key = $("entry-key").value;
    if (!(await this.#operator.confirms(`Delete ${key}?`, "All nodes drop the value and load it again when they need it.", "Delete"))) return;
    const done = ({ deleted }) => (deleted ? `${key} is deleted.` : `${key} did not exist.`);
    if (await this.#operator.acts(done, () => this.#session.api("DELETE", path(key)))) this.#show("");
  }

  async #clear() {
    const prefix = $("entry-key").value;
    const title = prefix ? `Delete all keys that begin with ${prefix}?` : "Delete the whole cache?";
    if (!(await this.#operator.confirms(title, "All nodes drop the values and load them again when they need them, so the back end gets more requests for a while.", "Delete all"))) return;
    const done = ({ cleared }) => `${cleared === 1 ? "1 entry is" : `${cleared} entries are`} deleted.`;
    if (await this.#operator.acts(done, () => this.#session.api("DELETE", `/api/cache?${new URLSearchParams({ prefix })}`))) this.#show("");
  }
}

const path = (key) => `/api/cache/${key.split("/").map(encodeURIComponent).join("/")}`;
