"""Requests of an anonymous client through HAProxy, with default limits: other clients hardly notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.conftest import Connect
from tests.kit.client import Client, Front
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

TOPICS = 5000  # that one client may have
REQUESTS = 900  # of the thousand messages that it may send at once
# Seconds that an honest client may wait for a pong. Without limits it was a minute; a busy machine alone needs one.
SLOWEST = 5.0


@asynccontextmanager
async def served(front: Front, connect: Connect) -> AsyncIterator[list[float]]:
    """An honest client pings meanwhile; how long each pong took."""
    honest: Client = await connect(front)
    waited: list[float] = []

    async def ping() -> None:
        while True:
            started = time.monotonic()
            await honest.ask(type="ping", timestamp=started)
            waited.append(time.monotonic() - started)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(ping())
    try:
        yield waited
        await eventually(lambda: len(waited) > 2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert max(waited) < SLOWEST


def made_up(keys: set[str]) -> list[str]:
    """Those that a topic has."""
    return [key for key in keys if "contest" in key or "history" in key]


@pytest.fixture
def one(cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer]) -> tuple[Cluster, LoadBalancer]:
    """A node with default limits behind HAProxy, so that all clients meet on it."""
    nodes = cluster(1)
    return nodes, haproxy(nodes)


async def test_requests_for_the_status_cost_the_same_with_many_topics(
    one: tuple[Cluster, LoadBalancer], connect: Connect
) -> None:
    nodes, front = one
    crowd = [await connect(front) for _ in range(4)]
    for at, client in enumerate(crowd):
        await client.subscribe(*(f"made-up-{at}-{topic}" for topic in range(TOPICS)), within=20)
    async with served(front, connect):
        for client in crowd:
            await asyncio.gather(
                *(client.send(type="REQUEST", topic="system", action="getStatus") for _ in range(REQUESTS))
            )
            await client.ask(type="ping", timestamp=1)
    assert front.up(nodes[0])


async def test_topics_that_a_reader_makes_up_leave_no_key(
    one: tuple[Cluster, LoadBalancer], connect: Connect, redis: Redis
) -> None:
    nodes, front = one
    before = set(redis.cli("KEYS", "*"))
    client = await connect(front)
    async with served(front, connect):
        await client.subscribe(*(f"contest-made-up-{topic}" for topic in range(2000)), within=20)
        answers = await asyncio.gather(
            *(
                client.call(type="REQUEST", topic=f"contest-other-{topic}", action="history", limit=10)
                for topic in range(200)
            )
        )
    assert {answer["type"] for answer in answers} == {"DATA"}
    await client.leave()
    # Leases, limits and services come and go by themselves; no name of a topic stays.
    await eventually(lambda: not made_up(set(redis.cli("KEYS", "*")) - before))
    assert nodes[0].process.alive


async def test_names_that_are_no_topics_are_refused_quickly_and_without_a_traceback(
    one: tuple[Cluster, LoadBalancer], connect: Connect
) -> None:
    nodes, front = one
    names = ["contests:\n", "multi:" + ":" * 190 + "\n", "a b", "\x00", "x" * 201, "contests:../internal/keys"]
    client = await connect(front)
    async with served(front, connect):
        for name in names:
            answers = await asyncio.gather(*(client.call(type="REQUEST", topic=name, action="get") for _ in range(100)))
            assert {answer["code"] for answer in answers} <= {4007, 4009, 5001}, name
    nodes[0].finish_log()
    assert not nodes[0].events("message handling failed")
