// The shared cache: what it does for the nodes just now, and any one of its entries.

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
      this.#say("");
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
    const { figures, hears } = this.#session;
    const all = cached(figures.nodes(figures.time(Date.now())));
    hide($("cache-tiles"), !all);
    write($("cache-empty"), all ? "" : hears === "refused" ? "Its figures are for administrators to see: sign in." : "Waiting for the first figures…");
    if (!all) return;
    const part = (value) => (all.asked ? percent(value / all.asked) : "–");
    tiles($("cache-tiles"), [
      ["Asked", rate(all.asked), "/s", "values, by all nodes"],
      ["Hits", part(all.near + all.redis + all.stale), "", `${part(all.near)} without asking Redis`],
      ["Misses", rate(all.miss), "/s", all.unavailable ? `and ${rate(all.unavailable)}/s without Redis` : "found nowhere"],
      ["Loads", rate(all.loads), "/s", `${rate(all.waits)}/s waited for another's`],
      ["From Redis", bytes(all.readBytes), "/s", "values read"],
      ["To Redis", bytes(all.writtenBytes), "/s", "values written"],
    ]);
  }

  // ---- one entry

  #say(text, level = "") {
    $("entry-state").className = level;
    write($("entry-state"), text);
    hide($("entry"), true);
  }

  async #look() {
    try {
      const { value, ttlSeconds } = await this.#session.api("GET", path($("entry-key").value));
      this.#say(ttlSeconds === null ? "Kept without end." : `Kept for ${duration(ttlSeconds)} more.`);
      write($("entry"), JSON.stringify(value, null, 2));
      hide($("entry"), false);
    } catch (error) {
      this.#say(error.message, "bad");
    }
  }

  async #delete() {
    const key = $("entry-key").value;
    if (!(await this.#operator.confirms(`Delete ${key}?`, "The value is forgotten on all nodes; whoever needs it loads it again.", "Delete it"))) return;
    const said = ({ deleted }) => (deleted ? `${key} is deleted.` : `There was no ${key}.`);
    if (await this.#operator.acts(said, () => this.#session.api("DELETE", path(key)))) this.#say("");
  }

  async #clear() {
    const prefix = $("entry-key").value;
    const title = prefix ? `Delete all that begins with ${prefix}?` : "Delete the whole cache?";
    if (!(await this.#operator.confirms(title, "The values are forgotten on all nodes; whoever needs one loads it again, so the back end is asked more for a while.", "Delete all"))) return;
    const said = ({ cleared }) => `${cleared === 1 ? "1 entry is" : `${cleared} entries are`} deleted.`;
    if (await this.#operator.acts(said, () => this.#session.api("DELETE", `/api/cache?${new URLSearchParams({ prefix })}`))) this.#say("");
  }
}

const path = (key) => `/api/cache/${key.split("/").map(encodeURIComponent).join("/")}`;
