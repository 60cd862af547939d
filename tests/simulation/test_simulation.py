"""Histories of a simulated cluster: random ones, and the shortest of those that found a fault once."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import pytest

from tests.simulation import network
from tests.simulation.histories import OOM, Step, random_steps
from tests.simulation.search import play, shortest, shrink
from tests.simulation.world import World, run_history

# A node that is killed here leaves its connections behind, as a process does that ends without a word.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BLOCKS = 10  # that the random histories are divided into, so that all cores play them
BLOCK = 50  # histories in each

# What each found is in its name. Most need an order of events that no other test makes.
FOUND = {
    "a node with other rules publishes to a topic without its history": (1010, [
        Step(0.3, "kill", (0,)),
        Step(0.0, "start", (0, "other")),
        Step(0.3, "subscribe", (2, ("plain1",))),
    ]),
    "rows are lost under a living lease": (65, [
        Step(0.05, "save", ()),
        Step(0.3, "publish", ("conflated1", 1)),
        Step(0.05, "restart", (0.01, True)),
    ]),
    "a last value is forgotten while a newcomer waits for it": (430, [
        Step(0.0, "publish", ("history2", 0)),
        Step(0.05, "publish", ("value1", 1)),
        Step(0.002, "disconnect", (0,)),
        Step(0.002, "ask", (1, "room1", "presence")),
        Step(0.3, "publish", ("history2", 1)),
        Step(0.05, "start", (2, None)),
        Step(0.0, "subscribe", (0, ("history1", "conflated1", "snapshot1", "value1"))),
    ]),
    "a member who left is in Redis again": (10113, [
        Step(0.0, "ask", (1, "room1", "presence")),
        Step(0.002, "subscribe", (2, ("room1",))),
        Step(0.05, "publish", ("history2", 0)),
        Step(0.05, "publish", ("history2", 0)),
        Step(0.0, "publish", ("snapshot1", 1)),
        Step(0.3, "publish", ("room1", 1)),
        Step(0.3, "freeze", (0.5,)),
        Step(0.002, "cut", (2,)),
        Step(0.0, "subscribe", (3, ("value1", "conflated1", "plain1", "snapshot1"))),
        Step(0.3, "save", ()),
        Step(0.002, "publish", ("room1", 0)),
        Step(0.3, "subscribe", (2, ("history1",))),
        Step(0.002, "restart", (0.5, True)),
    ]),
    "a subscriber moves to a node with other rules, which has no history of its topic": (6, [
        Step(0.0, "subscribe", (3, ("history2",))),
        Step(0.0, "start", (2, "other")),
        Step(1.2, "kill", (0,)),
    ]),
    "a client in a room becomes a user": (39, [
        Step(0.0, "subscribe", (1, ("room1", "snapshot1"))),
        Step(0.3, "login", (1, "ann")),
    ]),
    "writes are refused while a client subscribes again": (23, [
        Step(0.05, "publish", ("history1", 1)),
        Step(0.0, "subscribe", (3, ("history2", "history1"))),
        Step(0.0, "subscribe", (1, ("snapshot1",))),
        Step(0.002, "subscribe", (3, ("snapshot1", "value1", "conflated1", "history1"))),
        Step(0.0, "flush", ()),
        Step(0.002, "refuse", (OOM, 1.0)),
        Step(0.0, "cut", (3,)),
        Step(0.3, "unsubscribe", (3, "value1")),
    ]),
    "a client leaves while its node reads the stream for it": (1823185782, [
        Step(0.0, "subscribe", (0, ("snapshot1",))),
        Step(0.0, "subscribe", (1, ("value1", "snapshot1"))),
        Step(0.002, "publish", ("snapshot1", 2, 1)),
        Step(0.0, "publish", ("value1", 0)),
        Step(0.002, "subscribe", (0, ("value1",))),
        Step(0.0, "publish", ("value1", 1)),
        Step(0.002, "publish", ("value1", 1, 1)),
        Step(0.0, "publish", ("snapshot1", 1)),
        Step(0.0, "cut", (0, 0.0)),
    ]),
    "a client unsubscribes and subscribes again at once": (1298728995, [
        Step(0.0, "subscribe", (0, ("value1",))),
        Step(0.0, "subscribe", (3, ("value1",))),
        Step(0.002, "publish", ("value1", 0, 0)),
        Step(0.0, "publish", ("value1", 0, 2)),
        Step(0.002, "publish", ("value1", 0)),
        Step(0.0, "unsubscribe", (3, "value1")),
        Step(0.002, "subscribe", (3, ("value1",))),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("found", FOUND)
def test_a_history_that_found_a_fault_keeps_all_promises(found: str) -> None:
    seed, steps = FOUND[found]
    run_history(seed, steps)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_histories_keep_all_promises(block: int, record_property: Callable[[str, object], None]) -> None:
    started = time.process_time()
    for seed in range(BLOCK * block, BLOCK * (block + 1)):
        assert play(seed) is None, shortest(seed)
    record_property("histories", (BLOCK, time.process_time() - started))


def test_the_same_seed_gives_the_same_history() -> None:
    steps = random_steps(7)
    assert random_steps(7) == steps
    assert run_history(7, steps) == run_history(7, steps)


def test_a_history_that_does_not_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never_end(_self: World) -> None:
        for _ in itertools.count():
            await asyncio.sleep(1.0)

    monkeypatch.setattr(network, "MOST_CALLBACKS", 5000)
    monkeypatch.setattr(World, "do_save", never_end)
    with pytest.raises(network.Endless, match="does not end"):
        run_history(1, [Step(0.0, "subscribe", (0, ("plain1",))), Step(0.0, "save")])


def test_a_failing_history_is_made_as_short_as_it_can_be() -> None:
    steps = [Step(0, "publish", (f"topic{number}", 0)) for number in range(20)]

    def fails(_seed: int, some: object) -> str | None:
        assert isinstance(some, list)
        return "lost" if steps[3] in some and steps[17] in some else None

    assert shrink(1, steps, fails) == [steps[3], steps[17]]


def test_shrinking_ends_in_time() -> None:
    steps = [Step(0, "publish", ("topic", number)) for number in range(20)]
    assert shrink(1, steps, lambda _seed, _steps: "lost", seconds=0.0) == steps
