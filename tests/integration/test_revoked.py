"""Revocations by user use the time of Redis, not the clocks of the nodes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import orjson
import pytest

from gateway.auth.revocations import RevocationStore
from gateway.broker.client import RedisClient
from gateway.broker.keys import Keys
from gateway.core import control_messages
from gateway.core.control_messages import RevokeTokens
from gateway.metrics import Metrics
from tests.kit.redis import Redis

KEYS = Keys("gw:")
LEEWAY = 5.0
Make = Callable[[float], RevocationStore]


@pytest.fixture
async def node(redis: Redis) -> AsyncIterator[Make]:
    """Make what a node knows of revocations; its clock is so many seconds ahead of Redis'."""
    async with AsyncExitStack() as links:

        def make(ahead: float) -> RevocationStore:
            redis_client = RedisClient(redis.url, timeout_seconds=5, name="test", metrics=Metrics())
            links.push_async_callback(redis_client.close)
            return RevocationStore(redis_client, KEYS, lambda: time.time() + ahead, LEEWAY)

        yield make


@pytest.mark.parametrize("ahead", [-3600.0, -5.0, 5.0, 3600.0])
async def test_the_moment_of_a_revocation_is_redis_time_on_every_node(node: Make, ahead: float) -> None:
    asked, other = node(ahead), node(-ahead)
    await asked.refresh()
    before = time.time()
    done = await asked.revoke("user", "ann", time.time() + 600)
    after = time.time()
    assert before - 0.1 <= done.before <= after + 0.1, "neither node's clock"
    for one in (asked, other):
        await one.refresh()
        assert one.is_revoked(None, "ann", before - 3) and one.is_revoked(None, "ann", before - 0.2)
        assert one.is_revoked(None, "ann", None)
        assert not one.is_revoked(None, "ann", after + 2), "a login after it, by a clock that is a little ahead"
        assert not one.is_revoked(None, "bob", before - 3)


async def test_the_order_tells_the_moment_that_redis_has(node: Make, redis: Redis) -> None:
    asked = node(60)
    client = asked._redis._topology.client("")
    async with client.pubsub() as listener:
        await listener.subscribe(KEYS.control)
        done = await asked.revoke("user", "ann", time.time() + 600)
        alone = await asked.revoke("token", "t1", time.time() + 600)
        received = [m["data"] async for m in _three(listener)]
    found = [control_messages.parse(text) for text in received]
    assert found == [RevokeTokens([done]), RevokeTokens([alone])]
    assert orjson.loads(received[0])["revocations"][0]["before"] == done.before > 0
    assert alone.before == 0


async def _three(listener: object) -> AsyncIterator[dict[str, bytes]]:
    count = 0
    async for message in listener.listen():  # type: ignore[attr-defined]
        if message["type"] == "message":
            yield message
            count += 1
            if count == 2:
                return


async def test_a_token_of_a_clock_that_is_ahead_is_revoked_and_stays_so_on_every_node(node: Make) -> None:
    one, other = node(0), node(0)
    ahead = time.time() + 600  # as its issuer has it
    done = await one.revoke("user", "ann", time.time() + 6000)
    for each in (one, other):
        await each.refresh()
        assert not each.is_revoked(None, "bob", ahead)
    assert one.is_revoked(None, "ann", ahead)
    assert await one.refresh() is False
    assert await other.refresh() is True, "the others know the later moment"
    assert [entry.before for entry in other.book] == [ahead]
    assert done.before < ahead


async def test_a_token_in_use_with_a_future_issue_time_is_revoked(node: Make) -> None:
    one = node(0)
    await one.refresh()
    soon = time.time() + 3  # less than the leeway
    done = await one.revoke("user", "ann", time.time() + 6000)
    assert one.receive([done])
    assert not one.is_revoked(None, "ann", soon), "a login after the revocation"
    ends = one.effect_of([done])
    assert ends(None, "ann", soon) and not ends(None, "bob", soon)
    assert one.is_revoked(None, "ann", soon), "and it does not become good"


async def test_a_token_far_ahead_moves_no_revocation(node: Make) -> None:
    one = node(0)
    done = await one.revoke("user", "ann", time.time() + 6000)
    await one.refresh()
    assert one.is_revoked(None, "ann", 1e12), "its issuer counts in milliseconds"
    assert [entry.before for entry in one.book] == [done.before]
