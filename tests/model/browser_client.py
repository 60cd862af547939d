"""gateway.js as the player sees it: in a process of Node.js, which stands still between two steps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Self

from tests.model.cases import Step
from tests.model.play import Event


class BrowserClient:
    """One process for many cases: each begins with `start`."""

    patience_ms = None

    def __init__(self) -> None:
        program = Path(__file__).parent / "browser_client.mjs"
        self._node = subprocess.Popen(
            ["node", "--no-warnings", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(self, step: Step) -> list[Event]:
        """See `play.Client`."""
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(json.dumps(step) + "\n")
        self._node.stdin.flush()
        events: list[Event] = json.loads(self._node.stdout.readline())
        return events

    def close(self) -> None:
        """End the process."""
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.close()
        self._node.wait(10)
        self._node.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
