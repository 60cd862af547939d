"""gateway.cluster.quotas: tokens and bytes of two nodes on a Redis in memory, and what each fetches ahead."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.broker.client import Unavailable
from gateway.broker.errors import Impaired
from gateway.broker.keys import Keys
from gateway.cluster import quotas
from gateway.cluster.quotas import ALLOWANCE_SECONDS, KNOWN_SECONDS, STREAM_BYTES, PublishQuota, StorageQuota
from gateway.core.rate_limits import BURST_SECONDS
from tests.unit.memory_redis import MemoryRedis
from tests.unit.virtual_time import in_virtual_time

KEYS = Keys("", False)


class Redis(MemoryRedis):
    """Its clock is the loop's; it can refuse everything."""

    def __init__(self) -> None:
        super().__init__()
        self.impaired = False

    async def execute_each(self, commands: Any) -> list[Any]:
        self.now_ms = 1_700_000_000_000 + round(1000 * asyncio.get_running_loop().time())
        if self.impaired:
            self.trips.append([])
            return [Impaired("OOM") for _ in commands]
        return await super().execute_each(commands)


async def taken(publish_quotas: list[PublishQuota], most: int, user: str = "ann") -> int:
    """How many tokens two nodes give in turn, until one has none."""
    count = 0
    while count < most and await publish_quotas[count % len(publish_quotas)].charge(user):
        count += 1
    return count


@in_virtual_time
async def test_a_user_has_a_burst_on_all_nodes_together_and_then_so_many_a_second() -> None:
    redis = Redis()
    publish_quotas = [PublishQuota(redis.client, KEYS, 10) for _ in range(2)]
    burst = 10 * BURST_SECONDS
    first = await taken(publish_quotas, 1000)
    assert burst - 2 <= first <= burst
    assert await taken(publish_quotas, 1000, "bob") >= burst - 2, "each user has its own"
    await asyncio.sleep(2)
    assert 18 <= await taken(publish_quotas, 1000) <= 22


@in_virtual_time
async def test_steady_use_asks_redis_a_few_times_and_rare_use_each_time() -> None:
    redis = Redis()
    one = PublishQuota(redis.client, KEYS, 1000)
    for _ in range(200):
        assert await one.charge("ann")
    assert len(redis.trips) < 30
    await asyncio.sleep(10)
    trips = len(redis.trips)
    for _ in range(5):
        assert await one.charge("bob")
        await asyncio.sleep(10)
    assert len(redis.trips) == trips + 5


@in_virtual_time
async def test_without_a_limit_redis_is_not_asked() -> None:
    redis = Redis()
    assert await PublishQuota(redis.client, KEYS, 0).charge("ann")
    assert await StorageQuota(redis.client, KEYS, 0).charge("ann", 10**12, ["s"])
    assert redis.trips == []


@in_virtual_time
async def test_a_flood_beyond_the_limit_costs_few_questions_a_second() -> None:
    redis = Redis()
    one = PublishQuota(redis.client, KEYS, 10)
    await taken([one], 1000)
    trips = len(redis.trips)
    for _ in range(1000):
        await one.charge("ann")
        await asyncio.sleep(0.001)
    assert len(redis.trips) - trips <= 22, "one for each token, and one in each tenth of a second"


@in_virtual_time
async def test_where_redis_cannot_count_all_is_allowed_and_where_it_is_away_nothing() -> None:
    redis = Redis()
    tokens, storage_quota = PublishQuota(redis.client, KEYS, 1), StorageQuota(redis.client, KEYS, 1000)
    redis.impaired = True
    for _ in range(100):
        assert await tokens.charge("ann")
        assert await storage_quota.charge("ann", 900, ["s"])
    redis.impaired = False
    redis.away = True
    with pytest.raises(Unavailable):
        await tokens.charge("bob")
    with pytest.raises(Unavailable):
        await storage_quota.charge("bob", 10, ["s"])
    await asyncio.sleep(1)
    redis.away = False
    assert await tokens.charge("bob")
    assert await storage_quota.charge("bob", 10, [])


@in_virtual_time
async def test_a_bucket_ends_when_it_is_full_again() -> None:
    redis = Redis()
    await PublishQuota(redis.client, KEYS, 1).charge("ann")
    assert 900 <= redis.ttl_ms(KEYS.quota("ann")) <= 1000
    await StorageQuota(redis.client, KEYS, 86_400).charge("ann", 600, [])
    assert redis.ttl_ms(KEYS.allowance("ann")) == pytest.approx(600_000, abs=2)


