"""gateway.cluster.connection_limits: what a node asks Redis about its newcomers, and how it counts alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest

from gateway.broker.client import Unavailable
from gateway.broker.keys import Keys
from gateway.cluster.connection_limits import MAX_CALLS, RETRY_SECONDS, STEP_ROWS, STORM_SECONDS, ConnectionLimits
from tests.unit.virtual_time import in_virtual_time, later, quiet

LEASE = 10.0
KEYS = Keys("", False)


@dataclass
class Call:
    """One call of the script: what it was given, and when."""

    at: float
    keys: list[str]
    lease_ms: int
    whole: int
    limits: tuple[int, int]
    others: list[str]
    rows: dict[str, int]
    newcomers: list[tuple[str, str]]


class Redis:
    """Stands for the `RedisClient`. It lets all newcomers in unless the test has put an answer."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: list[list[Any] | Exception] = []
        self.away = False
        self.open = asyncio.Event()  # answers are given
        self.open.set()
        self.asked: list[tuple[Any, ...]] = []

    def script(self, _name: str) -> Any:
        return lambda keys, arguments: (keys, arguments)

    async def execute(self, keys: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        _node, lease_ms, whole, user, address, others, rows, *rest = arguments
        names, rest = rest[:others], rest[others:]
        counts, newcomers = rest[: 2 * rows], rest[2 * rows :]
        call = Call(
            asyncio.get_running_loop().time(), list(keys), lease_ms, whole, (user, address), names,
            dict(zip(counts[::2], counts[1::2], strict=True)), list(zip(newcomers[::2], newcomers[1::2], strict=True)),
        )  # fmt: skip
        self.calls.append(call)
        await self.open.wait()
        if self.away:
            raise Unavailable("away")
        answer = self.answers.pop(0) if self.answers else [0, *(0 for _ in call.newcomers)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def execute_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        self.asked += commands
        return [1 for _ in commands]


@asynccontextmanager
async def running(redis: Redis, *, user: int = 2, address: int = 3) -> AsyncIterator[ConnectionLimits]:
    """Slots of the node "me" that take steps."""
    connection_limits = ConnectionLimits(
        cast(Any, redis), KEYS, "me", lease_seconds=LEASE, user_limit=user, address_limit=address
    )
    task = asyncio.create_task(connection_limits.run())
    try:
        yield connection_limits
    finally:
        task.cancel()


async def take(connection_limits: ConnectionLimits, count: int, prefix: str = "u") -> list[Any]:
    """So many newcomers at once, each with a user of its own."""
    return await asyncio.gather(*(connection_limits.acquire(f"{prefix}{number}", None) for number in range(count)))


@in_virtual_time
async def test_a_newcomer_is_counted_by_the_step_that_lets_it_in_and_released_by_the_next() -> None:
    redis = Redis()
    async with running(redis) as connection_limits:
        assert await connection_limits.acquire("ann", "10.0.0.1") is None
        first = redis.calls[0]
        assert (first.keys, first.lease_ms, first.whole, first.limits) == (
            [KEYS.connection_nodes, KEYS.node_connections("me")], 10_000, 1, (2, 3),
        )  # fmt: skip
        assert (first.rows, first.newcomers) == ({}, [("user:ann", "address:10.0.0.1")])
        assert await connection_limits.acquire("bob", None) is None
        assert (redis.calls[1].whole, redis.calls[1].rows) == (0, {}), "the step itself has counted ann"
        connection_limits.release("ann", "10.0.0.1")
        await later(0.1)
        assert redis.calls[2].rows == {"user:ann": 0, "address:10.0.0.1": 0}
        assert redis.calls[2].newcomers == []
        assert len(redis.calls) == 3


@in_virtual_time
async def test_a_rejected_connection_gets_the_name_of_the_limit_and_is_not_counted() -> None:
    redis = Redis()
    redis.answers = [[0, 1], [0, 2], [1], [0]]
    async with running(redis) as connection_limits:
        assert await connection_limits.acquire("ann", "ip") == "user_connections"
        assert await connection_limits.acquire("ann", "ip") == "address_connections"
        connection_limits.rewrite()
        await later(0.1)
        assert redis.calls[-1].whole == 1, "the lease was gone: all counts are written"
        assert redis.calls[-1].rows == {}, "and there are none"


@in_virtual_time
async def test_newcomers_during_a_step_share_the_next_one() -> None:
    redis = Redis()
    async with running(redis) as connection_limits:
        redis.open.clear()
        first = asyncio.create_task(connection_limits.acquire("first", None))
        await quiet()
        others = asyncio.create_task(take(connection_limits, 100))
        await quiet()
        redis.open.set()
        assert [await first, *await others] == [None] * 101
        assert [len(call.newcomers) for call in redis.calls] == [1, 100]


@in_virtual_time
async def test_a_full_step_is_followed_at_once_and_a_storm_waits_for_more() -> None:
    redis = Redis()
    async with running(redis) as connection_limits:
        await asyncio.gather(take(connection_limits, 2 * STEP_ROWS + 1))
        assert [len(call.newcomers) for call in redis.calls] == [STEP_ROWS, STEP_ROWS, 1]
        assert redis.calls[1].at == redis.calls[0].at
        assert redis.calls[2].at == pytest.approx(redis.calls[1].at + STORM_SECONDS)
        await later(1)
        await take(connection_limits, 3, "v")
        before = redis.calls[-1].at
        await connection_limits.acquire("last", None)
        assert redis.calls[-1].at == pytest.approx(before + 0.015)


@in_virtual_time
async def test_steps_renew_the_lease_twice_while_nothing_happens() -> None:
    redis = Redis()
    async with running(redis):
        await later(2.2 * LEASE)
        assert [round(call.at) for call in redis.calls] == [5, 10, 15, 20]


@in_virtual_time
async def test_a_limit_of_0_counts_nothing() -> None:
    redis = Redis()
    connection_limits = ConnectionLimits(
        cast(Any, redis), KEYS, "me", lease_seconds=LEASE, user_limit=0, address_limit=0
    )
    await connection_limits.run()  # it has nothing to do
    assert await connection_limits.acquire("ann", "ip") is None
    connection_limits.release("ann", "ip")
    assert redis.calls == []
    async with running(redis, user=0) as connection_limits:
        assert await connection_limits.acquire("ann", "ip") is None
        assert redis.calls[0].newcomers == [("", "address:ip")]
        assert await connection_limits.acquire("ann", None) is None
        assert len(redis.calls) == 1
    async with running(redis, address=0) as connection_limits:
        assert await connection_limits.acquire("ann", "ip") is None
        assert redis.calls[1].newcomers == [("user:ann", "")]
        assert await connection_limits.acquire(None, "ip") is None
        assert len(redis.calls) == 2


@in_virtual_time
async def test_nodes_that_were_not_known_are_added_up_in_the_same_step_and_remembered() -> None:
    redis = Redis()
    redis.answers = [[2, b"b", b"me", b"a"], [0, 0]]
    async with running(redis) as connection_limits:
        assert await connection_limits.acquire("ann", None) is None
        again = redis.calls[1]
        assert (again.others, again.keys[1:]) == (
            ["a", "b"],
            [KEYS.node_connections(node) for node in ("me", "a", "b")],
        )
        assert again.newcomers == redis.calls[0].newcomers
        await connection_limits.acquire("bob", None)
        assert redis.calls[2].others == ["a", "b"]
        assert len(redis.calls) == 3


@in_virtual_time
async def test_a_step_is_given_up_when_nodes_change_during_each_call() -> None:
    redis = Redis()
    redis.answers = [[2, b"%d" % number] for number in range(100)]
    async with running(redis) as connection_limits:
        assert await connection_limits.acquire("ann", None) is None  # as the node counts alone
        assert len(redis.calls) == MAX_CALLS


@in_virtual_time
async def test_without_redis_a_node_counts_its_own_connections_and_writes_them_afterwards() -> None:
    redis = Redis()
    async with running(redis) as connection_limits:
        await connection_limits.acquire("ann", "ip")
        redis.away = True
        waited = [await connection_limits.acquire("ann", "ip"), await connection_limits.acquire("ann", "ip")]
        assert waited == [None, "user_connections"]
        assert await connection_limits.acquire("bob", "ip") is None
        assert await connection_limits.acquire("cid", "ip") == "address_connections"
        assert await connection_limits.acquire("cid", "other") is None
        calls = len(redis.calls)
        assert calls == 2, "no newcomer waits for a Redis that is away"
        await later(RETRY_SECONDS - 0.1)
        assert len(redis.calls) == calls
        await later(0.2)
        assert len(redis.calls) == calls + 1
        redis.away = False
        await later(RETRY_SECONDS)
        assert redis.calls[-1].rows == {
            "user:ann": 2, "address:ip": 3, "user:bob": 1, "user:cid": 1, "address:other": 1,
        }  # fmt: skip
        assert redis.calls[-1].whole == 0
        calls = len(redis.calls)
        await connection_limits.acquire("dan", None)
        assert len(redis.calls) == calls + 1, "Redis is asked again"
        assert redis.calls[-1].rows == {}


@in_virtual_time
async def test_a_first_step_that_failed_is_a_whole_one_again() -> None:
    redis = Redis()
    redis.away = True
    async with running(redis) as connection_limits:
        await connection_limits.acquire("ann", None)
        redis.away = False
        await later(RETRY_SECONDS + 0.1)
        assert [(call.whole, call.rows) for call in redis.calls] == [(1, {}), (1, {"user:ann": 1})]


@in_virtual_time
async def test_when_the_lease_was_gone_all_counts_are_written_and_the_newcomers_asked_for_again() -> None:
    redis = Redis()
    async with running(redis, user=9) as connection_limits:
        await connection_limits.acquire("ann", None)
        await connection_limits.acquire("ann", None)
        redis.answers = [[1], [0, 0]]
        assert await connection_limits.acquire("bob", None) is None
        assert [(call.whole, call.rows) for call in redis.calls[2:]] == [(0, {}), (1, {"user:ann": 2})]
        assert redis.calls[3].newcomers == redis.calls[2].newcomers


@in_virtual_time
async def test_many_counts_are_written_in_parts() -> None:
    redis = Redis()
    async with running(redis, user=9) as connection_limits:
        redis.away = True
        await take(connection_limits, 1)
        await take(connection_limits, 2 * STEP_ROWS + 10, "v")  # as the node counts alone
        redis.away = False
        await later(RETRY_SECONDS + 0.1)
        parts = redis.calls[1:]
        assert [len(call.rows) for call in parts] == [STEP_ROWS, STEP_ROWS, 11]
        assert [call.whole for call in parts] == [1, 0, 0], "only the first drops what was there"
        assert len({who for call in parts for who in call.rows}) == 2 * STEP_ROWS + 11


@in_virtual_time
async def test_when_the_lease_ends_between_two_parts_all_are_written_again() -> None:
    redis = Redis()
    async with running(redis, user=9) as connection_limits:
        redis.away = True
        await take(connection_limits, STEP_ROWS + 10)
        redis.away = False
        redis.answers = [[0], [1]]
        await later(RETRY_SECONDS + 0.1)
        parts = redis.calls[1:]
        assert [(len(call.rows), call.whole) for call in parts] == [
            (STEP_ROWS, 1), (10, 0), (STEP_ROWS, 1), (10, 0),
        ]  # fmt: skip


@in_virtual_time
async def test_a_newcomer_that_went_before_the_answer_leaves_no_count() -> None:
    redis = Redis()
    async with running(redis) as connection_limits:
        redis.open.clear()
        gone = asyncio.create_task(connection_limits.acquire("ann", None))
        await quiet()
        gone.cancel()
        redis.open.set()
        await later(0.1)
        assert [call.rows for call in redis.calls] == [{}, {"user:ann": 0}]


@in_virtual_time
async def test_a_newcomer_that_goes_in_the_turn_of_its_answer_gives_its_slot_back() -> None:
    redis = Redis()
    redis.away = True
    async with running(redis) as connection_limits:
        gone = asyncio.create_task(connection_limits.acquire("ann", None))
        while not connection_limits._redis_away:  # noqa: ASYNC110  the turn in which it is accepted
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert connection_limits._held == {}


@in_virtual_time
async def test_a_node_that_leaves_removes_its_counts_and_itself_from_the_index() -> None:
    redis = Redis()
    connection_limits = ConnectionLimits(
        cast(Any, redis), KEYS, "me", lease_seconds=LEASE, user_limit=1, address_limit=1
    )
    await connection_limits.release_all()
    assert redis.asked == [("UNLINK", KEYS.node_connections("me")), ("ZREM", KEYS.connection_nodes, "me")]
