"""What the clients of a node may say and may have held for them, and what becomes of who goes beyond it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from gateway.core import protocol
from gateway.core.backlog import Backlog
from gateway.core.messages import ClientMessage, Request, Subscribe, read_price
from gateway.core.protocol import Close, Code, ProtocolError, RequestId
from gateway.core.rates import UNUSED, ClientRates, Outcome, Rate
from gateway.core.topics import TopicRules
from gateway.logs import logger
from gateway.metrics import Metrics
from gateway.outbox import Outbox
from gateway.settings import Settings
from gateway.transport.connection import Connection

LOGGED_LINES: Final = 20  # of one LOGS message
LOGGED_CHARACTERS: Final = 500
LOGGED: Final = Rate(200)  # lines of all browsers together


class Limits:
    """Counts, refuses with 4029, turns out with 3013; cuts off (3008) who has most held when all have too much."""

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
        # Not in this turn: whoever reports growth is in the midst of a fan-out.
        self._backlog: Backlog[Connection] = Backlog(
            settings.buffer_bytes, lambda: asyncio.get_running_loop().call_soon(self._relieve)
        )
        self._log = logger()

    # ---- what a client says

    def count(self, connection: Connection, size: int) -> Outcome:
        """Count a message, ping or pong of `size` bytes; upon `ENOUGH` the connection is closed."""
        verdict = connection.meter.message(self._rates, size, connection.last_received)
        if verdict is Outcome.ENOUGH:
            self._turn_out(connection, "messages")
        return verdict

    def count_part(self, connection: Connection) -> None:
        """Count a fragment, or a read that ends within a frame; upon `ENOUGH` the connection is closed."""
        if connection.meter.part(self._rates, connection.last_received) is Outcome.ENOUGH:
            self._turn_out(connection, "messages")

    def allows(self, connection: Connection, message: ClientMessage, verdict: Outcome) -> bool:
        """Whether a message, upon which `count` said `verdict`, is carried out; if not the connection is closed.

        Raises:
            ProtocolError: It is too much for now, 4029.
        """
        if verdict is Outcome.REFUSED:
            raise self._too_many("messages", self._rates.messages, getattr(message, "request_id", None))
        if isinstance(message, Request) and (more := read_price(message)):
            # It is answered in any case: what it costs beyond its size, the next messages wait for.
            connection.meter.more(self._rates, more, connection.last_received)
        if not isinstance(message, Subscribe):
            return True
        price = sum(self._rules.of(topic).price for topic in message.topics)
        return self.charge(connection, price, message.request_id)

    def charge(self, connection: Connection, topics: int, request_id: RequestId) -> bool:
        """Count so many topics subscribed to. False: that was too much, and the connection is closed.

        Raises:
            ProtocolError: It is too much for now, 4029.
        """
        verdict = connection.meter.subscribe(self._rates, topics, connection.last_received)
        if verdict is Outcome.REFUSED:
            raise self._too_many("subscriptions", self._rates.subscriptions, request_id)
        if verdict is Outcome.ENOUGH:
            self._turn_out(connection, "subscriptions")
        return verdict is Outcome.FINE

    def report(self, connection: Connection, entries: Sequence[Mapping[str, protocol.Json]]) -> None:
        """Write a browser's lines to our log, as many as it and all together may.

        Raises:
            ProtocolError: None may be written now, 4029.
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
            raise ProtocolError(Code.TOO_MANY_REQUESTS, "Too many log lines; wait some seconds")

    def _too_many(self, limit: str, rate: Rate, request_id: RequestId) -> ProtocolError:
        self._metrics.limited.labels(limit).inc()
        return ProtocolError(
            Code.TOO_MANY_REQUESTS, f"More than {rate.per_second:g} {limit} a second; wait some seconds", request_id
        )

    def _turn_out(self, connection: Connection, limit: str) -> None:
        self._metrics.limited.labels(limit).inc()
        self._log.info("turned out", client=connection.client_id, ip=connection.facts.ip, limit=limit)
        connection.close(Close.TOO_MANY_REQUESTS, f"too many {limit}")

    # ---- what is held for all of them

    def grew(self, connection: Connection, size: int) -> None:
        """`size` bytes more are held for it."""
        self._backlog.grew(connection, size)

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        self._backlog.forget(connection)

    def buffered_bytes(self) -> int:
        """What is held for all, by those for whom it is more than a moment's."""
        return self._backlog.count()

    def _relieve(self) -> None:
        for connection in self._backlog.relieve():
            self._metrics.limited.labels("buffered_bytes").inc()
            self._outbox.evict(connection)
