"""The cache that all nodes share: JSON values under keys, with a time to live.

docs/reference/cache.md shows how to use it.

If Redis is unreachable, a read is a miss and is counted; with `strict` it raises an error.
"""

from __future__ import annotations

import asyncio
import enum
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.keys import Keys
from gateway.broker.pubsub import PubSub
from gateway.cache.single_flight import LoadRequest, LoadResult, SingleFlight
from gateway.cache.store import MAX_VALUE_BYTES, CacheStore
from gateway.core import json_text
from gateway.core.json_text import Json
from gateway.logging import logger
from gateway.metrics import Metrics

TTL_SECONDS: Final = 300.0
MAX_TTL_SECONDS: Final = 30 * 86_400.0
LOAD_SECONDS: Final = 10.0
MAX_KEY_LENGTH: Final = 500

# No braces: the key is part of a hash tag. No spaces: people read it in logs and type it into redis-cli.
_KEY: Final = re.compile(r"[^\x00-\x20\x7f{}\ud800-\udfff]*")


class Miss(enum.Enum):
    """The type of `MISS`, which means that there is no value. None is a value."""

    MISS = enum.auto()

    def __repr__(self) -> str:
        return "MISS"

    def __bool__(self) -> bool:
        return False


MISS: Final = Miss.MISS


class ValueTooLarge(ValueError):
    """The value is over the size limit; nothing was written."""


class WithTtl(NamedTuple):
    """A value with its own time to live, as a load may return it; 0 seconds: do not keep it."""

    value: Json
    ttl_seconds: float


