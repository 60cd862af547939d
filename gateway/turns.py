"""Long work in turns of the event loop: a part each, so that what else is due comes between."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")
TURN_ITEMS: Final = 250  # topics or clients of which a turn does something: about a millisecond
# Something to do with an item; it returns how many further items it did something of, if any.
Act = Callable[[T], int | None]


async def in_turns(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """`items` in order, `TURN_ITEMS` at a time; each part but the first in a turn of its own."""
    for at in range(0, len(items), TURN_ITEMS):
        if at:
            await asyncio.sleep(0)
        yield items[at : at + TURN_ITEMS]


def each_in_turns(items: Iterable[T], act: Act[T]) -> None:
    """Call `act` with each of `items` in order: with the first `TURN_ITEMS` at once, with the rest in the next turns.

    A turn ends earlier where `act` returns that it did something of further items. Where these are `TURN_ITEMS` or
    more, `act` is called again with the same item in the next turn. What is begun earlier stays ahead of what is begun
    later.
    """
    _act_on_some(iter(items), act)


def _act_on_some(items: Iterator[T], act: Act[T], again: Sequence[T] = ()) -> None:
    done = 0
    for item in itertools.chain(again, items):
        further = act(item) or 0
        done += 1 + further
        if done >= TURN_ITEMS:
            again = [item] if further >= TURN_ITEMS else []
            asyncio.get_running_loop().call_soon(_act_on_some, items, act, again)
            return


class InOrder:
    """Works that are done one after another, each in as many turns as it needs.

    A work is an iterator that does a part at each step, with at most about `TURN_ITEMS` items.
    """

    def __init__(self) -> None:
        self._works: deque[Iterator[object]] = deque()  # the first has begun

    def begin(self, work: Iterator[object]) -> None:
        """Do the first part of `work` at once, if no other work is being done; the rest follows in later turns."""
        self._works.append(work)
        if len(self._works) == 1:
            self._step()

    def _step(self) -> None:
        done = True
        try:
            done = next(self._works[0], self) is self
        finally:  # a work that fails ends, and the next begins
            if done:
                self._works.popleft()
            if self._works:
                asyncio.get_running_loop().call_soon(self._step)
