"""Single flight: one load of a missing cache value for all callers in the cluster.

Callers in one process share a flight. Processes share a lock in Redis, which has a token and a TTL. The process that
holds the lock loads the value and writes it only while it still holds the lock: a newer write or delete removes the
lock. The others wait for the change notice. If the load fails, the process releases the lock and another one tries; if
the process dies, the lock expires.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from gateway.broker.client import Unavailable
from gateway.cache.store import CacheStore
from gateway.logging import RateLimitedLog
from gateway.metrics import Metrics

RECHECK_SECONDS: Final = 1.0  # a process that waits for a notice also asks Redis this often: a notice may be lost
WAIT_LOADS: Final = 2  # wait for others at most this many times `load_seconds`, then load without the lock


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Result of a load."""

    text: bytes
    ttl_seconds: float
    fits: bool  # it is within the size limit of the cache


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A request to load one key."""

    key: str
    load: Callable[[], Awaitable[LoadResult]]
    stale_seconds: float
    load_seconds: float


class SingleFlight:
    """The loads of one process. `spawn` runs a coroutine as a task and keeps a reference to it."""

    def __init__(
        self, store: CacheStore, metrics: Metrics, spawn: Callable[[Coroutine[Any, Any, None], str], object]
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._spawn = spawn
        self._flights: dict[str, asyncio.Future[bytes]] = {}
        self.waiting: dict[str, list[asyncio.Event]] = {}  # by key: events to set when it changes
        self._failures = RateLimitedLog("stale value not refreshed")
        store.on_changed = self._changed

    async def get(self, request: LoadRequest) -> bytes:
        """The text from the near cache, from Redis, or from the load.

        Raises:
            Exception: The error of the load; TimeoutError if it took longer than `load_seconds`.
        """
        text = self._store.cached(request.key, request.stale_seconds)
        if text is not None:
            return text
        flight = self._flights.get(request.key)
        if flight is None:
            flight = self._flights[request.key] = asyncio.get_running_loop().create_future()
            self._spawn(self._run(flight, request), "cache load")
        else:
            self._metrics.cache_waits.labels("caller").inc()
        return await asyncio.shield(flight)  # a cancelled caller does not cancel the flight of the others

    async def _run(self, flight: asyncio.Future[bytes], request: LoadRequest) -> None:
        try:
            flight.set_result(await self._load_once(request))
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # mark as retrieved: all callers may be gone
        finally:
            flight.cancel()  # has an effect only if it is not done: the process is ending
            if self._flights.get(request.key) is flight:
                del self._flights[request.key]

    async def _load_once(self, request: LoadRequest) -> bytes:
        """The text from Redis, from the load here, or from the load of another process."""
        loop = asyncio.get_running_loop()
        wait_ends = loop.time() + WAIT_LOADS * request.load_seconds
        token = secrets.token_hex(8)
        while loop.time() < wait_ends:
            with self._notices(request.key) as changed:  # registered first, so that no notice is missed before the wait
                deadline = loop.time() + request.load_seconds  # not after the end of the lock
                try:
                    taken = await self._store.read_or_lock(
                        request.key, token, lock_seconds=request.load_seconds, stale_seconds=request.stale_seconds
                    )
                except Unavailable:
                    self._metrics.cache_reads.labels("unavailable").inc()
                    break
                if taken.text is not None:
                    self._metrics.cache_reads.labels("stale" if taken.is_stale else "redis").inc()
                    if taken.is_ours:
                        self._spawn(self._refresh(request, token, deadline), "cache refresh")
                    return taken.text
                if taken.is_ours:
                    self._metrics.cache_reads.labels("miss").inc()
                    return await self._load_and_keep(request, token, deadline)
                self._metrics.cache_waits.labels("node").inc()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(taken.lock_seconds, RECHECK_SECONDS)):
                        await changed.wait()
        return (await self._load(request, loop.time() + request.load_seconds)).text

    async def _load_and_keep(self, request: LoadRequest, token: str, deadline: float) -> bytes:
        try:
            loaded = await self._load(request, deadline)
        except Exception:
            await self._store.unlock(request.key, token)
            raise
        if loaded.fits and loaded.ttl_seconds > 0:
            await self._store.write_loaded(request.key, loaded.text, loaded.ttl_seconds, request.stale_seconds, token)
        else:
            await self._store.unlock(request.key, token)
        return loaded.text

    async def _load(self, request: LoadRequest, deadline: float) -> LoadResult:
        result = "failed"
        try:
            async with asyncio.timeout_at(deadline) as limit:
                loaded = await request.load()
            result = "ok" if loaded.fits else "too_large"
        except TimeoutError:
            if not limit.expired():
                raise
            result = "late"
            raise TimeoutError(f"the load of {request.key!r} took longer than {request.load_seconds:g} s") from None
        finally:
            self._metrics.cache_loads.labels(result).inc()
        return loaded

    async def _refresh(self, request: LoadRequest, token: str, deadline: float) -> None:
        try:
            await self._load_and_keep(request, token, deadline)
        except Exception as error:  # the caller has the stale value; the next caller tries again
            self._failures.warning(reason=f"{type(error).__name__}: {error}")

    @contextmanager
    def _notices(self, key: str) -> Iterator[asyncio.Event]:
        """An event that is set when `key` changes or its lock is released."""
        event = asyncio.Event()
        events = self.waiting.setdefault(key, [])
        events.append(event)
        try:
            yield event
        finally:
            events.remove(event)
            if not events and self.waiting.get(key) is events:
                del self.waiting[key]

    def _changed(self, keys: Sequence[str], prefix: str | None) -> None:
        if prefix is not None:
            keys = [key for key in {*self._flights, *self.waiting} if key.startswith(prefix)]
        for key in keys:
            self._flights.pop(key, None)  # new callers must not get what was loaded before
            for event in self.waiting.get(key, ()):
                event.set()
