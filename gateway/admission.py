"""Admission of connections: limits of the node, and of each user and address over all nodes.

A new connection is counted for its user and its address, and uncounted when it closes.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Coroutine
from typing import Any, Final

from gateway.cluster import slots
from gateway.cluster.slots import Slots
from gateway.core import inflow
from gateway.core.errors import CloseReason
from gateway.core.inflow import Inflow
from gateway.core.sources import Sources
from gateway.metrics import Metrics
from gateway.outbox import Outbox
from gateway.transport import request
from gateway.transport.connection import Connection, Stage

ENDLESS: Final = 1_000_000  # limit of connections if file descriptors are unlimited

REASONS: Final[dict[inflow.Limit | slots.Limit, str]] = {
    "connections": "this node is full; connect again",
    "connects": "too many new connections to this node at once; connect again",
    "user_connections": "too many connections of this user",
    "address_connections": "too many connections of this address",
}


def most_connections(configured: int) -> int:
    """The limit of connections: `configured`, or if that is 0, nine tenths of the file descriptors."""
    if configured:
        return configured
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return ENDLESS if files == resource.RLIM_INFINITY else files * 9 // 10


class Admission:
    """Admits connections and keeps their counts in `seats`. `spawn` runs a coroutine as a task of the node."""

    def __init__(
        self, flow: Inflow, seats: Slots, sources: Sources, outbox: Outbox, metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:  # fmt: skip
        self._inflow = flow
        self._slots = seats
        self._sources = sources
        self._outbox = outbox
        self._metrics = metrics
        self._spawn = spawn

    def refuses(self, connections: int) -> str | None:
        """Why the node opens no connection now, or None; `connections`: their number, including the new one."""
        full = self._inflow.refuses(connections, asyncio.get_running_loop().time())
        if full is None:
            return None
        self._metrics.limited.labels(full).inc()
        self._metrics.refusals.labels("503").inc()
        return REASONS[full]

    def is_exhausted(self, connections: int) -> bool:
        """Whether the node is so full that it does not even read from the newest connection."""
        crammed = self._inflow.is_exhausted(connections)
        if crammed:
            self._metrics.limited.labels("connections").inc()
        return crammed

    def cut_off(self, limit: request.Limit) -> None:
        """Count a request that was rejected because of this limit."""
        self._metrics.limited.labels(limit).inc()

    async def enter(self, user: str | None, ip: str) -> slots.Limit | None:
        """Count a handshake for its user and address. Returns the limit that rejects it, or None."""
        full = await self._slots.take(user, self._sources.of(ip))
        if full is not None:
            self._metrics.limited.labels(full).inc()
        return full

    def forget(self, user: str | None, ip: str) -> None:
        """Uncount a handshake that `enter` admitted and that failed."""
        self._slots.release(user, self._sources.of(ip))

    def leave(self, connection: Connection) -> None:
        """Uncount a connection that has closed."""
        self._slots.release(connection.counted_user, self._sources.of(connection.facts.ip))

    def become(self, connection: Connection, go_on: Callable[[], None]) -> None:
        """Count a connection for its new user, then call `go_on`; over the limit it is closed (3504)."""
        user = connection.session.identity.user
        if user == connection.counted_user:
            go_on()
            return
        connection.hold("slot")
        self._spawn(self._become(connection, user, go_on), "slot")

    async def _become(self, connection: Connection, user: str | None, go_on: Callable[[], None]) -> None:
        full = await self._slots.take(user, None)
        if full is not None:
            self._metrics.limited.labels(full).inc()
            connection.disconnect(CloseReason.TOO_MANY_CONNECTIONS, REASONS[full])
        elif connection.stage is not Stage.OPEN:
            self._slots.release(user, None)
        else:
            self._slots.release(connection.counted_user, None)
            connection.counted_user = user
            try:
                go_on()
            except Exception:
                self._outbox.fail(connection)
            finally:
                connection.release("slot")
