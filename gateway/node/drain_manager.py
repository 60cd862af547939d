"""Drain and rebalance: closes all clients when the node leaves, or some when other nodes have more room.

STAYING --move--> SHEDDING --clients moved and reconnected elsewhere--> STAYING
    either, on `drain`: UNREADY --the load balancers have noticed--> REFUSING, until the process exits
"""

from __future__ import annotations

import asyncio
import enum
import random
from contextlib import suppress
from typing import Final

from gateway.connections.manager import ConnectionManager
from gateway.core import rebalancing
from gateway.core.errors import CloseReason
from gateway.core.events import ServerLeaving
from gateway.core.health_pollers import HealthPollers
from gateway.delivery.sender import Sender
from gateway.logging import logger
from gateway.transports.connection import Connection, ConnectionStage

# How long a drain waits for the load balancer. HAProxy takes 1.5 s; a later handshake gets 503 and another node.
UNREADY_SECONDS: Final = 4.0
# How long handshakes are rejected after the last move: the first front end reconnects after 3 s, then after 6.
GRACE_SECONDS: Final = 12.0
STEP_SECONDS: Final = 0.01  # closes that are due within this time run together
MAX_HANDSHAKES: Final = 10_000  # rejected handshakes to remember; the load balancer retries within milliseconds


class Phase(enum.Enum):
    """How the node treats its clients and new handshakes."""

    SERVING = enum.auto()
    REBALANCING = (
        enum.auto()
    )  # some clients are closed; a new handshake is rejected once, so that the load balancer tries another node
    UNREADY = enum.auto()  # all clients will be closed; a new handshake is still accepted
    REJECTING = enum.auto()  # all clients are being closed; a new handshake is rejected


class DrainManager:
    """Closes `connections` at a limited pace."""

    def __init__(self, connections: ConnectionManager, sender: Sender, *, drain_seconds: float) -> None:
        self.phase = Phase.SERVING
        self._connections = connections
        self._sender = sender
        self._drain_seconds = drain_seconds
        self._log = logger()
        self._pollers = HealthPollers()
        self._noticed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._rejected: dict[str, None] = {}  # handshakes, oldest first

    @property
    def draining(self) -> bool:
        """Whether the node is about to leave."""
        return self.phase in (Phase.UNREADY, Phase.REJECTING)

    # ---- handshakes

    def readiness_checked(self, poller: str, refused: bool) -> None:
        """Record a readiness check by `poller`: a drain waits until the load balancers have noticed."""
        now = asyncio.get_running_loop().time()
        self._pollers.polled(poller, refused, now)
        if self.draining and self._pollers.all_notified(now):
            self._noticed.set()

    def refuses_handshake(self, handshake: str | None, avoided: bool = False) -> bool:
        """Whether a handshake gets 503, after which the load balancer tries another node.

        `handshake` is the load balancer's id of the request, the same for each of its attempts; `avoided`: the client
        asks for any node except this one. While shedding, or if avoided, a handshake is rejected once: if it comes
        again, the load balancer has found no other node. A handshake without an id is accepted, because no load
        balancer would retry it.
        """
        if self.phase is Phase.REJECTING:
            return True
        if not (avoided or self.phase is Phase.REBALANCING) or not handshake or handshake in self._rejected:
            return False
        if len(self._rejected) >= MAX_HANDSHAKES:
            del self._rejected[next(iter(self._rejected))]
        self._rejected[handshake] = None
        return True

    def client_accepted(self, connection: Connection) -> None:
        """Close a new client at once if the node began to reject handshakes during its handshake."""
        if self.phase is Phase.REJECTING:
            self._close(connection, CloseReason.SHUTDOWN, rebalancing.reconnect_ms(1, 0, random.random))

    # ---- drain

    async def drain(self) -> None:
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
            self._close(connection, CloseReason.SHUTDOWN, rebalancing.reconnect_ms(together, within, random.random))
        self._log.info(
            "drained", clients=len(leaving), seconds=round(loop.time() - started, 3),
            unready_seconds=round(unready_seconds, 3),
        )  # fmt: skip

    def finish_now(self) -> None:
        """End all waits of a drain: notify and close the remaining clients at once."""
        self._noticed.set()
        self._hurry.set()

    # ---- rebalance

    async def rebalance(self, keep: int, seconds: float, after: float) -> None:
        """Wait `after` seconds, then close all but `keep` clients over `seconds`, and reject new handshakes once.

        The rejections last `GRACE_SECONDS` longer, until the closed clients have reconnected. A second call during a
        move, or during a drain, does nothing.
        """
        await asyncio.sleep(after)
        if self.phase is not Phase.SERVING:
            self._log.warning("move ignored", phase=self.phase.name.lower())
            return
        loop = asyncio.get_running_loop()
        self.phase = Phase.REBALANCING
        here = list(self._connections)
        count, moved = max(0, len(here) - keep), 0
        self._log.info("moving", clients=count, of=len(here), seconds=seconds)
        started = loop.time()
        chosen = random.sample(here, count)
        for connection, moment in zip(chosen, rebalancing.close_times(count, seconds, random.random), strict=True):
            if started + moment - loop.time() > STEP_SECONDS:
                await asyncio.sleep(started + moment - loop.time())
            # A client that left on its own counts as moved.
            if self.phase is not Phase.REBALANCING or len(self._connections) <= keep:
                break
            moved += self._close(connection, CloseReason.MOVE, rebalancing.reconnect_ms(count, seconds, random.random))
        await asyncio.sleep(GRACE_SECONDS)
        self._rejected.clear()
        self._log.info("moved", clients=moved, left=len(self._connections))
        if self.phase is Phase.REBALANCING:
            self.phase = Phase.SERVING

    def _close(self, connection: Connection, reason: CloseReason, reconnect_ms: int) -> bool:
        """Notify and close a client. False if it is gone already."""
        if connection.stage is not ConnectionStage.OPEN:
            return False
        self._sender.send(connection, ServerLeaving(reason, reconnect_ms))
        connection.disconnect(reason, reason.name.lower())
        return True


async def _wait(event: asyncio.Event, due: float) -> None:
    """Wait until `event` is set or the loop time is `due`."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(due):
            await event.wait()
