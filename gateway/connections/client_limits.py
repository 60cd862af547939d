"""Limits of what clients of a node may send and of the bytes buffered for them, and the actions beyond a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from gateway.core import json_text
from gateway.core.buffer_limit import BufferLimit
from gateway.core.commands import Command, Connect, Request, Subscribe, read_cost
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.json_text import RequestId
from gateway.core.rate_limits import UNUSED, ClientRates, RateLimit, RateOutcome
from gateway.core.topic_rules import TopicRules
from gateway.delivery.sender import Sender
from gateway.logging import logger
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.transports.connection import Connection

LOGGED_LINES: Final = 20  # lines of one LOGS message that are logged
LOGGED_CHARACTERS: Final = 500
LOGGED: Final = RateLimit(200)  # lines per second, of all browsers together


class ClientLimits:
    """Rejects messages over a limit with 4029, closes clients that go on with 3013, and limits the buffers (3008)."""

    def __init__(self, settings: Settings, rules: TopicRules, sender: Sender, metrics: Metrics) -> None:
        self._rules = rules
        self._sender = sender
        self._metrics = metrics
        self._rates = ClientRates(
            messages=RateLimit(settings.client_messages_per_second),
            subscriptions=RateLimit(settings.client_subscriptions_per_second),
            log_lines=RateLimit(settings.client_log_lines_per_second),
        )
        self._logged = UNUSED
        # In a later turn: growth is reported in the middle of a fan-out.
        self._buffer_limit: BufferLimit[Connection] = BufferLimit(
            settings.buffer_bytes, lambda: asyncio.get_running_loop().call_soon(self._close_largest)
        )
        self._log = logger()

    # ---- messages of a client

    def count(self, connection: Connection, size: int) -> RateOutcome:
        """Count a message, ping or pong of `size` bytes; on `DISCONNECT` the connection is closed."""
        verdict = connection.usage.count_message(self._rates, size, connection.last_received)
        if verdict is RateOutcome.DISCONNECT:
            self._close_over_limit(connection, "messages")
        return verdict

    def count_fragment(self, connection: Connection) -> None:
        """Count a fragment, or a read that ends inside a frame; on `DISCONNECT` the connection is closed."""
        if connection.usage.count_part(self._rates, connection.last_received) is RateOutcome.DISCONNECT:
            self._close_over_limit(connection, "messages")

    def allows(self, connection: Connection, message: Command, verdict: RateOutcome) -> bool:
        """Whether to handle a message for which `count` returned `verdict`; if not, the connection is closed.

        Raises:
            ProtocolError: The client is over its limit, 4029.
        """
        if verdict is RateOutcome.REFUSED:
            raise self._too_many("messages", self._rates.messages, getattr(message, "request_id", None))
        if isinstance(message, Request) and (more := read_cost(message)):
            # The request is answered in any case. Its cost beyond its size counts against the next messages.
            connection.usage.count_extra(self._rates, more, connection.last_received)
        if not isinstance(message, Subscribe | Connect):
            return True
        price = sum(self._rules.of(topic).price for topic in message.topics)
        return self.charge(connection, price, message.request_id)

    def charge(self, connection: Connection, topics: int, request_id: RequestId) -> bool:
        """Count subscriptions to `topics` topics. False: far over the limit, and the connection is closed.

        Raises:
            ProtocolError: The client is over its limit, 4029.
        """
        verdict = connection.usage.count_topics(self._rates, topics, connection.last_received)
        if verdict is RateOutcome.REFUSED:
            raise self._too_many("subscriptions", self._rates.subscriptions, request_id)
        if verdict is RateOutcome.DISCONNECT:
            self._close_over_limit(connection, "subscriptions")
        return verdict is RateOutcome.ALLOWED

    def log_browser_lines(self, connection: Connection, entries: Sequence[Mapping[str, json_text.Json]]) -> None:
        """Write the lines of a browser to the log, within its limit and the limit of all browsers.

        Raises:
            ProtocolError: No line was written because a limit is reached, 4029.
        """
        now = connection.last_received
        lines = entries[: min(LOGGED_LINES, LOGGED.left(self._logged, now))]
        lines = lines[: connection.usage.count_log_lines(self._rates, len(lines), now)]
        self._logged = LOGGED.take(self._logged, now, len(lines))
        for entry in lines:
            line = orjson.dumps(entry).decode()[:LOGGED_CHARACTERS]
            self._log.info("browser log", client=connection.client_id, line=line)
        self._metrics.limited.labels("log_lines").inc(len(entries) - len(lines))
        if entries and not lines:
            raise ProtocolError(ErrorReason.TOO_MANY_REQUESTS, "Too many log lines; wait some seconds")

    def _too_many(self, limit: str, rate: RateLimit, request_id: RequestId) -> ProtocolError:
        self._metrics.limited.labels(limit).inc()
        return ProtocolError(
            ErrorReason.TOO_MANY_REQUESTS,
            f"More than {rate.per_second:g} {limit} a second; wait some seconds",
            request_id,
        )

    def _close_over_limit(self, connection: Connection, limit: str) -> None:
        self._metrics.limited.labels(limit).inc()
        self._log.info("client over limit closed", client=connection.client_id, ip=connection.info.ip, limit=limit)
        connection.disconnect(CloseReason.TOO_MANY_REQUESTS, f"too many {limit}")

    # ---- buffers of all clients

    def buffer_grew(self, connection: Connection, size: int) -> None:
        """Count `size` more bytes that are buffered for the client."""
        self._buffer_limit.grow(connection, size)

    def connection_closed(self, connection: Connection) -> None:
        """Remove a client that is gone."""
        self._buffer_limit.remove(connection)

    def buffered_bytes(self) -> int:
        """Bytes buffered for all clients that did not read them at once."""
        return self._buffer_limit.count()

    def _close_largest(self) -> None:
        for connection in self._buffer_limit.excess():
            self._metrics.limited.labels("buffered_bytes").inc()
            self._sender.evict(connection)
