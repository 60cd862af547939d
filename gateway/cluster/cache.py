"""The cache that all nodes share: JSON under a key, for a while. docs/cache.md tells how to use it.

Redis away is a miss, counted, and no error, unless the caller wants one (`strict`).
"""

from __future__ import annotations

import asyncio
import enum
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

from gateway.cluster.bus import Bus
from gateway.cluster.entries import MAX_VALUE_BYTES, Entries
from gateway.cluster.keys import Keys
from gateway.cluster.link import Link, Unavailable
from gateway.cluster.loads import Loaded, Loads, Order
from gateway.core import protocol
from gateway.core.protocol import Json
from gateway.logs import logger
from gateway.metrics import Metrics

TTL_SECONDS: Final = 300.0
MAX_TTL_SECONDS: Final = 30 * 86_400.0
LOAD_SECONDS: Final = 10.0
MAX_KEY_LENGTH: Final = 500

# No braces: the key stands in a hash tag. No spaces, so that it can be read in a log and typed into redis-cli.
_KEY: Final = re.compile(r"[^\x00-\x20\x7f{}\ud800-\udfff]*")


class Miss(enum.Enum):
    """There is no such value; None is a value."""

    MISS = enum.auto()

    def __repr__(self) -> str:
        return "MISS"

    def __bool__(self) -> bool:
        return False


MISS: Final = Miss.MISS


class ValueTooLarge(ValueError):
    """Larger than a value may be; nothing was written."""


class Timed(NamedTuple):
    """What a load may return to say itself how long its value is kept; 0: it is not."""

    value: Json
    ttl_seconds: float


