"""Singletons: one instance leads in the whole cluster, under a lease with a fencing token.

Whoever finds the lease free takes it, with a token greater than any before; the others wait for its end. A leader that
was frozen past its lease does not know it when it wakes. So what it writes carries its token and the end of its lease,
and Redis itself refuses what is late (append.lua, keep.lua): two checks, of which the clock's holds when Redis has
forgotten the tokens, and the tokens' when Redis has forgotten the lease.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.cluster.keys import Keys
from gateway.cluster.link import Link, Unavailable

RENEWALS_A_LEASE: Final = 3
# What the lease of a dead leader is waited for beyond its end, and between two tries while Redis is away.
AFTER_SECONDS: Final = 0.02
RETRY_SECONDS: Final = 0.25


class Fence(NamedTuple):
    """What a singleton's write must show."""

    service: str
    token: int
    until_ms: int  # end of its lease, ms since 1970 in Redis' own time


NO_FENCE: Final = Fence("", 0, 0)


class Fenced(Exception):
    """A write of a singleton whose lease has ended, or whose successor has written already: it was not done."""


class Lease:
    """The right to be the one instance of `service`, from `Leadership.campaign` until `Leadership.hold` ends."""

    def __init__(self, service: str, token: int, until_ms: int, ends: float) -> None:
        self.service = service
        self.token = token
        self.until_ms = until_ms
        self.ends = ends  # loop time after which it may be another's

    def fence(self) -> Fence:
        """What its writes show."""
        return Fence(self.service, self.token, self.until_ms)


class Leadership:
    """One instance's part in the election of a singleton."""

    def __init__(self, link: Link, keys: Keys, service: str, instance: str, lease_seconds: float) -> None:
        self.leader: str | None = None  # who has the lease, as far as we know
        self._link = link
        self._keys = [keys.leader(service), keys.fence(service)]
        self._service = service
        self._instance = instance
        self._lease_seconds = lease_seconds
        self._lead, self._resign = link.script("lead"), link.script("resign")

    async def campaign(self, stood_by: Callable[[], None]) -> Lease:
        """Wait until the lease is ours; `stood_by` is called whenever another has it."""
        while True:
            loop = asyncio.get_running_loop()
            asked = loop.time()
            try:
                token, until_ms, holder = await self._ask(0)
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if token:
                self.leader = self._instance
                return Lease(self._service, token, until_ms, asked + self._lease_seconds)
            self.leader = holder
            stood_by()
            # A leader that resigns tells nobody: standing by is looking now and then, and at the end of the lease.
            wait = min(until_ms / 1000 + AFTER_SECONDS, self._lease_seconds / RENEWALS_A_LEASE)
            await asyncio.sleep(wait + random.uniform(0, AFTER_SECONDS))

    async def hold(self, lease: Lease) -> None:
        """Renew `lease` until it is lost, or may be: Redis was away until its end, or has given it to another."""
        loop = asyncio.get_running_loop()
        pause = self._lease_seconds / RENEWALS_A_LEASE
        while True:
            await asyncio.sleep(min(pause, max(0.0, lease.ends - loop.time())))
            asked = loop.time()
            if asked >= lease.ends:
                return
            try:
                async with asyncio.timeout_at(lease.ends):
                    token, until_ms, _ = await self._ask(lease.token)
            except (Unavailable, TimeoutError):
                pause = RETRY_SECONDS
                continue
            pause = self._lease_seconds / RENEWALS_A_LEASE
            if token != lease.token:
                if token:  # it was lost and free, and is ours anew; what runs under the old token must end first
                    await self.resign(token)
                return
            lease.until_ms, lease.ends = until_ms, asked + self._lease_seconds

    async def resign(self, token: int) -> None:
        """Give the lease back, so that nobody need wait for its end; if Redis is away, they do."""
        self.leader = None
        try:
            await self._link.ask(*self._resign(self._keys[:1], [self._instance, token]))
        except Unavailable:
            return

    async def _ask(self, token: int) -> tuple[int, int, str]:
        arguments = [self._instance, token, int(self._lease_seconds * 1000)]
        answer, ms, holder = await self._link.ask(*self._lead(self._keys, arguments))
        return int(answer), int(ms), holder.decode(errors="replace")
