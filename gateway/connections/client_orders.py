"""Orders of back ends and operators about clients: disconnect, unsubscribe, subscribe."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TypeAlias

from gateway.connections.enforcer import Enforcer
from gateway.connections.open_connections import OpenConnections
from gateway.core import effects
from gateway.core.control_messages import (
    ClientSelector,
    DisconnectClients,
    ExpireClients,
    SubscribeClients,
    UnsubscribeClients,
)
from gateway.core.errors import CloseReason
from gateway.delivery.slices import SLICE_ITEMS, each_in_slices
from gateway.delivery.subscriptions import Subscriptions
from gateway.logging import logger
from gateway.transports.connection import Connection, ConnectionStage

ClientOrder: TypeAlias = DisconnectClients | UnsubscribeClients | SubscribeClients | ExpireClients


class ClientOrders:
    """Executes orders on the clients of this node."""

    def __init__(
        self, open_connections: OpenConnections, subscriptions: Subscriptions, enforcer: Enforcer, *,
        max_client_topics: int,
    ) -> None:  # fmt: skip
        self._open_connections = open_connections
        self._subscriptions = subscriptions
        self._enforcer = enforcer
        self._max_client_topics = max_client_topics
        self._log = logger()

    def execute(self, order: ClientOrder) -> None:
        """Execute `order` on the clients that it selects, in slices."""
        parts: list[list[str]] = [order.topics if isinstance(order, SubscribeClients) else []]
        if isinstance(order, UnsubscribeClients):
            parts = [order.topics[at : at + SLICE_ITEMS] for at in range(0, len(order.topics), SLICE_ITEMS)]
        kept = order.keep if isinstance(order, DisconnectClients) else ()
        selected = [one for one in self._selected(order.clients) if one.client_id not in kept]
        each_in_slices(itertools.product(selected, parts), partial(self._execute, order))

    def _execute(self, order: ClientOrder, about: tuple[Connection, list[str]]) -> int:
        connection, topics = about
        if connection.stage is not ConnectionStage.OPEN:
            return 0
        reason = order.reason if isinstance(order, DisconnectClients | UnsubscribeClients) else None
        op = type(order).__name__.lower()
        self._log.info("control message executed", op=op, client=connection.client_id, reason=reason)
        match order:
            case DisconnectClients():
                if order.code is not None:
                    connection.close(order.code, order.reason)
                else:
                    connection.disconnect(CloseReason.DISCONNECTED, order.reason)
                return 0
            case ExpireClients(_, expires):
                connection.session.expire_at(expires)
                return 0
            case UnsubscribeClients():
                self._enforcer.unsubscribe(connection, topics, order.reason)
            case SubscribeClients():
                self._subscribe(connection, order)
        return len(topics) - 1

    def _subscribe(self, connection: Connection, order: SubscribeClients) -> None:
        """Subscribe the client to topics that it has not asked for, and notify it."""
        topics = order.topics
        new = sum(not connection.audiences.has_topic(topic) for topic in topics)
        if connection.audiences.topics + new > self._max_client_topics:
            self._log.warning(
                "client not subscribed", client=connection.client_id, topics=connection.audiences.topics, more=new,
                limit=self._max_client_topics,
            )  # fmt: skip
            return
        connection.session.grant(topics)
        joins = connection.session.join_leave_topics(topics)
        self._subscriptions.subscribe(
            connection,
            effects.SubscribeTopics(
                tuple(topics), None, login=False, recover=order.recover, by_server=True, options=None,
                join_leave=joins, data=order.data,
            ),
        )  # fmt: skip

    def _selected(self, selector: ClientSelector) -> list[Connection]:
        if selector.client is not None:
            connection = self._open_connections.find(selector.client)
            return [connection] if connection is not None else []
        assert selector.user is not None
        return self._open_connections.of_user(selector.user)
