"""The node's pulse: its lease renewed in time, and proof that it hears what it says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from gateway.cluster.bus import Bus
from gateway.cluster.link import Unavailable
from gateway.cluster.registry import Beat, Registry
from gateway.logs import logger
from gateway.metrics import Metrics

BEATS_A_LEASE: Final = 5
RETRY_SECONDS: Final = 0.3  # without a lease the node is unready, and need not stay so until the next beat is due
REAP_AFTER_SECONDS: Final = 0.05


class Heartbeat:
    """Beats `BEATS_A_LEASE` times a lease, at once when `wake` says so, and soon again when the lease was not renewed.

    At each beat `renewed` is called with what the registry found, and does what hangs on it; an `Unavailable` of it
    counts as the beat's own. Then, however the beat went, `beaten` is called.
    """

    def __init__(
        self, registry: Registry, bus: Bus, metrics: Metrics, *, lease_seconds: float,
        renewed: Callable[[Beat], Awaitable[None]], beaten: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._registry = registry
        self._bus = bus
        self._metrics = metrics
        self._interval = lease_seconds / BEATS_A_LEASE
        self._renewed = renewed
        self._beaten = beaten
        self._log = logger()
        self._wanted = asyncio.Event()
        self._lease_ends = math.inf  # loop time at which the next lease of any node ends, if it is not renewed
        self.reason: str | None = "lease not yet taken"  # why the node has no lease to rely on; None: it has

    def wake(self) -> None:
        """Beat now."""
        self._wanted.set()

    async def run(self) -> None:
        """Beat, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._wanted.clear()
            began = loop.time()
            await asyncio.gather(self._renew(), self._check())
            await self._beaten()
            due = began + (self._interval if self.reason is None else min(RETRY_SECONDS, self._interval))
            # A dead node is buried when its lease ends, not at the beat after.
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(due, self._lease_ends + REAP_AFTER_SECONDS)):
                    await self._wanted.wait()

    async def _renew(self) -> None:
        self._lease_ends = math.inf
        try:
            beat = await self._registry.beat()
            self.reason = None
            self._lease_ends = asyncio.get_running_loop().time() + beat.following
            await self._renewed(beat)
        except Unavailable as error:
            self.reason = f"lease not renewed: {error}"

    async def _check(self) -> None:
        try:
            self._metrics.self_check.observe(await self._bus.check())
        except Unavailable as error:
            self._log.warning("self-check failed", reason=str(error))
