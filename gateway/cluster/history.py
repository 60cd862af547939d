"""History: the last messages of a topic with their offsets, in a stream and its meta hash. Reads write nothing."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from gateway.cluster import rows
from gateway.cluster.envelope import Envelope
from gateway.cluster.keys import Keys
from gateway.cluster.leader import NO_FENCE, Fence
from gateway.cluster.link import Command, Link, Refused
from gateway.cluster.lives import LIFE_BYTES, Lives
from gateway.core.position import unborn
from gateway.core.sequence import Entry, Page
from gateway.core.topics import Rule

IDEMPOTENCY_MS: Final = 300_000
META_MS: Final = 86_400_000  # meta and snapshot outlive the messages by this; nodes with subscribers renew it
MAX_READ: Final = 1000  # entries in one answer
MAX_OFFSET: Final = 10**14  # append.lua starts a new epoch beyond it

_EPOCH: Final = re.compile(r"[A-Za-z0-9]{1,64}")


class Top(NamedTuple):
    """Epoch, offset and mark of a topic's newest message; epoch None: no message yet."""

    epoch: str | None
    offset: int
    mark: int


NO_TOP: Final = Top(None, 0, 0)


class History:
    """The streams of all topics with history. `now` gives seconds since 1970."""

    def __init__(self, link: Link, keys: Keys, now: Callable[[], float] = time.time) -> None:
        self._link = link
        self._keys = keys
        self._now = now
        self._lives = Lives(link)
        self._append = link.script("append")
        self._read = link.script("read")
        self._renew = link.script("renew")
        self._peek = link.script("peek")

    def append(
        self, topic: str, rule: Rule, envelope: Envelope, channel: str, key: str | None, fence: Fence | None = None
    ) -> Command:
        """The command that numbers, stores and publishes `envelope`, of a topic with history.

        Its answer is epoch, offset, mark, and 1 if the idempotency key `key` was used before. If `fence` is outdated,
        the answer is the newest token alone.
        """
        meta = self._keys.history_meta(topic)
        answered = self._keys.history_answer(topic, key) if key else meta
        last = self._keys.snapshot(topic) if rule.snapshot else meta
        return self._append.with_source([self._keys.history(topic), meta, answered, last], [
            channel, envelope.header(), envelope.body, rule.history, rule.history_seconds * 1000, envelope.published_ms,
            secrets.token_hex(4), key or "", IDEMPOTENCY_MS, envelope.exclude or "",
            *(fence or NO_FENCE), self._link.publish_command(channel), rule.history_seconds * 1000 + META_MS,
            rule.history_bytes,
        ])  # fmt: skip

    async def read(self, topic: str, first: int | None, count: int = MAX_READ, *, compare: bool = True) -> Page:
        """Read at most `count` entries from the offset `first` on, or the newest `count` entries if it is None.

        `compare`: find out whether a client can recover from a position before the first message.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        keys = [self._keys.history(topic), self._keys.history_meta(topic), self._keys.snapshot(topic)]
        epoch, top, mark, found, last = await self._link.reads.ask(
            *self._read(keys, ["" if first is None else first, count])
        )
        place = self._top(keys[1], epoch, top, mark)
        last_body = self._link.rows.take("snapshot", keys[2], lambda: rows.message(last)) if last else None
        if place.epoch is None:
            # A broken meta means that there were messages, so this position must differ from every other.
            life = secrets.token_hex(LIFE_BYTES) if epoch else await self._lives.of(keys[1])
            nothing = unborn(life, self.hours())
            return Page(nothing, 0, [], beginning=nothing, last=last_body)
        decoded = self._link.rows.each("history", keys[0], found, _entry)
        entries = [entry for entry in decoded if entry.offset <= place.offset]
        more = first is not None and len(found) == count and bool(entries) and first < entries[-1].offset < place.offset
        beginning: str | None = None
        if compare and entries and entries[0].offset == 1 and entries[0].mark and not entries[0].previous:
            beginning = unborn(await self._lives.of(keys[1]), self.hours())
        return Page(place.epoch, place.offset, entries, more, place.mark, beginning, last_body)

    async def renew(self, topic: str, epoch: str) -> str | None:
        """Replace the topic's broken `epoch`, because its stream lost messages. Returns the current epoch or None.

        The change is as durable as a publish.

        Raises:
            Unconfirmed: Redis did it, but too few replicas confirmed it.
            Unavailable: Redis did not answer in time.
        """
        keys = [self._keys.history_meta(topic)]
        command = self._renew.with_source(keys, [epoch, secrets.token_hex(4), META_MS])
        [renewed] = await self._link.send([command], durable=True)
        return self._top(keys[0], renewed, b"0", b"").epoch

    async def peek(self, topics: Sequence[tuple[str, Rule]]) -> list[Top | None]:
        """The newest message of each topic, in one round trip; None for a topic whose command Redis rejected.

        Renews the TTL of the meta, because the topics have subscribers on this node.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        asked = [
            ([self._keys.history_meta(topic), self._keys.snapshot(topic)], rule.history_seconds * 1000 + META_MS)
            for topic, rule in topics
        ]
        found = await self._link.ask_each([self._peek(keys, [life_ms]) for keys, life_ms in asked])
        return [
            None if isinstance(answer, Refused) else self._top(keys[0], *answer)
            for (keys, _), answer in zip(asked, found, strict=True)
        ]

    async def delete(self, topic: str) -> bool:
        """Delete all messages of a topic and its snapshot; the offsets go on. False if there were none.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        keys = self._keys.history(topic), self._keys.snapshot(topic)
        return bool(await self._link.ask("UNLINK", *keys))

    def hours(self) -> int:
        """Whole hours since 1970."""
        return int(self._now() // 3600)

    def _top(self, key: str, epoch: bytes, top: bytes, mark: bytes) -> Top:
        """The content of a meta; `NO_TOP` if it is missing or broken: the next publish then starts an epoch."""
        if not epoch:
            return NO_TOP
        return self._link.rows.take("history", key, lambda: _decoded(epoch, top, mark)) or NO_TOP


def _decoded(epoch: bytes, top: bytes, mark: bytes) -> Top:
    name = rows.text(epoch)
    if not _EPOCH.fullmatch(name):
        raise ValueError(f"{rows.shown(epoch)} is not an epoch")
    return Top(name, rows.integer(top, most=MAX_OFFSET), rows.integer(mark) if mark else 0)


def _entry(entry: Any) -> Entry:
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
    return Entry(rows.integer(number, least=1), rows.message(fields[b"m"]), exclude, *marks)
