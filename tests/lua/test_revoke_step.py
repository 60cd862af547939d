"""revoke: revocations of tokens and users, and their version."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from gateway.broker.keys import Keys
from tests.lua.steps import Steps

TEN_YEARS = 315_360_000
versions = itertools.count()


@pytest.fixture
def rows(keys: Keys) -> list[str]:
    """What is revoked, users, the version."""
    return [keys.revoked, keys.revoked_users, keys.revoked_version]


def revoke(
    steps: Steps,
    rows: list[str],
    *revocations: tuple[str, float, str],
    most: int = 1000,
    head: str = "",
    tail: str = "",
) -> Any:
    """Write (name, until, before); the moment that the step answers as text, or 0."""
    arguments = [part for name, until, before in revocations for part in (name, repr(until), before)]
    return steps.call("revoke_tokens", rows, f"v{next(versions)}", most, "control", head, tail, *arguments)


def ends(steps: Steps, rows: list[str]) -> set[int]:
    """When the keys expire that there are, in seconds since 1970."""
    return {steps.redis.expiretime(key) for key in rows if steps.redis.exists(key)}


@pytest.fixture
def soon(steps: Steps) -> float:
    """A moment in an hour, in seconds since 1970."""
    return steps.now_ms() // 1000 + 3600.25


def test_a_revoked_token_is_published_to_all_nodes_once(steps: Steps, rows: list[str], soon: float) -> None:
    assert revoke(steps, rows, ("token:t1", soon, "0"), head="<", tail=">") == b"0.0"
    assert steps.published() == [("control", b"<0.0>")]
    assert steps.scores(rows[0]) == {"token:t1": soon}
    assert not steps.redis.exists(rows[1])
    assert steps.redis.get(rows[2]).startswith(b"v")
    assert ends(steps, rows) == {math.ceil(soon) + 1}


def test_a_user_is_revoked_up_to_now_in_redis_time(steps: Steps, rows: list[str], soon: float) -> None:
    before = steps.now_us()
    moment = revoke(steps, rows, ("user:ann", soon, "now"), head="<", tail=">")
    assert before <= float(moment) * 1e6 <= steps.now_us() + 1
    assert moment.partition(b".")[2].isdigit()
    assert len(moment.partition(b".")[2]) == 6
    assert steps.published() == [("control", b"<" + moment + b">")]
    assert steps.scores(rows[0]) == {"user:ann": soon}
    assert steps.scores(rows[1]) == {"user:ann": float(moment)}
    assert ends(steps, rows) == {math.ceil(soon) + 1}


def test_a_user_is_revoked_up_to_a_given_moment(steps: Steps, rows: list[str], soon: float) -> None:
    assert revoke(steps, rows, ("user:ann", soon, "1700000000.125")) == b"1700000000.125"
    assert steps.scores(rows[1]) == {"user:ann": 1_700_000_000.125}


def test_many_are_written_in_one_step(steps: Steps, rows: list[str], soon: float) -> None:
    with steps.silence():
        assert (
            revoke(steps, rows, ("user:ann", soon, "5.5"), ("token:t", soon + 1, "0"), ("user:bob", soon, "7.5"))
            == b"7.5"
        )
    assert steps.scores(rows[0]) == {"user:ann": soon, "token:t": soon + 1, "user:bob": soon}
    assert steps.scores(rows[1]) == {"user:ann": 5.5, "user:bob": 7.5}
    many = [(f"token:{at}", soon, "0") for at in range(2000)]
    assert revoke(steps, rows, *many, most=5000) == b"0.0"
    assert steps.redis.zcard(rows[0]) == 2003


def test_each_write_gives_another_version(steps: Steps, rows: list[str], soon: float) -> None:
    revoke(steps, rows, ("token:t1", soon, "0"))
    first = steps.redis.get(rows[2])
    revoke(steps, rows, ("token:t1", soon, "0"))
    assert steps.redis.get(rows[2]) not in (first, None)


def test_a_late_write_takes_nothing_back(steps: Steps, rows: list[str], soon: float) -> None:
    revoke(steps, rows, ("user:ann", soon, "100.5"))
    revoke(steps, rows, ("user:ann", soon - 60, "99.5"))
    assert steps.scores(rows[0]) == {"user:ann": soon}
    assert steps.scores(rows[1]) == {"user:ann": 100.5}
    assert ends(steps, rows) == {math.ceil(soon) + 1}
    revoke(steps, rows, ("user:ann", soon + 60, "101.5"))
    assert steps.scores(rows[0]) == {"user:ann": soon + 60}
    assert steps.scores(rows[1]) == {"user:ann": 101.5}


def test_the_keys_live_as_long_as_the_longest_revocation(steps: Steps, rows: list[str], soon: float) -> None:
    revoke(steps, rows, ("user:ann", soon, "1.5"), ("token:t", soon + 500, "0"), ("token:u", soon + 5, "0"))
    assert ends(steps, rows) == {math.ceil(soon + 500) + 1}
    revoke(steps, rows, ("token:v", soon, "0"))
    assert ends(steps, rows) == {math.ceil(soon + 500) + 1}


def test_the_keys_live_ten_years_at_most(steps: Steps, rows: list[str]) -> None:
    before = steps.now_ms() // 1000
    revoke(steps, rows, ("user:ann", 1e300, "1.5"))
    [end] = ends(steps, rows)
    assert before + TEN_YEARS + 1 <= end <= steps.now_ms() // 1000 + TEN_YEARS + 1


def test_more_than_there_may_be_are_refused(steps: Steps, rows: list[str], soon: float) -> None:
    revoke(steps, rows, ("token:t1", soon, "0"), ("user:ann", soon, "1.5"), most=3)
    with steps.nothing_done():
        assert revoke(steps, rows, ("token:t2", soon, "0"), ("token:t3", soon, "0"), most=3, head="<", tail=">") == 0
    assert revoke(steps, rows, ("token:t2", soon, "0"), ("token:t1", soon + 1, "0"), most=3) == b"0.0"
    with steps.nothing_done():
        assert revoke(steps, rows, ("user:bob", soon, "now"), most=3, head="<", tail=">") == 0
    assert revoke(steps, rows, ("user:ann", soon, "2.5"), most=3) == b"2.5"


def test_what_is_over_is_forgotten_and_makes_room(steps: Steps, rows: list[str], soon: float) -> None:
    now = steps.now_ms() // 1000
    steps.redis.zadd(rows[0], {"user:old": now - 1, "token:old": now - 60, "user:ann": soon})
    steps.redis.zadd(rows[1], {"user:old": 1.5, "user:ann": 2.5})
    assert revoke(steps, rows, ("token:t1", soon, "0"), ("token:t2", soon, "0"), most=3) == b"0.0"
    assert steps.scores(rows[0]).keys() == {"user:ann", "token:t1", "token:t2"}
    assert steps.scores(rows[1]) == {"user:ann": 2.5}


def test_a_single_one_that_is_over_is_forgotten(steps: Steps, rows: list[str], soon: float) -> None:
    steps.redis.zadd(rows[0], {"user:old": steps.now_ms() // 1000})
    steps.redis.zadd(rows[1], {"user:old": 1.5})
    revoke(steps, rows, ("token:t", soon, "0"))
    assert steps.scores(rows[0]) == {"token:t": soon}
    assert not steps.redis.exists(rows[1])


def test_at_most_a_thousand_are_forgotten_at_once(steps: Steps, rows: list[str], soon: float) -> None:
    steps.redis.zadd(rows[0], {f"user:{at}": 1 for at in range(1500)})
    steps.redis.zadd(rows[1], {f"user:{at}": 1 for at in range(1500)})
    revoke(steps, rows, ("token:t", soon, "0"), most=10_000)
    assert (steps.redis.zcard(rows[0]), steps.redis.zcard(rows[1])) == (501, 500)
    revoke(steps, rows, ("token:t", soon, "0"), most=10_000)
    assert steps.scores(rows[0]) == {"token:t": soon}
    assert not steps.redis.exists(rows[1])


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_key_of_another_type_is_replaced_and_the_others_stay(
    steps: Steps, rows: list[str], soon: float, broken: int
) -> None:
    revoke(steps, rows, ("user:ann", soon, "1.5"))
    steps.redis.delete(rows[broken])
    steps.redis.hset(rows[broken], "x", "y")
    assert revoke(steps, rows, ("user:bob", soon, "2.5")) == b"2.5"
    assert steps.scores(rows[0]).keys() == ({"user:bob"} if broken == 0 else {"user:ann", "user:bob"})
    assert steps.scores(rows[1]).keys() == ({"user:bob"} if broken == 1 else {"user:ann", "user:bob"})
    assert steps.redis.type(rows[2]) == b"string"


def test_without_memory_nothing_is_written(steps: Steps, rows: list[str], soon: float) -> None:
    revoke(steps, rows, ("user:ann", soon, "1.5"))
    steps.redis.config_set("maxmemory", 1)
    try:
        with steps.nothing_done(), pytest.raises(OutOfMemoryError):
            revoke(steps, rows, ("user:bob", soon, "now"), head="<", tail=">")
    finally:
        steps.redis.config_set("maxmemory", 0)
