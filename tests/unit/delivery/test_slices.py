"""Long work in turns of the loop: in order, bounded in each turn, and what is begun earlier stays ahead."""

from __future__ import annotations

import asyncio

from gateway.delivery.slices import SLICE_ITEMS, each_in_slices, in_slices
from tests.unit.virtual_time import in_virtual_time, quiet


@in_virtual_time
async def test_each_is_acted_upon_in_order_so_many_a_turn_and_an_earlier_round_stays_ahead() -> None:
    items = list(range(3 * SLICE_ITEMS + 1))
    first: list[int] = []
    second: list[int] = []
    each_in_slices(items, first.append)
    assert len(first) == SLICE_ITEMS
    each_in_slices(items, lambda item: second.append(item if item in first[-SLICE_ITEMS - 1 :] else -1))
    for turn in range(2, 5):
        await asyncio.sleep(0)
        assert len(first) == min(turn * SLICE_ITEMS, len(items))
    await quiet()
    assert first == second == items


@in_virtual_time
async def test_an_item_counts_for_all_that_was_done_with_it() -> None:
    done: list[int] = []

    def act(item: int) -> int:
        done.append(item)
        return SLICE_ITEMS // 2

    each_in_slices(range(6), act)
    for turn in range(1, 4):
        assert len(done) == 2 * turn
        await asyncio.sleep(0)
    assert done == list(range(6))


@in_virtual_time
async def test_an_item_that_takes_a_whole_turn_comes_again_until_it_is_done() -> None:
    left = {"a": 3 * SLICE_ITEMS, "b": SLICE_ITEMS - 1, "c": 0}
    done: list[str] = []

    def act(item: str) -> int:
        done.append(item)
        part = min(left[item], SLICE_ITEMS)
        left[item] -= part
        return part

    each_in_slices(left, act)
    turns = []
    for _ in range(6):
        turns.append("".join(done))
        await asyncio.sleep(0)
    assert turns == ["a", "aa", "aaa", "aaaab", "aaaabc", "aaaabc"]


@in_virtual_time
async def test_parts_come_in_order_each_in_a_turn_of_its_own() -> None:
    items = list(range(2 * SLICE_ITEMS + 1))
    turns = [0]

    async def count() -> None:
        while True:
            await asyncio.sleep(0)
            turns[0] += 1

    counter = asyncio.create_task(count())
    await asyncio.sleep(0)
    found = [(turns[0], list(part)) async for part in in_slices(items)]
    counter.cancel()
    assert [item for _, part in found for item in part] == items
    assert len({turn for turn, _ in found}) == len(found) == 3
    nothing: list[int] = []
    assert [list(part) async for part in in_slices(nothing)] == []
