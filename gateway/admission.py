"""Room for connections: on the node, and of each user and address on all nodes.

Who comes in takes a slot of its user and of its address, and gives both back when it goes.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Coroutine
from typing import Any, Final

from gateway.cluster import slots
from gateway.cluster.slots import Slots
from gateway.core import inflow
from gateway.core.inflow import Inflow
from gateway.core.protocol import Close
from gateway.core.sources import Sources
from gateway.metrics import Metrics
from gateway.outbox import Outbox
from gateway.transport import request
from gateway.transport.connection import Connection, Stage

ENDLESS: Final = 1_000_000  # connections, where file descriptors have no limit

SAYS: Final[dict[inflow.Limit | slots.Limit, str]] = {
    "connections": "this node is full; connect again",
    "connects": "too many connect to this node at once; connect again",
    "user_connections": "too many connections of this user",
    "address_connections": "too many connections of this address",
}


def most_connections(told: int) -> int:
    """As many as it was `told`; if that is 0, what leaves a tenth of the file descriptors to all that is no client."""
    if told:
        return told
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return ENDLESS if files == resource.RLIM_INFINITY else files * 9 // 10


class Admission:
    """Keeps `seats` of one mind with the connections there are; `spawn` runs a coroutine under the node's eye."""

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
        """Why the node opens no socket now, whoever asks; `connections`: all it has, with the one that asks."""
        full = self._inflow.refuses(connections, asyncio.get_running_loop().time())
        if full is None:
            return None
        self._metrics.limited.labels(full).inc()
        self._metrics.refusals.labels("503").inc()
        return SAYS[full]

    def is_exhausted(self, connections: int) -> bool:
        """Whether the newest connection cannot even be listened to."""
        crammed = self._inflow.is_exhausted(connections)
        if crammed:
            self._metrics.limited.labels("connections").inc()
        return crammed

    def cut_off(self, limit: request.Limit) -> None:
        """A request was ended for this limit."""
        self._metrics.limited.labels(limit).inc()

    async def enter(self, user: str | None, ip: str) -> slots.Limit | None:
        """Take the slots for a handshake. The limit that has no room for it; then nothing was taken."""
        full = await self._slots.take(user, self._sources.of(ip))
        if full is not None:
            self._metrics.limited.labels(full).inc()
        return full

    def forget(self, user: str | None, ip: str) -> None:
        """The handshake that `enter` has let in came to nothing."""
        self._slots.release(user, self._sources.of(ip))

    def leave(self, connection: Connection) -> None:
        """It is gone."""
        self._slots.release(connection.counted_user, self._sources.of(connection.facts.ip))

    def become(self, connection: Connection, go_on: Callable[[], None]) -> None:
        """It has a new identity: `go_on` once there is room for its user; without room it is closed (3504)."""
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
            connection.close(Close.TOO_MANY_CONNECTIONS, SAYS[full])
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
