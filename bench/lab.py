"""One measurement: a private Redis, a server and the load, each on its core. Leaving the `with` stops them all."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis

from bench.contenders import CACHE, Contender
from bench.figures import Round, percentile
from bench.load import Load, build
from bench.machine import LOAD_CORE, SERVER_CORE, family, memory_kb, on, pin
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import Node
from tests.kit.process import Process, clean_environment, free_port, program
from tests.kit.redis import Redis

# The topic rules of our node, by the letter before a topic's number.
RULES: Final = """
[[topic]]
pattern = "t*"
publish = "anyone"

[[topic]]
pattern = "h*"
publish = "anyone"
history = 1000

[[topic]]
pattern = "p*"
presence = true
"""
# A Lua step is one round trip, independent of its commands.
STEPS: Final = ("cmdstat_eval", "cmdstat_evalsha", "cmdstat_subscribe", "cmdstat_publish")
UNLIMITED: Final = {"RL_CUR": 20_000, "RL_CONN": 20_000, "RL_REQ": 20_000}


@dataclass(frozen=True, slots=True)
class Server:
    """A running contender: one process, or several behind HAProxy."""

    contender: Contender
    ports: tuple[int, ...]
    pids: tuple[int, ...]
    front: int  # the port for clients
    beside: tuple[int, ...] = ()  # HAProxy's processes

    def memory_kb(self) -> float:
        """Resident memory of all its processes."""
        return memory_kb(self.pids)


class Lab:
    """The processes of a measurement; `seconds` is the duration of a measurement."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.seconds = seconds
        self._stack = ExitStack()
        self._names = itertools.count(1)
        with on(LOAD_CORE):
            self.redis = self._stack.enter_context(Redis(folder))
        self._connection = redis.Redis(port=self.redis.port, decode_responses=True, socket_timeout=10)
        self._stack.callback(self._connection.close)
        self._asked = 0
        CACHE.mkdir(exist_ok=True)
        self.load = self._stack.enter_context(Load(build("load.c", CACHE), folder))

    def close(self) -> None:
        """Stops all started processes."""
        self._stack.close()

    def start(
        self, contender: Contender, *, nodes: int = 1, haproxy: bool = False, cores: Sequence[int] = (SERVER_CORE,),
        **settings: object,
    ) -> Server:  # fmt: skip
        """Starts a contender and waits until it accepts connections; its nodes take turns on `cores`.

        `settings` apply to our node.
        """
        server = self._start(contender, nodes, haproxy, settings)
        for pid, core in zip(server.pids, itertools.cycle(cores), strict=False):
            pin(pid, core)
        return server

    def _start(self, contender: Contender, nodes: int, haproxy: bool, settings: Mapping[str, object]) -> Server:
        with on(SERVER_CORE):
            if contender.command is None:
                rules = self.folder / "topics.toml"
                rules.write_text(RULES)
                values = {
                    "topics": rules,
                    "log_level": "error",
                    "drain_seconds": 0,
                    "client_messages_per_second": 1_000_000,
                    **contender.settings,
                    **settings,
                }
                ours = self._stack.enter_context(Cluster(nodes, self.folder, self.redis, **values))
                ports, pids = tuple(node.port for node in ours), tuple(node.process.pid for node in ours)
                if haproxy:
                    return self._balanced(contender, ports, pids, ours.nodes)
            else:
                command = contender.command()
                processes = [self._process(command) for _ in range(nodes)]
                ports, pids = tuple(port for port, _ in processes), tuple(process.pid for _, process in processes)
                if haproxy:
                    return self._balanced(contender, ports, pids, None)
        return Server(contender, ports, pids, ports[0])

    def _process(self, command: Any) -> tuple[int, Process]:
        port, name = free_port(), f"server-{next(self._names)}"
        words = [*command, str(port), str(self.redis.port)]
        process = Process(name, words, self.folder / f"{name}.log", clean_environment())
        self._stack.callback(process.close)
        process.spawn()
        process.until_listens(port)
        return port, process

    def _balanced(
        self, contender: Contender, ports: tuple[int, ...], pids: tuple[int, ...], nodes: list[Node] | None
    ) -> Server:
        with on(LOAD_CORE, SERVER_CORE):
            if nodes is not None:
                # The project's own HAProxy configuration, with limits for a single source raised.
                balancer = self._stack.enter_context(LoadBalancer(nodes, self.folder, **UNLIMITED))
                return Server(contender, ports, pids, balancer.port, family(balancer.process.pid))
            front = free_port()
            config = self.folder / "haproxy.cfg"
            servers = "\n".join(f"  server s{at} 127.0.0.1:{port}" for at, port in enumerate(ports))
            config.write_text(
                "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
                f"  timeout tunnel 60s\nlisten all\n  bind 127.0.0.1:{front}\n  balance leastconn\n{servers}\n"
            )
            process = Process("haproxy", [program("haproxy"), "-db", "-f", str(config)], self.folder / "haproxy.log")
            self._stack.callback(process.close)
            process.spawn()
            process.until_listens(front)
        return Server(contender, ports, pids, front, (process.pid,))

    # ---- load

    def connect(
        self, server: Server, count: int, *, topic: str = "t#####", topics: int = 1, ports: Sequence[int] = (),
        script: bytes | None = None, seconds: float = 60, parallel: int = 256, **words: object,
    ) -> dict[str, Any]:  # fmt: skip
        """Connects `count` clients and subscribes each to a topic.

        Raises:
            AssertionError: Not all of them connected.
        """
        text = server.contender.script_of(topic) if script is None else script
        fronts = ",".join(map(str, ports or [server.front]))
        answer = self.load.ask(
            "connect", seconds, ports=fronts, path=server.contender.path, script=self.load.file(text),
            count=count, topics=topics, parallel=parallel, seconds=seconds, **words,
        )  # fmt: skip
        assert answer["ready"] == count, f"of {count} clients {answer['failed']} did not connect: {answer}"
        return answer

    def publish(
        self, server: Server, *, topic: str = "t#####", size: int = 200, fan: float, rate: float = 0,
        topics: int = 1, seconds: float | None = None, window: int = 500, drain: float = 3.0,
    ) -> dict[str, Any]:  # fmt: skip
        """Publishes through Redis at `rate` per second (0: at saturation); `fan`: deliveries per message."""
        seconds = self.seconds if seconds is None else seconds
        template = self.load.file(server.contender.publish(topic, size))
        return self._measured(
            server, seconds, drain, via="redis", ports=self.redis.port, template=template, topics=topics, fan=fan,
            rate=rate, window=window, beside=",".join(map(str, (self.redis.process.pid, *server.beside))),
        )  # fmt: skip

    def publish_through(
        self, server: Server, via: str, template: bytes, publishers: int, script: bytes = b""
    ) -> dict[str, Any]:
        """Publishes over "http" or "ws" to all nodes at saturation; each publisher has one request in flight."""
        words: dict[str, object] = {"path": server.contender.path, "script": self.load.file(script)} if script else {}
        return self._measured(
            server, self.seconds, 0, via=via, ports=",".join(map(str, server.ports)), template=self.load.file(template),
            topics=1, fan=0, rate=0, publishers=publishers, beside=self.redis.process.pid, **words,
        )  # fmt: skip

    def _measured(self, server: Server, seconds: float, drain: float, **words: object) -> dict[str, Any]:
        return self.load.ask(
            "publish", seconds + drain + 6, servers=",".join(map(str, server.pids)), seconds=seconds, drain=drain,
            warm=0.5, **words,
        )  # fmt: skip

    def idle(self, server: Server, seconds: float) -> dict[str, Any]:
        """Measures without publishing."""
        return self.load.ask("idle", seconds, seconds=seconds, servers=",".join(map(str, server.pids)))

    def ask_redis(self, *words: str) -> Any:
        """The answer to one command; `redis_stats` does not count it."""
        self._asked += 1
        return self._connection.execute_command(*words)  # type: ignore[no-untyped-call]

    def redis_bytes(self) -> int:
        """Memory of the data in Redis."""
        return int(self.ask_redis("INFO", "memory")["used_memory_dataset"])

    def redis_stats(self) -> dict[str, int]:
        """Commands that Redis executed, without the bench's own, and those that nodes wait for when clients connect.

        Redis' own count of reads is not used: one call with the rows of 500 clients is several reads.
        """
        commands = self.ask_redis("INFO", "stats")["total_commands_processed"] - self._asked
        calls = self.ask_redis("INFO", "commandstats")
        waited = sum(calls[name]["calls"] for name in STEPS if name in calls)
        return {"commands": commands, "round trips": waited}


@contextmanager
def lab(seconds: float) -> Iterator[Lab]:
    """A new lab."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        made = Lab(Path(folder), seconds)
        try:
            yield made
        finally:
            made.close()


def delivery(answer: dict[str, Any]) -> Round:
    """The delivery figures of a `publish` answer."""
    received = max(1, answer["received"])
    load = (answer["load_cpu"] + answer["beside_cpu"]) / answer["seconds"]
    delays = [(us, count) for us, count in answer["delays_us"]]
    found = {
        "CPU us per delivery": 1e6 * answer["server_cpu"] / received,
        "deliveries/s": answer["received"] / answer["seconds"],
        "server core": answer["server_cpu"] / answer["seconds"],
        "load core": load,
        "others' core": answer["others_cpu"] / answer["seconds"],
    }
    if delays:
        found |= {
            "p50 ms": percentile(delays, 0.5) / 1000,
            "p99 ms": percentile(delays, 0.99) / 1000,
            "max ms": percentile(delays, 1) / 1000,
        }
    return found
