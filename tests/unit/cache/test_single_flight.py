"""gateway.cache.single_flight: one load for all that ask, and what becomes of its lock."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from gateway.broker.client import Unavailable
from gateway.cache.single_flight import RECHECK_SECONDS, WAIT_LOADS, LoadRequest, LoadResult, SingleFlight
from gateway.cache.store import CacheLookup
from gateway.metrics import Metrics
from tests.unit.virtual_time import in_virtual_time, later, quiet

LOAD_SECONDS = 4.0


class Store:
    """Stands for `CacheStore`: one key, its lock, and what was done."""

    def __init__(self) -> None:
        self.on_changed: Any = None
        self.near: bytes | None = None
        self.text: bytes | None = None
        self.stale = False
        self.lock: str | None = None
        self.lock_seconds = LOAD_SECONDS
        self.away = False
        self.taken: list[tuple[str, float, float]] = []
        self.kept: list[tuple[bytes, float, float]] = []
        self.released: list[str] = []
        self.margins: list[float] = []

    def cached(self, _key: str, margin: float) -> bytes | None:
        self.margins.append(margin)
        return self.near

    async def read_or_lock(self, key: str, token: str, *, lock_seconds: float, stale_seconds: float) -> CacheLookup:
        self.taken.append((key, lock_seconds, stale_seconds))
        await asyncio.sleep(0.01)
        if self.away:
            raise Unavailable("away")
        if self.text is not None and not self.stale:
            return CacheLookup(self.text, False, False, 0.001)
        ours = self.lock is None
        self.lock = self.lock or token
        return CacheLookup(self.text, self.stale, ours, self.lock_seconds)

    async def write_loaded(self, _key: str, text: bytes, ttl_seconds: float, stale_seconds: float, token: str) -> None:
        if self.lock == token:
            self.lock, self.text, self.stale = None, text, False
            self.kept.append((text, ttl_seconds, stale_seconds))

    async def unlock(self, key: str, token: str) -> None:
        if self.lock == token:
            self.lock = None
        self.released.append(key)


class Loader:
    """Loads, and the tasks they have spawned."""

    def __init__(self) -> None:
        self.store = Store()
        self.metrics = Metrics()
        self.tasks: dict[str, list[asyncio.Task[None]]] = {}
        self.single_flight = SingleFlight(cast(Any, self.store), self.metrics, self._spawn)
        self.calls = 0
        self.answer: LoadResult | Exception = LoadResult(b"1", 60, True)
        self.seconds = 1.0

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.setdefault(name, []).append(asyncio.get_running_loop().create_task(work))

    async def load(self) -> LoadResult:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def ask(self, *, stale_seconds: float = 0) -> bytes:
        return await self.single_flight.get(LoadRequest("k", self.load, stale_seconds, LOAD_SECONDS))

    def count(self, name: str, label: str) -> float:
        return float(getattr(self.metrics, name).labels(label).value)


@in_virtual_time
async def test_all_who_ask_share_one_load_and_its_value_is_kept() -> None:
    at = Loader()
    assert await asyncio.gather(*(at.ask(stale_seconds=5) for _ in range(10))) == [b"1"] * 10
    assert (at.calls, at.store.taken, at.store.kept) == (1, [("k", LOAD_SECONDS, 5)], [(b"1", 60, 5)])
    assert (at.store.lock, at.store.released, at.store.margins) == (None, [], [5] * 10)
    assert at.count("cache_waits", "caller") == 9
    assert at.count("cache_loads", "ok") == 1
    assert at.single_flight.waiting == {}, "nothing is remembered of it"
    assert await at.ask() == b"1"
    assert at.calls == 1


@in_virtual_time
async def test_what_is_known_near_by_is_given_without_a_question() -> None:
    at = Loader()
    at.store.near = b"near"
    assert await at.ask() == b"near"
    assert (at.calls, at.store.taken, at.tasks) == (0, [], {})


@in_virtual_time
async def test_a_caller_that_gives_up_is_not_the_others_end() -> None:
    at = Loader()
    first, second = asyncio.create_task(at.ask()), asyncio.create_task(at.ask())
    await later(0.5)
    first.cancel()
    assert await second == b"1"
    assert (at.calls, at.store.kept) == (1, [(b"1", 60, 0)])


@in_virtual_time
async def test_an_error_of_the_load_is_raised_to_all_who_asked_and_the_lock_given_up() -> None:
    at = Loader()
    at.answer = LookupError("no such row")
    found = await asyncio.gather(at.ask(), at.ask(), return_exceptions=True)
    assert [type(one) for one in found] == [LookupError, LookupError]
    assert (at.calls, at.store.lock, at.store.released, at.store.kept) == (1, None, ["k"], [])
    assert at.count("cache_loads", "failed") == 1
    at.answer = LoadResult(b"2", 60, True)
    assert await at.ask() == b"2"


@in_virtual_time
async def test_a_load_that_takes_too_long_fails_when_its_time_is_over() -> None:
    at = Loader()
    at.seconds = 60
    with pytest.raises(TimeoutError, match=r"the load of 'k' took longer than 4 s"):
        await at.ask()
    assert asyncio.get_running_loop().time() == pytest.approx(LOAD_SECONDS, abs=0.1)
    assert (at.store.lock, at.count("cache_loads", "late")) == (None, 1)
    at.seconds, at.answer = 0.1, TimeoutError("its own")
    with pytest.raises(TimeoutError, match="its own"):
        await at.ask()
    assert at.count("cache_loads", "failed") == 1


@in_virtual_time
@pytest.mark.parametrize(
    "loaded", [LoadResult(b"big", 60, False), LoadResult(b"0", 0, True), LoadResult(b"-", -1, True)]
)
async def test_what_is_too_large_or_has_no_time_is_given_but_not_kept(loaded: LoadResult) -> None:
    at = Loader()
    at.answer = loaded
    assert await at.ask() == loaded.text
    assert (at.store.kept, at.store.released, at.store.lock) == ([], ["k"], None)
    assert at.count("cache_loads", "ok" if loaded.fits else "too_large") == 1


@in_virtual_time
async def test_a_stale_value_is_given_at_once_while_one_of_them_loads_it_anew() -> None:
    at = Loader()
    at.store.text, at.store.stale = b"old", True
    started = asyncio.get_running_loop().time()
    assert [await at.ask(stale_seconds=5), await at.ask(stale_seconds=5)] == [b"old", b"old"]
    assert asyncio.get_running_loop().time() < started + 0.1
    await later(2)
    assert (at.calls, at.store.kept) == (1, [(b"1", 60, 5)])
    assert at.count("cache_reads", "stale") == 2
    assert await at.ask(stale_seconds=5) == b"1"
    assert at.count("cache_reads", "redis") == 1
    assert len(at.tasks["cache refresh"]) == 1


@in_virtual_time
async def test_a_refresh_that_fails_gives_up_the_lock_and_ends_nobody() -> None:
    at = Loader()
    at.store.text, at.store.stale, at.answer = b"old", True, LookupError("gone")
    assert await at.ask() == b"old"
    await later(2)
    [refresh] = at.tasks["cache refresh"]
    assert refresh.exception() is None
    assert (at.store.lock, at.store.released) == (None, ["k"])


@in_virtual_time
async def test_a_caller_that_waits_for_another_nodes_load_retries_at_the_notice() -> None:
    at = Loader()
    at.store.lock = "another"
    asked = asyncio.create_task(at.ask())
    await later(0.5)
    assert (len(at.store.taken), at.count("cache_waits", "node")) == (1, 1)
    at.single_flight._changed(["other"], None)
    await later(0.1)
    assert len(at.store.taken) == 1, "news of another key"
    at.store.text, at.store.lock = b"theirs", None
    at.single_flight._changed(["k"], None)
    assert await asked == b"theirs"
    assert (at.calls, len(at.store.taken), at.single_flight.waiting) == (0, 2, {})
    assert asyncio.get_running_loop().time() < 0.7


@in_virtual_time
@pytest.mark.parametrize(("lock_seconds", "asks_after"), [(LOAD_SECONDS, RECHECK_SECONDS), (0.25, 0.25)])
async def test_without_a_notice_it_asks_again_after_a_second_or_when_the_lock_has_ended(
    lock_seconds: float, asks_after: float
) -> None:
    at = Loader()
    at.store.lock, at.store.lock_seconds = "another", lock_seconds
    asked = asyncio.create_task(at.ask())
    await later(asks_after)
    at.store.text = b"theirs"
    assert len(at.store.taken) == 1
    await later(0.05)
    assert len(at.store.taken) == 2
    assert await asked == b"theirs"


@in_virtual_time
async def test_after_two_load_times_of_waiting_it_loads_without_the_lock_and_keeps_nothing() -> None:
    at = Loader()
    at.store.lock = "another"
    assert await at.ask() == b"1"
    waited = asyncio.get_running_loop().time() - at.seconds
    assert WAIT_LOADS * LOAD_SECONDS <= waited < WAIT_LOADS * LOAD_SECONDS + 2 * RECHECK_SECONDS
    assert (at.calls, at.store.kept, at.store.lock) == (1, [], "another")


@in_virtual_time
async def test_without_redis_it_loads_at_once_and_keeps_nothing() -> None:
    at = Loader()
    at.store.away = True
    assert await at.ask() == b"1"
    assert asyncio.get_running_loop().time() == pytest.approx(1.01)
    assert (at.store.kept, at.store.released, at.count("cache_reads", "unavailable")) == ([], [], 1)
    at.seconds = 60
    with pytest.raises(TimeoutError):
        await at.ask()


@in_virtual_time
@pytest.mark.parametrize(("keys", "prefix", "again"), [
    (["k"], None, True), (["other"], None, False), ([], "", True), ([], "k", True), ([], "x", False),
])  # fmt: skip
async def test_a_read_after_a_change_does_not_get_an_earlier_load(
    keys: list[str], prefix: str | None, again: bool
) -> None:
    at = Loader()
    first = asyncio.create_task(at.ask())
    await later(0.5)
    at.store.lock = None  # a write takes it
    at.single_flight._changed(keys, prefix)
    at.answer = LoadResult(b"2", 60, True)
    second = asyncio.create_task(at.ask())
    await quiet()
    await asyncio.gather(first, second)
    assert at.calls == (2 if again else 1)


@in_virtual_time
async def test_a_process_that_ends_cancels_those_who_wait() -> None:
    at = Loader()
    asked = asyncio.create_task(at.ask())
    await later(0.5)
    at.tasks["cache load"][0].cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert asked.cancelled()