class Cache:
    """The cache, as one process uses it; `spawn` runs a coroutine and holds it.

    Keys have 1 to 500 characters, none of them a space or a brace; ValueError otherwise. Values are what JSON can
    hold unchanged (`protocol.dumps`); TypeError otherwise. What is read is what JSON made of it: of a tuple a list.
    """

    def __init__(
        self, link: Link, keys: Keys, bus: Bus, metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:  # fmt: skip
        self._entries = Entries(link, keys, bus, metrics)
        self._rows = link.rows
        self.loads = Loads(self._entries, metrics, spawn)
        self.near = near = self._entries.near
        metrics.read(
            {"gateway_cache_near_bytes": lambda: near.bytes, "gateway_cache_near_values": lambda: len(near)}, {}
        )

    async def get(self, key: str, *, strict: bool = False) -> Json:
        """The value of `key`, or `MISS`.

        Raises:
            Unavailable: Redis did not answer in time. Only if `strict`; else that is a miss.
        """
        return (await self.get_many([key], strict=strict)).get(key, MISS)

    async def get_many(self, keys: Iterable[str], *, strict: bool = False) -> dict[str, Json]:
        """The values of those of `keys` that have one.

        Raises:
            Unavailable: as `get`.
        """
        texts = await self._entries.read(list(dict.fromkeys(map(check_key, keys))), strict=strict)
        values = {}
        for key, text in texts.items():
            try:
                values[key] = protocol.loads(text)
            except ValueError as error:  # another program has written it
                self._rows.skip("cache", key, error)
        return values

    async def ttl(self, key: str, *, strict: bool = False) -> float | None:
        """For how many seconds the value is kept on; None: there is none. Infinite, if somebody else wrote it so.

        Raises:
            Unavailable: as `get`.
        """
        return await self._entries.ttl(check_key(key), strict=strict)

    async def set(self, key: str, value: Json, ttl_seconds: float = TTL_SECONDS, *, strict: bool = False) -> bool:
        """Keep `value` for at most `ttl_seconds`, at least nine tenths of it. False, if Redis did not take it.

        Raises:
            ValueTooLarge: It is too large.
            Unavailable: Redis did not take it. Only if `strict`.
        """
        return await self.set_many({key: value}, ttl_seconds, strict=strict)

    async def set_many(
        self, values: Mapping[str, Json], ttl_seconds: float = TTL_SECONDS, *, strict: bool = False
    ) -> bool:
        """Keep them all, as `set` does. False, if Redis did not take them all.

        Raises:
            ValueTooLarge: One is too large; none was written.
            Unavailable: as `set`.
        """
        texts = {check_key(key): pack(value) for key, value in values.items()}
        for key, text in texts.items():
            if len(text) > MAX_VALUE_BYTES:
                raise ValueTooLarge(f"the value of {key!r} has {len(text)} bytes; {MAX_VALUE_BYTES} may be")
        return await self._entries.put(texts, check_ttl(ttl_seconds), strict=strict)

    async def delete(self, key: str, *, strict: bool = False) -> bool:
        """Forget the value, on all nodes. Whether there was one; False, too, if Redis did not answer.

        Raises:
            Unavailable: Redis did not do it: it may come back with the value. Only if `strict`.
        """
        return await self._entries.drop(check_key(key), strict=strict)

    async def clear(self, prefix: str, *, strict: bool = False) -> int:
        """Forget all values whose keys begin with `prefix`; how many there were. What is set meanwhile may go too.

        In steps, between which Redis serves others. All its keys are gone through, twice: reckon with a second for
        each million.

        Raises:
            Unavailable: Redis failed on the way: some may be left. Only if `strict`.
        """
        return await self._entries.clear(check_prefix(prefix), strict=strict)

    async def get_or_set(
        self, key: str, load: Callable[[], Awaitable[Json]], ttl_seconds: float = TTL_SECONDS, *,
        stale_seconds: float = 0.0, load_seconds: float = LOAD_SECONDS,
    ) -> Json:  # fmt: skip
        """The value of `key`; if there is none, what `load` returns, kept for at most `ttl_seconds`.

        `load` runs once for all who ask in the cluster, for `load_seconds` at most; it may return `Timed`. Its error is
        raised to all of this process who asked; another process, if one waits, tries then. If the process that loads
        dies, another loads when that time is over. Nobody waits longer than three times that time.

        `stale_seconds`: so much longer it is kept, to be given to whoever asks while somebody loads it anew.

        Raises:
            TimeoutError: `load` took longer than its time.
        """
        check_ttl(ttl_seconds)

        async def loaded() -> Loaded:
            value = await load()
            timed = value if isinstance(value, Timed) else Timed(value, ttl_seconds)
            text = pack(timed.value)
            return Loaded(text, min(timed.ttl_seconds, MAX_TTL_SECONDS), len(text) <= MAX_VALUE_BYTES)

        order = Order(check_key(key), loaded, stale_seconds, load_seconds)
        text = await self.loads.text_of(order)
        try:
            return protocol.loads(text)
        except ValueError as error:  # another program has written it
            self._rows.skip("cache", key, error)
        await self._entries.drop(key, strict=False)
        return protocol.loads(await self.loads.text_of(order))


@asynccontextmanager
async def connect(url: str, *, namespace: str = "gw:", timeout_seconds: float = 2.0) -> AsyncIterator[Cache]:
    """The cache for a program that is no node: of the Redis at `url`, shared with the nodes of this namespace.

    Redis need not be there yet. `timeout_seconds`: the deadline of each of its answers.
    """
    metrics = Metrics()
    link = Link(url, timeout_seconds=timeout_seconds, name="gateway-cache", metrics=metrics)
    keys = Keys(namespace, link.sharded)
    bus = Bus(link, keys.own(f"cache.{secrets.token_hex(4)}"), metrics)
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        tasks.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger().critical("a task of the cache died", task=task.get_name(), exc_info=task.exception())

    async def check() -> None:
        while True:
            with suppress(Unavailable):  # the bus makes its connection anew
                await bus.check()
            await asyncio.sleep(timeout_seconds)

    cache = Cache(link, keys, bus, metrics, spawn)
    spawn(link.run(), "publisher")
    spawn(bus.run(_Nobody()), "bus")
    spawn(check(), "check")
    try:
        yield cache
    finally:
        running = list(tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await link.close()


class _Nobody:
    """Needs not be told what the bus could not hear: the cache asks it."""

    def bus_lost(self, reason: str, channels: list[str]) -> None:
        """A connection is gone."""

    def bus_missed(self, channels: list[str]) -> None:
        """Messages may have been missed."""

    def bus_resumed(self) -> None:
        """All is heard."""


def pack(value: Json) -> bytes:
    """The text that is kept for `value`.

    Raises:
        TypeError: JSON cannot hold it unchanged.
    """
    # In a list: what is kept can be written as a part of something else, too, and orjson limits the depth.
    try:
        return protocol.dumps([value])[1:-1]
    except ValueError as error:
        raise TypeError(str(error)) from None


def check_key(key: str) -> str:
    """`key`, which can be one.

    Raises:
        ValueError: It cannot.
    """
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise ValueError(f"a cache key has 1 to {MAX_KEY_LENGTH} characters, no space and no brace, not {key[:60]!r}")
    return key


def check_prefix(prefix: str) -> str:
    """`prefix`, with which keys can begin; the empty one begins all.

    Raises:
        ValueError: None can.
    """
    return prefix and check_key(prefix)


def check_ttl(seconds: float) -> float:
    """`seconds`, for which a value can be kept.

    Raises:
        ValueError: It cannot.
    """
    if not 0.001 <= seconds <= MAX_TTL_SECONDS:
        raise ValueError(f"a value is kept for 0.001 to {MAX_TTL_SECONDS:.0f} seconds, not {seconds!r}")
    return seconds
