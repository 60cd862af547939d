"""The npm package `centrifuge`, unmodified, in Node.js: each transport and encoding, while nodes die and leave."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import subprocess
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import jwt
import orjson
import pytest

from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, JWT_SECRET
from tests.kit.process import clean_environment
from tests.kit.waiting import eventually

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = ROOT / "tests" / "node" / "centrifuge.mjs"
PACKAGES: Final = ("centrifuge@5", "eventsource@3", "ws@8")
SECONDS: Final = 30.0
BUYS: Final = {"key": "side", "cmp": "eq", "val": "buy"}
RULES: Final = """
[[topic]]
pattern = "*"
history = 1000
presence = true
publish = "subscriber"
request = "subscriber"
"""


@pytest.fixture(scope="session")
def program() -> Path:
    """The program of the client, beside its packages. They are installed once."""
    npm = shutil.which("npm")
    assert npm, "npm is not installed, and the test needs it"
    folder = ROOT / "test-artefacts" / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((folder / "node_modules" / package.partition("@")[0]).exists() for package in PACKAGES):
            command = [npm, "install", "--no-audit", "--no-fund", "--prefer-offline", *PACKAGES]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
        return Path(shutil.copy(PROGRAM, folder))


class Client:
    """A running client, and what it has printed."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, program: Path, front: LoadBalancer, kind: str, tokens: list[str], *, protobuf: bool, **options: Any
    ) -> Client:
        about = {"root": front.url, "kind": kind, "protobuf": protobuf, "tokens": tokens, "options": options}
        return await cls.run(program, about)

    @classmethod
    async def run(cls, program: Path, about: dict[str, Any]) -> Client:
        """Start a program with what it needs to know."""
        return cls(
            await asyncio.create_subprocess_exec(
                "node",
                program,
                orjson.dumps(about),
                cwd=program.parent,
                env=clean_environment(),
                stdin=PIPE,
                stdout=PIPE,
            )
        )

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.events.append(orjson.loads(line))

    def named(self, name: str) -> list[dict[str, Any]]:
        """The events of this name."""
        return [event for event in self.events if event["event"] == name]

    def data(self) -> list[Any]:
        """The data of its publications."""
        return [event["data"] for event in self.named("publication")]

    async def end(self) -> None:
        """Let it disconnect and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(SECONDS):
                await self.process.wait()
        finally:
            if self.process.returncode is None:
                self.process.kill()
        await self._reading


def signed(user: str, seconds: float) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time() + seconds)}, JWT_SECRET, "HS256")


@pytest.mark.parametrize(
    ("kind", "protobuf"),
    [("websocket", False), ("websocket", True), ("http_stream", False), ("http_stream", True), ("sse", False)],
)
async def test_it_loses_nothing_while_nodes_die_and_leave(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], folder: Path, program: Path, kind: str,
    protobuf: bool,
) -> None:  # fmt: skip
    rules = folder / "rules.toml"
    rules.write_text(RULES)
    nodes = cluster(3, centrifugo=1, topics=rules, jwt_leeway_seconds=30, drain_seconds=1)
    left = list(nodes)
    front = haproxy(nodes.nodes)
    tokens = [signed("ann", 3), signed("ann", 3600)]
    client = await Client.start(program, front, kind, tokens, protobuf=protobuf)
    http = httpx.AsyncClient(timeout=SECONDS, trust_env=False, headers={"x-api-key": API_KEY})
    try:
        await eventually(lambda: client.named("asked"), SECONDS)
        [connected], [asked] = client.named("connected"), client.named("asked")
        assert connected["transport"] == kind
        assert asked["ids"] == [connected["id"]]
        assert (asked["numClients"], asked["numUsers"], asked["refused"]) == (1, 1, 108)
        assert asked["kept"] == [{"from": "js"}]
        await eventually(lambda: client.named("join"), SECONDS)
        await eventually(lambda: len(client.named("token")) == 2, SECONDS)  # the first one expires soon

        async def publish(values: range) -> None:
            for value in values:
                body = {"channel": "chat", "data": value}
                answer = await http.post(f"{left[0].url}/api/publish", json=body)
                assert "result" in answer.json(), answer.text

        def home() -> int:
            """The index of the node that the client is connected to."""
            return max(range(len(left)), key=lambda at: left[at].metric("gateway_connections"))

        victim = left.pop(home())
        await publish(range(20))
        victim.kill()
        await publish(range(20, 40))
        await eventually(lambda: client.data() == [{"from": "js"}, *range(40)], 2 * SECONDS)
        await eventually(lambda: any(node.metric("gateway_connections") for node in left), SECONDS)
        leaving = left.pop(home())
        leaving.terminate()
        await publish(range(40, 60))
        await eventually(lambda: client.data() == [{"from": "js"}, *range(60)], 2 * SECONDS)
        await eventually(lambda: len(client.named("subscribed")) >= 3, SECONDS)
        assert [one["recovered"] for one in client.named("subscribed")] == [False] + [True] * (
            len(client.named("subscribed")) - 1
        )
        ids = [one["id"] for one in client.named("join")]
        assert len(ids) == len(set(ids)), "a join is told once"
        assert not client.named("disconnected") and not client.named("unsubscribed")
    finally:
        await http.aclose()
        await client.end()
    assert client.named("ended") == [{"event": "ended", "deltas": 0}]


def state(number: int) -> dict[str, Any]:
    """Data that differs little from the previous."""
    return {"number": number, "text": "é the same in each message " * 5}


@pytest.mark.parametrize("protobuf", [False, True])
@pytest.mark.parametrize("options", [{"delta": "fossil"}, {"tagsFilter": BUYS}], ids=["delta", "filter"])
async def test_deltas_and_filters_go_on_when_a_node_dies(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], folder: Path, program: Path,
    options: dict[str, Any], protobuf: bool,
) -> None:  # fmt: skip
    rules = folder / "rules.toml"
    rules.write_text(RULES)
    nodes = cluster(2, centrifugo=1, topics=rules)
    left = list(nodes)
    front = haproxy(nodes.nodes)
    client = await Client.start(program, front, "websocket", [signed("ann", 3600)], protobuf=protobuf, **options)
    http = httpx.AsyncClient(timeout=SECONDS, trust_env=False, headers={"x-api-key": API_KEY})
    step = 1 if "delta" in options else 2

    async def publish(values: range) -> None:
        for value in values:
            body = {"channel": "chat", "data": state(value), "tags": {"side": ("buy", "sell")[value % 2]}}
            answer = await http.post(f"{left[0].url}/api/publish", json=body)
            assert "result" in answer.json(), answer.text

    async def received(last: int) -> None:
        first = [{"from": "js"}] if "delta" in options else []
        await eventually(lambda: client.data() == [*first, *map(state, range(0, last, step))], 2 * SECONDS)

    try:
        await eventually(lambda: client.named("asked"), SECONDS)
        await publish(range(20))
        await received(20)
        left.pop(max(range(2), key=lambda at: left[at].metric("gateway_connections"))).kill()
        await publish(range(20, 40))
        await received(40)
        await publish(range(40, 50))
        await received(50)
        assert [one["recovered"] for one in client.named("subscribed")] == [False, True]
        assert not client.named("disconnected") and not client.named("unsubscribed")
    finally:
        await http.aclose()
        await client.end()
    [ended] = client.named("ended")
    # Whole: {"from": "js"}, the first message of a connection, and what is recovered
    assert (ended["deltas"] >= 50 - 22) is ("delta" in options), ended
