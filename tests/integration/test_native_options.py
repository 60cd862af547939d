"""Filters and deltas with gateway.js and the Python client, on real nodes: each receives what was published."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Gap, Gateway
from gateway.http.pages import STATIC
from tests.integration.test_centrifuge_js import ROOT, program
from tests.integration.test_centrifuge_js import Client as Program
from tests.integration.test_client import QUICK, Reader
from tests.integration.test_deltas import publish, state
from tests.integration.test_filters import BUYS, nodes
from tests.kit.client import Api
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.waiting import eventually

__all__ = ["nodes", "program"]

SECONDS = 20.0

TOPICS: dict[str, Any] = {"kept": {"delta": True}, "free": {"delta": True}, "kept:buys": {"filter": BUYS}}


class Client:
    """A client of either kind, subscribed to TOPICS."""

    def numbers(self, topic: str) -> list[int]:
        """The numbers in the data received, which is complete."""
        data = self.data(topic)
        assert data == [state(each["number"]) for each in data]
        return [each["number"] for each in data]

    def data(self, topic: str) -> list[Any]:
        """The data received."""
        raise NotImplementedError

    def gaps(self, topic: str) -> int:
        """How many gaps were reported."""
        raise NotImplementedError

    def reconnect(self, after_ms: int) -> None:
        """Drop the connection."""
        raise NotImplementedError


class PythonClient(Client):
    def __init__(self, gateway: Gateway, readers: dict[str, Reader]) -> None:
        self.gateway = gateway
        self.readers = readers

    def data(self, topic: str) -> list[Any]:
        return self.readers[topic].data

    def gaps(self, topic: str) -> int:
        return sum(isinstance(event, Gap) for event in self.readers[topic].events)

    def reconnect(self, after_ms: int) -> None:
        self.gateway.reconnect(after_ms / 1000)


class BrowserClient(Client):
    def __init__(self, program: Program) -> None:
        self.program = program

    def data(self, topic: str) -> list[Any]:
        return [event["data"] for event in self.program.named("data") if event["topic"] == topic]

    def gaps(self, topic: str) -> int:
        return sum(event["topic"] == topic for event in self.program.named("gap"))

    def reconnect(self, after_ms: int) -> None:
        assert self.program.process.stdin is not None
        self.program.process.stdin.write(b"%d\n" % after_ms)


@pytest.fixture(params=["python", "browser"])
async def client(
    request: pytest.FixtureRequest, program: Path
) -> AsyncIterator[Callable[[LoadBalancer], Awaitable[Client]]]:
    """`await client(front)`: a client of each kind, closed at the end."""
    async with AsyncExitStack() as stack:

        async def of_python(front: LoadBalancer) -> Client:
            gateway = await stack.enter_async_context(Gateway(front.ws, timing=QUICK))
            readers = {}
            for topic, options in TOPICS.items():
                subscription = await gateway.subscribe(
                    topic, tag_filter=options.get("filter"), delta=options.get("delta", False)
                )
                readers[topic] = Reader(subscription)
            return PythonClient(gateway, readers)

        async def of_browser(front: LoadBalancer) -> Client:
            for file in (STATIC / "client" / "gateway.js", ROOT / "tests" / "node" / "gateway.mjs"):
                shutil.copy(file, program.parent)
            running = await Program.run(program.parent / "gateway.mjs", {"url": front.ws, "topics": TOPICS})
            stack.push_async_callback(running.end)
            await eventually(lambda: len(running.named("subscribed")) == len(TOPICS), SECONDS)
            return BrowserClient(running)

        yield of_python if request.param == "python" else of_browser


async def test_each_receives_what_was_published_also_when_its_connection_or_its_node_is_lost(
    nodes: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], api: Callable[..., Api],
    client: Callable[[LoadBalancer], Awaitable[Client]],
) -> None:  # fmt: skip
    cluster = nodes(2)
    left = list(cluster)
    front = haproxy(cluster.nodes)
    one, there = await client(front), api(front)

    async def publish_all(numbers: range) -> None:
        for topic in ("kept", "free"):
            await publish(there, topic, numbers)
        for number in numbers:
            tags = {"side": ("buy", "sell")[number % 2]}
            await there.publish("kept:buys", state(number), tags=tags)

    await publish_all(range(10))
    await eventually(lambda: one.numbers("kept") == one.numbers("free") == [*range(10)], SECONDS)
    await eventually(lambda: one.numbers("kept:buys") == [*range(0, 10, 2)], SECONDS)
    one.reconnect(300)
    await publish_all(range(10, 20))
    await eventually(lambda: one.numbers("kept") == [*range(20)], SECONDS)
    await eventually(lambda: one.numbers("kept:buys") == [*range(0, 20, 2)], SECONDS)
    await eventually(lambda: one.gaps("free") == 1, SECONDS)
    left.pop(max(range(2), key=lambda at: left[at].metric("gateway_connections"))).kill()
    there = api(left[0])
    await publish_all(range(20, 30))
    await eventually(lambda: one.numbers("kept") == [*range(30)], 2 * SECONDS)
    await eventually(lambda: one.numbers("kept:buys") == [*range(0, 30, 2)], SECONDS)
    await eventually(lambda: one.gaps("free") == 2, SECONDS)
    before = len(one.numbers("free"))
    await publish_all(range(30, 35))
    await eventually(lambda: one.numbers("free")[before:] == [*range(30, 35)], SECONDS)
    await eventually(lambda: one.numbers("kept") == [*range(35)], SECONDS)
    assert one.gaps("kept") == one.gaps("kept:buys") == 0
