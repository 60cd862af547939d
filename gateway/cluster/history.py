"""The last messages of a topic, numbered: a stream and its meta, one slot each topic. Reading them writes nothing."""

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
META_MS: Final = 86_400_000  # so long meta and last value outlive the messages; nodes that have the topic open renew it
MAX_READ: Final = 1000  # entries in one answer
MAX_OFFSET: Final = 10**14  # append.lua begins anew beyond it

_EPOCH: Final = re.compile(r"[A-Za-z0-9]{1,64}")


class Top(NamedTuple):
    """The newest message of a topic: epoch, offset and mark; without an epoch, there was none yet."""

    epoch: str | None
    offset: int
    mark: int


NO_TOP: Final = Top(None, 0, 0)


class History:
    """Streams of all topics whose rule keeps some. `now` gives seconds since 1970."""

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
        self, topic: str, rule: Rule, message: Envelope, channel: str, key: str | None, fence: Fence | None = None
    ) -> Command:
        """The command that numbers, keeps and publishes `message`, an envelope of a topic with history.

        Its answer is epoch, offset, mark, and 1 if the idempotency key `key` was answered so before; or the newest
        token alone, if `fence` shuts it out.
        """
        meta = self._keys.history_meta(topic)
        answered = self._keys.history_answer(topic, key) if key else meta
        last = self._keys.snapshot(topic) if rule.snapshot else meta
        return self._append.with_source([self._keys.history(topic), meta, answered, last], [
            channel, message.header(), message.text, rule.history, rule.history_seconds * 1000, message.published_ms,
            secrets.token_hex(4), key or "", IDEMPOTENCY_MS, message.exclude or "",
            *(fence or NO_FENCE), self._link.publish_command(channel), META_MS, rule.history_bytes,
        ])  # fmt: skip

    async def read(self, topic: str, first: int | None, count: int = MAX_READ, *, compare: bool = True) -> Page:
        """At most `count` entries from the offset `first` on, or the newest `count` if it is None.

        `compare`: find out whether positions from before the first message can be recovered from.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        keys = [self._keys.history(topic), self._keys.history_meta(topic), self._keys.snapshot(topic)]
        epoch, top, mark, found, last = await self._link.reads.ask(
            *self._read(keys, ["" if first is None else first, count])
        )
        place = self._top(keys[1], epoch, top, mark)
        text = self._link.rows.take("snapshot", keys[2], lambda: rows.message(last)) if last else None
        if place.epoch is None:
            # Where there is a meta and it is broken there were messages: a position must equal no other.
            life = secrets.token_hex(LIFE_BYTES) if epoch else await self._lives.of(keys[1])
            nothing = unborn(life, self.hours())
            return Page(nothing, 0, [], beginning=nothing, last=text)
        decoded = self._link.rows.each("history", keys[0], found, _entry)
        entries = [entry for entry in decoded if entry.offset <= place.offset]
        more = first is not None and len(found) == count and bool(entries) and first < entries[-1].offset < place.offset
        beginning: str | None = None
        if compare and entries and entries[0].offset == 1 and entries[0].mark and not entries[0].previous:
            beginning = unborn(await self._lives.of(keys[1]), self.hours())
        return Page(place.epoch, place.offset, entries, more, place.mark, beginning, text)

    async def renew(self, topic: str, epoch: str) -> str | None:
        """Replace the topic's broken `epoch`: its stream lost messages. The epoch that holds now; None: there is none.

        It is as durable as a publish.

        Raises:
            Unconfirmed: It is done, but too few replicas confirmed it.
            Unavailable: Redis did not answer in time.
        """
        keys = [self._keys.history_meta(topic)]
        command = self._renew.with_source(keys, [epoch, secrets.token_hex(4), META_MS])
        [renewed] = await self._link.send([command], durable=True)
        return self._top(keys[0], renewed, b"0", b"").epoch

    async def peek(self, topics: Sequence[tuple[str, Rule]]) -> list[Top | None]:
        """The newest message of each topic, in one round trip; None for a topic that Redis does not tell it of.

        The topics are open at this node, so what Redis keeps of their numbering is kept from expiring.

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
        """Drop all its messages, the last value among them; the numbering goes on. False if there were none.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        keys = self._keys.history(topic), self._keys.snapshot(topic)
        return bool(await self._link.ask("UNLINK", *keys))

    def hours(self) -> int:
        """Whole hours since 1970."""
        return int(self._now() // 3600)

    def _top(self, key: str, epoch: bytes, top: bytes, mark: bytes) -> Top:
        """What a meta says; `NO_TOP` if there is none, or it is broken: the next publish begins anew."""
        if not epoch:
            return NO_TOP
        return self._link.rows.take("history", key, lambda: _decoded(epoch, top, mark)) or NO_TOP


def _decoded(epoch: bytes, top: bytes, mark: bytes) -> Top:
    name = rows.text(epoch)
    if not _EPOCH.fullmatch(name):
        raise ValueError(f"{rows.shown(epoch)} is no epoch")
    return Top(name, rows.integer(top, most=MAX_OFFSET), rows.integer(mark) if mark else 0)


def _entry(entry: Any) -> Entry:
    """A message as it stands in a stream. 0.1.0 wrote no marks.

    Raises:
        ValueError, LookupError, TypeError: It is malformed.
    """
    identity, flat = entry
    fields = dict(rows.pairs(flat))
    number, _, part = identity.partition(b"-")
    if part != b"0":
        raise ValueError(f"{rows.shown(identity)} is no id of a message")
    exclude = rows.client_id(fields[b"x"]) if fields.get(b"x") else None
    marks = (rows.integer(fields.get(name, b"0")) for name in (b"k", b"p"))
    return Entry(rows.integer(number, least=1), rows.message(fields[b"m"]), exclude, *marks)