@in_virtual_time
async def test_an_allowance_is_one_of_all_nodes_and_comes_back_over_a_day() -> None:
    redis = Redis()
    one, two = (StorageQuota(redis.client, KEYS, 100_000) for _ in range(2))
    assert await one.charge("ann", 60_000, [])
    assert not await two.charge("ann", 60_000, [])
    assert await two.charge("ann", 30_000, [])
    assert await two.charge("bob", 60_000, [])
    await asyncio.sleep(ALLOWANCE_SECONDS * 0.9)
    assert await two.charge("ann", 95_000, [])
    await asyncio.sleep(ALLOWANCE_SECONDS)
    assert await two.charge("ann", 10**9, []), "more than all is all of it"
    assert not await two.charge("ann", 10_000, [])


@in_virtual_time
async def test_a_stream_that_does_not_exist_costs_more_once_and_even_into_debt() -> None:
    redis = Redis()
    storage_quota = StorageQuota(redis.client, KEYS, 3 * STREAM_BYTES)
    assert await storage_quota.charge("ann", 100, ["s", "t", "u"])
    assert not await storage_quota.charge("ann", 100, ["s"]), "the three were charged beyond what there was"
    redis.run("XADD", "v", "1-1", "a", "b")
    assert await storage_quota.charge("bob", 2 * STREAM_BYTES, ["v"])
    assert await storage_quota.charge("bob", STREAM_BYTES // 2, ["v"])


@in_virtual_time
async def test_a_stream_is_not_looked_for_again_for_a_minute_and_few_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quotas, "MAX_KNOWN", 2)
    redis = Redis()
    storage_quota = StorageQuota(redis.client, KEYS, 10**9)

    async def looked_for(*streams: str) -> int:
        before = sum(trip.count("EXISTS") for trip in redis.trips)
        assert await storage_quota.charge("ann", 10, streams)
        return sum(trip.count("EXISTS") for trip in redis.trips) - before

    for stream in "abc":
        redis.run("XADD", stream, "1-1", "x", "y")
    assert [await looked_for("a", "b"), await looked_for("a", "b"), await looked_for("b")] == [2, 0, 0]
    assert await looked_for("c") == 1
    assert [await looked_for("b"), await looked_for("c"), await looked_for("a")] == [0, 0, 1]
    await asyncio.sleep(KNOWN_SECONDS - 1)
    assert await looked_for("a") == 0
    await asyncio.sleep(1)
    assert await looked_for("a") == 1


@in_virtual_time
async def test_buckets_of_users_that_are_gone_are_dropped() -> None:
    redis = Redis()
    tokens = PublishQuota(redis.client, KEYS, 10)
    for number in range(100):
        await tokens.charge(f"u{number}")
    await asyncio.sleep(10)
    for number in range(60):
        await tokens.charge(f"v{number}")
    assert len(tokens._buckets._buckets) <= 61


@in_virtual_time
async def test_all_who_wait_for_tokens_of_one_user_share_a_fetch() -> None:
    redis = Redis()
    one = PublishQuota(redis.client, KEYS, 10_000)
    for _ in range(100):
        assert await one.charge("ann")
    await asyncio.sleep(0.5)
    trips = len(redis.trips)
    results = await asyncio.gather(*(one.charge("ann") for _ in range(64)))
    assert all(results)
    assert len(redis.trips) - trips <= 2


@in_virtual_time
async def test_who_waits_for_a_fetch_that_fails_gets_its_error_at_once() -> None:
    redis = Redis()
    one = PublishQuota(redis.client, KEYS, 10)
    redis.away = True
    results = await asyncio.gather(*(one.charge("ann") for _ in range(20)), return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    redis.away = False
    assert await one.charge("ann")


@in_virtual_time
async def test_who_gives_up_waiting_does_not_end_the_fetch() -> None:
    redis = Redis()
    one = PublishQuota(redis.client, KEYS, 10)
    first, second = (asyncio.ensure_future(one.charge("ann")) for _ in range(2))
    await asyncio.sleep(0)
    second.cancel()
    assert await first


@in_virtual_time
async def test_without_asking_redis_only_what_was_fetched_can_be_taken() -> None:
    redis = Redis()
    tokens, storage = PublishQuota(redis.client, KEYS, 1000), StorageQuota(redis.client, KEYS, 10**9)
    redis.run("XADD", "s", "1-1", "a", "b")
    assert not tokens.charge_now("ann") and not storage.charge_now("ann", 10, ["s"])
    for _ in range(3):
        assert await tokens.charge("ann") and await storage.charge("ann", 10, ["s"])
    trips = len(redis.trips)
    assert tokens.charge_now("ann") and storage.charge_now("ann", 10, ["s"])
    assert not storage.charge_now("ann", 10, ["s", "new"]), "Redis has to be asked whether the stream exists"
    taken = 0
    while tokens.charge_now("ann"):
        taken += 1
    assert taken < 10 and len(redis.trips) == trips
    assert PublishQuota(redis.client, KEYS, 0).charge_now("ann")
    assert StorageQuota(redis.client, KEYS, 0).charge_now("ann", 10**12, ["new"])
