"""The shared cache on a real Redis: it stores values, loads each once, and returns no stale value."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.broker.client import Unavailable
from gateway.cache.cache import MISS, Cache, ValueTooLarge, WithTtl, connect
from gateway.cache.store import MAX_VALUE_BYTES
from tests.kit.process import Process, clean_environment
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

ROW = "gw:cache:{%s}"

Join = Callable[[], Awaitable[Cache]]


@pytest.fixture
async def join(redis: Redis) -> AsyncIterator[Join]:
    """`await join()`: one more process's cache, which hears of changes."""
    async with AsyncExitStack() as stack:

        async def one() -> Cache:
            cache = await stack.enter_async_context(connect(redis.url, timeout_seconds=1))
            await cache.set("warm-up", 1, strict=True)

            async def remembers() -> bool:
                await cache.get("warm-up")
                return bool(len(cache.near_cache))

            await eventually(remembers)
            return cache

        yield one


@pytest.fixture
async def cache(join: Join) -> Cache:
    """One."""
    return await join()


@pytest.fixture
def worker(redis: Redis, folder: Path) -> Iterator[Callable[..., Process]]:
    """`worker(key, callers=1, load_ms=0, load_seconds=10)`: a process that reads the cache when the test signals it."""
    with ExitStack() as stack:
        started: list[Process] = []

        def start(key: str, *, callers: int = 1, load_ms: int = 0, load_seconds: float = 10) -> Process:
            name = f"worker{len(started)}"
            words = [sys.executable, "-m", "tests.cache_worker", redis.url, key, callers, load_ms, load_seconds]
            process = Process(name, list(map(str, words)), folder / f"{name}.log", clean_environment())
            stack.callback(process.close)
            process.spawn()
            started.append(process)
            until(lambda: redis.cli("GET", "ready") == str(len(started)), 30, "the worker is ready")
            return process

        yield start


def giving(value: Any) -> Callable[[], Awaitable[Any]]:
    """A load that gives `value`."""

    async def load() -> Any:
        return value

    return load


def waits(cache: Cache, key: str) -> bool:
    """Whether it waits for another process's load."""
    return key in cache.single_flight.waiting


class Slow:
    """A load that returns 1 once the test releases it, and counts its calls."""

    def __init__(self) -> None:
        self.runs = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.runs += 1
        await self.go.wait()
        return self.runs


# ---- what it keeps


@pytest.mark.parametrize(
    "value", [None, False, 0, "", [], {}, 1.5, "é\u2028", {"a": [1, {"b": None}]}, 2**53, [[[]]] * 3], ids=repr
)
async def test_a_value_comes_back_as_it_was(cache: Cache, redis: Redis, value: Any) -> None:
    assert await cache.get("k") is MISS
    assert await cache.set("k", value)
    assert await cache.get("k") == value
    assert await cache.get("k") is not MISS
    assert orjson.loads(redis.cli("GET", ROW % "k")) == value


async def test_a_miss_is_no_value() -> None:
    assert not MISS
    assert MISS is not None
    assert repr(MISS) == "MISS"


async def test_it_ends_in_time_and_not_all_at_once(cache: Cache) -> None:
    await cache.set_many({f"k{at}": at for at in range(50)}, 100)
    left = [await cache.ttl(f"k{at}") for at in range(50)]
    assert all(seconds is not None and 85 < seconds <= 100 for seconds in left)
    assert max(filter(None, left)) - min(filter(None, left)) > 2
    await cache.set("default", 1)
    seconds = await cache.ttl("default")
    assert seconds is not None and 265 < seconds <= 300
    assert await cache.ttl("none") is None
    await cache.set("short", 1, 0.05)
    assert await cache.get("short") == 1

    async def gone() -> bool:
        return await cache.get("short") is MISS

    await eventually(gone)


async def test_many_at_once(cache: Cache) -> None:
    values = {f"k{at}": {"at": at} for at in range(1200)}
    assert await cache.set_many(values)
    assert await cache.get_many([*values, "none", "k0"]) == values
    assert await cache.get_many([]) == {}
    assert await cache.set_many({})


async def test_deleting_tells_whether_there_was_one(cache: Cache) -> None:
    await cache.set("k", 1)
    assert await cache.delete("k")
    assert await cache.get("k") is MISS
    assert not await cache.delete("k")


