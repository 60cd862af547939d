"""Waits for a condition with a deadline, instead of fixed sleeps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP_SECONDS = 0.02


def until(holds: Callable[[], T], seconds: float = 10.0, what: str = "") -> T:
    """What `holds` returns once that is true, asked again and again for `seconds`; for code outside an event loop.

    Raises:
        AssertionError: It never was; `what` names it.
    """
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(_late(holds, seconds, what, found))
        time.sleep(STEP_SECONDS)
    return found


async def eventually(holds: Callable[[], object], seconds: float = 10.0, what: str = "") -> None:
    """`until` for code inside an event loop; `holds` may be a coroutine function.

    Raises:
        AssertionError: It never was; `what` names it.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        if time.monotonic() > deadline:
            raise AssertionError(_late(holds, seconds, what, found))
        await asyncio.sleep(STEP_SECONDS)


def _late(holds: Callable[[], object], seconds: float, what: str, found: object) -> str:
    if not what:
        try:
            what = inspect.getsource(holds).strip()
        except (OSError, TypeError):  # there is no source: of a partial, for one
            what = repr(holds)
    return f"not within {seconds:g} s: {what}; at last it gave {found!r}"
