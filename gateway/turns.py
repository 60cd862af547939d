"""Long work in turns of the event loop: a part each, so that what else is due comes between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeVar

TURN_ITEMS: Final = 250  # topics or clients of which a turn does something: about a millisecond

T = TypeVar("T")


async def in_turns(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """`items` in order, `TURN_ITEMS` at a time; each part but the first in a turn of its own."""
    for at in range(0, len(items), TURN_ITEMS):
        if at:
            await asyncio.sleep(0)
        yield items[at : at + TURN_ITEMS]
