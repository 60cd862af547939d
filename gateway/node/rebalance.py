"""Rebalance: closes some clients when other nodes have more room, and keeps them from coming back at once."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from gateway.connections.open_connections import OpenConnections
from gateway.core import rebalancing
from gateway.core.errors import CloseReason
from gateway.delivery.sender import Sender
from gateway.logging import logger
from gateway.node.drain import STEP_SECONDS, Drain, close_client

# How long handshakes are rejected after the last move: the first front end reconnects after 3 s, then after 6.
GRACE_SECONDS: Final = 12.0
MAX_HANDSHAKES: Final = 10_000  # rejected handshakes to remember; the load balancer retries within milliseconds


class Rebalance:
    """Moves clients of this node to other nodes. A drain ends it."""

    def __init__(self, connections: OpenConnections, sender: Sender, drain: Drain) -> None:
        self._connections = connections
        self._sender = sender
        self._drain = drain
        self._moving = False
        self._rejected: dict[str, None] = {}  # handshakes, oldest first
        self._log = logger()

    @property
    def moving(self) -> bool:
        """Whether clients are being moved: new handshakes are rejected once."""
        return self._moving and not self._drain.draining

    def refuses_handshake(self, handshake: str | None, avoided: bool = False) -> bool:
        """Whether a handshake gets 503, after which the load balancer tries another node.

        `handshake` is the load balancer's id of the request, the same for each of its attempts; `avoided`: the client
        asks for any node except this one. While clients are moved, or if avoided, a handshake is rejected once: if it
        comes again, the load balancer has found no other node. A handshake without an id is accepted, because no load
        balancer would retry it.
        """
        if not (avoided or self.moving) or not handshake or handshake in self._rejected:
            return False
        if len(self._rejected) >= MAX_HANDSHAKES:
            del self._rejected[next(iter(self._rejected))]
        self._rejected[handshake] = None
        return True

    async def run(self, keep: int, seconds: float, after: float) -> None:
        """Wait `after` seconds, then close all but `keep` clients over `seconds`, and reject new handshakes once.

        The rejections last `GRACE_SECONDS` longer, until the closed clients have reconnected. A second call during a
        move, or during a drain, does nothing.
        """
        await asyncio.sleep(after)
        if self._moving or self._drain.draining:
            phase = self._drain.phase.name.lower() if self._drain.draining else "rebalancing"
            self._log.warning("move ignored", phase=phase)
            return
        loop = asyncio.get_running_loop()
        self._moving = True
        here = list(self._connections)
        count, moved = max(0, len(here) - keep), 0
        self._log.info("moving", clients=count, of=len(here), seconds=seconds)
        started = loop.time()
        chosen = random.sample(here, count)
        for connection, moment in zip(chosen, rebalancing.close_times(count, seconds, random.random), strict=True):
            if started + moment - loop.time() > STEP_SECONDS:
                await asyncio.sleep(started + moment - loop.time())
            # A client that left on its own counts as moved.
            if not self.moving or len(self._connections) <= keep:
                break
            moved += close_client(
                self._sender, connection, CloseReason.MOVE, rebalancing.reconnect_ms(count, seconds, random.random)
            )
        await asyncio.sleep(GRACE_SECONDS)
        self._rejected.clear()
        self._log.info("moved", clients=moved, left=len(self._connections))
        self._moving = False
