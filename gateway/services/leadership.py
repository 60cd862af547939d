"""Leader election for singletons: one instance in the cluster leads, under a lease with a fencing token.

An instance that finds the lease free takes it, with a token greater than any before; the others wait until it ends. A
leader that was frozen past its lease does not notice that when it resumes. So each of its writes carries its token and
the end of its lease, and Redis rejects late writes (append_history.lua, publish_snapshot.lua). There are two checks:
the one of the clock still works if Redis lost the tokens, and the one of the tokens still works if it lost the lease.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.fence import Fence
from gateway.broker.keys import Keys

RENEWALS_PER_LEASE: Final = 3
# Pause after the end of another leader's lease, and between two attempts while Redis is unreachable.
AFTER_SECONDS: Final = 0.02
RETRY_SECONDS: Final = 0.25


class LeaderLease:
    """The right to be the one instance of `service`, from `LeaderElection.campaign` until `LeaderElection.hold`
    ends.
    """

    def __init__(self, service: str, token: int, until_ms: int, ends: float) -> None:
        self.service = service
        self.token = token
        self.until_ms = until_ms
        self.ends = ends  # loop time after which another instance may hold it

    def fence(self) -> Fence:
        """The fence to send with each write."""
        return Fence(self.service, self.token, self.until_ms)


class LeaderElection:
    """One instance's side of the election of a singleton."""

    def __init__(self, redis: RedisClient, keys: Keys, service: str, instance: str, lease_seconds: float) -> None:
        self.leader: str | None = None  # the instance that holds the lease, as far as known
        self._redis = redis
        self._keys = [keys.leader(service), keys.fence(service)]
        self._service = service
        self._instance = instance
        self._lease_seconds = lease_seconds
        self._acquire_leadership, self._release_leadership = (
            redis.script("acquire_leadership"),
            redis.script("release_leadership"),
        )

    async def campaign(self, on_standby: Callable[[], None]) -> LeaderLease:
        """Wait until this instance gets the lease; `on_standby` is called whenever another instance has it."""
        while True:
            loop = asyncio.get_running_loop()
            asked = loop.time()
            try:
                token, until_ms, holder = await self._request(0)
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if token:
                self.leader = self._instance
                return LeaderLease(self._service, token, until_ms, asked + self._lease_seconds)
            self.leader = holder
            on_standby()
            # A leader that resigns does not notify the others, so they also check at intervals.
            wait = min(until_ms / 1000 + AFTER_SECONDS, self._lease_seconds / RENEWALS_PER_LEASE)
            await asyncio.sleep(wait + random.uniform(0, AFTER_SECONDS))

    async def hold(self, lease: LeaderLease) -> None:
        """Renew `lease`; return when it is lost, or when Redis was unreachable until its end."""
        loop = asyncio.get_running_loop()
        pause = self._lease_seconds / RENEWALS_PER_LEASE
        while True:
            await asyncio.sleep(min(pause, max(0.0, lease.ends - loop.time())))
            asked = loop.time()
            if asked >= lease.ends:
                return
            try:
                async with asyncio.timeout_at(lease.ends):
                    token, until_ms, _ = await self._request(lease.token)
            except (Unavailable, TimeoutError):
                pause = RETRY_SECONDS
                continue
            pause = self._lease_seconds / RENEWALS_PER_LEASE
            if token != lease.token:
                if token:  # the lease expired and was taken again: the run under the old token must end first
                    await self.resign(token)
                return
            lease.until_ms, lease.ends = until_ms, asked + self._lease_seconds

    async def resign(self, token: int) -> None:
        """Release the lease, so that others need not wait for its end. Without Redis, the lease expires."""
        self.leader = None
        try:
            await self._redis.execute(*self._release_leadership(self._keys[:1], [self._instance, token]))
        except Unavailable:
            return

    async def _request(self, token: int) -> tuple[int, int, str]:
        arguments = [self._instance, token, int(self._lease_seconds * 1000)]
        answer, ms, holder = await self._redis.execute(*self._acquire_leadership(self._keys, arguments))
        return int(answer), int(ms), holder.decode(errors="replace")
