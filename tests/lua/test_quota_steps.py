"""quota: a bucket of tokens that all nodes share."""

from __future__ import annotations

import math

import pytest
from redis.exceptions import OutOfMemoryError

from gateway.broker.keys import Keys
from gateway.cluster.quotas import INTO_DEBT
from tests.lua.steps import Steps

PER_SECOND = 0.5  # so slow that none is earned during a test
SECONDS = 40  # the bucket holds 20


@pytest.fixture
def key(keys: Keys) -> str:
    """The bucket."""
    return keys.quota("ann")


def take(steps: Steps, key: str, wanted: int, least: int = 1) -> int:
    """Take tokens."""
    return int(steps.call("take_tokens", [key], PER_SECOND, SECONDS, wanted, least))


def is_short_of(steps: Steps, key: str, tokens: float) -> bool:
    """Whether so many tokens are missing in the bucket, and it expires when they will have been earned."""
    full_ms = int(steps.redis.pexpiretime(key))
    spent = float(steps.redis.get(key))
    missing_ms = tokens / PER_SECOND * 1000
    return (
        abs(full_ms - (spent + SECONDS) * 1000) < 5 and missing_ms - 2000 < full_ms - steps.now_ms() <= missing_ms + 5
    )


@pytest.mark.parametrize("least", [0, 1, INTO_DEBT])
def test_tokens_are_taken_one_by_one_and_many_at_once(steps: Steps, key: str, least: int) -> None:
    with steps.silence():
        assert take(steps, key, 1, least) == 1
        assert is_short_of(steps, key, 1)
        assert take(steps, key, 4, least) == 4
        assert is_short_of(steps, key, 5)
        assert take(steps, key, 15, least) == 15
        assert is_short_of(steps, key, 20)


def test_as_many_as_there_are_are_granted(steps: Steps, key: str) -> None:
    assert take(steps, key, 15) == 15
    assert take(steps, key, 15) == 5
    assert is_short_of(steps, key, 20)
    with steps.nothing_done():
        assert take(steps, key, 15) == 0


def test_a_full_bucket_grants_no_more_than_it_holds(steps: Steps, key: str) -> None:
    assert take(steps, key, 1000) == 20
    assert is_short_of(steps, key, 20)


def test_none_is_taken_where_there_are_fewer_than_the_least(steps: Steps, key: str) -> None:
    with steps.nothing_done():
        assert take(steps, key, 30, least=21) == 0
    assert take(steps, key, 12, least=12) == 12
    assert take(steps, key, 30, least=8) == 8
    with steps.nothing_done():
        assert take(steps, key, 1, least=1) == 0


def test_into_debt_all_are_taken(steps: Steps, key: str) -> None:
    assert take(steps, key, 20, INTO_DEBT) == 20
    assert take(steps, key, 10, INTO_DEBT) == 10
    assert is_short_of(steps, key, 30)
    for least in (0, 1):
        with steps.nothing_done():
            assert take(steps, key, 1, least) == 0


@pytest.mark.parametrize("least", [0, 1, INTO_DEBT])
def test_nothing_is_written_where_nothing_is_wanted(steps: Steps, key: str, least: int) -> None:
    with steps.nothing_done():
        assert take(steps, key, 0, least) == 0


@pytest.mark.parametrize(("ago", "there"), [(0, 0), (2.01, 1), (3.9, 1), (10.01, 5), (SECONDS, 20), (10**6, 20)])
def test_tokens_are_earned_with_time_up_to_a_full_bucket(steps: Steps, key: str, ago: float, there: int) -> None:
    steps.redis.set(key, repr(steps.now_us() / 1e6 - ago))
    assert take(steps, key, 100) == there


def test_the_time_of_an_unused_part_of_a_token_is_kept(steps: Steps, key: str) -> None:
    spent = steps.now_us() / 1e6 - 3
    steps.redis.set(key, repr(spent))
    assert take(steps, key, 1) == 1
    assert float(steps.redis.get(key)) == pytest.approx(spent + 1 / PER_SECOND, abs=2e-6)


@pytest.mark.parametrize("broken", ["no number", "nan", "inf", "1e300", ""])
def test_a_bucket_that_is_no_number_is_full(steps: Steps, key: str, broken: str) -> None:
    steps.redis.set(key, broken)
    assert take(steps, key, 100) == 20
    assert is_short_of(steps, key, 20)


def test_a_bucket_of_another_type_is_full_and_replaced(steps: Steps, key: str) -> None:
    steps.redis.hset(key, "x", "y")
    assert take(steps, key, 100) == 20
    assert is_short_of(steps, key, 20)


def test_a_debt_of_more_than_a_full_bucket_is_none_of_ours(steps: Steps, key: str) -> None:
    steps.redis.set(key, repr(steps.now_us() / 1e6 + SECONDS + 0.9))
    with steps.nothing_done():
        assert take(steps, key, 100) == 0
    steps.redis.set(key, repr(steps.now_us() / 1e6 + SECONDS + 60))
    assert take(steps, key, 100) == 20


def test_large_numbers_are_exact(steps: Steps, key: str) -> None:
    size = 10**12
    assert steps.call("take_tokens", [key], size / 86_400, 86_400, size - 7, size - 7) == size - 7
    assert b"e" not in steps.redis.get(key)
    assert math.isclose(float(steps.redis.get(key)), steps.now_us() / 1e6, abs_tol=5)


def test_a_small_part_of_a_large_bucket_gives_a_ttl_of_a_millisecond_at_least(steps: Steps, key: str) -> None:
    assert steps.call("take_tokens", [key], 10**9, 1, 1, 1) == 1


def test_without_memory_no_token_is_granted(steps: Steps, key: str) -> None:
    steps.redis.config_set("maxmemory", 1)
    try:
        with steps.nothing_done(), pytest.raises(OutOfMemoryError):
            take(steps, key, 1)
    finally:
        steps.redis.config_set("maxmemory", 0)
