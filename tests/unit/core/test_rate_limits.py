"""Token buckets: they limit the average, allow a burst, and first warn and then close a client that continues."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.rate_limits import (
    BURST_SECONDS,
    DEBT_SECONDS,
    MESSAGE_PART_BYTES,
    PARTS_PER_MESSAGE,
    UNUSED,
    ClientRates,
    ClientUsage,
    RateLimit,
    RateOutcome,
    TokenBucket,
    rate_outcome,
)

RATES = ClientRates(RateLimit(10), RateLimit(50), RateLimit(2))
START = 1000.0


def verdicts(messages: int, now: float, usage: ClientUsage) -> list[RateOutcome]:
    return [usage.count_message(RATES, 1, now) for _ in range(messages)]


def test_a_burst_is_fine_then_refused_then_enough() -> None:
    found = verdicts(201, START, ClientUsage())
    assert found == [RateOutcome.ALLOWED] * 100 + [RateOutcome.REFUSED] * 100 + [RateOutcome.DISCONNECT]


def test_a_client_within_the_rate_is_never_rejected() -> None:
    usage = ClientUsage()
    verdicts(100, START, usage)
    for at in range(1, 1000):
        assert usage.count_message(RATES, 1, START + at / 10) is RateOutcome.ALLOWED


def test_rejected_messages_count_until_the_client_pauses() -> None:
    usage = ClientUsage()
    verdicts(150, START, usage)
    assert usage.count_message(RATES, 1, START + 4) is RateOutcome.REFUSED
    assert usage.count_message(RATES, 1, START + 6) is RateOutcome.ALLOWED


def test_an_idle_client_saves_up_no_more_than_a_burst() -> None:
    usage = ClientUsage()
    verdicts(1, START, usage)
    assert verdicts(101, START + 100 * BURST_SECONDS, usage)[-2:] == [RateOutcome.ALLOWED, RateOutcome.REFUSED]


@pytest.mark.parametrize("now", [0.0, 3.0, 1e9])
def test_a_new_bucket_is_full_at_any_time(now: float) -> None:
    assert RateLimit(3).left(UNUSED, now) == 3 * BURST_SECONDS


def test_a_large_message_counts_for_several() -> None:
    usage = ClientUsage()
    assert usage.count_message(RATES, 99 * MESSAGE_PART_BYTES, START) is RateOutcome.ALLOWED
    assert usage.count_message(RATES, 0, START) is RateOutcome.REFUSED


def test_parts_of_messages_count_for_a_fraction_each() -> None:
    usage = ClientUsage()
    found = [usage.count_part(RATES, START) for _ in range(200 * PARTS_PER_MESSAGE + 1)]
    assert found.count(RateOutcome.ALLOWED) == found.count(RateOutcome.REFUSED) == 100 * PARTS_PER_MESSAGE
    assert found[-1] is RateOutcome.DISCONNECT


def test_subscriptions_are_counted_by_topic_and_apart_from_messages() -> None:
    usage = ClientUsage()
    assert usage.count_topics(RATES, 500, START) is RateOutcome.ALLOWED
    assert usage.count_topics(RATES, 1, START) is RateOutcome.REFUSED
    assert usage.count_message(RATES, 1, START) is RateOutcome.ALLOWED
    assert usage.count_topics(RATES, 1000, START) is RateOutcome.DISCONNECT


def test_of_log_lines_those_are_written_that_there_is_room_for() -> None:
    usage = ClientUsage()
    assert usage.count_log_lines(RATES, 15, START) == 15
    assert usage.count_log_lines(RATES, 15, START) == 5
    assert usage.count_log_lines(RATES, 15, START) == 0
    assert usage.count_log_lines(RATES, 15, START + 1) == 2, "what was not written was not counted"


@given(
    st.floats(0.01, 1e4),
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 1000)), max_size=50),
)
def test_in_no_stretch_of_time_is_more_taken_than_burst_and_rate_allow(
    per_second: float, events: list[tuple[float, int]]
) -> None:
    rate, spent, now = RateLimit(per_second), UNUSED, START
    taken = 0
    for wait, wanted in events:
        now += wait
        granted = min(wanted, rate.left(spent, now))
        spent = rate.take(spent, now, granted)
        assert granted == 0 or rate_outcome(spent, now) is RateOutcome.ALLOWED
        taken += granted
        assert taken <= (BURST_SECONDS + now - START) * per_second + 1e-3


@given(st.floats(0.01, 1e4), st.floats(0, 1e9), st.floats(0.001, 1000))
def test_the_verdict_is_a_matter_of_debt_alone(per_second: float, now: float, seconds: float) -> None:
    spent = RateLimit(per_second).take(now, now, seconds * per_second)
    found = rate_outcome(spent, now)
    if seconds < DEBT_SECONDS - 0.01:
        assert found is not RateOutcome.DISCONNECT
    elif seconds > DEBT_SECONDS + 0.01:
        assert found is RateOutcome.DISCONNECT


# ---- a bucket that several nodes share


MOST = 20  # that a purse fetches ahead


class Bucket:
    """The cluster's, without limit or with what it has left."""

    def __init__(self, left: float = math.inf) -> None:
        self.left = left
        self.asked = 0

    def take(self, tokens: TokenBucket, now: float, count: int = 1) -> bool:
        if tokens.spend(now, count):
            return True
        wanted = tokens.ask(now, count)
        if not wanted:
            return False
        self.grant(tokens, now, wanted, count)
        return tokens.spend(now, count)

    def grant(self, tokens: TokenBucket, now: float, wanted: int, least: int = 1) -> None:
        self.asked += 1
        granted = int(min(wanted, self.left))
        granted = granted if granted >= least else 0
        self.left -= granted
        tokens.fetched(granted, now, least)


