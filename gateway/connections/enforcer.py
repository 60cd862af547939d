"""Closes or unsubscribes clients that are silent or late, or whose tokens have expired or are revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from gateway.connections.open_connections import OpenConnections
from gateway.core import events
from gateway.core.errors import CloseReason, UnsubscribeReason
from gateway.core.identity import IsRevoked
from gateway.delivery.sender import Sender
from gateway.delivery.slices import SLICE_ITEMS, each_in_slices
from gateway.delivery.subscriptions import Subscriptions
from gateway.logging import logger
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.transports.connection import Connection, ConnectionStage

CHECK_SECONDS: Final = 1.0  # between two checks of all connections
CONNECT_SECONDS: Final = 10.0  # for the message with which a client's protocol begins
WARNING_SECONDS: Final = 30.0  # a client is warned this long before its token expires


class Enforcer:
    """Closes and unsubscribes clients, a few in each turn of the event loop. `now_ms`: the time in ms since 1970."""

    def __init__(
        self,
        settings: Settings,
        open_connections: OpenConnections,
        sender: Sender,
        subscriptions: Subscriptions,
        metrics: Metrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._open_connections = open_connections
        self._sender = sender
        self._subscriptions = subscriptions
        self._metrics = metrics
        self._now_ms = now_ms
        self._log = logger()

    async def run(self) -> None:
        """Check all connections every second until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.check_timeouts(loop.time())

    def check_timeouts(self, now: float) -> None:
        """Ping silent clients; close those without a pong, a late message or an expired token. `now`: loop time."""
        each_in_slices(list(self._open_connections), partial(self._check_timeout, now, self._now_ms() / 1000))

    def _check_timeout(self, now: float, seconds: float, connection: Connection) -> int:
        if connection.stage is not ConnectionStage.OPEN:
            return 0
        if not connection.conversation.is_connected:
            if seconds - connection.info.connected_ms / 1000 > CONNECT_SECONDS:
                connection.disconnect(CloseReason.NO_CONNECT, "no connect in time")
        elif connection.pinged:
            if connection.is_silent(self._settings.ping_seconds + self._settings.pong_seconds, now):
                connection.disconnect(CloseReason.NO_PONG, "no pong")
        elif connection.conversation.wants_ping(now, silent=connection.is_silent(self._settings.ping_seconds, now)):
            connection.ping()
        ended = self._watch_tokens(connection, seconds)
        if connection.is_late(now):
            self._metrics.limited.labels("message_seconds").inc()
            connection.disconnect(CloseReason.BAD_USE, "message not complete in time")
        return ended

    def _watch_tokens(self, connection: Connection, now: float) -> int:
        """Warn a client whose token expires soon, close it once expired; the same for subscription tokens.

        `now`: seconds since 1970. Returns the number of topics whose token expired; at `SLICE_ITEMS` there may be more.
        """
        client, expires = connection.session, connection.session.identity.expires
        if expires is not None and expires <= now:
            connection.disconnect(CloseReason.TOKEN_EXPIRED, "token expired")
            return 0
        if expires is not None and not client.warned:
            ends = expires - self._settings.jwt_leeway_seconds
            if ends - WARNING_SECONDS <= now:
                client.warned = True
                self._sender.send(connection, events.TokenExpiring(int(ends * 1000)))
        ended, topics = client.expire_grants(now, SLICE_ITEMS)
        self.unsubscribe(connection, topics, "subscription token expired", UnsubscribeReason.TOKEN_EXPIRED)
        return ended

    def enforce_revocations(self, revoked: IsRevoked) -> None:
        """Close clients with a revoked token, and unsubscribe topics whose subscription token is revoked."""
        each_in_slices(list(self._open_connections), partial(self._enforce_revocations, revoked))

    def _enforce_revocations(self, revoked: IsRevoked, connection: Connection) -> int:
        identity = connection.session.identity
        if revoked(identity.token_id, identity.user, identity.issued):
            self._log.info("token revoked", client=connection.client_id)
            connection.disconnect(CloseReason.BAD_TOKEN, "token revoked")
            return 0
        ended, topics = connection.session.revoke_grants(revoked, SLICE_ITEMS)
        self.unsubscribe(connection, topics, "subscription token revoked")
        return ended

    def unsubscribe(
        self, connection: Connection, topics: Collection[str], reason: str,
        why: UnsubscribeReason = UnsubscribeReason.SERVER,
    ) -> None:  # fmt: skip
        """Unsubscribe a client from topics, and notify it of those that it was subscribed to."""
        if not topics:
            return
        subscribed = [topic for topic in topics if connection.audiences.has_topic(topic)]
        if subscribed:
            connection.session.forget_grants(subscribed)
            self._subscriptions.unsubscribe(connection, subscribed)
            self._sender.send(connection, events.SubscriptionsEnded(subscribed, reason, why))
