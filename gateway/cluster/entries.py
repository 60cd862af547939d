"""The storage of the cache: texts in Redis, and a near cache of those that this process has read.

The near cache keeps a text until a notice of its change arrives; every writer publishes one in the same Lua step as the
write. The client tracking of Redis is not used: its state belongs to single connections, and it is lost without notice
when one of them reconnects. The bus knows since when its subscription is unbroken (`Bus.confirmed_since`), so the node
knows which texts it can still trust.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from gateway.cluster.bus import Bus
from gateway.cluster.keys import Keys
from gateway.cluster.link import Link, Refused, Unavailable, WrongType
from gateway.cluster.near import Near, Reading
from gateway.metrics import Metrics

JITTER: Final = 0.1  # a TTL is shortened by up to this part, so that values written together expire apart
NEAR_BYTES: Final = 16 << 20
AWAY_SECONDS: Final = 0.5  # pause after Redis failed: callers would wait for the deadline one after the other
BATCH_KEYS: Final = 500
MAX_VALUE_BYTES: Final = 1 << 20
MAX_NOTICE_BYTES: Final = 1 << 20  # a notice names at most 500 keys of 500 characters

_NOTHING: Final = -2  # PTTL's answer for a key that does not exist


class Taken(NamedTuple):
    """Result of `Entries.take`."""

    text: bytes | None
    stale: bool
    ours: bool  # this caller got the lock and must load the value
    lock_seconds: float  # otherwise, how long another process holds the lock


class Entries:
    """Reads and writes texts. Calls `on_changed` with the keys that changed, or with their common prefix."""

    def __init__(self, link: Link, keys: Keys, bus: Bus, metrics: Metrics) -> None:
        self.near = Near(NEAR_BYTES)
        self.on_changed: Callable[[Sequence[str], str | None], None] = lambda _keys, _prefix: None
        self._link = link
        self._keys = keys
        self._bus = bus
        self._metrics = metrics
        self._take, self._put = link.script("take"), link.script("put")
        self._drop, self._yield = link.script("drop"), link.script("yield")
        self._away_until = -math.inf
        bus.listen([keys.cache_changes], self._on_notice, lambda: None)

    # ---- reading

    def remembered(self, key: str, margin: float = 0.0) -> bytes | None:
        """The text of `key` in the near cache, if it does not expire within `margin` seconds."""
        self._update_subscription()
        text = self.near.get(key, asyncio.get_running_loop().time(), margin)
        if text is not None:
            self._metrics.cache_reads.labels("near").inc()
        return text

    async def read(self, keys: Sequence[str], *, strict: bool) -> dict[str, bytes]:
        """The texts of `keys`, from the near cache or from Redis; keys without a value are left out.

        Raises:
            Unavailable: Redis did not answer in time. Only if `strict`; otherwise its values are missing.
        """
        near = {key: self.remembered(key) for key in keys}
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
        readings = [self.near.reading(key) for key in keys]
        answers: list[Any] = [None, _NOTHING] * len(keys)

        # One byte more than the limit, so that the node detects a longer value without fetching all of it.
        rows = [self._keys.cached(key) for key in keys]
        commands = [command for row in rows for command in (("GETRANGE", row, 0, MAX_VALUE_BYTES), ("PTTL", row))]
        try:
            found = await self._ask(lambda: self._link.ask_each(commands), strict=strict)
            texts = [self._valid(row, text) for row, text in zip(rows, found[::2], strict=True)]
            answers = [part for pair in zip(texts, found[1::2], strict=True) for part in pair]
        finally:
            for key, reading, text, left in zip(keys, readings, answers[::2], answers[1::2], strict=True):
                self._read(key, reading, text, left)
        return {key: text for key, text in zip(keys, answers[::2], strict=True) if text is not None}

    def _valid(self, row: str, text: Any) -> bytes | None:
        """The text in an answer of Redis; None if there is none, or another program wrote it."""
        if isinstance(text, Refused) and not isinstance(text, WrongType):
            raise text
        if isinstance(text, WrongType) or len(text) > MAX_VALUE_BYTES:
            self._link.rows.skip("cache", row, text if isinstance(text, WrongType) else "the value is too long")
            return None
        return text or None

    async def take(self, key: str, token: str, *, lock_seconds: float, stale_seconds: float) -> Taken:
        """The text of `key`. If it is missing or within its last `stale_seconds`, also take the lock if it is free.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        rows = [self._keys.cached(key), self._keys.cache_lock(key)]
        arguments = [token, _ms(lock_seconds), _ms(stale_seconds), MAX_VALUE_BYTES]
        reading = self.near.reading(key)
        text, left, ours, lock_left = None, _NOTHING, 0, 0
        try:
            text, left, ours, lock_left = await self._ask(lambda: self._link.ask(*self._take(rows, arguments)))
        finally:
            self._read(key, reading, text, left)
        return Taken(text, _seconds(left) <= stale_seconds, bool(ours), max(lock_left, 1) / 1000)

    async def ttl(self, key: str, *, strict: bool) -> float | None:
        """Seconds until `key` expires; None: no value. Infinite if another program wrote it without a TTL.

        Raises:
            Unavailable: Redis did not answer in time. Only if `strict`.
        """
        try:
            left = await self._ask(lambda: self._link.ask("PTTL", self._keys.cached(key)), strict=strict)
        except Unavailable:
            if strict:
                raise
            return None
        return None if left == _NOTHING else _seconds(left)

    # ---- writing

    async def put(self, texts: Mapping[str, bytes], ttl_seconds: float, *, strict: bool) -> bool:
        """Write texts with a TTL of at most `ttl_seconds`. False if Redis did not confirm all of them.

        Raises:
            Unavailable: Redis did not confirm. Only if `strict`.
        """
        items = list(texts.items())
        for at in range(0, len(items), BATCH_KEYS):
            batch = dict(items[at : at + BATCH_KEYS])

            async def write(batch: dict[str, bytes] = batch) -> None:
                await self._link.ask_all(
                    [self._put(*self._putting(key, text, ttl_seconds)) for key, text in batch.items()]
                )

            if not await self._write(write, list(batch), strict=strict):
                return False
            self._metrics.cache_bytes.labels("written").inc(sum(map(len, batch.values())))
        return True

    async def keep(self, key: str, text: bytes, ttl_seconds: float, stale_seconds: float, token: str) -> None:
        """Write a loaded text if `token` still holds the lock."""
        kept = False

        async def write() -> None:
            nonlocal kept
            arguments = self._putting(key, text, ttl_seconds, stale_seconds, token)
            kept = bool(await self._link.ask(*self._put(*arguments)))

        if await self._write(write, [key]) and kept:
            self._metrics.cache_bytes.labels("written").inc(len(text))

    async def release(self, key: str, token: str) -> None:
        """Release the lock if `token` still holds it, and notify the processes that wait. Otherwise it expires."""
        arguments = [token, self._keys.cache_changes, _notice(keys=[key])]
        await self._write(lambda: self._link.ask(*self._yield([self._keys.cache_lock(key)], arguments)), [])

    async def drop(self, key: str, *, strict: bool) -> bool:
        """Delete a value on all nodes. True if there was one; False if not, or if Redis did not answer.

        Raises:
            Unavailable: Redis did not confirm. Only if `strict`.
        """
        found = False

        async def write() -> None:
            nonlocal found
            rows = [self._keys.cached(key), self._keys.cache_lock(key)]
            arguments = [self._keys.cache_changes, _notice(keys=[key])]
            found = bool(await self._link.ask(*self._drop(rows, arguments)))

        await self._write(write, [key], strict=strict)
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
            await self._link.learn()
            for server in self._link.shards.servers * 2:
                cleared += await self._sweep(server, self._keys.cached_under(prefix))
            await self._link.ask("PUBLISH", self._keys.cache_changes, _notice(prefix=prefix))

        await self._write(write, [], prefix, strict=strict)
        return cleared

    async def _sweep(self, server: str, pattern: str) -> int:
        cursor, values = 0, 0
        while True:
            cursor, found = await self._link.ask_at(server, "SCAN", cursor, "MATCH", pattern, "COUNT", BATCH_KEYS)
            if found:
                # One by one: on a Redis Cluster they lie in many slots.
                gone = await self._link.ask_all([("UNLINK", row) for row in found])
                values += sum(count for row, count in zip(found, gone, strict=True) if row.endswith(b"}"))
            if not cursor:
                return values

    async def _write(
        self, write: Callable[[], Awaitable[object]], keys: Sequence[str], prefix: str | None = None, *,
        strict: bool = False,
    ) -> bool:  # fmt: skip
        try:
            await self._ask(write, strict=strict)
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
        rows = [self._keys.cached(key), self._keys.cache_lock(key)]
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
        self.near.forget(keys)
        if prefix is not None:
            self.near.forget_all(prefix)
        self.on_changed(keys, prefix)

    def _update_subscription(self) -> None:
        self.near.set_subscription(self._bus.confirmed_since(self._keys.cache_changes))

    # ---- internals

    def _read(self, key: str, reading: Reading, text: bytes | None, left_ms: int) -> None:
        self._update_subscription()
        self.near.read(key, reading, text, _seconds(left_ms), asyncio.get_running_loop().time())
        if text is not None:
            self._metrics.cache_bytes.labels("read").inc(len(text))

    async def _ask(self, question: Callable[[], Awaitable[Any]], *, strict: bool = False) -> Any:
        loop = asyncio.get_running_loop()
        if not strict and loop.time() < self._away_until:
            raise Unavailable(f"Redis failed less than {AWAY_SECONDS} s ago: retry later")
        try:
            return await question()
        except Unavailable:
            self._away_until = loop.time() + AWAY_SECONDS
            raise


def _notice(*, keys: Iterable[str] | None = None, prefix: str | None = None) -> bytes:
    return orjson.dumps({"keys": keys} if prefix is None else {"prefix": prefix})


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def _seconds(left_ms: int) -> float:
    """An answer of PTTL in seconds; infinite if the key has no TTL."""
    return math.inf if left_ms == -1 else left_ms / 1000
