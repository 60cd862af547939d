"""Notifies clients of outages of Redis and of messages that they may have missed.

The work is spread over turns of the event loop and keeps its order: a client receives `degraded`, then one message with
its gaps, then `restored`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gateway.broker.keys import Keys
from gateway.core import hub
from gateway.core.errors import UnsubscribeReason
from gateway.core.events import Degraded, Event, Gap, Restored, SubscriptionsEnded
from gateway.core.hub import Hub
from gateway.delivery.sender import Sender
from gateway.delivery.slices import SLICE_ITEMS, SlicedQueue, each_in_slices
from gateway.delivery.subscriptions import Subscriptions
from gateway.delivery.topic_copies import TopicCopies
from gateway.logging import logger
from gateway.metrics import Metrics
from gateway.transports.connection import Connection


class OutageNotifier:
    """The listener of pub/sub and of the dispatcher. `clients`: the clients of the node, at each iteration."""

    def __init__(
        self,
        clients: Iterable[Connection],
        hub: Hub,
        keys: Keys,
        topic_copies: TopicCopies,
        sender: Sender,
        subscriptions: Subscriptions,
        metrics: Metrics,
    ) -> None:
        self._clients = clients
        self._hub = hub
        self._keys = keys
        self._topic_copies = topic_copies
        self._recovery = topic_copies.recovery
        self._sender = sender
        self._subscriptions = subscriptions
        self._gaps = metrics.gaps.labels("outage")
        # An outage adds at most four jobs, and pub/sub pauses between two attempts to connect.
        self._jobs = SlicedQueue()
        self._log = logger()

    def pubsub_lost(self, reason: str, channels: list[str]) -> None:
        """Notify the clients that Redis, or a part of it, is unreachable, and handle the frames that wait for it."""
        self._jobs.add(self._suspend(channels))
        self._log.warning("degraded", reason=reason)
        if self._subscriptions.degraded:
            return  # clients know already, because of another part of Redis
        self._subscriptions.redis_lost()
        self._send_all(Degraded())
        each_in_slices(list(self._clients), self._subscriptions.resume)

    def _suspend(self, channels: list[str]) -> Iterator[None]:
        for at in range(0, len(channels), SLICE_ITEMS):
            if at:
                yield
            audiences = map(self._keys.audience_of, channels[at : at + SLICE_ITEMS])
            # Their Redis is unreachable and may lose writes
            self._recovery.invalidate(filter(None, map(hub.topic_of, audiences)))

    def pubsub_missed(self, channels: list[str]) -> None:
        """Repair the topics of these channels that have history, and send each client its gaps in the others."""
        self._jobs.add(self._send_gaps(channels))

    def _send_gaps(self, channels: list[str]) -> Iterator[None]:
        """Collect the gaps of each client, then send each client all of its gaps in one message.

        A client that subscribes meanwhile may receive a gap that it does not have, which does no harm. A client
        receives no gap for a topic that it has left.
        """
        missed: dict[Connection, list[str]] = {}
        directly: set[Connection] = set()  # clients with a gap on the channel of their user or role
        done = 0  # in this turn
        for channel in channels:
            audience = self._keys.audience_of(channel)
            topic = hub.topic_of(audience)
            done += 1
            if topic is None or self._topic_copies.repair([topic]):  # otherwise the stream has the missed messages
                for member in self._hub.members(audience):
                    assert isinstance(member, Connection)
                    topics = missed.setdefault(member, [])
                    if topic is None:
                        directly.add(member)
                    else:
                        topics.append(topic)
                    done += 1
                    if done >= SLICE_ITEMS:
                        yield
                        done = 0
            if done >= SLICE_ITEMS:
                yield
                done = 0
        for connection, topics in missed.items():
            topics = [topic for topic in topics if hub.topic_audience(topic) in connection.audiences]
            if topics or connection in directly:
                self._sender.reply(connection, Gap(topics))
                self._gaps.inc()
            done += 1 + len(topics)
            if done >= SLICE_ITEMS:
                yield
                done = 0
        if missed:
            self._log.warning("gaps reported", clients=len(missed))

    def topic_gap(self, topic: str) -> None:
        """Tell all local subscribers that messages of the topic, which has history, are lost."""
        event, ended = Gap([topic]), SubscriptionsEnded([topic], "messages are lost", UnsubscribeReason.GAP)
        for member in self._hub.members(hub.topic_audience(topic)):
            assert isinstance(member, Connection)
            if member.conversation.knows_gaps:
                self._sender.send(member, event)
            else:
                self._subscriptions.unsubscribe(member, [topic])
                self._sender.send(member, ended)

    def pubsub_restored(self) -> None:
        """Notify the clients that Redis is back."""
        if self._subscriptions.degraded:
            self._subscriptions.degraded = False
            self._send_all(Restored())

    def _send_all(self, event: Event) -> None:
        """Send `event` to each client."""
        # Clients that connect later are not notified here: the welcome shows the outage, or it is over.
        self._jobs.add(self._send_each(list(self._clients), event))

    def _send_each(self, connections: list[Connection], event: Event) -> Iterator[None]:
        for number, connection in enumerate(connections, 1):
            self._sender.reply(connection, event)
            if number % SLICE_ITEMS == 0:
                yield
