"""A redis-server of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import redis as redis_py

from tests.kit.process import HERE, Host, Process, Program, clean_environment, free_port, program
from tests.kit.waiting import until


class Store(Protocol):
    """The Redis URL in the nodes' settings."""

    url: str


class Redis(Program):
    """A private redis-server; it keeps its port over `stop` and `start`."""

    def __init__(
        self, folder: Path, *, aof: bool = False, fsync: str = "everysec", more: Mapping[str, str] | None = None,
        host: Host = HERE, port: int | None = None, server: str = "redis-server",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.host = host
        self.port = port or free_port()
        self.url = f"redis://{host.address}:{self.port}/0"
        options = {
            "bind": host.address, "protected-mode": "no", "port": str(self.port), "dir": str(folder), "save": "",
            "appendonly": "yes" if aof else "no", "appendfsync": fsync, "daemonize": "no",
            **(more or {}),
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = [*host.enter, program(server), *words]
        self.process = Process("redis", command, folder / "redis.log", clean_environment())
        self.start()

    def start(self) -> None:
        """Run it, on the port it had."""
        self.process.spawn()
        until(self._answers, 10, "redis-server answers")

    def stop(self) -> None:
        """End it; what it held is gone, unless it writes an AOF."""
        self.process.terminate()
        self.process.exit_code()

    def forget_tail(self, size: int) -> None:
        """Take about `size` bytes from the end of a stopped server's AOF: what a power cut does to what was not synced.

        It ends with a whole transaction. Cut within one, Redis 7.0 keeps half of it in the file: it comes back as it
        should, and at the next start reads another history.
        """
        newest = max(self.folder.glob("appendonlydir/*.incr.aof"), key=lambda file: int(file.suffixes[-3][1:]))
        data = newest.read_bytes()
        end = data.rfind(b"*1\r\n$5\r\nMULTI\r\n", 0, max(0, len(data) - size))
        with newest.open("r+b") as file:
            file.truncate(max(0, end))

    def flush(self) -> None:
        """Have it forget everything."""
        self.cli("FLUSHALL")

    def kill_pubsub(self) -> int:
        """Cut every subscriber's connection; how many there were."""
        return int(self.cli("CLIENT", "KILL", "TYPE", "pubsub"))

    def cli(self, *words: str | int) -> Any:
        """The answer to one command."""
        return self.cli_as(None, *words)

    def cli_as(self, password: str | None, *words: str | int) -> Any:
        """The same, where Redis wants a password."""
        with redis_py.Redis(
            self.host.address, self.port, password=password, decode_responses=True, socket_timeout=10
        ) as connection:
            return connection.execute_command(*words)

    def _answers(self) -> bool:
        assert self.process.alive, f"redis-server ended:\n{self.process.last_words()}"
        try:
            return bool(self.cli("PING"))
        except redis_py.RedisError:
            return False
