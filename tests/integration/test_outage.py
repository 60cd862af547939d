"""Answers to clients while Redis is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Connect
from tests.kit.cluster import Cluster
from tests.kit.node import token
from tests.kit.redis import Redis

Clusters = Callable[..., Cluster]

RULES = """
[[topic]]
pattern = "kept:*"
history = 100

[[topic]]
pattern = "room"
presence = true
"""
TIMEOUT = 0.5  # GATEWAY_REDIS_TIMEOUT_SECONDS
# The most that any request may take: PUBLISH asks for the user's quota, then has its own turn in the queue (twice the
# timeout). The rest is for a busy machine.
ANSWER_SECONDS = 3 * TIMEOUT + 3


@pytest.fixture
def rules(folder: Path) -> Path:
    file = folder / "topics.toml"
    file.write_text(RULES)
    return file


async def test_overlapping_subscribes_are_each_acknowledged_with_all_their_topics(
    cluster: Clusters, connect: Connect, redis: Redis, rules: Path
) -> None:
    (node,) = cluster(1, topics=rules)
    client = await connect(node)
    redis.stop()
    await client.hear(type="SYSTEM", action="degraded")
    asked = {"first": ["kept:1", "kept:2"], "second": ["kept:1", "kept:3"], "third": ["kept:2"], "fourth": ["room"]}
    for request_id, topics in asked.items():
        await client.send(type="SUBSCRIBE", topics=topics, requestId=request_id)
    assert (await client.ask(type="ping", timestamp=1))["type"] == "pong"
    redis.start()
    for request_id, topics in asked.items():
        assert (await client.hear(requestId=request_id))["topics"] == topics


@pytest.mark.parametrize("known", [False, True], ids=["just frozen", "known to be frozen"])
async def test_every_request_is_answered_in_time_while_redis_is_frozen(
    cluster: Clusters, connect: Connect, redis: Redis, rules: Path, known: bool
) -> None:
    (node,) = cluster(1, topics=rules, redis_timeout_seconds=TIMEOUT, lease_seconds=2 if known else 60)
    client = await connect(node, user="ann")
    await client.subscribe("room")
    redis.freeze()
    try:
        if known:
            await client.hear(type="SYSTEM", action="degraded")
        await client.send(type="AUTH", authToken=token("bob"))
        await client.hear(operation="authenticate", within=ANSWER_SECONDS)
        await client.send(type="PUBLISH", topic="kept:1", data=1, requestId="p")
        assert (await client.hear(inReplyTo="p", within=ANSWER_SECONDS))["code"] == 5030
        await client.send(type="REQUEST", topic="kept:1", action="history", requestId="h")
        assert (await client.hear(inReplyTo="h", within=ANSWER_SECONDS))["code"] == 5030
        await client.send(type="UNSUBSCRIBE", topics=["room"], requestId="u")
        await client.hear(requestId="u", within=ANSWER_SECONDS)
        await client.send(type="SUBSCRIBE", topics=["kept:1", "plain"], requestId="s")
        await client.send(type="ping", timestamp=7)
        await client.hear(type="pong", timestamp=7, within=ANSWER_SECONDS)
        assert not client.received(requestId="s"), "acknowledged without Redis"
    finally:
        redis.thaw()
    assert (await client.hear(requestId="s"))["topics"] == ["kept:1", "plain"]


@pytest.mark.parametrize("over", ["websocket", "sse", "poll"])
async def test_a_client_that_connects_in_an_outage_is_notified_after_its_welcome(
    cluster: Clusters, connect: Connect, redis: Redis, over: str
) -> None:
    (node,) = cluster(1)
    witness = await connect(node)
    redis.stop()
    await witness.hear(type="SYSTEM", action="degraded")
    client = await connect(node, user="ann", over=over)
    await client.hear(type="SYSTEM", action="degraded")
    redis.start()
    await client.hear(type="SYSTEM", action="restored")
    assert [m["action"] for m in client.received(type="SYSTEM")] == ["welcome", "degraded", "restored"]


async def test_a_client_that_connects_before_an_outage_is_noticed_is_welcomed_in_time(
    cluster: Clusters, connect: Connect, redis: Redis
) -> None:
    (node,) = cluster(1, redis_timeout_seconds=TIMEOUT, lease_seconds=60)
    redis.freeze()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await connect(node, user="ann")
    finally:
        redis.thaw()
