"""Adds clients to audiences and removes them, and keeps pub/sub, registry and presence consistent with the hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from gateway.cluster.registry import Registry
from gateway.core import hub
from gateway.core.errors import ProtocolError
from gateway.core.hub import Hub
from gateway.core.json_text import RequestId
from gateway.core.subscription_options import PLAIN, SubscriptionOptions
from gateway.delivery.dispatcher import Dispatcher
from gateway.delivery.slices import each_in_slices
from gateway.delivery.topic_copies import TopicCopies
from gateway.transports.connection import Connection


class Membership:
    """The only writer of the hub's audiences. Rows of changed clients and topics are written later."""

    def __init__(self, hub: Hub, dispatcher: Dispatcher, topic_copies: TopicCopies, registry: Registry) -> None:
        self._hub = hub
        self._dispatcher = dispatcher
        self._topic_copies = topic_copies
        self._presence = topic_copies.presence
        self._registry = registry

    def refusal(
        self, connection: Connection, topics: Iterable[str], options: SubscriptionOptions | None, request_id: RequestId
    ) -> ProtocolError | None:
        """Why the client cannot subscribe to these topics with `options`; None: it can."""
        if options is None:
            return None
        return self._hub.variants.refusal(connection, map(hub.topic_audience, topics), options, request_id)

    def add(
        self, connection: Connection, audiences: Sequence[str], options: SubscriptionOptions | None = PLAIN
    ) -> None:
        """Add a client to audiences, whose channels must be joined.

        The topics among them have `options`. None: topics that the client has already keep theirs.
        """
        for audience in audiences:
            self._hub.join(connection, audience)
            if options is not None and not hub.is_personal(audience):
                self._hub.tailor(connection, audience, options)
        self._mark_changed(connection, audiences)

    def remove(self, connection: Connection, audiences: Sequence[str]) -> None:
        """Remove a client from audiences, and leave channels without a member."""
        self._dispatcher.leave_channels([audience for audience in audiences if self._hub.leave(connection, audience)])
        self._mark_changed(connection, audiences)

    def remove_client(self, connection: Connection) -> None:
        """Remove a client that is gone from all its audiences."""
        audiences = list(connection.audiences)
        self._dispatcher.leave_channels(self._hub.remove(connection))
        self._mark_changed(connection, audiences)

    def mark_user_changed(self, connection: Connection) -> None:
        """Notify the other clients of the client's new user, on its topics with presence."""
        topics = [topic for topic in map(hub.topic_of, connection.audiences) if topic is not None]
        each_in_slices(topics, partial(self._mark_presence_changed, connection.client_id))

    def _mark_changed(self, connection: Connection, audiences: Iterable[str]) -> None:
        """Mark the rows of the client and these topics as changed, over several turns: rows are read when written."""
        topics = [topic for topic in map(hub.topic_of, audiences) if topic is not None]
        if topics:
            each_in_slices(topics, partial(self._mark_topic_changed, connection.client_id))
        self._registry.touch_client(connection.client_id)

    def _mark_topic_changed(self, client_id: str, topic: str) -> None:
        self._registry.touch_topic(topic)
        self._mark_presence_changed(client_id, topic)

    def _mark_presence_changed(self, client_id: str, topic: str) -> None:
        if self._topic_copies.has_presence(topic):
            self._presence.touch(topic, client_id)
