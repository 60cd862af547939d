"""gateway.cache.cache: keys, values and times that can be kept, and what a reader gets, on a Redis in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from gateway.broker.client import Unavailable
from gateway.broker.keys import Keys
from gateway.cache import cache
from gateway.cache.cache import MAX_KEY_LENGTH, MAX_TTL_SECONDS, MISS, Cache, ValueTooLarge, WithTtl
from gateway.cache.store import MAX_VALUE_BYTES
from tests.unit.memory_redis import MemoryRedis
from tests.unit.virtual_time import in_virtual_time

KEYS = Keys("", False)


class At:
    """A cache; its bus hears everything."""

    def __init__(self) -> None:
        self.redis = MemoryRedis()
        self.tasks: set[asyncio.Task[None]] = set()
        self.cache = Cache(self.redis.client, KEYS, cast(Any, self), self.redis.metrics, self._spawn)
        self.calls = 0
        self.value: Any = {"a": 1}

    def _spawn(self, work: Coroutine[Any, Any, None], _name: str) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(work))

    def subscribe(self, _channels: list[str], _callback: Any, _confirmed: Any) -> bool:
        return True

    def confirmed_since(self, _channel: str) -> int:
        return 1

    async def load(self) -> Any:
        self.calls += 1
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def ttl_ms(self, key: str) -> int:
        return self.redis.ttl_ms(KEYS.cache_value(key))


@in_virtual_time
@pytest.mark.parametrize("value", [None, False, 0, "", [], {"a": [1, {"b": None}]}, 2**63, "ä"])
async def test_any_json_comes_back_as_it_was_and_none_is_a_value(value: Any) -> None:
    at = At()
    assert await at.cache.get("k") is MISS
    assert not MISS
    assert await at.cache.set("k", value)
    found = await at.cache.get("k")
    assert found == value
    assert type(found) is type(value)


@in_virtual_time
async def test_many_are_read_and_written_together_and_each_once() -> None:
    at = At()
    await at.cache.set_many({"a": 1, "b": 2})
    assert len(at.redis.trips) == 1
    assert await at.cache.get_many(["a", "c", "a", "b"]) == {"a": 1, "b": 2}
    assert at.redis.trips[1:] == [["GETRANGE", "PTTL"] * 3]


@pytest.mark.parametrize(("key", "good"), [
    ("k", True), ("k" * MAX_KEY_LENGTH, True), ("ä:/#", True), ("", False), ("k" * (MAX_KEY_LENGTH + 1), False),
    ("a b", False), ("a{b", False), ("a}b", False), ("a\nb", False), ("\x7f", False), ("\ud800", False),
])  # fmt: skip
def test_a_key_has_1_to_500_characters_without_space_or_brace(key: str, good: bool) -> None:
    if good:
        assert cache.check_key(key) == key
    else:
        with pytest.raises(ValueError, match="cache key"):
            cache.check_key(key)


def test_a_prefix_is_empty_or_can_begin_a_key() -> None:
    assert [cache.check_prefix(prefix) for prefix in ("", "a:")] == ["", "a:"]
    with pytest.raises(ValueError, match="cache key"):
        cache.check_prefix("a b")


@pytest.mark.parametrize(("seconds", "good"), [
    (0.001, True), (1, True), (MAX_TTL_SECONDS, True), (0, False), (0.0009, False), (-1, False),
    (MAX_TTL_SECONDS + 1, False), (float("nan"), False), (float("inf"), False),
])  # fmt: skip
def test_a_value_is_kept_for_a_millisecond_to_30_days(seconds: float, good: bool) -> None:
    if good:
        assert cache.check_ttl(seconds) == seconds
    else:
        with pytest.raises(ValueError, match="time to live"):
            cache.check_ttl(seconds)


@in_virtual_time
async def test_one_value_that_is_too_large_leaves_all_unwritten() -> None:
    at = At()
    fits = "x" * (MAX_VALUE_BYTES - 2)
    with pytest.raises(ValueTooLarge):
        await at.cache.set_many({"a": 1, "b": fits + "x"})
    assert at.redis.trips == []
    assert await at.cache.set("b", fits)
    with pytest.raises(TypeError):
        await at.cache.set("a", cast(Any, {1: object()}))


@in_virtual_time
async def test_what_another_program_wrote_is_a_miss_and_is_replaced_by_a_load() -> None:
    at = At()
    at.redis.run("SET", KEYS.cache_value("k"), "not json")
    assert await at.cache.get("k") is MISS
    assert at.redis.metrics.malformed.labels("cache").value == 1
    assert await at.cache.get_or_set("k", at.load) == {"a": 1}
    assert (at.calls, await at.cache.get("k")) == (1, {"a": 1})


@in_virtual_time
@pytest.mark.parametrize(("value", "ttl", "kept_ms"), [
    (1, 100, (90_000, 100_000)), (WithTtl(1, 50), 100, (45_000, 50_000)), (WithTtl(1, 0), 100, (-2, -2)),
    (WithTtl(1, 10**9), 100, (MAX_TTL_SECONDS * 900, MAX_TTL_SECONDS * 1000)), ("x" * MAX_VALUE_BYTES, 100, (-2, -2)),
])  # fmt: skip
async def test_a_loaded_value_is_kept_for_its_lifetime(value: Any, ttl: float, kept_ms: tuple[float, float]) -> None:
    at = At()
    at.value = value
    plain = value.value if isinstance(value, WithTtl) else value
    assert await at.cache.get_or_set("k", at.load, ttl) == plain
    assert kept_ms[0] <= at.ttl_ms("k") <= kept_ms[1]


@in_virtual_time
async def test_a_load_runs_once_while_its_value_is_kept_and_its_error_is_raised() -> None:
    at = At()
    assert [await at.cache.get_or_set("k", at.load, 100) for _ in range(3)] == [{"a": 1}] * 3
    assert at.calls == 1
    assert await at.cache.delete("k")
    assert not await at.cache.delete("k")
    at.value = LookupError("gone")
    with pytest.raises(LookupError):
        await at.cache.get_or_set("k", at.load)
    with pytest.raises(ValueError, match="time to live"):
        await at.cache.get_or_set("k", at.load, -1)
    assert at.calls == 2


@in_virtual_time
async def test_times_deletes_and_clears() -> None:
    at = At()
    await at.cache.set_many({"a:1": 1, "a:2": 2, "b": 3}, 100)
    left = await at.cache.ttl("a:1")
    assert left is not None and 90 <= left <= 100
    assert await at.cache.ttl("none") is None
    assert await at.cache.clear("a:") == 2
    assert await at.cache.get_many(["a:1", "a:2", "b"]) == {"b": 3}


@in_virtual_time
async def test_redis_away_is_a_miss_or_an_error_as_the_caller_wants() -> None:
    at = At()
    at.redis.away = True
    assert await at.cache.get("a") is MISS
    assert (await at.cache.set("a", 1), await at.cache.delete("a"), await at.cache.clear("")) == (False, False, 0)
    assert await at.cache.get_or_set("a", at.load) == {"a": 1}
    with pytest.raises(Unavailable):
        await at.cache.get("a", strict=True)
    with pytest.raises(Unavailable):
        await at.cache.set("a", 1, strict=True)
    with pytest.raises(Unavailable):
        await at.cache.ttl("a", strict=True)
    with pytest.raises(Unavailable):
        await at.cache.delete("a", strict=True)
    with pytest.raises(Unavailable):
        await at.cache.clear("", strict=True)
