"""Measures the node and publishes the figures for administrators every few seconds."""

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

LAG_SECONDS: Final = 0.25  # between two measurements of the event loop's lag


class Reporter:
    """Publishes the measurements of the node together with its status, which `about` returns."""

    def __init__(self, relay: Relay, metrics: Metrics, about: Callable[[], dict[str, Any]]) -> None:
        self._relay = relay
        self._metrics = metrics
        self._about = about
        self._requested = asyncio.Event()

    def publish_now(self) -> None:
        """Publish now: a change of status may be over before the next interval."""
        self._requested.set()

    async def run(self) -> None:
        """Publish at each interval until cancelled."""
        before = self._read()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(figures.SECONDS):
                    await self._requested.wait()
            self._requested.clear()
            after = self._read()
            status = {**self._about(), **figures.between(before, after)}
            with suppress(Unavailable):  # readiness and the log show it; the next message replaces this one
                await self._relay.publish([Publication(FIGURES, status)])
            before = after

    async def measure_lag(self) -> None:
        """Measure how late the event loop runs timers, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._metrics.loop_lag.observe(max(0.0, loop.time() - due))

    def _read(self) -> Reading:
        return Reading(asyncio.get_running_loop().time(), *self._metrics.totals())
