"""Renews the lease of the node and does nothing else, so that no other failure affects the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from gateway.broker.client import Impaired, Unavailable
from gateway.cluster.registry import Registry

BEATS_PER_LEASE: Final = 5
RETRY_SECONDS: Final = 0.3  # pause after a failure: without a lease the node is unready


class LeaseState:
    """Whether the node holds its lease, as far as the last heartbeat knows."""

    def __init__(self) -> None:
        self.reason: str | None = "lease not yet taken"  # why the node may have no lease; None: it has one
        self.impaired: str | None = None  # why no node could renew a lease; the node stays ready

    def problem(self) -> str | None:
        """Why the lease was not renewed; None: it was."""
        return self.reason or self.impaired


class Heartbeat:
    """Renews the lease `BEATS_PER_LEASE` times per lease, at once after `wake`, and soon after a failure.

    It calls `renewed` after each success. The argument is False if the lease had ended, so that Redis has no rows.
    """

    def __init__(
        self, registry: Registry, lease: LeaseState, *, lease_seconds: float, renewed: Callable[[bool], None]
    ) -> None:
        self._registry = registry
        self._lease = lease
        self._interval = lease_seconds / BEATS_PER_LEASE
        self._renewed = renewed
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Renew the lease now."""
        self._wanted.set()

    async def run(self) -> None:
        """Renew the lease until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._wanted.clear()
            due = loop.time() + self._interval
            await self._renew()
            if self._lease.reason is not None:
                due = loop.time() + min(RETRY_SECONDS, self._interval)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wanted.wait()

    async def _renew(self) -> None:
        try:
            kept = await self._registry.renew_lease()
        except Impaired as error:
            self._lease.reason, self._lease.impaired = None, str(error)
            return
        except Unavailable as error:
            self._lease.reason, self._lease.impaired = f"lease not renewed: {error}", None
            return
        self._lease.reason = self._lease.impaired = None
        self._renewed(kept)
