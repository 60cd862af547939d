"""Snapshots: the last message of a topic, with a version that only grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gateway.broker import rows
from gateway.broker.client import CommandRefused, RedisClient, RedisCommand
from gateway.broker.envelope import Envelope
from gateway.broker.fence import NO_FENCE, Fence
from gateway.broker.keys import IDEMPOTENCY_MS, Keys

MAX_BODY_BYTES: Final = 32 << 20  # largest snapshot that a node reads: the output buffer limit of Redis for pub/sub
KEEP_MS: Final = 7 * 86_400_000  # TTL of the snapshot of a topic without history


class Snapshots:
    """Snapshots in Redis, and copies of those of subscribed topics; an older version never replaces a newer one."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._publish_snapshot, self._read_snapshot = redis.script("publish_snapshot"), redis.script("read_snapshot")
        self._known: dict[str, tuple[int, bytes | None]] = {}
        self._reading: dict[str, set[object]] = {}  # the reads of each topic whose answers count
        self._floors: dict[str, int] = {}  # every local subscriber received this version or a newer one first

    def publish_command(
        self, topic: str, envelope: Envelope, channel: str, key: str | None = None, fence: Fence | None = None
    ) -> RedisCommand:
        """The command that stores and publishes `envelope`; its answer is the version.

        The answer is 0 if the idempotency key `key` was used before. If `fence` is outdated, the answer is a list with
        the newest token.
        """
        answer = [self._keys.publish_answer(topic, key)] if key is not None else []
        return self._publish_snapshot.with_source([self._keys.snapshot(topic), *answer], [
            channel, envelope.header(), envelope.body, *(fence or NO_FENCE), self._redis.publish_command(channel),
            KEEP_MS, IDEMPOTENCY_MS,
        ])  # fmt: skip

    def is_ready(self, topic: str) -> bool:
        """Whether this node has the snapshot of the topic, or knows that there is none."""
        return topic in self._known

    async def prepare(self, topics: Sequence[str]) -> None:
        """Read the snapshots of topics in one round trip. Their channels must be subscribed, so that no update is lost.

        A topic that is forgotten during the read stays unknown: its channel may have been left meanwhile.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        unknown = [topic for topic in topics if topic not in self._known]
        if not unknown:
            return
        read = object()
        for topic in unknown:
            self._reading.setdefault(topic, set()).add(read)
        found: list[Any] = []
        try:
            found = await self._redis.execute_each([self._read_command(topic) for topic in unknown])
        finally:
            counting = [self._end_read(topic, read) for topic in unknown]
        for topic, answer, counts in zip(unknown, found, counting, strict=True):
            if counts:
                self.value_received(topic, *self._decoded(topic, answer))

    def _end_read(self, topic: str, read: object) -> bool:
        """Whether the answer of a read counts: the topic was not forgotten since it began."""
        reads = self._reading.get(topic, set())
        if read not in reads:
            return False
        reads.discard(read)
        if not reads:
            del self._reading[topic]
        return True

    async def read(self, topic: str) -> bytes | None:
        """Read the snapshot of the topic from Redis; None if there is none.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        [answer] = await self._redis.execute_each([self._read_command(topic)])
        return self._decoded(topic, answer)[1]

    def value_received(self, topic: str, version: int, body: bytes | None) -> None:
        """Store a snapshot that arrived on the channel or was read from Redis, unless it is older."""
        known = self._known.get(topic)
        if known is None or version > known[0]:
            self._known[topic] = version, body

    def replace(self, topic: str, body: bytes) -> None:
        """Store a message without a version: its publisher's rules give the topic no snapshot, so Redis has no copy."""
        known = self._known.get(topic)
        if known is not None:
            self._known[topic] = known[0], body

    def newest(self, topic: str) -> bytes | None:
        """The snapshot of the topic; `is_ready` must be true."""
        return self._known[topic][1]

    def begin_topic(self, topic: str) -> None:
        """Note that the first local subscribers will receive the snapshot that is known now, if any."""
        known = self._known.get(topic)
        if known is not None:
            self._floors[topic] = known[0]

    def is_superseded(self, topic: str, version: int) -> bool:
        """Whether every local subscriber has received this version or a newer one before.

        Messages that were in flight while the node read the snapshot arrive after it and may be older.
        """
        return version <= self._floors.get(topic, 0)

    def forget(self, topic: str) -> None:
        """Drop the copy: the topic has no local subscriber, or a message was missed. The next use reads it again."""
        self._known.pop(topic, None)
        self._reading.pop(topic, None)
        self._floors.pop(topic, None)

    def _read_command(self, topic: str) -> RedisCommand:
        return self._read_snapshot([self._keys.snapshot(topic)], [MAX_BODY_BYTES])

    def _decoded(self, topic: str, answer: Any) -> tuple[int, bytes | None]:
        """Version and body of a row; 0 and None if it does not exist or is malformed."""
        key = self._keys.snapshot(topic)
        if isinstance(answer, CommandRefused):
            self._redis.rows.skip("snapshot", key, answer)
            return 0, None
        if answer == [None, None]:
            return 0, None
        return self._redis.rows.decode("snapshot", key, lambda: _value(answer)) or (0, None)


def _value(answer: Any) -> tuple[int, bytes]:
    if not answer:
        raise ValueError(f"the message is over the limit of {MAX_BODY_BYTES} bytes")
    version, body = answer
    return rows.integer(version), rows.message(body)
