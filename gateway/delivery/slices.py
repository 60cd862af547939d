"""Splits long work over turns of the event loop, so that other work runs in between."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")
SLICE_ITEMS: Final = 250  # topics or clients that one turn handles: about a millisecond
# Handles an item; returns the number of further items that it handled, if any.
Act = Callable[[T], int | None]


async def in_slices(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """Yield `items` in order, `SLICE_ITEMS` at a time, each part except the first in its own turn."""
    for at in range(0, len(items), SLICE_ITEMS):
        if at:
            await asyncio.sleep(0)
        yield items[at : at + SLICE_ITEMS]


def each_in_slices(items: Iterable[T], act: Act[T]) -> None:
    """Call `act` with each of `items` in order: with the first `SLICE_ITEMS` at once, with the rest in later turns.

    A turn ends earlier if `act` returns that it handled further items. If these are `SLICE_ITEMS` or more, `act` is
    called again with the same item in the next turn. A call that starts earlier stays ahead of one that starts later.
    """
    _act_on_some(iter(items), act)


def _act_on_some(items: Iterator[T], act: Act[T], again: Sequence[T] = ()) -> None:
    done = 0
    for item in itertools.chain(again, items):
        further = act(item) or 0
        done += 1 + further
        if done >= SLICE_ITEMS:
            again = [item] if further >= SLICE_ITEMS else []
            asyncio.get_running_loop().call_soon(_act_on_some, items, act, again)
            return


class SlicedQueue:
    """Runs jobs one after another, each over as many turns as it needs.

    A job is an iterator; each step handles at most about `SLICE_ITEMS` items.
    """

    def __init__(self) -> None:
        self._jobs: deque[Iterator[object]] = deque()  # the first has begun

    def add(self, job: Iterator[object]) -> None:
        """Run the first step of `job` at once if no other job is running; the rest follows in later turns."""
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._step()

    def _step(self) -> None:
        done = True
        try:
            done = next(self._jobs[0], self) is self
        finally:  # a job that fails ends, and the next starts
            if done:
                self._jobs.popleft()
            if self._jobs:
                asyncio.get_running_loop().call_soon(self._step)
