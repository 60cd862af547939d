"""A real cluster on this machine: redis-server, gateway nodes, HAProxy; each with the verbs that tests speak in."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, overload

import httpx
import orjson
import redis as redis_py
from prometheus_client.parser import text_string_to_metric_families

from gateway import tokens
from tests.deadlines import eventually, until
from tests.processes import Process, clean_environment, free_port

ROOT = Path(__file__).parent.parent
JWT_SECRET = "a secret that only the tests know, and long enough"
API_KEY = "an api key that only the tests know"
NAMESPACE = "gw:"


def token(user: str, role: str = "user", seconds: float = 3600) -> str:
    """A token that the tests' nodes accept for `seconds`; it has expired already where they are negative."""
    return tokens.issue(JWT_SECRET, user, role, seconds, time.time())


def program(name: str) -> str:
    """Where the system has it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    assert found, f"{name} is not installed, and the tests need it"
    return found


class Closing:
    """Ended at the end of a `with`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Host:
    """Where a process runs: this machine, or a part of it with a network of its own."""

    address: str = "127.0.0.1"
    enter: tuple[str, ...] = ()  # what stands before a command that is to run there


HERE = Host()


class Store(Protocol):
    """Redis, as nodes are told of it."""

    url: str


class Redis(Closing):
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

    def kill(self) -> None:
        """End it without a chance to write what it holds."""
        self.process.kill()

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

    def freeze(self) -> None:
        """Let it keep its sockets and answer nothing."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it answer again."""
        self.process.thaw()

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

    def close(self) -> None:
        """End it and leave nothing."""
        self.process.close()

    def _answers(self) -> bool:
        assert self.process.alive, f"redis-server ended:\n{self.process.last_words()}"
        try:
            return bool(self.cli("PING"))
        except redis_py.RedisError:
            return False


class Node(Closing):
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

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.process.freeze()

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.thaw()

    def terminate(self) -> None:
        """SIGTERM: it drains and leaves."""
        self.process.terminate()

    def restart(self) -> None:
        """Have it drain and leave, and start it again, on the port it had."""
        self.terminate()
        code = self.process.exit_code()
        assert code == 0, f"{self.name} ended with {code}:\n{self.process.last_words()}"
        self.process.spawn()

    def close(self) -> None:
        """End it and leave nothing."""
        self.process.close()

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.process.log():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:
                yield {"level": "error", "event": "a line that is not JSON", "line": line}


class Cluster(Closing):
    """Nodes n1, n2, … on one Redis."""

    def __init__(self, n: int, folder: Path, redis: Store, hosts: Sequence[Host] = (), /, **settings: object) -> None:
        self._store = redis
        self.nodes: list[Node] = []
        self._hosts = hosts
        self._folder = folder
        self._settings = settings
        try:
            self.grow(n)
        except BaseException:
            self.close()
            raise

    @property
    def redis(self) -> Redis:
        """The server they share, if it is one."""
        assert isinstance(self._store, Redis)
        return self._store

    def grow(self, n: int) -> None:
        """Start `n` more and wait until they are ready."""
        for _ in range(n):
            at = len(self.nodes)
            host = self._hosts[at] if self._hosts else HERE
            self.nodes.append(Node(f"n{at + 1}", self._folder, self._store, host, **self._settings))
        for node in self.nodes[-n:]:
            try:
                until(node.ready, 60, f"{node.name} is ready")
            except AssertionError as error:
                error.add_note(node.process.last_words())  # it is closed before the failure is reported
                raise

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @overload
    def __getitem__(self, at: int) -> Node: ...

    @overload
    def __getitem__(self, at: slice) -> list[Node]: ...

    def __getitem__(self, at: int | slice) -> Node | list[Node]:
        return self.nodes[at]

    def __len__(self) -> int:
        return len(self.nodes)

    def complaints(self) -> list[str]:
        """What any node's log tells of faults in itself."""
        return [f"{node.name}: {line}" for node in self.nodes for line in node.complaints()]

    def close(self) -> None:
        """End all and leave nothing."""
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.close)


