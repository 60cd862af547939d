"""A gateway process."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from gateway import tokens
from tests.kit.process import HERE, Host, Process, Program, clean_environment, free_port
from tests.kit.redis import Store
from tests.kit.waiting import eventually, until

JWT_SECRET = "a secret that only the tests know, and long enough"
API_KEY = "an api key that only the tests know"
NAMESPACE = "gw:"


def token(user: str, role: str = "user", seconds: float = 3600) -> str:
    """A token that the tests' nodes accept for `seconds`; it has expired already where they are negative."""
    return tokens.issue(JWT_SECRET, user, role, seconds, time.time())


class Node(Program):
    """A gateway process."""

    MODULE: ClassVar[tuple[str, ...]] = ("gateway", "serve")  # what Python runs

    def __init__(
        self, name: str, folder: Path, redis: Store, host: Host = HERE, port: int | None = None, /, **settings: object
    ) -> None:
        self.name = name
        self.port = port or free_port()
        self.address = f"{host.address}:{self.port}"
        self.url = self.api_url = f"http://{self.address}"
        self.ws = f"ws://{self.address}/ws"
        self.redis_url = redis.url
        sent = {
            "host": host.address, "port": self.port, "node": name, "redis_url": redis.url, "namespace": NAMESPACE,
            "jwt_secret": JWT_SECRET, "api_key": API_KEY, **settings,
        }  # fmt: skip
        env = clean_environment() | {f"GATEWAY_{setting.upper()}": str(value) for setting, value in sent.items()}
        command = [*host.enter, sys.executable, "-m", *self.MODULE]
        self.process = Process(name, command, folder / f"{name}.log", env)
        self.start()

    def start(self) -> None:
        """Run it, on the port it had."""
        self.process.spawn()

    def ready(self) -> bool:
        """Whether it wants new clients."""
        assert self.process.alive, f"{self.name} ended:\n{self.process.last_words()}"
        with contextlib.suppress(httpx.TransportError):
            return not self.reasons()
        return False

    def reasons(self) -> list[str]:
        """Why it is not ready; empty: it is."""
        answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
        reasons: list[str] = answer.json()["reasons"]
        assert answer.status_code == (503 if reasons else 200)
        return reasons

    def metric(self, name: str, **labels: str) -> float:
        """The value of one of its series, e.g. ``metric("gateway_closes_total", code="3008")``; 0 if there is none."""
        text = httpx.get(f"{self.url}/metrics", timeout=5, trust_env=False).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def memory_bytes(self) -> int:
        """The memory it holds (resident set)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return 1024 * int(found[1])

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of its log that tell of `event`; of a shared node, those of this test."""
        return [line for line in self._lines() if line.get("event") == event]

    async def logged(self, event: str, count: int = 1, **fields: object) -> list[dict[str, Any]]:
        """As `events`, of those with these fields, once there are `count`: a thread writes a line after its event."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.events(event) if fields.items() <= line.items()]

        await eventually(lambda: len(found()) >= count, 10, f"{self.name} has logged {event!r} {count} times")
        return found()

    def finish_log(self) -> None:
        """Wait until its log has the lines of all that it has done so far. The last is that of a request of ours."""
        path = f"/api/users/{os.urandom(8).hex()}/clients"
        httpx.delete(f"{self.url}{path}", timeout=5, trust_env=False)  # without a key: refused, and logged
        until(lambda: any(line["path"] == path for line in self.events("audit")), 10, "the node has logged a request")

    def complaints(self) -> list[dict[str, Any]]:
        """The lines of its log that tell of a fault in itself."""
        return [line for line in self._lines() if line["level"] in ("error", "critical") or "exception" in line]

    def terminate(self) -> None:
        """SIGTERM: it drains and leaves."""
        self.process.terminate()

    def restart(self) -> None:
        """Have it drain and leave, and start it again, on the port it had."""
        self.terminate()
        code = self.process.exit_code()
        assert code == 0, f"{self.name} ended with {code}:\n{self.process.last_words()}"
        self.process.spawn()

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.process.log():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:
                yield {"level": "error", "event": "a line that is not JSON", "line": line}
