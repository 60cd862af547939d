"""Admission of connections: limits of the node, and of each user and address over all nodes.

A new connection is counted for its user and its address, and uncounted when it closes.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Coroutine
from typing import Any, Final

from gateway.cluster import connection_limits
from gateway.cluster.connection_limits import ConnectionLimits
from gateway.core import capacity
from gateway.core.address_groups import AddressGroups
from gateway.core.capacity import Capacity
from gateway.core.errors import CloseReason
from gateway.delivery.sender import Sender
from gateway.logging import logger
from gateway.metrics import Metrics
from gateway.transports import http1
from gateway.transports.connection import Connection, ConnectionStage

MAX_UNLIMITED: Final = 1_000_000  # limit of connections if file descriptors are unlimited

FEW_FILES: Final = 10_000  # below this limit of file descriptors a node warns at its start

REASONS: Final[dict[capacity.CapacityLimit | connection_limits.ConnectionLimit, str]] = {
    "connections": "this node is full; connect again",
    "connects": "too many new connections to this node at once; connect again",
    "user_connections": "too many connections of this user",
    "address_connections": "too many connections of this address",
}


def connection_limit(configured: int) -> int:
    """The limit of connections: `configured`, or if that is 0, nine tenths of the file descriptors."""
    if configured:
        return configured
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_UNLIMITED if files == resource.RLIM_INFINITY else files * 9 // 10


def warn_of_few_files() -> None:
    """Log a warning if this process may open few file descriptors, since each client takes one."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        logger().warning(
            "few file descriptors", limit=files, clients=connection_limit(0),
            remedy="raise the limit: ulimit -n, LimitNOFILE of a service, ulimits of a container",
        )  # fmt: skip


class Admission:
    """Admits connections and keeps their counts in `connection_limits`. `spawn` runs a coroutine as a task of the
    node.
    """

    def __init__(
        self,
        capacity: Capacity,
        connection_limits: ConnectionLimits,
        address_groups: AddressGroups,
        sender: Sender,
        metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._capacity = capacity
        self._connection_limits = connection_limits
        self._address_groups = address_groups
        self._sender = sender
        self._metrics = metrics
        self._spawn = spawn

    def refusal(self, connections: int) -> str | None:
        """Why the node opens no connection now, or None; `connections`: their number, including the new one."""
        full = self._capacity.exceeded(connections, asyncio.get_running_loop().time())
        if full is None:
            return None
        self._metrics.limited.labels(full).inc()
        self._metrics.refusals.labels("503").inc()
        return REASONS[full]

    def is_overloaded(self, connections: int) -> bool:
        """Whether the node is so full that it does not even read from the newest connection."""
        crammed = self._capacity.is_overloaded(connections)
        if crammed:
            self._metrics.limited.labels("connections").inc()
        return crammed

    def request_aborted(self, limit: http1.RequestLimit) -> None:
        """Count a request that was rejected because of this limit."""
        self._metrics.limited.labels(limit).inc()

    def request_slot(self, user: str | None, ip: str) -> connection_limits.Answer | None:
        """Count a handshake for its user and address, as `ConnectionLimits.request_slot`."""
        return self._connection_limits.request_slot(user, self._address_groups.of(ip))

    def rejected(self, full: connection_limits.ConnectionLimit) -> None:
        """Count a handshake that was rejected because of this limit."""
        self._metrics.limited.labels(full).inc()

    async def acquire(self, user: str | None, ip: str) -> connection_limits.ConnectionLimit | None:
        """Count a handshake for its user and address. Returns the limit that rejects it, or None."""
        full = await self._connection_limits.acquire(user, self._address_groups.of(ip))
        if full is not None:
            self.rejected(full)
        return full

    def cancel(self, user: str | None, ip: str) -> None:
        """Uncount a handshake that was admitted and failed."""
        self._connection_limits.release(user, self._address_groups.of(ip))

    def release(self, connection: Connection) -> None:
        """Uncount a connection that has closed."""
        self._connection_limits.release(connection.counted_user, self._address_groups.of(connection.info.ip))

    def change_identity(self, connection: Connection, go_on: Callable[[], None]) -> None:
        """Count a connection for its new user, then call `go_on`; over the limit it is closed (3504)."""
        user = connection.session.identity.user
        if user == connection.counted_user:
            go_on()
            return
        connection.hold("slot")
        self._spawn(self._change_identity(connection, user, go_on), "slot")

    async def _change_identity(self, connection: Connection, user: str | None, go_on: Callable[[], None]) -> None:
        full = await self._connection_limits.acquire(user, None)
        if full is not None:
            self.rejected(full)
            connection.disconnect(CloseReason.TOO_MANY_CONNECTIONS, REASONS[full])
        elif connection.stage is not ConnectionStage.OPEN:
            self._connection_limits.release(user, None)
        else:
            self._connection_limits.release(connection.counted_user, None)
            connection.counted_user = user
            try:
                go_on()
            except Exception:
                self._sender.send_internal_error(connection)
            finally:
                connection.release("slot")
