"""Sends messages to one client, in order with the messages that the hub has delivered to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.core import hub
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.events import Broadcast, Delivered, Event, Failed
from gateway.core.hub import Hub
from gateway.core.json_text import RequestId
from gateway.logging import logger
from gateway.metrics import Metrics
from gateway.transports.connection import Connection, ConnectionStage


class Sender:
    """Sends to clients of this node; `now_ms` gives the time in ms since 1970."""

    def __init__(self, hub: Hub, metrics: Metrics, now_ms: Callable[[], int]) -> None:
        self._hub = hub
        self._metrics = metrics
        self._now_ms = now_ms
        self._log = logger()

    def send(self, connection: Connection, event: Event) -> None:
        """Send an event after all messages delivered before."""
        self._hub.flush()
        data = connection.conversation.encode(event, self._now_ms())
        if data and not connection.send(data):
            self.evict(connection)

    def send_missed(self, connection: Connection, messages: Sequence[Broadcast]) -> None:
        """Send messages that precede the `Subscribed` of their topic, in one write."""
        held = connection.conversation.held_bytes
        data = connection.conversation.encode_missed(messages)
        if data:
            self.send_frames(connection, data)
        elif connection.conversation.held_bytes > held:
            connection.buffer_grew(connection.conversation.held_bytes - held)

    def send_frames(self, connection: Connection, data: bytes) -> None:
        """Send encoded frames after all messages delivered before."""
        self._hub.flush()
        if not connection.send(data):
            self.evict(connection)

    def send_directly(self, connection: Connection, event: Delivered) -> None:
        """Send a message that addresses this client."""
        for _, form in self._hub.variants.direct_forms([connection], event):
            self.send_frames(connection, form.frame(connection.protocol))

    def evict(self, recipient: hub.Recipient) -> None:
        """Abort the connection of a client whose unread bytes exceed its budget (3008)."""
        assert isinstance(recipient, Connection)
        self._metrics.slow_consumers.inc()
        self._log.warning("slow consumer closed", client=recipient.client_id, ip=recipient.info.ip)
        recipient.abort(recipient.protocol.close_codes[CloseReason.SLOW_CONSUMER])

    def reply(self, connection: Connection, event: Event) -> None:
        """Send an answer, unless the client has disconnected meanwhile."""
        if connection.stage is ConnectionStage.OPEN:
            self.send(connection, event)

    def send_error(self, connection: Connection, error: ProtocolError) -> None:
        """Refuse a command with `error`, or close the connection if the client's protocol demands it."""
        self._metrics.errors.labels(str(int(connection.protocol.error_codes[error.reason]))).inc()
        reason = connection.conversation.close_reason(error)
        if reason is None:
            self.reply(connection, Failed(error))
        else:
            connection.disconnect(reason, error.message)

    def send_internal_error(self, connection: Connection, request_id: RequestId = None) -> None:
        """Log the exception that is being handled, and send the client ERROR 5000.

        An internal error with one message must neither close the connection nor stop the node.
        """
        self._log.exception("message handling failed", client=connection.client_id)
        self.send_error(
            connection,
            ProtocolError(ErrorReason.INTERNAL, "Internal error of the node; its log has the details", request_id),
        )
