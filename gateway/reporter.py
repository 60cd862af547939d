"""How the node is, measured all the time and told to administrators every few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gateway.cluster.link import Unavailable
from gateway.core import figures
from gateway.core.figures import Reading
from gateway.core.publication import Publication
from gateway.core.topics import FIGURES
from gateway.metrics import Metrics
from gateway.relay import Relay

LAG_SECONDS: Final = 0.25  # between two looks at how late the event loop is


class Reporter:
    """Tells what the instruments say, beside what the node says `about` itself."""

    def __init__(self, relay: Relay, metrics: Metrics, about: Callable[[], dict[str, Any]]) -> None:
        self._relay = relay
        self._metrics = metrics
        self._about = about
        self._now = asyncio.Event()

    def hurry(self) -> None:
        """Tell at once: what has changed may be over before the next time."""
        self._now.set()

    async def run(self) -> None:
        """Tell, without end."""
        before = self._read()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(figures.SECONDS):
                    await self._now.wait()
            self._now.clear()
            after = self._read()
            told = {**self._about(), **figures.between(before, after)}
            with suppress(Unavailable):  # the node's reasons and log say so; the next telling says it again
                await self._relay.publish([Publication(FIGURES, told)])
            before = after

    async def measure_lag(self) -> None:
        """Measure how late the event loop wakes whoever waits for a moment, without end."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._metrics.loop_lag.observe(max(0.0, loop.time() - due))

    def _read(self) -> Reading:
        return Reading(asyncio.get_running_loop().time(), *self._metrics.totals())
