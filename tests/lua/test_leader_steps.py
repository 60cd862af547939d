"""lead and resign: the lease of a singleton, and its tokens."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from gateway.broker.keys import Keys
from tests.kit.waiting import until
from tests.lua.steps import Steps

LEASE_MS = 5003
MONTH_MS = 30 * 86_400_000
DAY_MS = 86_400_000


@pytest.fixture
def rows(keys: Keys) -> list[str]:
    """The lease and the newest token."""
    return [keys.leader("prices"), keys.fence("prices")]


def lead(steps: Steps, rows: list[str], instance: str, token: str = "0") -> Any:
    """Take or renew the lease."""
    return steps.call("acquire_leadership", rows, instance, token, LEASE_MS)


def test_a_free_lease_is_taken_with_a_token_of_redis_time(steps: Steps, rows: list[str]) -> None:
    before = steps.now_us()
    with steps.silence():
        token, end, holder = lead(steps, rows, "a")
    assert before <= int(token) <= steps.now_us()
    assert steps.is_due(end, LEASE_MS)
    assert holder == b""
    assert steps.redis.get(rows[0]) == token + b" a"
    assert steps.redis.get(rows[1]) == token
    assert steps.expires(rows[0], LEASE_MS)
    assert steps.expires(rows[1], MONTH_MS)


def test_a_living_lease_is_refused_to_every_other_instance(steps: Steps, rows: list[str]) -> None:
    token, _, _ = lead(steps, rows, "a")
    for instance, held in (("b", "0"), ("b", token.decode()), ("b", "1"), ("aa", "0"), ("", "0")):
        began = steps.now_ms()
        with steps.nothing_done():
            refused, left, holder = lead(steps, rows, instance, held)
        assert (refused, holder) == (b"0", b"a")
        assert LEASE_MS - (steps.now_ms() - began) - 1000 <= left <= LEASE_MS
    assert 0 < steps.redis.pttl(rows[0]) <= left


def test_renewal_keeps_the_token_and_only_moves_the_end(steps: Steps, rows: list[str]) -> None:
    token, _, _ = lead(steps, rows, "a")
    steps.redis.pexpire(rows[0], 1000)
    steps.redis.pexpire(rows[1], 2000)
    fence = steps.state()[rows[1].encode()]
    for _ in range(3):
        renewed, end, holder = lead(steps, rows, "a", token.decode())
        assert (renewed, holder) == (token, b"")
        assert steps.is_due(end, LEASE_MS)
        assert steps.expires(rows[0], LEASE_MS)
        assert steps.redis.get(rows[0]) == token + b" a"
        assert steps.state()[rows[1].encode()] == fence


def test_the_holder_that_does_not_know_its_token_gets_a_greater_one(steps: Steps, rows: list[str]) -> None:
    """Its first call was done, and the answer did not reach it."""
    last, _, _ = lead(steps, rows, "a")
    for held in ("0", "17"):
        token, end, _ = lead(steps, rows, "a", held)
        assert int(token) > int(last)
        assert steps.redis.get(rows[0]) == token + b" a"
        assert steps.redis.get(rows[1]) == token
        assert steps.is_due(end, LEASE_MS)
        assert steps.expires(rows[0], LEASE_MS)
        last = token


def test_a_lease_that_has_ended_goes_to_the_next_with_a_greater_token(steps: Steps, rows: list[str]) -> None:
    first, _, _ = lead(steps, rows, "a")
    steps.expire(rows[0])
    second, _, _ = lead(steps, rows, "b")
    assert int(second) > int(first)
    assert steps.redis.get(rows[0]) == second + b" b"
    with steps.nothing_done():
        assert lead(steps, rows, "a", first.decode())[2] == b"b"


def test_tokens_grow_where_the_clock_does_not(steps: Steps, rows: list[str]) -> None:
    ahead = steps.now_us() + 10**12
    steps.redis.set(rows[1], ahead)
    assert lead(steps, rows, "a")[0] == b"%d" % (ahead + 1)
    assert steps.redis.get(rows[1]) == b"%d" % (ahead + 1)
    assert steps.redis.get(rows[0]) == b"%d a" % (ahead + 1)
    assert steps.expires(rows[1], MONTH_MS)


@pytest.mark.parametrize("newest", ["no number", str(2**53), "inf", "nan", "1e300", "-5"])
def test_a_newest_token_that_is_none_is_replaced_by_redis_time(steps: Steps, rows: list[str], newest: str) -> None:
    steps.redis.set(rows[1], newest)
    before = steps.now_us()
    token, _, _ = lead(steps, rows, "a")
    assert before <= int(token) <= steps.now_us()
    assert steps.redis.get(rows[1]) == token


def test_the_largest_token_is_followed_by_one_more(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[1], 2**53 - 1)
    assert lead(steps, rows, "a")[0] == b"%d" % 2**53


@pytest.mark.parametrize("broken", [0, 1])
def test_a_key_of_another_type_counts_as_absent(steps: Steps, rows: list[str], broken: int) -> None:
    steps.redis.hset(rows[broken], "x", "y")
    token, _, _ = lead(steps, rows, "a")
    assert steps.redis.get(rows[0]) == token + b" a"
    assert steps.redis.get(rows[1]) == token


@pytest.mark.parametrize("text", ["b", "x 1 b", "", "12b"])
def test_a_lease_without_a_holder_is_taken(steps: Steps, rows: list[str], text: str) -> None:
    steps.redis.set(rows[0], text, px=LEASE_MS)
    assert lead(steps, rows, "a")[2] == b""
    assert steps.redis.get(rows[0]).endswith(b" a")


def test_a_lease_without_an_end_or_of_more_than_a_day_is_taken(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "12 b")
    assert lead(steps, rows, "a")[2] == b""
    steps.redis.set(rows[0], "12 b", px=DAY_MS + 60_000)
    assert lead(steps, rows, "a")[2] == b""


def test_a_lease_of_a_day_is_another_instances(steps: Steps, rows: list[str]) -> None:
    command = steps.redis_client.script("acquire_leadership").with_source(rows, ["a", "0", LEASE_MS])

    def answer() -> Any:
        with steps.redis.pipeline() as pipeline:
            pipeline.set(rows[0], "12 b", px=DAY_MS)
            pipeline.execute_command(*command)
            found = pipeline.execute()[-1]
        # Where less than the day is left, a millisecond has passed within the transaction.
        return None if found[0] == b"0" and found[1] < DAY_MS else found

    assert until(answer, what="lease and step in the same millisecond") == [b"0", DAY_MS, b"b"]


def test_no_more_than_200_bytes_of_the_holder_are_answered(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "12 " + "b c" * 100, px=LEASE_MS)
    assert lead(steps, rows, "a")[2] == (b"b c" * 100)[:200]


def test_without_memory_no_lease_is_taken(steps: Steps, rows: list[str]) -> None:
    steps.redis.config_set("maxmemory", 1)
    try:
        with steps.nothing_done(), pytest.raises(OutOfMemoryError):
            lead(steps, rows, "a")
    finally:
        steps.redis.config_set("maxmemory", 0)


def test_resign_gives_up_only_the_own_lease(steps: Steps, rows: list[str]) -> None:
    token = lead(steps, rows, "a")[0].decode()
    for instance, held in (("b", token), ("a", "0"), ("a", token + "1"), (token, "a")):
        with steps.nothing_done():
            assert steps.call("release_leadership", rows[:1], instance, held) == 0
    with steps.silence():
        assert steps.call("release_leadership", rows[:1], "a", token) == 1
    assert steps.redis.get(rows[0]) is None
    assert steps.redis.get(rows[1]) == token.encode(), "tokens only grow"
    with steps.nothing_done():
        assert steps.call("release_leadership", rows[:1], "a", token) == 0


def test_resign_leaves_a_key_of_another_type(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], "x", "y")
    with steps.nothing_done():
        assert steps.call("release_leadership", rows[:1], "a", "1") == 0
