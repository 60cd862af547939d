"""The last value of topics that have a snapshot, each under a version that only grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gateway.cluster import rows
from gateway.cluster.envelope import Envelope
from gateway.cluster.keys import Keys
from gateway.cluster.leader import NO_FENCE, Fence
from gateway.cluster.link import Command, Link, Refused

MAX_TEXT_BYTES: Final = 32 << 20  # of a last value that is read: Redis ends a subscriber that lags behind by more
KEEP_MS: Final = 7 * 86_400_000  # so long is the last value of a topic without history kept


class Snapshots:
    """Values in Redis, and this node's copy of those it hears: an older one never replaces a newer."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._keep, self._last = link.script("keep"), link.script("last")
        self._known: dict[str, tuple[int, bytes | None]] = {}
        self._floors: dict[str, int] = {}  # all subscribers here were sent this version, or a newer one, first

    def keep(self, topic: str, message: Envelope, channel: str, fence: Fence | None = None) -> Command:
        """The command that keeps and publishes `message`, and answers its version.

        Or the newest token, in a list, if `fence` shuts it out.
        """
        return self._keep.with_source([self._keys.snapshot(topic)], [
            channel, message.header(), message.text, *(fence or NO_FENCE), self._link.publish_command(channel), KEEP_MS,
        ])  # fmt: skip

    def settled(self, topic: str) -> bool:
        """Whether this node has the topic's last value, or knows that there is none."""
        return topic in self._known

    async def ready(self, topics: Sequence[str]) -> None:
        """Have the topics' last values, in one round trip. Their channels must be joined, so that what comes is heard.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        unknown = [topic for topic in topics if topic not in self._known]
        if not unknown:
            return
        found = await self._link.ask_each([self._read(topic) for topic in unknown])
        for topic, answer in zip(unknown, found, strict=True):
            self.receive(topic, *self._decoded(topic, answer))

    async def read(self, topic: str) -> bytes | None:
        """The topic's last value, asked of Redis; None if there is none.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        [answer] = await self._link.ask_each([self._read(topic)])
        return self._decoded(topic, answer)[1]

    def receive(self, topic: str, version: int, text: bytes | None) -> None:
        """A value has come, from the channel or from Redis."""
        known = self._known.get(topic)
        if known is None or version > known[0]:
            self._known[topic] = version, text

    def replace(self, topic: str, text: bytes) -> None:
        """A message has come that Redis does not keep, since its publisher's rules give the topic no snapshot."""
        known = self._known.get(topic)
        if known is not None:
            self._known[topic] = known[0], text

    def newest(self, topic: str) -> bytes | None:
        """The topic's last value."""
        return self._known[topic][1]

    def begin(self, topic: str) -> None:
        """The topic has no subscriber here yet: the first ones are sent the value that is known now, if any."""
        known = self._known.get(topic)
        if known is not None:
            self._floors[topic] = known[0]

    def is_superseded(self, topic: str, version: int) -> bool:
        """Whether every subscriber here was sent this version, or a newer one, before.

        Messages that were under way while the value was read from Redis come after it, and may be older.
        """
        return version <= self._floors.get(topic, 0)

    def forget(self, topic: str) -> None:
        """Nobody here hears the topic any more, or something was missed: it is read again when asked for."""
        self._known.pop(topic, None)
        self._floors.pop(topic, None)

    def _read(self, topic: str) -> Command:
        return self._last([self._keys.snapshot(topic)], [MAX_TEXT_BYTES])

    def _decoded(self, topic: str, answer: Any) -> tuple[int, bytes | None]:
        """Version and text of a row; 0 and None if there is none, or it is malformed."""
        key = self._keys.snapshot(topic)
        if isinstance(answer, Refused):
            self._link.rows.skip("snapshot", key, answer)
            return 0, None
        if answer == [None, None]:
            return 0, None
        return self._link.rows.take("snapshot", key, lambda: _value(answer)) or (0, None)


def _value(answer: Any) -> tuple[int, bytes]:
    if not answer:
        raise ValueError(f"the text has more than {MAX_TEXT_BYTES} bytes")
    version, text = answer
    return rows.integer(version), rows.message(text)