async def test_a_prefix_is_cleared_and_nothing_else(cache: Cache, redis: Redis) -> None:
    await cache.set_many({f"a:{at}": at for at in range(1500)})
    await cache.set_many({"b:1": 1, "a": 2, "*": 3, "*x": 4, "[a]:1": 5, "\\": 6})
    redis.cli("SET", "gw:other", "untouched")
    assert await cache.clear("a:") == 1500
    assert await cache.get("a:7") is MISS
    assert await cache.clear("*") == 2
    assert await cache.clear("[a]") == 1
    assert await cache.clear("\\") == 1
    assert await cache.get_many(["b:1", "a"]) == {"b:1": 1, "a": 2}
    assert await cache.clear("") == 3  # and the warm-up
    assert redis.cli("KEYS", "*") == ["gw:other"]


@pytest.mark.parametrize("key", ["", "a b", "{a}", "a}", "a\n", "\x7f", "x" * 501, "\ud800"], ids=ascii)
async def test_what_cannot_be_a_key_is_refused_at_once(cache: Cache, key: str) -> None:
    for refused in (cache.get(key), cache.set(key, 1), cache.delete(key), cache.get_or_set(key, giving(1))):
        with pytest.raises(ValueError, match="use 1 to 500 characters"):
            await refused


async def test_what_cannot_be_kept_is_refused_at_once_and_whole(cache: Cache) -> None:
    with pytest.raises(ValueTooLarge):
        await cache.set_many({"small": 1, "large": "x" * MAX_VALUE_BYTES})
    with pytest.raises(TypeError):
        await cache.set_many({"small": 1, "odd": object()})
    assert await cache.get("small") is MISS
    for seconds in (0, -1, math.nan, math.inf, 1e9):
        with pytest.raises(ValueError, match="time to live"):
            await cache.set("k", 1, seconds)


async def test_what_others_write_is_read_if_it_is_json(cache: Cache, redis: Redis) -> None:
    redis.cli("SET", ROW % "theirs", '{"a": 1}')
    redis.cli("SET", ROW % "odd", "{")
    assert await cache.get_many(["theirs", "odd"]) == {"theirs": {"a": 1}}
    assert await cache.ttl("theirs") == math.inf
    assert await cache.get_or_set("theirs", giving(2)) == {"a": 1}


# ---- near by


