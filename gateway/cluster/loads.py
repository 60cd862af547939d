"""Loading what the cache does not have, once for all who ask.

Callers of one process share a flight; processes share a lock in Redis, with a token and an end. Who has it loads, and
keeps the value only while the lock is its own: a write or a delete takes the lock away, since it is newer. The
others wait for the notice of the value. If the load fails the lock is given up, and the next of them tries; if its
process dies, the lock ends.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from gateway.cluster.entries import Entries
from gateway.cluster.link import Unavailable
from gateway.logs import RareLog
from gateway.metrics import Metrics

RECHECK_SECONDS: Final = 1.0  # who waits for a notice looks itself this often: one may be lost with the bus
PATIENCE: Final = 2  # load times to wait for others; then the load is run without the lock


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load gave."""

    text: bytes
    ttl_seconds: float
    fits: bool  # it is small enough to be kept


@dataclass(frozen=True, slots=True)
class Order:
    """What to load, how, and for how long it holds."""

    key: str
    load: Callable[[], Awaitable[Loaded]]
    stale_seconds: float
    load_seconds: float


class Loads:
    """The flights of one process; `spawn` runs a coroutine and holds it."""

    def __init__(
        self, entries: Entries, metrics: Metrics, spawn: Callable[[Coroutine[Any, Any, None], str], object]
    ) -> None:
        self._entries = entries
        self._metrics = metrics
        self._spawn = spawn
        self._flights: dict[str, asyncio.Future[bytes]] = {}
        self.waiting: dict[str, list[asyncio.Event]] = {}  # by key: who is to look again when it changes
        self._failures = RareLog("a stale value was not loaded anew")
        entries.on_changed = self._changed

    async def text_of(self, order: Order) -> bytes:
        """The text, from wherever it is to be had.

        Raises:
            Exception: what the load raised; TimeoutError, if it took longer than its time.
        """
        text = self._entries.remembered(order.key, order.stale_seconds)
        if text is not None:
            return text
        flight = self._flights.get(order.key)
        if flight is None:
            flight = self._flights[order.key] = asyncio.get_running_loop().create_future()
            self._spawn(self._fly(flight, order), "cache load")
        else:
            self._metrics.cache_waits.labels("caller").inc()
        return await asyncio.shield(flight)  # a caller that gives up is not the others' end

    async def _fly(self, flight: asyncio.Future[bytes], order: Order) -> None:
        try:
            flight.set_result(await self._obtain(order))
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # if all who asked have gone, nobody needs to hear of it
        finally:
            flight.cancel()  # only if it is not done: the process ends
            if self._flights.get(order.key) is flight:
                del self._flights[order.key]

    async def _obtain(self, order: Order) -> bytes:
        """The text: from Redis, by the load, or from who loads it elsewhere."""
        loop = asyncio.get_running_loop()
        patience_ends = loop.time() + PATIENCE * order.load_seconds
        token = secrets.token_hex(8)
        while loop.time() < patience_ends:
            with self._news(order.key) as news:  # what comes between the question and the wait is not missed
                deadline = loop.time() + order.load_seconds  # not after the lock's
                try:
                    taken = await self._entries.take(
                        order.key, token, lock_seconds=order.load_seconds, stale_seconds=order.stale_seconds
                    )
                except Unavailable:
                    self._metrics.cache_reads.labels("unavailable").inc()
                    break
                if taken.text is not None:
                    self._metrics.cache_reads.labels("stale" if taken.stale else "redis").inc()
                    if taken.ours:
                        self._spawn(self._refresh(order, token, deadline), "cache refresh")
                    return taken.text
                if taken.ours:
                    self._metrics.cache_reads.labels("miss").inc()
                    return await self._load_and_keep(order, token, deadline)
                self._metrics.cache_waits.labels("node").inc()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(taken.lock_seconds, RECHECK_SECONDS)):
                        await news.wait()
        return (await self._load(order, loop.time() + order.load_seconds)).text

    async def _load_and_keep(self, order: Order, token: str, deadline: float) -> bytes:
        try:
            loaded = await self._load(order, deadline)
        except Exception:
            await self._entries.release(order.key, token)
            raise
        if loaded.fits and loaded.ttl_seconds > 0:
            await self._entries.keep(order.key, loaded.text, loaded.ttl_seconds, order.stale_seconds, token)
        else:
            await self._entries.release(order.key, token)
        return loaded.text

    async def _load(self, order: Order, deadline: float) -> Loaded:
        result = "failed"
        try:
            async with asyncio.timeout_at(deadline) as limit:
                loaded = await order.load()
            result = "ok" if loaded.fits else "too_large"
        except TimeoutError:
            if not limit.expired():
                raise
            result = "late"
            raise TimeoutError(f"the load of {order.key!r} took longer than {order.load_seconds:g} s") from None
        finally:
            self._metrics.cache_loads.labels(result).inc()
        return loaded

    async def _refresh(self, order: Order, token: str, deadline: float) -> None:
        try:
            await self._load_and_keep(order, token, deadline)
        except Exception as error:  # the stale value has been given already; the next who asks tries again
            self._failures.warning(reason=f"{type(error).__name__}: {error}")

    @contextmanager
    def _news(self, key: str) -> Iterator[asyncio.Event]:
        """Set when `key` has changed, or its lock was given up."""
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
            self._flights.pop(key, None)  # who asks from now on is not to be given what was loaded before
            for event in self.waiting.get(key, ()):
                event.set()
