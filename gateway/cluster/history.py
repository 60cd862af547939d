"""The last messages of a topic, numbered: a stream and its meta, one slot each topic."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final

from gateway.cluster.envelope import Envelope
from gateway.cluster.keys import Keys
from gateway.cluster.leader import NO_FENCE, Fence
from gateway.cluster.link import Command, Link
from gateway.core.sequence import Entry, Page
from gateway.core.topics import Rule

IDEMPOTENCY_MS: Final = 300_000
EMPTY_META_MS: Final = 86_400_000
MAX_READ: Final = 1000  # entries in one answer


class History:
    """Streams of all topics whose rule keeps some."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._append = link.script("append")
        self._read = link.script("read")
        self._renew = link.script("renew")

    def append(
        self, topic: str, rule: Rule, message: Envelope, channel: str, key: str | None, fence: Fence | None = None
    ) -> Command:
        """The command that numbers, keeps and publishes `message`.

        Its answer is epoch, offset, and 1 if the idempotency key `key` was answered so before; or the newest token
        alone, if `fence` shuts it out.
        """
        meta = self._keys.history_meta(topic)
        answered = self._keys.history_answer(topic, key) if key else meta
        return self._append.whole([self._keys.history(topic), meta, answered], [
            channel, message.header(), message.text, rule.history, rule.history_seconds * 1000, message.published_ms,
            secrets.token_hex(4), key or "", IDEMPOTENCY_MS, message.exclude or "",
            *(fence or NO_FENCE), self._link.publish_command(channel),
        ])  # fmt: skip

    async def read(self, topic: str, first: int | None, count: int = MAX_READ) -> Page:
        """Epoch, top and at most `count` entries from the offset `first` on, or the newest `count` if it is None.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        keys = [self._keys.history(topic), self._keys.history_meta(topic)]
        arguments = ["" if first is None else first, count, secrets.token_hex(4), EMPTY_META_MS]
        epoch, top, found = await self._link.reads.ask(*self._read(keys, arguments))
        entries = [_entry(entry) for entry in found]
        more = first is not None and len(entries) == count and entries[-1].offset < top
        return Page(epoch.decode(), top, entries, more)

    async def renew(self, topic: str, epoch: str) -> str:
        """Replace the topic's broken `epoch`: its stream went back. The epoch that holds now.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        keys = [self._keys.history_meta(topic)]
        renewed: bytes = await self._link.ask(*self._renew(keys, [epoch, secrets.token_hex(4)]))
        return renewed.decode()

    async def tops(self, topics: Iterable[str]) -> list[tuple[str | None, int]]:
        """Epoch and newest offset of each topic, in one round trip; None where there is no epoch.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        found = await self._link.ask_all(
            [("HMGET", self._keys.history_meta(topic), "epoch", "top") for topic in topics]
        )
        return [(epoch and epoch.decode(), int(top or 0)) for epoch, top in found]

    async def delete(self, topic: str) -> bool:
        """Drop all its messages; the numbering goes on. False if there were none.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        return bool(await self._link.ask("UNLINK", self._keys.history(topic)))


def _entry(entry: tuple[bytes, list[bytes]]) -> Entry:
    identity, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    exclude = fields.get(b"x")
    return Entry(int(identity.partition(b"-")[0]), fields[b"m"], exclude.decode() if exclude else None)