class Cache:
    """One process's access to the cache. `spawn` runs a coroutine as a task and keeps a reference to it.

    Keys have 1 to 500 characters without spaces and braces, otherwise ValueError. Values must survive JSON unchanged
    (`json_text.dumps`), otherwise TypeError. A read returns the JSON form, for example a list for a tuple.
    """

    def __init__(
        self, redis: RedisClient, keys: Keys, pubsub: PubSub, metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:  # fmt: skip
        self._store = CacheStore(redis, keys, pubsub, metrics)
        self._rows = redis.rows
        self.single_flight = SingleFlight(self._store, metrics, spawn)
        self.near_cache = near_cache = self._store.near_cache
        metrics.read(
            {
                "gateway_cache_near_bytes": lambda: near_cache.bytes,
                "gateway_cache_near_values": lambda: len(near_cache),
            },
            {},
        )

    async def get(self, key: str, *, strict: bool = False) -> Json:
        """The value of `key`, or `MISS`.

        Raises:
            Unavailable: Redis did not answer in time. Only if `strict`; otherwise it is a miss.
        """
        return (await self.get_many([key], strict=strict)).get(key, MISS)

    async def get_many(self, keys: Iterable[str], *, strict: bool = False) -> dict[str, Json]:
        """The values of `keys`; keys without a value are left out.

        Raises:
            Unavailable: As `get`.
        """
        texts = await self._store.read(list(dict.fromkeys(map(check_key, keys))), strict=strict)
        values = {}
        for key, text in texts.items():
            try:
                values[key] = json_text.loads(text)
            except ValueError as error:  # another program has written it
                self._rows.skip("cache", key, error)
        return values

    async def ttl(self, key: str, *, strict: bool = False) -> float | None:
        """Seconds until the value expires; None: no value. Infinite if another program wrote it without a TTL.

        Raises:
            Unavailable: As `get`.
        """
        return await self._store.ttl(check_key(key), strict=strict)

    async def set(self, key: str, value: Json, ttl_seconds: float = TTL_SECONDS, *, strict: bool = False) -> bool:
        """Keep `value` for `ttl_seconds`, less up to a tenth. False if Redis did not confirm.

        Raises:
            ValueTooLarge: The value is over the size limit.
            Unavailable: Redis did not confirm. Only if `strict`.
        """
        return await self.set_many({key: value}, ttl_seconds, strict=strict)

    async def set_many(
        self, values: Mapping[str, Json], ttl_seconds: float = TTL_SECONDS, *, strict: bool = False
    ) -> bool:
        """Keep several values, as `set` does. False if Redis did not confirm all of them.

        Raises:
            ValueTooLarge: A value is over the size limit; none was written.
            Unavailable: As `set`.
        """
        texts = {check_key(key): encode(value) for key, value in values.items()}
        for key, text in texts.items():
            if len(text) > MAX_VALUE_BYTES:
                raise ValueTooLarge(f"the value of {key!r} has {len(text)} bytes; the limit is {MAX_VALUE_BYTES}")
        return await self._store.write(texts, check_ttl(ttl_seconds), strict=strict)

    async def delete(self, key: str, *, strict: bool = False) -> bool:
        """Delete the value on all nodes. True if there was one; False if not, or if Redis did not answer.

        Raises:
            Unavailable: Redis did not confirm, so it may still have the value. Only if `strict`.
        """
        return await self._store.delete(check_key(key), strict=strict)

    async def clear(self, prefix: str, *, strict: bool = False) -> int:
        """Delete all values whose keys begin with `prefix`; return their number. May also delete values set meanwhile.

        It scans all keys of Redis twice, in small steps, which takes about one second per million keys.

        Raises:
            Unavailable: Redis failed before the end: some values may be left. Only if `strict`.
        """
        return await self._store.clear(check_prefix(prefix), strict=strict)

    async def get_or_set(
        self, key: str, load: Callable[[], Awaitable[Json]], ttl_seconds: float = TTL_SECONDS, *,
        stale_seconds: float = 0.0, load_seconds: float = LOAD_SECONDS,
    ) -> Json:  # fmt: skip
        """The value of `key`; if there is none, the result of `load`, kept for at most `ttl_seconds`.

        `load` runs once for all callers in the cluster, for at most `load_seconds`; it may return `WithTtl`. If it
        fails, all callers in this process get the error, and a process that waits then runs its own load. If the
        loading process dies, another loads once that time is over. A call takes at most three times `load_seconds`.

        `stale_seconds`: for this long after its expiry, callers get the old value while a new one is loaded.

        Raises:
            TimeoutError: `load` took longer than `load_seconds`.
        """
        check_ttl(ttl_seconds)

        async def loaded() -> LoadResult:
            value = await load()
            timed = value if isinstance(value, WithTtl) else WithTtl(value, ttl_seconds)
            text = encode(timed.value)
            return LoadResult(text, min(timed.ttl_seconds, MAX_TTL_SECONDS), len(text) <= MAX_VALUE_BYTES)

        request = LoadRequest(check_key(key), loaded, stale_seconds, load_seconds)
        text = await self.single_flight.get(request)
        try:
            return json_text.loads(text)
        except ValueError as error:  # another program has written it
            self._rows.skip("cache", key, error)
        await self._store.delete(key, strict=False)
        return json_text.loads(await self.single_flight.get(request))


@asynccontextmanager
async def connect(url: str, *, namespace: str = "gw:", timeout_seconds: float = 2.0) -> AsyncIterator[Cache]:
    """The cache for a standalone program, on the Redis at `url`, shared with the nodes of this namespace.

    Redis may still be unreachable. `timeout_seconds`: deadline of each round trip.
    """
    metrics = Metrics()
    redis = RedisClient(url, timeout_seconds=timeout_seconds, name="gateway-cache", metrics=metrics)
    keys = Keys(namespace, redis.sharded)
    pubsub = PubSub(redis, keys.node_channel(f"cache.{secrets.token_hex(4)}"), metrics)
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        tasks.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger().critical("cache task failed", task=task.get_name(), exc_info=task.exception())

    async def check() -> None:
        while True:
            with suppress(Unavailable):  # pub/sub reconnects
                await pubsub.check()
            await asyncio.sleep(timeout_seconds)

    cache = Cache(redis, keys, pubsub, metrics, spawn)
    spawn(redis.run(), "publisher")
    spawn(pubsub.run(_NoListener()), "bus")
    spawn(check(), "check")
    try:
        yield cache
    finally:
        running = list(tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await redis.close()


class _NoListener:
    """A listener that does nothing: the cache asks `PubSub` for the state of its channel instead."""

    def pubsub_lost(self, reason: str, channels: list[str]) -> None:
        """A connection is lost."""

    def pubsub_missed(self, channels: list[str]) -> None:
        """Messages may have been missed."""

    def pubsub_restored(self) -> None:
        """All wanted channels are confirmed."""


def encode(value: Json) -> bytes:
    """The JSON text of `value`.

    Raises:
        TypeError: JSON cannot represent the value unchanged.
    """
    # Encoded inside a list: the text may become part of a larger one, and orjson limits the depth.
    try:
        return json_text.dumps([value])[1:-1]
    except ValueError as error:
        raise TypeError(str(error)) from None


def check_key(key: str) -> str:
    """Return `key` if it is valid.

    Raises:
        ValueError: It is not a valid key.
    """
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise ValueError(f"cache key {key[:60]!r}: use 1 to {MAX_KEY_LENGTH} characters, no spaces and no braces")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if a key can begin with it; every key begins with the empty prefix.

    Raises:
        ValueError: No key can begin with it.
    """
    return prefix and check_key(prefix)


def check_ttl(seconds: float) -> float:
    """Return `seconds` if it is a valid time to live.

    Raises:
        ValueError: It is out of range.
    """
    if not 0.001 <= seconds <= MAX_TTL_SECONDS:
        raise ValueError(f"time to live {seconds!r}: use 0.001 to {MAX_TTL_SECONDS:.0f} seconds")
    return seconds
