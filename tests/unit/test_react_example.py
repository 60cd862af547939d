"""examples/react/useTopic.js, with a React that runs the effect at once: what the hook shows, and when it closes.

docs/how-to/react-and-vue.md shows how to use it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.kit.process import ROOT, program

HOOK = ROOT / "examples" / "react" / "useTopic.js"
MOST_LINES = 60
REACT = """
export let view, cleanUp;
export function useState(initial) {
  view = initial;
  return [view, (next) => { view = typeof next === "function" ? next(view) : next; }];
}
export function useEffect(effect) { cleanUp = effect(); }
"""
PAGE = """
import * as react from "react";
import { useTopic } from "./useTopic.js";

let handlers, closed = 0;
const gateway = {
  subscribe(topic, given) {
    handlers = given;
    return { ready: Promise.reject(new Error("refused")), close() { closed += 1; } };
  },
};
useTopic(gateway, "room:1", 2);
const seen = [react.view.state];
handlers.onState("subscribed", null);
for (const data of [1, 2, 3]) handlers.onData({ data });
handlers.onPresence({ count: 4, joined: [], left: [] });
handlers.onGap({ reason: "outage" });
seen.push(react.view.messages.map(({ data }) => data), react.view.members, react.view.gaps, react.view.state, closed);
react.cleanUp();
handlers.onState("ended", { message: "why" });
seen.push(closed, react.view.error.message);
console.log(JSON.stringify(seen));
"""


def test_it_keeps_the_last_messages_counts_gaps_and_closes_at_the_end(tmp_path: Path) -> None:
    react = tmp_path / "node_modules" / "react"
    react.mkdir(parents=True)
    (react / "package.json").write_text('{"name": "react", "type": "module", "exports": "./index.js"}')
    (react / "index.js").write_text(REACT)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "useTopic.js").write_text(HOOK.read_text())
    (tmp_path / "page.js").write_text(PAGE)
    done = subprocess.run([program("node"), "page.js"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["pending", [2, 3], 4, 1, "subscribed", 0, 1, "why"]


def test_the_hook_is_short_enough_to_copy() -> None:
    assert len(HOOK.read_text().splitlines()) <= MOST_LINES