def test_rare_use_takes_what_it_spends() -> None:
    bucket, tokens = Bucket(400), TokenBucket(MOST)
    assert all(bucket.take(tokens, START + 5 * at, 4) for at in range(100))
    assert (bucket.left, bucket.asked) == (0, 100)


def test_steady_use_costs_few_round_trips_and_loses_nothing() -> None:
    bucket, tokens = Bucket(10_000), TokenBucket(MOST)
    assert all(bucket.take(tokens, START + at / 90) for at in range(900))
    assert bucket.asked < 900 / 10
    assert 10_000 - bucket.left <= 900 + MOST


def test_a_use_of_more_than_is_fetched_ahead_fetches_exactly_that() -> None:
    bucket, tokens = Bucket(1000), TokenBucket(MOST)
    assert all(bucket.take(tokens, START + at / 1000, 100) for at in range(10))
    assert (bucket.left, bucket.asked) == (0, 10)


def test_one_fetch_at_a_time_is_ahead() -> None:
    bucket, tokens = Bucket(), TokenBucket(MOST)
    assert all(bucket.take(tokens, START, 1) for _ in range(10))
    asked = [tokens.ask(START, 2) for _ in range(3)]
    assert asked == [10, 2, 2]
    for wanted in asked:
        bucket.grant(tokens, START, wanted, 2)
    assert tokens.ask(START, 2) == 10


def test_an_empty_bucket_is_not_asked_at_each_try() -> None:
    bucket, tokens = Bucket(0), TokenBucket(MOST)
    assert not any(bucket.take(tokens, START + at / 1000) for at in range(1000))
    assert bucket.asked <= 11


def test_a_smaller_use_is_tried_at_once_after_a_larger_one_was_refused() -> None:
    bucket, tokens = Bucket(10), TokenBucket(MOST)
    assert not bucket.take(tokens, START, 11)
    assert bucket.take(tokens, START, 10)
    assert not bucket.take(tokens, START, 11)
    assert bucket.asked == 2


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50), st.integers(1, 9)), max_size=60))
def test_no_more_is_spent_than_was_fetched_and_little_is_wasted(
    most: int, bursts: list[tuple[float, int, int]]
) -> None:
    bucket, now, spent = Bucket(1e9), START, 0
    tokens = TokenBucket(most)
    for wait, uses, count in bursts:
        now += wait
        spent += sum(count * bucket.take(tokens, now, count) for _ in range(uses))
    fetched = 1e9 - bucket.left
    assert spent == sum(uses * count for _, uses, count in bursts)
    assert spent <= fetched <= spent + most * (len(bursts) + 1)
