"""History: the last messages of a topic with their offsets, in a stream and its meta hash. Reads write nothing."""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from gateway.broker import rows
from gateway.broker.client import CommandRefused, RedisClient, RedisCommand
from gateway.broker.envelope import Envelope
from gateway.broker.fence import NO_FENCE, Fence
from gateway.broker.keys import IDEMPOTENCY_MS, Keys
from gateway.broker.server_life import LIFE_BYTES, ServerLife
from gateway.core.position import unborn
from gateway.core.stream_position import StreamEntry, StreamPage
from gateway.core.topic_rules import Rule

# A topic that got its epoch before its first message: clients cause such keys, so they live only briefly.
BEGUN_MS: Final = 3_600_000
META_MS: Final = 86_400_000  # meta and snapshot outlive the messages by this; nodes with subscribers renew it
MAX_READ: Final = 1000  # entries in one answer
MAX_OFFSET: Final = 10**14  # append_history.lua starts a new epoch beyond it

_EPOCH: Final = re.compile(r"[A-Za-z0-9]{1,64}")


class HistoryTop(NamedTuple):
    """Epoch, offset and mark of a topic's newest message; epoch None: no message yet."""

    epoch: str | None
    offset: int
    mark: int


NO_TOP: Final = HistoryTop(None, 0, 0)


