"""The circuit breaker: when it opens, when it allows a trial, when it closes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.circuit_breaker import (
    FAILURES,
    MAX_OPEN_SECONDS,
    OPEN_SECONDS,
    QUIET_SECONDS,
    RECOVERIES,
    WINDOW_SECONDS,
    CircuitBreaker,
)

ROUNDING = 1e-6  # seconds that a sum of floats may be off


def opened(recoveries: int | None = RECOVERIES, now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(recoveries)
    for _ in range(FAILURES):
        breaker.failed(now)
    assert breaker.state == "open"
    return breaker


def fail_trial(breaker: CircuitBreaker, now: float) -> float:
    """Let the next trial fail; when that was."""
    now += breaker.wait(now)
    assert breaker.allows(now)
    breaker.failed(now)
    return now


def test_it_is_closed_until_the_fifth_failure() -> None:
    breaker = CircuitBreaker()
    for at in range(FAILURES - 1):
        breaker.failed(at)
        assert breaker.state == "closed" and breaker.allows(at) and breaker.wait(at) == 0
    breaker.failed(FAILURES)
    assert breaker.state == "open" and not breaker.allows(FAILURES)


def test_failures_far_apart_do_not_open_it() -> None:
    breaker = CircuitBreaker()
    for at in range(20):
        breaker.failed(at * (WINDOW_SECONDS / (FAILURES - 1) + 1))
        assert breaker.state == "closed"


def test_a_success_between_does_not_hide_failures() -> None:
    breaker = CircuitBreaker()
    for at in range(FAILURES):
        breaker.succeeded(at)
        breaker.failed(at)
    assert breaker.state == "open"


def test_half_open_lets_one_through() -> None:
    breaker = opened()
    assert not breaker.allows(OPEN_SECONDS - 0.1)
    assert breaker.allows(OPEN_SECONDS)
    assert breaker.state == "half-open"
    assert not breaker.allows(OPEN_SECONDS)


def test_a_good_trial_closes_it() -> None:
    breaker = opened()
    assert breaker.allows(OPEN_SECONDS)
    breaker.succeeded(OPEN_SECONDS + 1)
    assert breaker.state == "closed" and breaker.allows(OPEN_SECONDS + 1)
    breaker.failed(OPEN_SECONDS + 2)
    assert breaker.state == "closed", "the failures before are forgotten"


def test_a_bad_trial_opens_it_for_twice_as_long_and_the_third_for_half_an_hour() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(RECOVERIES + 2):
        waits.append(breaker.wait(now))
        now = fail_trial(breaker, now)
    assert waits == [60, 120, 240, QUIET_SECONDS, 120]


def test_without_an_end_of_trials_none_is_later_than_the_longest_wait() -> None:
    breaker, now, waits = opened(None), 0.0, []
    for _ in range(2000):
        waits.append(breaker.wait(now))
        now = fail_trial(breaker, now)
    assert waits[:5] == [60, 120, 240, 300, 300]
    assert max(waits) == MAX_OPEN_SECONDS


def test_what_is_repaired_soon_is_tried_soon() -> None:
    breaker, now, waits = CircuitBreaker(None, open_seconds=2), 0.0, []
    for _ in range(FAILURES):
        breaker.failed(now)
    for _ in range(5):
        waits.append(breaker.wait(now))
        now = fail_trial(breaker, now)
    assert waits == [2, 4, 8, 10, 10]


def test_a_recovery_that_does_not_last_counts() -> None:
    breaker, now = opened(), 0.0
    for wait in (60, 120, 240, QUIET_SECONDS):
        assert breaker.wait(now) == wait
        now += wait
        assert breaker.allows(now)
        breaker.succeeded(now)
        for _ in range(FAILURES):
            breaker.failed(now + 1)
        now += 1


def test_a_recovery_that_lasts_is_one() -> None:
    breaker = opened()
    assert breaker.allows(OPEN_SECONDS)
    breaker.succeeded(OPEN_SECONDS)
    later = OPEN_SECONDS + WINDOW_SECONDS + 1
    for _ in range(FAILURES):
        breaker.failed(later)
    assert breaker.wait(later) == OPEN_SECONDS


def test_a_trial_without_a_result_has_failed() -> None:
    breaker = opened()
    assert breaker.allows(OPEN_SECONDS)
    late = 2 * OPEN_SECONDS
    assert not breaker.allows(late)
    assert breaker.state == "open" and breaker.wait(late) == 2 * OPEN_SECONDS


@pytest.mark.parametrize("said", [CircuitBreaker.succeeded, CircuitBreaker.failed])
def test_late_answers_change_nothing_while_it_is_open(said: Callable[[CircuitBreaker, float], None]) -> None:
    breaker = opened()
    said(breaker, 10)
    assert breaker.state == "open" and breaker.wait(10) == OPEN_SECONDS - 10


def test_reset_closes_and_forgets() -> None:
    breaker = opened()
    fail_trial(breaker, 0)
    breaker.reset()
    assert breaker.state == "closed" and breaker.allows(0)
    for _ in range(FAILURES):
        breaker.failed(1000)
    assert breaker.wait(1000) == OPEN_SECONDS


STEPS = st.lists(
    st.tuples(st.floats(0, 400, allow_nan=False), st.sampled_from(["allows", "succeeded", "failed"])), max_size=200
)


@given(STEPS, st.sampled_from([None, 1, RECOVERIES]))
def test_the_breaker_can_always_close_again_in_bounded_time(
    steps: list[tuple[float, str]], recoveries: int | None
) -> None:
    breaker, now, trial = CircuitBreaker(recoveries), 0.0, False
    for passed, what in steps:
        now += passed
        before = breaker.state
        if what == "allows":
            allowed = breaker.allows(now)
            assert allowed == (before == "closed" or (before == "open" and breaker.state == "half-open"))
        elif what == "succeeded":
            breaker.succeeded(now)
        else:
            breaker.failed(now)
        trial = breaker.state == "half-open"
        assert breaker.wait(now) <= (QUIET_SECONDS if recoveries is not None else MAX_OPEN_SECONDS) + ROUNDING
        assert (breaker.wait(now) == 0) or breaker.state != "closed"
    if trial:
        breaker.failed(now)
    now += breaker.wait(now) + ROUNDING
    assert breaker.allows(now)
    breaker.succeeded(now)
    assert breaker.state == "closed"
