"""The node's own channel: messages to one of its clients, and messages that other nodes forward."""

from __future__ import annotations

from gateway.broker.envelope import Envelope
from gateway.broker.pubsub import PubSub
from gateway.connections.open_connections import OpenConnections
from gateway.core import events, message
from gateway.delivery.post_forwarder import FORWARDED
from gateway.delivery.sender import Sender
from gateway.metrics import Metrics
from gateway.transports.http_stream import HttpStreams


class NodeChannel:
    """Handles the messages on the channel of this node."""

    def __init__(
        self, open_connections: OpenConnections, event_streams: HttpStreams, sender: Sender, metrics: Metrics
    ) -> None:
        self._open_connections = open_connections
        self._event_streams = event_streams
        self._sender = sender
        self._metrics = metrics

    def message_received(self, _channel: str, payload: bytes) -> None:
        """Deliver one message; a malformed one is counted and dropped."""
        if payload.startswith(PubSub.CHECK):  # self-check of pub/sub
            return
        if payload.startswith(FORWARDED):
            self._event_streams.post_received(payload.removeprefix(FORWARDED))
            return
        try:
            envelope = Envelope.unpack(payload)
            event = events.Delivered(message.check(envelope.body))
        except ValueError:
            self._metrics.relayed.labels("malformed").inc()
            return
        connection = self._open_connections.find(envelope.only or "")
        if connection is not None:
            self._metrics.relayed.labels("client").inc()
            self._sender.send_directly(connection, event)
