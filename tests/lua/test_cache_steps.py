"""take, put, drop and yield: values of the cache, and the locks of their loads."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from gateway.broker.keys import Keys
from tests.kit.waiting import until
from tests.lua.steps import Steps

LOCK_MS = 3001
STALE_MS = 5000
MOST_BYTES = 10
NOTICE = [("changed", b"a notice")]


@pytest.fixture
def rows(keys: Keys) -> list[str]:
    """A value and its lock."""
    return [keys.cache_value("prices"), keys.cache_lock("prices")]


def take(steps: Steps, rows: list[str], token: str = "mine") -> Any:
    """Read the value, or take the lock."""
    return steps.call("read_cache", rows, token, LOCK_MS, STALE_MS, MOST_BYTES)


def put(steps: Steps, rows: list[str], value: str, ms: int, token: str = "") -> Any:
    """Keep the value."""
    return steps.call("write_cache", rows, value, ms, token, "changed", "a notice")


# ---- take


def test_take_reads_a_fresh_value_and_takes_no_lock(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "text", px=STALE_MS + 60_000)
    with steps.nothing_done():
        value, left, ours, held = take(steps, rows)
    assert (value, ours, held) == (b"text", 0, 0)
    assert STALE_MS + 50_000 < left <= STALE_MS + 60_000


def test_take_reads_a_value_without_an_end(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "text")
    with steps.nothing_done():
        assert take(steps, rows) == [b"text", -1, 0, 0]


def test_take_of_an_absent_value_gives_the_lock_to_one(steps: Steps, rows: list[str]) -> None:
    with steps.silence():
        assert take(steps, rows, "mine") == [None, -2, 1, 0]
    assert steps.redis.get(rows[1]) == b"mine"
    assert steps.expires(rows[1], LOCK_MS)
    assert not steps.redis.exists(rows[0])
    for token in ("other", "mine"):
        with steps.nothing_done():
            value, left, ours, held = take(steps, rows, token)
        assert (value, left, ours) == (None, -2, 0)
        assert 0 < held <= LOCK_MS
        assert held >= LOCK_MS - 1000


def test_take_of_a_stale_value_gives_value_and_lock(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "text", px=STALE_MS)
    value, left, ours, held = take(steps, rows)
    assert (value, ours, held) == (b"text", 1, 0)
    assert STALE_MS - 2000 < left <= STALE_MS
    assert steps.redis.get(rows[1]) == b"mine"
    assert steps.expires(rows[1], LOCK_MS)
    with steps.nothing_done():
        value, left, ours, held = take(steps, rows, "other")
    assert (value, ours) == (b"text", 0)
    assert 0 < held <= LOCK_MS


@pytest.mark.parametrize(("left", "ours"), [(7000, 1), (7001, 0)])
def test_take_knows_stale_from_fresh_to_the_millisecond(steps: Steps, rows: list[str], left: int, ours: int) -> None:
    command = steps.redis_client.script("read_cache").with_source(rows, ["mine", LOCK_MS, 7000, MOST_BYTES])

    def answer() -> Any:
        with steps.redis.pipeline() as pipeline:
            pipeline.delete(rows[1])
            pipeline.set(rows[0], "text", px=left)
            pipeline.execute_command(*command)
            found = pipeline.execute()[-1]
        return found if found[1] == left else None  # else a millisecond has passed within the transaction

    assert until(answer, what="value and step in the same millisecond") == [b"text", left, ours, 0]


def test_take_counts_a_value_that_is_too_long_as_absent(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "x" * MOST_BYTES)
    assert take(steps, rows) == [b"x" * MOST_BYTES, -1, 0, 0]
    steps.redis.set(rows[0], "x" * (MOST_BYTES + 1))
    assert take(steps, rows) == [None, -2, 1, 0]
    assert steps.redis.strlen(rows[0]) == MOST_BYTES + 1


def test_take_counts_an_empty_value_as_absent_and_reads_one_byte(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "1")
    assert take(steps, rows) == [b"1", -1, 0, 0]
    steps.redis.set(rows[0], "")
    assert take(steps, rows) == [None, -2, 1, 0]


def test_take_counts_a_value_of_another_type_as_absent(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], "x", "y")
    assert take(steps, rows) == [None, -2, 1, 0]
    assert steps.redis.get(rows[1]) == b"mine"


def test_take_takes_a_lock_without_an_end(steps: Steps, rows: list[str]) -> None:
    for is_hash in (False, True):
        steps.redis.delete(rows[1])
        _ = steps.redis.hset(rows[1], "x", "y") if is_hash else steps.redis.set(rows[1], "other")
        assert take(steps, rows) == [None, -2, 1, 0]
        assert steps.redis.get(rows[1]) == b"mine"
        assert steps.expires(rows[1], LOCK_MS)


def test_take_gives_the_lock_on_when_it_has_ended(steps: Steps, rows: list[str]) -> None:
    take(steps, rows, "first")
    steps.expire(rows[1])
    assert take(steps, rows, "second") == [None, -2, 1, 0]
    assert steps.redis.get(rows[1]) == b"second"


def test_take_without_memory_takes_no_lock(steps: Steps, rows: list[str]) -> None:
    steps.redis.config_set("maxmemory", 1)
    try:
        with steps.nothing_done(), pytest.raises(OutOfMemoryError):
            take(steps, rows)
    finally:
        steps.redis.config_set("maxmemory", 0)


# ---- put


def test_put_keeps_a_value_releases_the_lock_and_tells_once(steps: Steps, rows: list[str]) -> None:
    for value in ("old", "new"):
        steps.redis.set(rows[1], "other", px=LOCK_MS)
        assert put(steps, rows, value, 7001) == 1
        assert steps.published() == NOTICE
        assert steps.redis.get(rows[0]) == value.encode()
        assert steps.expires(rows[0], 7001)
        assert not steps.redis.exists(rows[1])


def test_put_of_a_load_keeps_its_value_while_it_has_the_lock(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "old")
    steps.redis.set(rows[1], "mine", px=LOCK_MS)
    assert put(steps, rows, "new", 7001, "mine") == 1
    assert steps.published() == NOTICE
    assert steps.redis.get(rows[0]) == b"new"
    assert steps.expires(rows[0], 7001)
    assert not steps.redis.exists(rows[1])


@pytest.mark.parametrize("lock", ["other", "", None])
def test_put_of_a_load_that_was_overtaken_does_nothing(steps: Steps, rows: list[str], lock: str | None) -> None:
    steps.redis.set(rows[0], "newer", px=60_000)
    if lock is not None:
        steps.redis.set(rows[1], lock, px=60_000)
    with steps.nothing_done():
        assert put(steps, rows, "late", 7001, "mine") == 0


def test_put_copes_with_keys_of_another_type(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[1], "x", "y")
    with steps.nothing_done():
        assert put(steps, rows, "late", 7001, "mine") == 0
    steps.redis.hset(rows[0], "x", "y")
    assert put(steps, rows, "text", 7001) == 1
    assert steps.redis.get(rows[0]) == b"text"
    assert not steps.redis.exists(rows[1])


# ---- drop


def test_drop_removes_value_and_lock_and_tells_once(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "text")
    steps.redis.set(rows[1], "other")
    assert steps.call("delete_cache", rows, "changed", "a notice") == 1
    assert steps.published() == NOTICE
    assert steps.state() == {}


def test_drop_of_an_absent_value_ends_its_load_and_tells(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[1], "other")
    assert steps.call("delete_cache", rows, "changed", "a notice") == 0
    assert steps.published() == NOTICE
    assert steps.state() == {}
    assert put(steps, rows, "late", 7001, "other") == 0


def test_drop_removes_keys_of_another_type(steps: Steps, rows: list[str]) -> None:
    for key in rows:
        steps.redis.hset(key, "x", "y")
    assert steps.call("delete_cache", rows, "changed", "a notice") == 1
    assert steps.state() == {}


# ---- yield


def test_yield_gives_up_the_own_lock_and_tells_once(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "text")
    steps.redis.set(rows[1], "mine", px=LOCK_MS)
    assert steps.call("unlock_cache", rows[1:], "mine", "changed", "a notice") == 1
    assert steps.published() == NOTICE
    assert not steps.redis.exists(rows[1])
    assert steps.redis.get(rows[0]) == b"text"


def test_yield_leaves_the_lock_of_another(steps: Steps, rows: list[str]) -> None:
    with steps.nothing_done():
        assert steps.call("unlock_cache", rows[1:], "mine", "changed", "a notice") == 0
    steps.redis.set(rows[1], "other", px=60_000)
    with steps.nothing_done():
        assert steps.call("unlock_cache", rows[1:], "mine", "changed", "a notice") == 0
    steps.redis.delete(rows[1])
    steps.redis.hset(rows[1], "x", "y")
    with steps.nothing_done():
        assert steps.call("unlock_cache", rows[1:], "mine", "changed", "a notice") == 0
