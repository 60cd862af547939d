"""gateway.cache.store: batches, notices, what is remembered, and a Redis that is away."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson
import pytest

from gateway.broker.client import Unavailable
from gateway.broker.keys import Keys
from gateway.cache.store import BATCH_KEYS, JITTER, MAX_NOTICE_BYTES, MAX_VALUE_BYTES, UNAVAILABLE_SECONDS, CacheStore
from tests.unit.memory_redis import MemoryRedis
from tests.unit.virtual_time import in_virtual_time, later

KEYS = Keys("", False)


class At:
    """A cache store on an empty Redis, and a pub/sub that missed no notice."""

    def __init__(self) -> None:
        self.redis = MemoryRedis()
        self.hearing: int | None = 1
        self.listening: list[list[str]] = []
        self.store = CacheStore(self.redis.client, KEYS, cast(Any, self), self.redis.metrics)
        self.changes: list[tuple[list[str], str | None]] = []
        self.store.on_changed = lambda keys, prefix: self.changes.append((list(keys), prefix))

    def subscribe(self, channels: list[str], callback: Any, _confirmed: Any) -> bool:
        self.listening.append(channels)
        self.notice = callback
        return True

    def confirmed_since(self, _channel: str) -> int | None:
        return self.hearing

    async def put(self, texts: dict[str, bytes], ttl_seconds: float = 100, *, strict: bool = False) -> bool:
        return await self.store.write(texts, ttl_seconds, strict=strict)

    async def read(self, *keys: str, strict: bool = False) -> dict[str, bytes]:
        return await self.store.read(keys, strict=strict)

    def count(self, name: str, label: str) -> float:
        return float(getattr(self.redis.metrics, name).labels(label).value)

    def notices(self) -> list[Any]:
        found = [orjson.loads(payload) for channel, payload in self.redis.published if channel == KEYS.cache_changes]
        self.redis.published.clear()
        return found


@in_virtual_time
async def test_what_was_read_is_remembered_until_a_notice_names_it() -> None:
    at = At()
    assert at.listening == [[KEYS.cache_changes]]
    await at.put({"a": b"1", "b": b"2"})
    assert await at.read("a", "b", "c") == {"a": b"1", "b": b"2"}
    trips = len(at.redis.trips)
    assert await at.read("a", "b") == {"a": b"1", "b": b"2"}
    assert len(at.redis.trips) == trips
    assert (at.count("cache_reads", "near"), at.count("cache_reads", "redis"), at.count("cache_reads", "miss")) == (
        2, 2, 1,
    )  # fmt: skip
    assert (at.count("cache_bytes", "written"), at.count("cache_bytes", "read")) == (2, 2)
    at.notice("", b'{"keys":["a",7]}')
    assert await at.read("a", "b") == {"a": b"1", "b": b"2"}
    assert at.redis.trips[trips:] == [["GETRANGE", "PTTL"]], "only the one that changed"


@in_virtual_time
async def test_what_was_remembered_is_not_believed_after_the_bus_was_deaf() -> None:
    at = At()
    await at.put({"a": b"1"})
    await at.read("a")
    at.redis.run("SET", KEYS.cache_value("a"), "2")
    assert await at.read("a") == {"a": b"1"}
    at.hearing = None
    assert [await at.read("a"), await at.read("a")] == [{"a": b"2"}] * 2
    assert at.count("cache_reads", "redis") == 3, "nothing is remembered while the bus is deaf"


@in_virtual_time
async def test_more_than_500_keys_are_read_and_written_in_batches() -> None:
    at = At()
    texts = {f"k{number}": b"%d" % number for number in range(BATCH_KEYS + 1)}
    assert await at.put(texts)
    assert [len(trip) for trip in at.redis.trips] == [BATCH_KEYS, 1]
    assert len(at.notices()) == BATCH_KEYS + 1
    assert await at.read(*texts) == texts
    assert [len(trip) for trip in at.redis.trips[2:]] == [2 * BATCH_KEYS, 2]
    assert at.count("cache_writes", "ok") == 2


@in_virtual_time
async def test_a_write_is_kept_for_nine_tenths_of_its_time_at_least_and_told_once() -> None:
    at = At()
    times = []
    for _ in range(50):
        await at.put({"a": b"1"}, 100)
        times.append(at.redis.ttl_ms(KEYS.cache_value("a")))
    assert 100_000 * (1 - JITTER) <= min(times) < max(times) <= 100_000
    assert at.notices() == [{"keys": ["a"]}] * 50
    assert at.changes == [(["a"], None)] * 50, "the writer does not wait for its own notice"


@in_virtual_time
async def test_a_load_is_kept_beyond_its_time_only_by_whom_the_lock_belongs_to() -> None:
    at = At()
    taken = await at.store.read_or_lock("a", "mine", lock_seconds=4, stale_seconds=30)
    assert (taken.text, taken.is_stale, taken.is_ours) == (None, True, True)
    assert at.redis.ttl_ms(KEYS.cache_lock("a")) == 4000
    other = await at.store.read_or_lock("a", "other", lock_seconds=4, stale_seconds=30)
    assert (other.is_ours, other.lock_seconds) == (False, 4)
    await at.store.write_loaded("a", b"theirs", 100, 30, "other")
    assert (at.notices(), at.count("cache_bytes", "written")) == ([], 0)
    await at.store.write_loaded("a", b"ours", 100, 30, "mine")
    assert 120_000 <= at.redis.ttl_ms(KEYS.cache_value("a")) <= 130_000
    assert (at.notices(), at.count("cache_bytes", "written")) == ([{"keys": ["a"]}], 4)
    assert at.redis.run("EXISTS", KEYS.cache_lock("a")) == 0
    fresh = await at.store.read_or_lock("a", "mine", lock_seconds=4, stale_seconds=30)
    assert (fresh.text, fresh.is_stale, fresh.is_ours) == (b"ours", False, False)
    at.redis.now_ms += 105_000
    stale = await at.store.read_or_lock("a", "mine", lock_seconds=4, stale_seconds=30)
    assert (stale.text, stale.is_stale, stale.is_ours) == (b"ours", True, True)


@in_virtual_time
async def test_a_lock_is_given_up_by_its_token_only() -> None:
    at = At()
    await at.store.read_or_lock("a", "mine", lock_seconds=4, stale_seconds=0)
    await at.store.unlock("a", "other")
    assert (at.notices(), at.redis.run("EXISTS", KEYS.cache_lock("a"))) == ([], 1)
    await at.store.unlock("a", "mine")
    assert (at.notices(), at.redis.run("EXISTS", KEYS.cache_lock("a"))) == ([{"keys": ["a"]}], 0)
    assert at.changes == [([], None)] * 2


@in_virtual_time
async def test_what_is_dropped_is_gone_with_its_lock() -> None:
    at = At()
    await at.put({"a": b"1"})
    await at.store.read_or_lock("b", "mine", lock_seconds=4, stale_seconds=0)
    assert await at.store.delete("a", strict=False)
    assert not await at.store.delete("b", strict=False)
    assert at.redis.run("EXISTS", KEYS.cache_value("a"), KEYS.cache_lock("b")) == 0
    assert at.notices()[1:] == [{"keys": ["a"]}, {"keys": ["b"]}]


@in_virtual_time
async def test_all_that_begin_so_are_cleared_and_counted_and_the_others_stay() -> None:
    at = At()
    await at.put({f"x:{number}": b"1" for number in range(20)} | {"y": b"1"})
    await at.store.read_or_lock("x:lock", "mine", lock_seconds=4, stale_seconds=0)
    assert await at.read("x:1", "y") == {"x:1": b"1", "y": b"1"}
    at.notices()
    at.changes.clear()
    assert await at.store.clear("x:", strict=True) == 20
    assert (at.notices(), at.changes) == ([{"prefix": "x:"}], [([], "x:")])
    assert at.redis.run("EXISTS", KEYS.cache_lock("x:lock")) == 0
    assert await at.read("x:1", "y") == {"y": b"1"}


@in_virtual_time
async def test_redis_away_is_a_miss_unless_the_caller_is_strict_and_is_not_asked_again_at_once() -> None:
    at = At()
    at.redis.away = True
    assert await at.read("a", "b") == {}
    assert await at.store.ttl("a", strict=False) is None
    assert not await at.put({"a": b"1"})
    assert not await at.store.delete("a", strict=False)
    assert await at.store.clear("a", strict=False) == 0
    assert len(at.redis.trips) == 1, "Redis is asked once"
    assert (at.count("cache_reads", "unavailable"), at.count("cache_writes", "unavailable")) == (2, 3)
    with pytest.raises(Unavailable):
        await at.read("a", strict=True)
    with pytest.raises(Unavailable):
        await at.put({"a": b"1"}, strict=True)
    with pytest.raises(Unavailable):
        await at.store.ttl("a", strict=True)
    with pytest.raises(Unavailable):
        await at.store.delete("a", strict=True)
    with pytest.raises(Unavailable):
        await at.store.clear("a", strict=True)
    assert len(at.redis.trips) == 1 + 5, "each strict caller asks, and the first failure ends a clear"
    at.redis.away = False
    assert await at.read("a") == {}
    await later(UNAVAILABLE_SECONDS)
    assert await at.put({"a": b"1"})
    assert await at.read("a") == {"a": b"1"}


@in_virtual_time
async def test_a_value_without_an_end_has_an_infinite_one() -> None:
    at = At()
    assert await at.store.ttl("a", strict=True) is None
    at.redis.run("SET", KEYS.cache_value("a"), "1")
    assert await at.store.ttl("a", strict=True) == float("inf")
    at.redis.run("PEXPIRE", KEYS.cache_value("a"), 1500)
    assert await at.store.ttl("a", strict=True) == 1.5


@in_virtual_time
@pytest.mark.parametrize("size", [MAX_VALUE_BYTES, MAX_VALUE_BYTES + 1])
async def test_a_value_of_another_program_that_is_too_long_is_a_miss(size: int) -> None:
    at = At()
    at.redis.run("SET", KEYS.cache_value("a"), b"x" * size)
    found = await at.read("a")
    assert (len(found), at.count("malformed", "cache")) == ((1, 0) if size == MAX_VALUE_BYTES else (0, 1))


@in_virtual_time
async def test_a_key_of_another_type_is_a_miss_of_its_own() -> None:
    at = At()
    await at.put({"b": b"1"})
    at.redis.run("HSET", KEYS.cache_value("a"), "x", "y")
    assert await at.read("a", "b") == {"b": b"1"}
    assert at.count("malformed", "cache") == 1


@in_virtual_time
@pytest.mark.parametrize("payload", [
    b"", b"{", b"[]", b"{}", b'{"keys":1}', b'{"prefix":1}', b'{"keys":["' + b"k" * MAX_NOTICE_BYTES + b'"]}',
])  # fmt: skip
async def test_a_notice_that_is_none_is_counted_and_changes_nothing(payload: bytes) -> None:
    at = At()
    at.notice("", payload)
    assert (at.changes, at.count("relayed", "malformed")) == ([], 1)


@in_virtual_time
async def test_a_value_that_changes_while_it_is_read_is_not_remembered() -> None:
    at = At()
    await at.put({"a": b"1"})
    ask_each = at.redis.execute_each

    async def slow(commands: Any) -> list[Any]:
        found = await ask_each(commands)
        at.notice("", b'{"keys":["a"]}')
        return found

    at.redis.execute_each = slow  # type: ignore[method-assign]
    assert await at.read("a") == {"a": b"1"}
    assert len(at.store.near_cache) == 0
    await asyncio.sleep(0)
