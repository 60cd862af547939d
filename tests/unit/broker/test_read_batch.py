"""Reads that are asked for in one turn of the loop go to Redis together."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.broker.client import CommandRefused, Unavailable
from gateway.broker.read_batch import MAX_COMMANDS, ReadBatch
from tests.unit.virtual_time import in_virtual_time, quiet


class Redis:
    """Answers each command with what it names, and keeps the round trips."""

    def __init__(self) -> None:
        self.trips: list[list[Any]] = []
        self.away = False
        self.gate: asyncio.Event | None = None  # nothing is answered until it is set

    async def execute_each(self, commands: list[Any]) -> list[Any]:
        self.trips.append(commands)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise Unavailable("away")
        return [CommandRefused("no") if name == "refused" else f"{name}!" for _, name in commands]


@in_virtual_time
async def test_what_is_asked_for_in_one_turn_is_one_round_trip_and_the_same_is_sent_once() -> None:
    redis = Redis()
    read_batch = ReadBatch(redis.execute_each, lambda _: None)
    asked = [read_batch.execute("GET", name) for name in "abca"]
    answers = await asyncio.gather(*asked, read_batch.execute_each([("GET", "d"), ("GET", "b")]))
    assert answers == ["a!", "b!", "c!", "a!", ["d!", "b!"]]
    assert redis.trips == [[("GET", name) for name in "abcd"]]
    assert await read_batch.execute("GET", "a") == "a!", "an answer is never used again"
    assert len(redis.trips) == 2


@in_virtual_time
async def test_a_round_trip_is_bounded() -> None:
    redis = Redis()
    read_batch = ReadBatch(redis.execute_each, lambda _: None)
    names = [str(at) for at in range(2 * MAX_COMMANDS + 5)]
    assert await asyncio.gather(*(read_batch.execute("GET", name) for name in names)) == [f"{name}!" for name in names]
    assert await read_batch.execute_each([("GET", name) for name in names]) == [f"{name}!" for name in names]
    assert len(redis.trips) == 6
    assert max(map(len, redis.trips)) == MAX_COMMANDS


@in_virtual_time
async def test_a_refusal_is_the_callers_own_and_an_outage_everybodys() -> None:
    redis = Redis()
    read_batch = ReadBatch(redis.execute_each, lambda _: None)
    good, bad, each = await asyncio.gather(
        read_batch.execute("GET", "a"),
        read_batch.execute("GET", "refused"),
        read_batch.execute_each([("GET", "refused"), ("GET", "b")]),
        return_exceptions=True,
    )
    assert good == "a!" and isinstance(bad, CommandRefused)
    assert isinstance(each, list) and isinstance(each[0], CommandRefused) and each[1] == "b!"
    redis.away = True
    found = await asyncio.gather(*(read_batch.execute("GET", name) for name in "ab"), return_exceptions=True)
    assert [type(one) for one in found] == [Unavailable, Unavailable]


@in_virtual_time
async def test_a_caller_that_gives_up_leaves_no_other_waiting() -> None:
    redis = Redis()
    redis.gate = asyncio.Event()
    read_batch = ReadBatch(redis.execute_each, lambda _: None)
    first, second, third = (asyncio.create_task(read_batch.execute("GET", name)) for name in "abc")
    await quiet()
    second.cancel()
    first.cancel()  # it began the batch
    await quiet()
    redis.gate.set()
    assert await third == "c!"
    assert await read_batch.execute("GET", "d") == "d!"


@in_virtual_time
async def test_a_server_that_is_away_affects_its_own_commands_only() -> None:
    async def ask_each(commands: list[Any]) -> list[Any]:
        if any(name.startswith("away") for _, name in commands):
            raise Unavailable("away")
        return [f"{name}!" for _, name in commands]

    read_batch = ReadBatch(ask_each, lambda command: str(command[1])[:1])
    names = ["b1", "away1", "b2", "c1", "away2"]
    found = await asyncio.gather(*(read_batch.execute("GET", name) for name in names), return_exceptions=True)
    assert [found[at] for at in (0, 2, 3)] == ["b1!", "b2!", "c1!"]
    assert [type(found[at]) for at in (1, 4)] == [Unavailable, Unavailable]
    assert await read_batch.execute_each([("GET", "c1"), ("GET", "b1")]) == ["c1!", "b1!"]
