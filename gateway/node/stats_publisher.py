"""Measures the node and publishes the figures for administrators every few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gateway.broker.client import Unavailable
from gateway.core import stats
from gateway.core.publication import Publication
from gateway.core.stats import StatsSample
from gateway.core.topic_rules import STATS
from gateway.delivery.publisher import MessagePublisher
from gateway.metrics import Metrics

LAG_SECONDS: Final = 0.25  # between two measurements of the event loop's lag


class StatsPublisher:
    """Publishes the measurements of the node together with its status, which `about` returns."""

    def __init__(self, publisher: MessagePublisher, metrics: Metrics, about: Callable[[], dict[str, Any]]) -> None:
        self._publisher = publisher
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
                async with asyncio.timeout(stats.SECONDS):
                    await self._requested.wait()
            self._requested.clear()
            after = self._read()
            status = {**self._about(), **stats.stats_between(before, after)}
            with suppress(Unavailable):  # readiness and the log show it; the next message replaces this one
                await self._publisher.publish([Publication(STATS, status)])
            before = after

    async def measure_lag(self) -> None:
        """Measure how late the event loop runs timers, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._metrics.loop_lag.observe(max(0.0, loop.time() - due))

    def _read(self) -> StatsSample:
        return StatsSample(asyncio.get_running_loop().time(), *self._metrics.totals())
