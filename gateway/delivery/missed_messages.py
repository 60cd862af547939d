"""What a new subscriber of a topic receives first: the messages that it has missed, or the last value."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.core import hub, stream_position
from gateway.core.events import Broadcast
from gateway.core.hub import Hub
from gateway.core.position import Position
from gateway.core.stream_position import StreamEntry
from gateway.core.subscription_options import PLAIN
from gateway.delivery.topic_copies import TopicCopies
from gateway.delivery.waiting_subscribe import TopicRecovery, WaitingSubscribe
from gateway.transports.connection import Connection


class MissedMessages:
    """Reads what new subscribers receive first from the node's copies of their topics."""

    def __init__(self, hub: Hub, topic_copies: TopicCopies) -> None:
        self._hub = hub
        self._topic_copies = topic_copies
        self._recovery = topic_copies.recovery
        self._recoveries: dict[Connection, dict[str, TopicRecovery]] = {}  # of members, by topic

    def next_part(
        self, connection: Connection, topic: str, asked: WaitingSubscribe, room: int
    ) -> tuple[list[Broadcast], int, bool]:
        """The next messages for a new subscriber, about `room` bytes; their size; and whether these are all."""
        options = asked.options or PLAIN
        wants, each = options.wants, options.read_cost
        position = asked.positions.get(topic) if self._topic_copies.has_history(topic) else None
        if position is not None:
            missed = self._missed(connection, topic, position, asked)
            if missed is not None:
                part = stream_position.first_entries(missed, room, each)
                if len(part) < len(missed):
                    # The client may be subscribed already: new messages must not come between the parts.
                    self._hub.leave(connection, hub.topic_audience(topic))
                if part:
                    asked.positions[topic] = Position(position.epoch, part[-1].offset, part[-1].mark)
                meant = [entry for entry in part if entry.exclude != connection.client_id and wants(entry.body)]
                size = sum(len(entry.body) for entry in meant) + len(part) * each
                return self._recovery.messages(topic, meant), size, len(part) == len(missed)
        snapshot = self._topic_copies.snapshot(topic)
        if snapshot is None or not wants(snapshot.body):
            return [], each, True
        return [snapshot], len(snapshot.body) + each, True

    def _missed(
        self, connection: Connection, topic: str, position: Position, asked: WaitingSubscribe
    ) -> list[StreamEntry] | None:
        """The messages since `position` that the client must receive; None if it cannot get all of them."""
        before, losses = self._recoveries.get(connection, {}).get(topic), self._recovery.losses(topic)
        missed: list[StreamEntry] | None
        if topic not in asked.recovered and before is not None and before[:2] == (position, losses):
            missed = [] if before.whole else None
        else:
            missed = self._recovery.missed_since(topic, position)
        first = asked.recoveries.get(topic, TopicRecovery(position, losses, whole=False))
        asked.recoveries[topic] = first._replace(whole=missed is not None)
        asked.recovered[topic] = missed is not None
        return missed

    def entered(self, connection: Connection, topic: str, asked: WaitingSubscribe) -> None:
        """Note how the client, which is a member now, has recovered the topic."""
        if topic in asked.recoveries:
            self._recoveries.setdefault(connection, {})[topic] = asked.recoveries[topic]

    def forget(self, connection: Connection, audiences: Iterable[str]) -> None:
        """Forget how the client has recovered the topics that it leaves."""
        recoveries = self._recoveries.get(connection)
        if recoveries:
            for topic in map(hub.topic_of, audiences):
                recoveries.pop(topic or "", None)

    def forget_client(self, connection: Connection) -> None:
        """Forget a client that is gone."""
        self._recoveries.pop(connection, None)
