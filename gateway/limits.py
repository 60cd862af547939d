"""Limits of what clients of a node may send and of the bytes buffered for them, and the actions beyond a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from gateway.core import json_text
from gateway.core.backlog import Backlog
from gateway.core.commands import Command, Request, Subscribe, read_cost
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.json_text import RequestId
from gateway.core.rates import UNUSED, ClientRates, Outcome, Rate
from gateway.core.topics import TopicRules
from gateway.logs import logger
from gateway.metrics import Metrics
from gateway.outbox import Outbox
from gateway.settings import Settings
from gateway.transport.connection import Connection

LOGGED_LINES: Final = 20  # lines of one LOGS message that are logged
LOGGED_CHARACTERS: Final = 500
LOGGED: Final = Rate(200)  # lines per second, of all browsers together


class Limits:
    """Rejects messages over a limit with 4029, closes clients that go on with 3013, and limits the buffers (3008)."""

    def __init__(self, settings: Settings, rules: TopicRules, outbox: Outbox, metrics: Metrics) -> None:
        self._rules = rules
        self._outbox = outbox
        self._metrics = metrics
        self._rates = ClientRates(
            messages=Rate(settings.client_messages_per_second),
            subscriptions=Rate(settings.client_subscriptions_per_second),
            log_lines=Rate(settings.client_log_lines_per_second),
        )
        self._logged = UNUSED
        # In a later turn: growth is reported in the middle of a fan-out.
        self._backlog: Backlog[Connection] = Backlog(
            settings.buffer_bytes, lambda: asyncio.get_running_loop().call_soon(self._relieve)
        )
        self._log = logger()

    # ---- messages of a client

    def count(self, connection: Connection, size: int) -> Outcome:
        """Count a message, ping or pong of `size` bytes; on `ENOUGH` the connection is closed."""
        verdict = connection.meter.message(self._rates, size, connection.last_received)
        if verdict is Outcome.ENOUGH:
            self._close_over_limit(connection, "messages")
        return verdict

    def count_part(self, connection: Connection) -> None:
        """Count a fragment, or a read that ends inside a frame; on `ENOUGH` the connection is closed."""
        if connection.meter.count_part(self._rates, connection.last_received) is Outcome.ENOUGH:
            self._close_over_limit(connection, "messages")

    def allows(self, connection: Connection, message: Command, verdict: Outcome) -> bool:
        """Whether to handle a message for which `count` returned `verdict`; if not, the connection is closed.

        Raises:
            ProtocolError: The client is over its limit, 4029.
        """
        if verdict is Outcome.REFUSED:
            raise self._too_many("messages", self._rates.messages, getattr(message, "request_id", None))
        if isinstance(message, Request) and (more := read_cost(message)):
            # The request is answered in any case. Its cost beyond its size counts against the next messages.
            connection.meter.count_extra(self._rates, more, connection.last_received)
        if not isinstance(message, Subscribe):
            return True
        price = sum(self._rules.of(topic).price for topic in message.topics)
        return self.charge(connection, price, message.request_id)

    def charge(self, connection: Connection, topics: int, request_id: RequestId) -> bool:
        """Count subscriptions to `topics` topics. False: far over the limit, and the connection is closed.

        Raises:
            ProtocolError: The client is over its limit, 4029.
        """
        verdict = connection.meter.subscribe(self._rates, topics, connection.last_received)
        if verdict is Outcome.REFUSED:
            raise self._too_many("subscriptions", self._rates.subscriptions, request_id)
        if verdict is Outcome.ENOUGH:
            self._close_over_limit(connection, "subscriptions")
        return verdict is Outcome.FINE

    def report(self, connection: Connection, entries: Sequence[Mapping[str, json_text.Json]]) -> None:
        """Write the lines of a browser to the log, within its limit and the limit of all browsers.

        Raises:
            ProtocolError: No line was written because a limit is reached, 4029.
        """
        now = connection.last_received
        lines = entries[: min(LOGGED_LINES, LOGGED.left(self._logged, now))]
        lines = lines[: connection.meter.log(self._rates, len(lines), now)]
        self._logged = LOGGED.take(self._logged, now, len(lines))
        for entry in lines:
            line = orjson.dumps(entry).decode()[:LOGGED_CHARACTERS]
            self._log.info("browser log", client=connection.client_id, line=line)
        self._metrics.limited.labels("log_lines").inc(len(entries) - len(lines))
        if entries and not lines:
            raise ProtocolError(ErrorReason.TOO_MANY_REQUESTS, "Too many log lines; wait some seconds")

    def _too_many(self, limit: str, rate: Rate, request_id: RequestId) -> ProtocolError:
        self._metrics.limited.labels(limit).inc()
        return ProtocolError(
            ErrorReason.TOO_MANY_REQUESTS,
            f"More than {rate.per_second:g} {limit} a second; wait some seconds",
            request_id,
        )

    def _close_over_limit(self, connection: Connection, limit: str) -> None:
        self._metrics.limited.labels(limit).inc()
        self._log.info("client over limit closed", client=connection.client_id, ip=connection.facts.ip, limit=limit)
        connection.disconnect(CloseReason.TOO_MANY_REQUESTS, f"too many {limit}")

    # ---- buffers of all clients

    def grew(self, connection: Connection, size: int) -> None:
        """Count `size` more bytes that are buffered for the client."""
        self._backlog.grew(connection, size)

    def forget(self, connection: Connection) -> None:
        """Remove a client that is gone."""
        self._backlog.forget(connection)

    def buffered_bytes(self) -> int:
        """Bytes buffered for all clients that did not read them at once."""
        return self._backlog.count()

    def _relieve(self) -> None:
        for connection in self._backlog.relieve():
            self._metrics.limited.labels("buffered_bytes").inc()
            self._outbox.evict(connection)