class History:
    """The streams of all topics with history. `now` gives seconds since 1970."""

    def __init__(self, redis: RedisClient, keys: Keys, now: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._keys = keys
        self._now = now
        self._lives = ServerLife(redis)
        self._append_history = redis.script("append_history")
        self._read_history = redis.script("read_history")
        self._renew_epoch = redis.script("renew_epoch")
        self._peek_history = redis.script("peek_history")
        self._begin_history = redis.script("begin_history")

    async def begin(self, topic: str, page: StreamPage) -> StreamPage:
        """Give a topic an epoch before its first message; `page` is a read that found none. Returns the page with it.

        A client whose protocol names the epoch only when it subscribes can then still recover after the first message.
        The epoch lives for `BEGUN_MS` after the last subscriber, unless a message comes.

        Raises:
            Unavailable: Redis did not confirm.
        """
        keys = [self._keys.history_meta(topic)]
        command = self._begin_history.with_source(keys, [secrets.token_hex(4), BEGUN_MS])
        [begun] = await self._redis.transact([command], durable=True)
        epoch = self._top(keys[0], begun, b"0", b"").epoch
        return page if epoch is None else replace(page, epoch=epoch)

    def append_command(
        self, topic: str, rule: Rule, envelope: Envelope, channel: str, key: str | None, fence: Fence | None = None
    ) -> RedisCommand:
        """The command that numbers, stores and publishes `envelope`, of a topic with history.

        Its answer is epoch, offset, mark, and 1 if the idempotency key `key` was used before. If `fence` is outdated,
        the answer is the newest token alone.
        """
        meta = self._keys.history_meta(topic)
        answered = self._keys.publish_answer(topic, key) if key else meta
        last = self._keys.snapshot(topic) if rule.snapshot else meta
        return self._append_history.with_source([self._keys.history(topic), meta, answered, last], [
            channel, envelope.header(), envelope.body, rule.history, rule.history_seconds * 1000, envelope.published_ms,
            f"{random.getrandbits(32):08x}", key or "", IDEMPOTENCY_MS, envelope.exclude or "",
            *(fence or NO_FENCE), self._redis.publish_command(channel), rule.history_seconds * 1000 + META_MS,
            rule.history_bytes,
        ])  # fmt: skip

    async def read(self, topic: str, first: int | None, count: int = MAX_READ, *, compare: bool = True) -> StreamPage:
        """Read at most `count` entries from the offset `first` on, or the newest `count` entries if it is None.

        `compare`: find out whether a client can recover from a position before the first message.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        keys = [self._keys.history(topic), self._keys.history_meta(topic), self._keys.snapshot(topic)]
        epoch, top, mark, found, last = await self._redis.read_batch.execute(
            *self._read_history(keys, ["" if first is None else first, count])
        )
        place = self._top(keys[1], epoch, top, mark)
        last_body = self._redis.rows.decode("snapshot", keys[2], lambda: rows.message(last)) if last else None
        if place.epoch is None:
            # A broken meta means that there were messages, so this position must differ from every other.
            life = secrets.token_hex(LIFE_BYTES) if epoch else await self._lives.of(keys[1])
            nothing = unborn(life, self.hours_now())
            return StreamPage(nothing, 0, [], beginning=nothing, last=last_body)
        decoded = self._redis.rows.decode_each("history", keys[0], found, _entry)
        entries = [entry for entry in decoded if entry.offset <= place.offset]
        more = first is not None and len(found) == count and bool(entries) and first < entries[-1].offset < place.offset
        beginning: str | None = None
        if compare and entries and entries[0].offset == 1 and entries[0].mark and not entries[0].previous:
            beginning = unborn(await self._lives.of(keys[1]), self.hours_now())
        return StreamPage(place.epoch, place.offset, entries, more, place.mark, beginning, last_body)

    async def renew_epoch(self, topic: str, epoch: str) -> str | None:
        """Replace the topic's broken `epoch`, because its stream lost messages. Returns the current epoch or None.

        The change is as durable as a publish.

        Raises:
            Unconfirmed: Redis did it, but too few replicas confirmed it.
            Unavailable: Redis did not answer in time.
        """
        keys = [self._keys.history_meta(topic)]
        command = self._renew_epoch.with_source(keys, [epoch, secrets.token_hex(4), META_MS])
        [renewed] = await self._redis.transact([command], durable=True)
        return self._top(keys[0], renewed, b"0", b"").epoch

    async def tops(self, topics: Sequence[tuple[str, Rule]]) -> list[HistoryTop | None]:
        """The newest message of each topic, in one round trip; None for a topic whose command Redis rejected.

        Renews the TTL of the meta, because the topics have subscribers on this node.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        asked = [
            ([self._keys.history_meta(topic), self._keys.snapshot(topic)], rule.history_seconds * 1000 + META_MS)
            for topic, rule in topics
        ]
        commands = [self._peek_history(keys, [life_ms, BEGUN_MS]) for keys, life_ms in asked]
        found = await self._redis.execute_each(commands)
        return [
            None if isinstance(answer, CommandRefused) else self._top(keys[0], *answer)
            for (keys, _), answer in zip(asked, found, strict=True)
        ]

    async def delete(self, topic: str) -> bool:
        """Delete all messages of a topic and its snapshot; the offsets go on. False if there were none.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        keys = self._keys.history(topic), self._keys.snapshot(topic)
        return bool(await self._redis.execute("UNLINK", *keys))

    def hours_now(self) -> int:
        """Whole hours since 1970."""
        return int(self._now() // 3600)

    def _top(self, key: str, epoch: bytes, top: bytes, mark: bytes) -> HistoryTop:
        """The content of a meta; `NO_TOP` if it is missing or broken: the next publish then starts an epoch."""
        if not epoch:
            return NO_TOP
        return self._redis.rows.decode("history", key, lambda: _decoded(epoch, top, mark)) or NO_TOP


def _decoded(epoch: bytes, top: bytes, mark: bytes) -> HistoryTop:
    name = rows.text(epoch)
    if not _EPOCH.fullmatch(name):
        raise ValueError(f"{rows.shown(epoch)} is not an epoch")
    return HistoryTop(name, rows.integer(top, most=MAX_OFFSET), rows.integer(mark) if mark else 0)


def _entry(entry: Any) -> StreamEntry:
    """Decode a stream entry. Version 0.1.0 wrote no marks.

    Raises:
        ValueError, LookupError, TypeError: It is malformed.
    """
    identity, flat = entry
    fields = dict(rows.pairs(flat))
    number, _, part = identity.partition(b"-")
    if part != b"0":
        raise ValueError(f"{rows.shown(identity)} is not a message id")
    exclude = rows.client_id(fields[b"x"]) if fields.get(b"x") else None
    marks = (rows.integer(fields.get(name, b"0")) for name in (b"k", b"p"))
    return StreamEntry(rows.integer(number, least=1), rows.message(fields[b"m"]), exclude, *marks)
