"""The storage of the cache: texts in Redis, and a near cache of those that this process has read.

The near cache keeps a text until a notice of its change arrives; every writer publishes one in the same Lua step as the
write. The client tracking of Redis is not used: its state belongs to single connections, and it is lost without notice
when one of them reconnects. `PubSub` knows since when the subscription is unbroken (`PubSub.confirmed_since`), so the
node knows which texts it can still trust.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from gateway.broker.client import CommandRefused, RedisClient, Unavailable, WrongType
from gateway.broker.keys import Keys
from gateway.broker.pubsub import PubSub
from gateway.cache.near_cache import NearCache, PendingRead
from gateway.metrics import Metrics

JITTER: Final = 0.1  # a TTL is shortened by up to this part, so that values written together expire apart
NEAR_BYTES: Final = 16 << 20
UNAVAILABLE_SECONDS: Final = 0.5  # pause after Redis failed: callers would wait for the deadline one after the other
BATCH_KEYS: Final = 500
MAX_VALUE_BYTES: Final = 1 << 20
MAX_NOTICE_BYTES: Final = 1 << 20  # a notice names at most 500 keys of 500 characters

_NO_KEY: Final = -2  # PTTL's answer for a key that does not exist


class CacheLookup(NamedTuple):
    """Result of `CacheStore.read_or_lock`."""

    text: bytes | None
    is_stale: bool
    is_ours: bool  # this caller got the lock and must load the value
    lock_seconds: float  # otherwise, how long another process holds the lock


class CacheStore:
    """Reads and writes texts. Calls `on_changed` with the keys that changed, or with their common prefix."""

    def __init__(self, redis: RedisClient, keys: Keys, pubsub: PubSub, metrics: Metrics) -> None:
        self.near_cache = NearCache(NEAR_BYTES)
        self.on_changed: Callable[[Sequence[str], str | None], None] = lambda _keys, _prefix: None
        self._redis = redis
        self._keys = keys
        self._pubsub = pubsub
        self._metrics = metrics
        self._read_cache, self._write_cache = redis.script("read_cache"), redis.script("write_cache")
        self._delete_cache, self._unlock_cache = redis.script("delete_cache"), redis.script("unlock_cache")
        self._away_until = -math.inf
        pubsub.subscribe([keys.cache_changes], self._on_notice, lambda: None)

    # ---- reading

    def cached(self, key: str, margin: float = 0.0) -> bytes | None:
        """The text of `key` in the near cache, if it does not expire within `margin` seconds."""
        self._update_subscription()
        text = self.near_cache.get(key, asyncio.get_running_loop().time(), margin)
        if text is not None:
            self._metrics.cache_reads.labels("near").inc()
        return text

    async def read(self, keys: Sequence[str], *, strict: bool) -> dict[str, bytes]:
        """The texts of `keys`, from the near cache or from Redis; keys without a value are left out.

        Raises:
            Unavailable: Redis did not answer in time. Only if `strict`; otherwise its values are missing.
        """
        near = {key: self.cached(key) for key in keys}
        found = {key: text for key, text in near.items() if text is not None}
        missing = [key for key, text in near.items() if text is None]
        for at in range(0, len(missing), BATCH_KEYS):
            batch = missing[at : at + BATCH_KEYS]
            try:
                fetched = await self._fetch(batch, strict=strict)
            except Unavailable:
                self._metrics.cache_reads.labels("unavailable").inc(len(batch))
                if strict:
                    raise
                continue
            found |= fetched
            self._metrics.cache_reads.labels("redis").inc(len(fetched))
            self._metrics.cache_reads.labels("miss").inc(len(batch) - len(fetched))
        return found

    async def _fetch(self, keys: Sequence[str], *, strict: bool) -> dict[str, bytes]:
        readings = [self.near_cache.begin_read(key) for key in keys]
        answers: list[Any] = [None, _NO_KEY] * len(keys)

        # One byte more than the limit, so that the node detects a longer value without fetching all of it.
        rows = [self._keys.cache_value(key) for key in keys]
        commands = [command for row in rows for command in (("GETRANGE", row, 0, MAX_VALUE_BYTES), ("PTTL", row))]
        try:
            found = await self._execute(lambda: self._redis.execute_each(commands), strict=strict)
            texts = [self._valid(row, text) for row, text in zip(rows, found[::2], strict=True)]
            answers = [part for pair in zip(texts, found[1::2], strict=True) for part in pair]
        finally:
            for key, reading, text, left in zip(keys, readings, answers[::2], answers[1::2], strict=True):
                self._end_read(key, reading, text, left)
        return {key: text for key, text in zip(keys, answers[::2], strict=True) if text is not None}

    def _valid(self, row: str, text: Any) -> bytes | None:
        """The text in an answer of Redis; None if there is none, or another program wrote it."""
        if isinstance(text, CommandRefused) and not isinstance(text, WrongType):
            raise text
        if isinstance(text, WrongType) or len(text) > MAX_VALUE_BYTES:
            self._redis.rows.skip("cache", row, text if isinstance(text, WrongType) else "the value is too long")
            return None
        return text or None

    async def read_or_lock(self, key: str, token: str, *, lock_seconds: float, stale_seconds: float) -> CacheLookup:
        """The text of `key`. If it is missing or within its last `stale_seconds`, also take the lock if it is free.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        rows = [self._keys.cache_value(key), self._keys.cache_lock(key)]
        arguments = [token, _ms(lock_seconds), _ms(stale_seconds), MAX_VALUE_BYTES]
        reading = self.near_cache.begin_read(key)
        text, left, ours, lock_left = None, _NO_KEY, 0, 0
        try:
            text, left, ours, lock_left = await self._execute(
                lambda: self._redis.execute(*self._read_cache(rows, arguments))
            )
        finally:
            self._end_read(key, reading, text, left)
        return CacheLookup(text, _seconds(left) <= stale_seconds, bool(ours), max(lock_left, 1) / 1000)

    async def ttl(self, key: str, *, strict: bool) -> float | None:
        """Seconds until `key` expires; None: no value. Infinite if another program wrote it without a TTL.

        Raises:
            Unavailable: Redis did not answer in time. Only if `strict`.
        """
        try:
            left = await self._execute(lambda: self._redis.execute("PTTL", self._keys.cache_value(key)), strict=strict)
        except Unavailable:
            if strict:
                raise
            return None
        return None if left == _NO_KEY else _seconds(left)

    # ---- writing

    async def write(self, texts: Mapping[str, bytes], ttl_seconds: float, *, strict: bool) -> bool:
        """Write texts with a TTL of at most `ttl_seconds`. False if Redis did not confirm all of them.

        Raises:
            Unavailable: Redis did not confirm. Only if `strict`.
        """
        items = list(texts.items())
        for at in range(0, len(items), BATCH_KEYS):
            batch = dict(items[at : at + BATCH_KEYS])

            async def write(batch: dict[str, bytes] = batch) -> None:
                await self._redis.execute_all(
                    [self._write_cache(*self._putting(key, text, ttl_seconds)) for key, text in batch.items()]
                )

            if not await self._write_with_notice(write, list(batch), strict=strict):
                return False
            self._metrics.cache_bytes.labels("written").inc(sum(map(len, batch.values())))
        return True

    async def write_loaded(self, key: str, text: bytes, ttl_seconds: float, stale_seconds: float, token: str) -> None:
        """Write a loaded text if `token` still holds the lock."""
        kept = False

        async def write() -> None:
            nonlocal kept
            arguments = self._putting(key, text, ttl_seconds, stale_seconds, token)
            kept = bool(await self._redis.execute(*self._write_cache(*arguments)))

        if await self._write_with_notice(write, [key]) and kept:
            self._metrics.cache_bytes.labels("written").inc(len(text))

    async def unlock(self, key: str, token: str) -> None:
        """Release the lock if `token` still holds it, and notify the processes that wait. Otherwise it expires."""
        arguments = [token, self._keys.cache_changes, _notice(keys=[key])]
        await self._write_with_notice(
            lambda: self._redis.execute(*self._unlock_cache([self._keys.cache_lock(key)], arguments)), []
        )

    async def delete(self, key: str, *, strict: bool) -> bool:
        """Delete a value on all nodes. True if there was one; False if not, or if Redis did not answer.

        Raises:
            Unavailable: Redis did not confirm. Only if `strict`.
        """
        found = False

        async def write() -> None:
            nonlocal found
            rows = [self._keys.cache_value(key), self._keys.cache_lock(key)]
            arguments = [self._keys.cache_changes, _notice(keys=[key])]
            found = bool(await self._redis.execute(*self._delete_cache(rows, arguments)))

        await self._write_with_notice(write, [key], strict=strict)
        return found

    async def clear(self, prefix: str, *, strict: bool) -> int:
        """Delete all values whose keys begin with `prefix`; return their number.

        Raises:
            Unavailable: Redis failed before the end. Only if `strict`.
        """
        cleared = 0

        async def write() -> None:
            nonlocal cleared
            # Two scans: during the first, a load that began earlier may write its old value behind the cursor. After
            # the first scan, the locks of all such loads are gone.
            await self._redis.refresh_topology()
            for server in self._redis.slot_map.servers * 2:
                cleared += await self._sweep(server, self._keys.cache_pattern(prefix))
            await self._redis.execute("PUBLISH", self._keys.cache_changes, _notice(prefix=prefix))

        await self._write_with_notice(write, [], prefix, strict=strict)
        return cleared

    async def _sweep(self, server: str, pattern: str) -> int:
        cursor, values = 0, 0
        while True:
            cursor, found = await self._redis.execute_at(server, "SCAN", cursor, "MATCH", pattern, "COUNT", BATCH_KEYS)
            if found:
                # One by one: on a Redis Cluster they lie in many slots.
                gone = await self._redis.execute_all([("UNLINK", row) for row in found])
                values += sum(count for row, count in zip(found, gone, strict=True) if row.endswith(b"}"))
            if not cursor:
                return values

    async def _write_with_notice(
        self, write: Callable[[], Awaitable[object]], keys: Sequence[str], prefix: str | None = None, *,
        strict: bool = False,
    ) -> bool:  # fmt: skip
        try:
            await self._execute(write, strict=strict)
        except Unavailable:
            self._metrics.cache_writes.labels("unavailable").inc()
            if strict:
                raise
            return False
        finally:
            self._changed(keys, prefix)  # before the notice arrives: the writer must not read its old value until then
        self._metrics.cache_writes.labels("ok").inc()
        return True

    def _putting(
        self, key: str, text: bytes, ttl_seconds: float, stale_seconds: float = 0.0, token: str = ""
    ) -> tuple[list[str], list[Any]]:
        seconds = ttl_seconds * random.uniform(1 - JITTER, 1) + stale_seconds
        rows = [self._keys.cache_value(key), self._keys.cache_lock(key)]
        return rows, [text, _ms(seconds), token, self._keys.cache_changes, _notice(keys=[key])]

    # ---- change notices

    def _on_notice(self, _channel: str, payload: bytes) -> None:
        try:
            notice = orjson.loads(payload) if len(payload) <= MAX_NOTICE_BYTES else None
        except ValueError:
            notice = None
        match notice:
            case {"keys": list(keys)}:
                self._changed([key for key in keys if isinstance(key, str)])
            case {"prefix": str(prefix)}:
                self._changed([], prefix)
            case _:
                self._metrics.relayed.labels("malformed").inc()

    def _changed(self, keys: Sequence[str], prefix: str | None = None) -> None:
        self.near_cache.forget(keys)
        if prefix is not None:
            self.near_cache.forget_all(prefix)
        self.on_changed(keys, prefix)

    def _update_subscription(self) -> None:
        self.near_cache.set_subscription(self._pubsub.confirmed_since(self._keys.cache_changes))

    # ---- internals

    def _end_read(self, key: str, reading: PendingRead, text: bytes | None, left_ms: int) -> None:
        self._update_subscription()
        self.near_cache.end_read(key, reading, text, _seconds(left_ms), asyncio.get_running_loop().time())
        if text is not None:
            self._metrics.cache_bytes.labels("read").inc(len(text))

    async def _execute(self, question: Callable[[], Awaitable[Any]], *, strict: bool = False) -> Any:
        loop = asyncio.get_running_loop()
        if not strict and loop.time() < self._away_until:
            raise Unavailable(f"Redis failed less than {UNAVAILABLE_SECONDS} s ago: retry later")
        try:
            return await question()
        except Unavailable:
            self._away_until = loop.time() + UNAVAILABLE_SECONDS
            raise


def _notice(*, keys: Iterable[str] | None = None, prefix: str | None = None) -> bytes:
    return orjson.dumps({"keys": keys} if prefix is None else {"prefix": prefix})


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _seconds(left_ms: int) -> float:
    """An answer of PTTL in seconds; infinite if the key has no TTL."""
    return math.inf if left_ms == -1 else left_ms / 1000
