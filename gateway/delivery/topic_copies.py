"""What this node keeps of the topics of its clients: streams, snapshots and presence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from gateway.broker.envelope import Envelope, EnvelopeKind
from gateway.broker.snapshots import Snapshots
from gateway.core import hub
from gateway.core.events import Delivered
from gateway.core.hub import Hub
from gateway.core.position import Position
from gateway.core.stream_position import StreamEntry
from gateway.core.topic_rules import TopicRules
from gateway.delivery.presence import PresenceTracker
from gateway.delivery.recovery import Recovery
from gateway.metrics import Metrics

READY_TOPICS: Final = 100  # topics read at a time for a SUBSCRIBE


class TopicCopies:
    """The copies of topics with history, a snapshot or presence, according to their rules."""

    def __init__(
        self, hub: Hub, rules: TopicRules, recovery: Recovery, snapshots: Snapshots, presence: PresenceTracker,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self.recovery = recovery
        self.snapshots = snapshots
        self.presence = presence
        self.rules_differ = False  # another node has other topic rules than this one
        self._hub = hub
        self._rules = rules
        self._metrics = metrics

    def is_plain(self, topic: str) -> bool:
        """Whether a client can subscribe without reads from Redis: no history, no snapshot, no presence."""
        rule = self._rules.of(topic)
        return not rule.history and not rule.snapshot and not rule.presence

    def has_history(self, topic: str) -> bool:
        """Whether the topic has history."""
        return bool(self._rules.of(topic).history)

    def has_presence(self, topic: str) -> bool:
        """Whether the topic has presence."""
        return self._rules.of(topic).presence

    def rewrite_presence(self, topics: Iterable[str]) -> None:
        """Write this node's presence rows of those of `topics` that have presence again."""
        self.presence.rewrite(filter(self.has_presence, topics))

    async def prepare(self, topics: Iterable[str]) -> None:
        """Read what new subscribers of `topics` receive first: positions, snapshots, rosters. Channels must be joined.

        `READY_TOPICS` topics are read in parallel and share round trips.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        waiting = [topic for topic in topics if not self.is_ready(topic)]
        for at in range(0, len(waiting), READY_TOPICS):
            some = waiting[at : at + READY_TOPICS]
            rules = {topic: self._rules.of(topic) for topic in some}
            values = [topic for topic, rule in rules.items() if rule.snapshot and not rule.history]
            found = await asyncio.gather(
                self.snapshots.prepare(values),
                *(self.recovery.prepare(topic) for topic, rule in rules.items() if rule.history),
                *(self.presence.prepare(topic) for topic, rule in rules.items() if rule.presence),
                return_exceptions=True,
            )
            for failure in filter(None, found):
                raise failure
            for topic in values:
                if hub.topic_audience(topic) not in self._hub:
                    self.snapshots.begin_topic(topic)

    def is_ready(self, topic: str) -> bool:
        """Whether a client can subscribe to the topic without a read."""
        rule = self._rules.of(topic)
        if rule.presence and not self.presence.is_ready(topic):
            return False
        return self.recovery.is_ready(topic) if rule.history else not rule.snapshot or self.snapshots.is_ready(topic)

    def catch_up(self, positions: Mapping[str, Position]) -> None:
        """Read the streams of topics where `positions`, the positions of a client, are ahead of this node's."""
        for topic, position in positions.items():
            self.recovery.catch_up(topic, position)

    def snapshot(self, topic: str) -> Delivered | None:
        """The snapshot of a topic that has one; call `prepare` first."""
        rule = self._rules.of(topic)
        if not rule.snapshot:
            return None
        body = self.recovery.newest(topic) if rule.history else self.snapshots.newest(topic)
        if body is None:
            return None
        return Delivered(body, self.recovery.position(topic) if rule.history else None, initial=True)

    def close_topic(self, topic: str) -> None:
        """Drop the copies of a topic without a local subscriber."""
        self.recovery.close_topic(topic)
        self.snapshots.forget(topic)
        self.presence.close_topic(topic)

    def repair(self, topics: Iterable[str]) -> list[str]:
        """Repair topics that may have missed messages; return those that have a gap.

        While other nodes have other topic rules, they may publish to a topic without writing to its stream.
        """
        gaps = []
        for topic in topics:
            self.presence.mark_stale(topic)
            if self._rules.of(topic).history:
                self.recovery.mark_missed([topic])
                if self.rules_differ:
                    gaps.append(topic)
            else:
                self.snapshots.forget(topic)
                gaps.append(topic)
        return gaps

    def update(self, topic: str, envelope: Envelope, body: bytes) -> bool:
        """Update the node's copies of a topic with a message. True: the caller must not deliver it.

        While nodes restart with new topic rules, the rules of the publisher may differ from this node's. The envelope
        describes the message, so it is delivered in any case: a numbered message even if the topic has no history here,
        and one without a number even if it has. Clients cannot recover the latter, nor from any position before it.
        """
        match envelope.kind:
            case EnvelopeKind.PLAIN:  # first, because most messages are plain
                self.snapshots.replace(topic, body)
                self.recovery.receive_unnumbered(topic)
            case EnvelopeKind.HISTORY if topic in self.recovery:
                entry = StreamEntry(envelope.offset, body, envelope.exclude, envelope.mark, envelope.previous)
                self.recovery.message_received(topic, envelope.epoch, entry)
                return True
            case EnvelopeKind.HISTORY | EnvelopeKind.SNAPSHOT:
                version = envelope.version or envelope.mark  # both are the time by Redis' clock
                if self.snapshots.is_superseded(topic, version):
                    return True
                self.snapshots.value_received(topic, version, body)
                self.recovery.receive_unnumbered(topic)
            case EnvelopeKind.NODES:
                self._presence_received(topic, envelope)
                return True
        return False

    def _presence_received(self, topic: str, envelope: Envelope) -> None:
        try:
            self.presence.word_received(topic, envelope)
        except ValueError:
            self._metrics.relayed.labels("malformed").inc()
