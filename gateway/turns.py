"""Long work in turns of the event loop: a part each, so that what else is due comes between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, TypeVar

TURN_ITEMS: Final = 250  # topics or clients of which a turn does something: about a millisecond

T = TypeVar("T")


async def in_turns(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """`items` in order, `TURN_ITEMS` at a time; each part but the first in a turn of its own."""
    for at in range(0, len(items), TURN_ITEMS):
        if at:
            await asyncio.sleep(0)
        yield items[at : at + TURN_ITEMS]


def each_in_turns(items: Sequence[T], act: Callable[[T], object]) -> None:
    """Call `act` with each of `items` in order: with the first `TURN_ITEMS` at once, with the rest in the next turns.

    What is begun earlier stays ahead of what is begun later.
    """
    for item in items[:TURN_ITEMS]:
        act(item)
    if len(items) > TURN_ITEMS:
        asyncio.get_running_loop().call_soon(each_in_turns, items[TURN_ITEMS:], act)
