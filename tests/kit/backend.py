"""The back end of the examples, as a process."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import httpx

from tests.kit.process import ROOT, Process, Program, clean_environment, free_port
from tests.kit.waiting import until


class BackEnd(Program):
    """`examples/backend.py` as a process, as its first lines say to run it."""

    SECRET = "a secret that the tests' nodes and their back end share"

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = Process(
            "backend",
            [sys.executable, "-m", "uvicorn", "examples.backend:app", "--port", str(self.port), "--app-dir", str(ROOT)],
            folder / "backend.log", clean_environment() | {"GATEWAY_BACKEND_SECRET": self.SECRET},
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        """Run it, on the port it had."""
        self.process.spawn()
        until(self._answers, 20, "the back end answers")

    def requests(self, method: str, path: str) -> int:
        """How many such requests its access log has."""
        return sum(f'"{method} {path}' in line for line in self.process.log())

    def _answers(self) -> bool:
        assert self.process.alive, f"the back end ended:\n{self.process.last_words()}"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url, timeout=5, trust_env=False).status_code == 404
        return False
