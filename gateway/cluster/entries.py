"""What the cache holds: texts in Redis, and near by those this process has read.

What is read is remembered (`near`) until a notice says that it changed: writers publish one in the same step with the
write, on one channel. Not Redis' own client tracking: its state lives in Redis, a part for each connection of a pool,
and is gone without a word when one of them, or the one that it redirects to, is made anew. The bus knows when it
was deaf (`Bus.confirmed_since`), so it is known what can no longer be trusted.
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

JITTER: Final = 0.1  # a value is kept up to so much shorter than asked, so that what came together does not go together
NEAR_BYTES: Final = 16 << 20
AWAY_SECONDS: Final = 0.5  # after Redis failed it is not asked for so long: callers would wait for its deadline in turn
BATCH_KEYS: Final = 500
MAX_VALUE_BYTES: Final = 1 << 20
MAX_NOTICE_BYTES: Final = 1 << 20  # of a notice: it names at most 500 keys of 500 characters

_NOTHING: Final = -2  # what PTTL says of a key that is not


class Taken(NamedTuple):
    """What `Entries.take` found."""

    text: bytes | None
    stale: bool
    ours: bool  # the lock: it is for us to load the value
    lock_seconds: float  # else, how long another still has it


class Entries:
    """Reads and writes texts; `on_changed` is called with keys that have changed, and with what keys begin with."""

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
        """The text of `key`, if it is known near by and kept for more than `margin` seconds."""
        self._listen()
        text = self.near.get(key, asyncio.get_running_loop().time(), margin)
        if text is not None:
            self._metrics.cache_reads.labels("near").inc()
        return text

    async def read(self, keys: Sequence[str], *, strict: bool) -> dict[str, bytes]:
        """The texts of those of `keys` that have one, from near by or from Redis.

        Raises:
            Unavailable: Redis did not answer in time. Only if `strict`; else what it has is missing.
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

        # A byte more than a value may have, so that a longer one is found out and not fetched.
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
        """The text that Redis answered; None if there is none, or none of ours."""
        if isinstance(text, Refused) and not isinstance(text, WrongType):
            raise text
        if isinstance(text, WrongType) or len(text) > MAX_VALUE_BYTES:
            self._link.rows.skip("cache", row, text if isinstance(text, WrongType) else "the value is too long")
            return None
        return text or None

    async def take(self, key: str, token: str, *, lock_seconds: float, stale_seconds: float) -> Taken:
        """The text of `key`; if there is none, or it is in its last `stale_seconds`, also the lock, if nobody has it.

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
        """Seconds for which `key` is kept on; None: it is not there. Infinite, if somebody else wrote it so.

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
        """Keep them for at most `ttl_seconds`. False, if Redis did not take them all.

        Raises:
            Unavailable: It did not. Only if `strict`.
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
        """Keep what was loaded, unless the lock is no longer the token's."""
        kept = False

        async def write() -> None:
            nonlocal kept
            arguments = self._putting(key, text, ttl_seconds, stale_seconds, token)
            kept = bool(await self._link.ask(*self._put(*arguments)))

        if await self._write(write, [key]) and kept:
            self._metrics.cache_bytes.labels("written").inc(len(text))

    async def release(self, key: str, token: str) -> None:
        """Give up the lock, if it is still the token's, so that who waits for it goes on. Else it ends by itself."""
        arguments = [token, self._keys.cache_changes, _notice(keys=[key])]
        await self._write(lambda: self._link.ask(*self._yield([self._keys.cache_lock(key)], arguments)), [])

    async def drop(self, key: str, *, strict: bool) -> bool:
        """Forget it everywhere. Whether it was there; False, too, if Redis did not answer.

        Raises:
            Unavailable: Redis did not do it. Only if `strict`.
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
        """Forget all whose keys begin so; how many there were.

        Raises:
            Unavailable: Redis failed on the way. Only if `strict`.
        """
        cleared = 0

        async def write() -> None:
            nonlocal cleared
            # Twice: a load that had begun before may, amid the first time, keep its old value where was looked already.
            # After the first time the locks of all such loads are gone.
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
            self._changed(keys, prefix)  # the notice comes too, but the writer must not read its own past until then
        self._metrics.cache_writes.labels("ok").inc()
        return True

    def _putting(
        self, key: str, text: bytes, ttl_seconds: float, stale_seconds: float = 0.0, token: str = ""
    ) -> tuple[list[str], list[Any]]:
        seconds = ttl_seconds * random.uniform(1 - JITTER, 1) + stale_seconds
        rows = [self._keys.cached(key), self._keys.cache_lock(key)]
        return rows, [text, _ms(seconds), token, self._keys.cache_changes, _notice(keys=[key])]

    # ---- what changes

    def _on_notice(self, _channel: str, payload: bytes) -> None:
        try:
            said = orjson.loads(payload) if len(payload) <= MAX_NOTICE_BYTES else None
        except ValueError:
            said = None
        match said:
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

    def _listen(self) -> None:
        self.near.heard(self._bus.confirmed_since(self._keys.cache_changes))

    # ---- within

    def _read(self, key: str, reading: Reading, text: bytes | None, left_ms: int) -> None:
        self._listen()
        self.near.read(key, reading, text, _seconds(left_ms), asyncio.get_running_loop().time())
        if text is not None:
            self._metrics.cache_bytes.labels("read").inc(len(text))

    async def _ask(self, question: Callable[[], Awaitable[Any]], *, strict: bool = False) -> Any:
        loop = asyncio.get_running_loop()
        if not strict and loop.time() < self._away_until:
            raise Unavailable("Redis failed a moment ago")
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
    """What PTTL says, in seconds; infinite, where there is no end."""
    return math.inf if left_ms == -1 else left_ms / 1000