class BackEnd(Closing):
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

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def freeze(self) -> None:
        """Let it take connections and answer nothing."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it answer again."""
        self.process.thaw()

    def requests(self, method: str, path: str) -> int:
        """How many such requests its access log has."""
        return sum(f'"{method} {path}' in line for line in self.process.log())

    def close(self) -> None:
        """End it and leave nothing."""
        self.process.close()

    def _answers(self) -> bool:
        assert self.process.alive, f"the back end ended:\n{self.process.last_words()}"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(self.url, timeout=5, trust_env=False).status_code == 404
        return False


class Balancer(Closing):
    """HAProxy with the repository's own configuration before some nodes."""

    def __init__(self, nodes: Sequence[Node], folder: Path, host: Host = HERE, /, **env: object) -> None:
        self.port, admin = free_port(), free_port()
        secure = "s" if "LB_CERT" in env else ""
        self.url = f"http{secure}://{host.address}:{self.port}"
        self.ws = f"ws{secure}://{host.address}:{self.port}/ws"
        self.admin = self.api_url = f"http://{host.address}:{admin}"
        self.socket = folder / "haproxy.sock"
        slots = {} if "GW_SLOTS" in env else {f"GW{at}": node.address for at, node in enumerate(nodes, 1)}
        sent = {
            "LB_BIND": host.address, "LB_PORT": self.port, "LB_ADMIN": f"{host.address}:{admin}", "LB_RUN": folder,
            **slots, **env,
        }  # fmt: skip
        self.process = Process(
            "haproxy", [*host.enter, program("haproxy"), "-W", "-db", "-f", str(ROOT / "haproxy" / "haproxy.cfg")],
            folder / "haproxy.log", clean_environment() | {name: str(value) for name, value in sent.items()},
        )  # fmt: skip
        self._nodes = nodes
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Run it, on the ports it had, until it has found all nodes up."""
        self.process.spawn()
        if self._nodes:
            until(lambda: all(self.up(node) for node in self._nodes), 20, "HAProxy has found all nodes up")
        else:
            until(self.servers, 20, "HAProxy answers")

    def kill(self) -> None:
        """End it and its workers at once; its clients' connections are gone."""
        for worker in self.process.children():
            os.kill(worker, signal.SIGKILL)
        self.process.kill()

    def ask(self, command: str) -> str:
        """What it answers on its runtime socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()

    def stuck(self) -> dict[str, str]:
        """Which server each source is on that came without a cookie: the table of stickiness."""
        rows = re.findall(r"key=(\S+) .*server_key=(\S+)", self.ask("show table gw"))
        return {source.removeprefix("::ffff:"): server for source, server in rows}

    def up(self, node: Node) -> bool:
        """Whether it gives new clients to `node`, having checked it."""
        server = self._server(node)
        return server.get("status") == "UP" and server.get("check_status") == "L7OK"

    def down(self, node: Node) -> bool:
        """Whether it gives no new clients to `node`; between the two it has begun to doubt."""
        return self._server(node).get("status", "").startswith("DOWN")

    def _server(self, node: Node) -> dict[str, str]:
        return next((one for one in self.servers().values() if one["addr"] == node.address), {})

    def servers(self) -> dict[str, dict[str, str]]:
        """Its statistics of each server."""
        assert self.process.alive, f"haproxy ended:\n{self.process.last_words()}"
        try:
            text = httpx.get(f"{self.admin}/stats;csv", timeout=5, trust_env=False).text
        except httpx.TransportError:
            return {}
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == "gw"}

    def reload(self) -> None:
        """Have it read its configuration again: a new worker listens, the old one keeps its sockets to LB_HARDSTOP."""
        self.process.signal(signal.SIGUSR2)

    def close(self) -> None:
        """End it and leave nothing."""
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if self.process.alive:
                self.process.terminate()  # the master takes its workers with it
                self.process.exit_code(5)
        self.process.close()
