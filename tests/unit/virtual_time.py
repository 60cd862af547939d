"""An event loop in virtual time: when no task is ready, time jumps to the next timer.

A wait of an hour takes no time, a test never races a clock, and a sleep that ends has seen everything happen that
could happen before it.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")


class Clock(selectors.SelectSelector):
    """Instead of waiting, moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """The events that are ready now; no outside event ever becomes ready."""
        self.wait(timeout)
        return super().select(0)

    def wait(self, timeout: float | None) -> None:
        """Let `timeout` seconds pass."""
        if timeout is None:
            raise RuntimeError("every task waits, and nothing will ever wake one")
        self.now += max(0.0, timeout)


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop on that clock."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        """Seconds since the loop was made, as it believes."""
        return self._clock.now


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a plain test of a coroutine function, on a `VirtualLoop`; a failing callback of the loop fails it."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        failures: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.get_loop().set_exception_handler(lambda _loop, context: failures.append(context))
            runner.run(test(*args, **kwargs))
        assert not failures

    return run


async def quiet() -> None:
    """Until all that can happen at this instant has happened."""
    await asyncio.sleep(1e-6)


async def later(seconds: float) -> None:
    """So much later, when all has happened that does in that time."""
    await asyncio.sleep(seconds)
