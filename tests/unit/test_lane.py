"""gateway.cluster.lane: what a durable publish waits for, and what is said where Redis cannot confirm it."""

from __future__ import annotations

import asyncio
from typing import Any, Self, cast

import pytest
from redis.exceptions import ResponseError

from gateway.cluster import lane
from gateway.cluster.answers import Unconfirmed
from gateway.cluster.lane import Durability, Lanes
from gateway.cluster.shards import Shards
from gateway.metrics import Metrics


class Redis:
    """One server. `confirms` is its answer to WAIT and WAITAOF."""

    def __init__(self, confirms: Any) -> None:
        self.shards = Shards(sharded=False)
        self.confirms = confirms
        self.commands: list[tuple[Any, ...]] = []

    async def learn(self) -> None:
        """There is nothing to learn."""

    def mark_stale(self) -> None:
        """There is no slot map."""

    def owner(self, _slot: int) -> str:
        return ""

    def role_is_due(self) -> bool:
        return False

    async def judge(self, *_answers: Any) -> None:
        """It is the right server."""

    def at(self, _server: str) -> Self:
        return self

    async def exchange(self, _client: Self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self.commands += commands
        return [self.confirms if name.startswith("WAIT") else 1 for name, *_ in commands]


async def publish(redis: Redis, durability: Durability) -> list[Any]:
    lanes = Lanes(cast(Any, redis), 2.0, Metrics(), durability)
    tasks = set()
    lanes.start(lambda work: tasks.add(asyncio.create_task(work)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lane, "exchange", redis.exchange)
        try:
            return await lanes.send([("PUBLISH", "channel", b"x")])
        finally:
            for task in tasks:
                task.cancel()


@pytest.mark.parametrize(
    ("durability", "confirms", "waits"),
    [
        (Durability(), None, []),
        (Durability(replicas=2, seconds=0.5), 2, [("WAIT", 2, 500)]),
        (Durability(fsync=True), [1, 0], [("WAITAOF", 1, 0, 1000)]),
        (Durability(replicas=1, fsync=True), [1, 1], [("WAITAOF", 1, 1, 1000)]),
    ],
)
async def test_a_publish_is_acknowledged_behind_what_it_waits_for(
    durability: Durability, confirms: Any, waits: list[tuple[Any, ...]]
) -> None:
    redis = Redis(confirms)
    assert await publish(redis, durability) == [1]
    assert redis.commands == [("PUBLISH", "channel", b"x"), *waits]


@pytest.mark.parametrize(
    ("durability", "confirms", "says"),
    [
        (Durability(replicas=2), 1, "published, but confirmed by 1 of 2 replicas"),
        (Durability(fsync=True), [0, 0], "published, but not on Redis' disk within 1 s"),
        (Durability(replicas=1, fsync=True), [1, 0], "published, but confirmed by 0 of 1 replicas"),
        (
            Durability(fsync=True), ResponseError("unknown command 'WAITAOF'"),
            "published, but Redis could not confirm: unknown command 'WAITAOF'; "
            "GATEWAY_WAIT_FSYNC needs Redis 7.2 or newer with appendonly yes",
        ),
    ],
)  # fmt: skip
async def test_what_is_not_confirmed_says_what_is_missing(durability: Durability, confirms: Any, says: str) -> None:
    with pytest.raises(Unconfirmed) as raised:
        await publish(Redis(confirms), durability)
    assert str(raised.value) == says
