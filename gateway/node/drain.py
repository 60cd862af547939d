"""Drain: closes all clients at a limited pace when the node leaves.

SERVING --drain--> UNREADY --the load balancers have noticed--> REJECTING, until the process exits
"""

from __future__ import annotations

import asyncio
import enum
import random
from contextlib import suppress
from typing import Final

from gateway.connections.open_connections import OpenConnections
from gateway.core import rebalancing
from gateway.core.errors import CloseReason
from gateway.core.events import ServerLeaving
from gateway.core.health_pollers import HealthPollers
from gateway.delivery.sender import Sender
from gateway.logging import logger
from gateway.transports.connection import Connection, ConnectionStage

# How long a drain waits for the load balancer. HAProxy takes 1.5 s; a later handshake gets 503 and another node.
UNREADY_SECONDS: Final = 4.0
STEP_SECONDS: Final = 0.01  # closes that are due within this time run together


class Phase(enum.Enum):
    """How the node treats its clients and new handshakes."""

    SERVING = enum.auto()
    UNREADY = enum.auto()  # all clients will be closed; a new handshake is still accepted
    REJECTING = enum.auto()  # all clients are being closed; a new handshake is rejected


class Drain:
    """Closes all `connections` when the node leaves."""

    def __init__(self, connections: OpenConnections, sender: Sender, *, drain_seconds: float) -> None:
        self.phase = Phase.SERVING
        self._connections = connections
        self._sender = sender
        self._drain_seconds = drain_seconds
        self._log = logger()
        self._pollers = HealthPollers()
        self._noticed = asyncio.Event()
        self._hurry = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether the node is about to leave."""
        return self.phase is not Phase.SERVING

    @property
    def rejects_handshakes(self) -> bool:
        """Whether all clients are being closed, so that a new one must find another node."""
        return self.phase is Phase.REJECTING

    def readiness_checked(self, poller: str, refused: bool) -> None:
        """Record a readiness check by `poller`: a drain waits until the load balancers have noticed."""
        now = asyncio.get_running_loop().time()
        self._pollers.polled(poller, refused, now)
        if self.draining and self._pollers.all_notified(now):
            self._noticed.set()

    def client_accepted(self, connection: Connection) -> None:
        """Close a new client at once if the node began to reject handshakes during its handshake."""
        if self.phase is Phase.REJECTING:
            close_client(self._sender, connection, CloseReason.SHUTDOWN, rebalancing.reconnect_ms(1, 0, random.random))

    async def run(self) -> None:
        """Become unready, wait until the load balancers have noticed, then close all clients over the window.

        It does not need Redis.
        """
        if self.draining:
            return
        loop = asyncio.get_running_loop()
        self.phase = Phase.UNREADY
        self._log.info("draining", clients=len(self._connections))
        started = loop.time()
        if not self._pollers.all_notified(started):
            await _wait(self._noticed, started + UNREADY_SECONDS)
        unready_seconds = loop.time() - started
        self.phase = Phase.REJECTING
        leaving = list(self._connections)
        random.shuffle(leaving)
        started, window = loop.time(), self._drain_seconds
        together, within = len(leaving), 0.0 if self._hurry.is_set() else window
        for at, (connection, moment) in enumerate(
            zip(leaving, rebalancing.close_times(len(leaving), window, random.random), strict=True)
        ):
            if started + moment - loop.time() > STEP_SECONDS and not self._hurry.is_set():
                await _wait(self._hurry, started + moment)
                if self._hurry.is_set():
                    together, within = len(leaving) - at, 0.0
            close_client(
                self._sender,
                connection,
                CloseReason.SHUTDOWN,
                rebalancing.reconnect_ms(together, within, random.random),
            )
        self._log.info(
            "drained", clients=len(leaving), seconds=round(loop.time() - started, 3),
            unready_seconds=round(unready_seconds, 3),
        )  # fmt: skip

    def finish_now(self) -> None:
        """End all waits of a drain: notify and close the remaining clients at once."""
        self._noticed.set()
        self._hurry.set()


def close_client(sender: Sender, connection: Connection, reason: CloseReason, reconnect_ms: int) -> bool:
    """Notify and close a client. False if it is gone already."""
    if connection.stage is not ConnectionStage.OPEN:
        return False
    sender.send(connection, ServerLeaving(reason, reconnect_ms))
    connection.disconnect(reason, reason.name.lower())
    return True


async def _wait(event: asyncio.Event, due: float) -> None:
    """Wait until `event` is set or the loop time is `due`."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(due):
            await event.wait()
