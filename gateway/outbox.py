"""What is sent to one client: behind what was relayed to it before, and not to one that does not read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.core import frames, hub, protocol
from gateway.core.hub import Hub
from gateway.core.protocol import Close, Code, ProtocolError, RequestId
from gateway.logs import logger
from gateway.metrics import Metrics
from gateway.transport.connection import Connection, Stage


class Outbox:
    """The way to one client of this node; `now_ms` gives the time in ms since 1970."""

    def __init__(self, hub: Hub, metrics: Metrics, now_ms: Callable[[], int]) -> None:
        self._hub = hub
        self._metrics = metrics
        self._now_ms = now_ms
        self._log = logger()

    def send(self, connection: Connection, data: bytes) -> None:
        """Send it a message, behind what was relayed before."""
        self._hub.flush()
        if not connection.send(frames.build(frames.TEXT, data)):
            self.evict(connection)

    def send_all(self, connection: Connection, messages: Sequence[bytes]) -> None:
        """Send it messages, if there are any, in one write."""
        if not messages:
            return
        self._hub.flush()
        if not connection.send(b"".join(frames.build(frames.TEXT, data) for data in messages)):
            self.evict(connection)

    def evict(self, subscriber: hub.Subscriber) -> None:
        """End a client that has not read its budget's worth; nobody waits for it."""
        assert isinstance(subscriber, Connection)
        self._metrics.slow_consumers.inc()
        self._log.warning("slow consumer closed", client=subscriber.client_id, ip=subscriber.facts.ip)
        subscriber.abort(Close.SLOW_CONSUMER)

    def reply(self, connection: Connection, data: bytes | None) -> None:
        """Send it an answer, if there is one and somebody to hear it: it may be gone since it asked."""
        if data is not None and connection.stage is Stage.OPEN:
            self.send(connection, data)

    def refuse(self, connection: Connection, error: ProtocolError) -> None:
        """Send it the ERROR."""
        self._metrics.errors.labels(str(int(error.code))).inc()
        self.reply(connection, error.encode(self.time()))

    def fail(self, connection: Connection, request_id: RequestId = None) -> None:
        """Say that we failed at what it asked for, and log the exception that is being handled.

        A fault of ours at one message must cost neither the client its socket nor the node its life.
        """
        self._log.exception("a message failed", client=connection.client_id)
        self.refuse(connection, ProtocolError(Code.INTERNAL, "The node failed at this; its log says how", request_id))

    def time(self) -> str:
        """Now, as messages tell it."""
        return protocol.iso(self._now_ms())