async def test_a_change_is_seen_by_all_and_by_its_writer_at_once(
    join: Join, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cache.near_cache.MAX_SECONDS", 3600)
    one, other = await join(), await join()
    for number in range(20):
        await one.set("k", number)
        assert await one.get("k") == number

        async def sees(cache: Cache = other, number: int = number) -> bool:
            return bool(await cache.get("k") == number)

        await eventually(sees)
    await one.delete("k")
    assert await one.get("k") is MISS

    async def gone() -> bool:
        return await other.get("k") is MISS

    await eventually(gone)
    await one.set("k", 1)
    await other.get("k")
    await one.clear("k")
    assert await one.get("k") is MISS
    await eventually(gone)


async def test_what_is_known_near_by_is_not_asked_of_redis(cache: Cache, redis: Redis) -> None:
    await cache.set("k", 1)

    async def remembered() -> bool:  # our own notice may take it away once
        before = redis.cli("INFO", "commandstats")["cmdstat_getrange"]["calls"]
        assert await cache.get("k") == 1
        return bool(redis.cli("INFO", "commandstats")["cmdstat_getrange"]["calls"] == before)

    await eventually(remembered)


async def test_no_read_is_stale_after_a_pubsub_cut(join: Join, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published while the bus is cut is lost; the near caches must not outlive it."""
    monkeypatch.setattr("gateway.cache.near_cache.MAX_SECONDS", 3600)
    one, other = await join(), await join()
    for number in range(20):
        await one.set("k", number)

        async def remembers(number: int = number) -> bool:
            return await other.get("k") == number and other.near_cache.get("k", 0) is not None

        await eventually(remembers)
        redis.kill_pubsub()
        await one.set("k", "changed")

        async def sees() -> bool:
            return bool(await other.get("k") == "changed")

        await eventually(sees)


async def test_no_read_is_stale_after_a_restart_of_redis(
    join: Join, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cache.near_cache.MAX_SECONDS", 3600)
    one = await join()
    await one.set("k", 1)
    assert await one.get("k") == 1
    redis.stop()

    async def gone() -> bool:
        return await one.get("k") is MISS

    await eventually(gone)
    redis.start()
    await eventually(gone)


# ---- loading


async def test_one_load_for_all_callers_of_all_processes(redis: Redis, worker: Callable[..., Process]) -> None:
    workers = [worker("cold", callers=callers, load_ms=300) for callers in (167, 167, 166)]
    redis.cli("RPUSH", "go", 1, 2, 3)
    for process in workers:
        assert process.exit_code(30) == 0, process.last_words()
    answers = [orjson.loads(answer) for answer in redis.cli("LRANGE", "answers", 0, -1)]
    assert sorted(answer[0] for answer in answers) == [166, 167, 167]
    assert all(answer[1:] == ['{"load":1}'] for answer in answers)
    assert redis.cli("GET", "loads") == "1"


async def test_a_loader_that_is_killed_is_replaced_within_its_time(
    cache: Cache, redis: Redis, worker: Callable[..., Process]
) -> None:
    loader = worker("cold", load_ms=60_000, load_seconds=3)
    redis.cli("RPUSH", "go", 1)
    await eventually(lambda: redis.cli("GET", "loads") == "1")
    began = time.monotonic()
    asked = [asyncio.create_task(cache.get_or_set("cold", giving("mine"), load_seconds=3)) for _ in range(100)]
    loader.kill()
    assert await asyncio.gather(*asked) == ["mine"] * 100
    assert time.monotonic() - began < 2 * 3, "the lock's time, and little more"
    assert await cache.get("cold") == "mine"


async def test_waiting_callers_get_the_value_once_it_is_loaded(join: Join) -> None:
    one, other = await join(), await join()
    slow = Slow()
    loading = asyncio.create_task(one.get_or_set("k", slow))
    await eventually(lambda: slow.runs)
    waiting = [asyncio.create_task(other.get_or_set("k", giving("mine"))) for _ in range(10)]
    await asyncio.sleep(0)
    slow.go.set()
    assert await loading == 1
    assert await asyncio.gather(*waiting) == [1] * 10


async def test_waiting_callers_get_the_value_although_the_notice_is_lost(join: Join, redis: Redis) -> None:
    one, other = await join(), await join()
    slow = Slow()
    loading = asyncio.create_task(one.get_or_set("k", slow, load_seconds=30))
    await eventually(lambda: slow.runs)
    waiting = asyncio.create_task(other.get_or_set("k", giving("mine"), load_seconds=30))
    await eventually(lambda: waits(other, "k"))
    redis.kill_pubsub()
    slow.go.set()
    async with asyncio.timeout(5):
        assert await loading == await waiting == 1


async def test_a_load_error_reaches_the_callers_of_this_process_and_another_process_retries(join: Join) -> None:
    one, other = await join(), await join()
    go = asyncio.Event()
    runs = 0

    async def failing() -> None:
        nonlocal runs
        runs += 1
        await go.wait()
        raise LookupError("no such contest")

    here = [asyncio.create_task(one.get_or_set("k", failing)) for _ in range(5)]
    await eventually(lambda: runs)
    there = asyncio.create_task(other.get_or_set("k", giving("theirs")))
    await eventually(lambda: waits(other, "k"))
    go.set()
    assert all(isinstance(error, LookupError) for error in await asyncio.gather(*here, return_exceptions=True))
    assert runs == 1
    async with asyncio.timeout(2):
        assert await there == "theirs"
    assert await one.get_or_set("k", failing) == "theirs"


async def test_a_caller_that_gives_up_does_not_end_the_load_of_the_others(cache: Cache) -> None:
    slow = Slow()
    first, second = (asyncio.create_task(cache.get_or_set("k", slow)) for _ in range(2))
    await eventually(lambda: slow.runs)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    slow.go.set()
    assert await second == 1
    assert slow.runs == 1


async def test_a_load_has_its_time(cache: Cache) -> None:
    slow = Slow()
    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError, match=r"the load of 'k' took longer than 0\.2 s"):
            await cache.get_or_set("k", slow, load_seconds=0.2)
    assert await cache.get_or_set("k", giving("next")) == "next"


@pytest.mark.parametrize("how", ["delete", "clear", "set"])
async def test_a_load_that_was_overtaken_keeps_nothing(join: Join, how: str) -> None:
    one, other = await join(), await join()
    slow = Slow()
    old = asyncio.create_task(one.get_or_set("k", slow))
    await eventually(lambda: slow.runs)
    if how == "set":
        await other.set("k", "newer")
    elif how == "clear":
        await other.clear("")
    else:
        await other.delete("k")
    slow.go.set()
    assert await old == 1
    assert await other.get("k") == ("newer" if how == "set" else MISS)


async def test_a_read_after_a_delete_does_not_get_an_earlier_load(cache: Cache) -> None:
    slow = Slow()
    old = asyncio.create_task(cache.get_or_set("k", slow))
    await eventually(lambda: slow.runs)
    await cache.delete("k")
    assert await cache.get_or_set("k", giving("new")) == "new"
    slow.go.set()
    assert await old == 1
    assert await cache.get("k") == "new"


async def test_a_load_sets_the_lifetime_of_its_value(cache: Cache) -> None:
    assert await cache.get_or_set("k", giving(WithTtl([1], 20)), 300) == [1]
    seconds = await cache.ttl("k")
    assert seconds is not None and 17 < seconds <= 20
    assert await cache.get_or_set("never", giving(WithTtl(None, 0))) is None
    assert await cache.get("never") is MISS
    assert await cache.get_or_set("never", giving(2)) == 2


async def test_what_is_too_large_is_given_and_not_kept(cache: Cache) -> None:
    large = "x" * MAX_VALUE_BYTES
    assert await cache.get_or_set("k", giving(large)) == large
    assert await cache.get("k") is MISS
    assert await cache.get_or_set("k", giving("small")) == "small"


async def test_everybody_gets_what_json_made_of_it(cache: Cache) -> None:
    assert await cache.get_or_set("k", giving((1, 2))) == [1, 2]
    one = await cache.get_or_set("k", giving(0))
    one.append(3)
    assert await cache.get_or_set("k", giving(0)) == [1, 2], "a caller cannot change another caller's value"


async def test_a_stale_value_is_given_while_it_is_loaded_anew_once(join: Join) -> None:
    one, other = await join(), await join()
    assert await one.get_or_set("k", giving("old"), 0.05, stale_seconds=60) == "old"
    slow = Slow()

    async def refreshing() -> bool:
        async with asyncio.timeout(1):  # no caller waits
            assert await one.get_or_set("k", slow, 60, stale_seconds=60) == "old"
            assert await other.get_or_set("k", slow, 60, stale_seconds=60) == "old"
        return slow.runs > 0

    await eventually(refreshing)
    assert slow.runs == 1
    slow.go.set()
    for cache in (one, other):

        async def fresh(cache: Cache = cache) -> bool:
            return bool(await cache.get_or_set("k", giving("never"), 60, stale_seconds=60) == 1)

        await eventually(fresh)


async def test_a_stale_value_is_given_though_it_cannot_be_loaded(cache: Cache) -> None:
    async def failing() -> None:
        raise LookupError

    assert await cache.get_or_set("k", giving("old"), 0.05, stale_seconds=60) == "old"
    for _ in range(20):
        assert await cache.get_or_set("k", failing, 60, stale_seconds=60) == "old"
        await asyncio.sleep(0.01)


# ---- Redis away


async def test_redis_away_is_a_miss_and_an_error_only_if_asked_for(cache: Cache, redis: Redis) -> None:
    await cache.set("k", 1)
    redis.stop()
    await eventually(lambda: cache.near_cache.get("k", 0) is None)
    assert await cache.get("k") is MISS
    assert await cache.get_many(["k", "l"]) == {}
    assert await cache.ttl("k") is None
    assert await cache.set("k", 1) is False
    assert await cache.delete("k") is False
    assert await cache.clear("k") == 0
    assert await cache.get_or_set("k", giving("loaded")) == "loaded"
    strict = {"strict": True}
    for refused in (
        cache.get("k", **strict), cache.set("k", 1, **strict), cache.delete("k", **strict), cache.ttl("k", **strict),
        cache.clear("", **strict),
    ):  # fmt: skip
        with pytest.raises(Unavailable):
            await refused
    redis.start()

    async def again() -> bool:
        return await cache.set("k", 2) and await cache.get("k") == 2

    await eventually(again)


async def test_a_frozen_redis_delays_callers_only_briefly(cache: Cache, redis: Redis) -> None:
    redis.freeze()
    try:
        began = time.monotonic()
        slow = Slow()
        slow.go.set()
        for at in range(20):
            assert await cache.get_or_set(f"k{at}", slow) == at + 1
        # One deadline of 1 s in each half second; in turn they would be twenty.
        assert time.monotonic() - began < 10
    finally:
        redis.thaw()


async def test_redis_that_goes_amid_a_load_takes_nothing_from_its_callers(cache: Cache, redis: Redis) -> None:
    slow = Slow()
    asked = [asyncio.create_task(cache.get_or_set("k", slow)) for _ in range(10)]
    await eventually(lambda: slow.runs)
    redis.stop()
    slow.go.set()
    assert await asyncio.gather(*asked) == [1] * 10
