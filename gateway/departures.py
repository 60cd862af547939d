"""Clients sent away before they would go: all of them when the node leaves, some when others have more room.

STAYING --move--> SHEDDING --all moved, and back elsewhere--> STAYING
    either, on `drain`: UNREADY --the load balancer has seen it--> REFUSING, for good
"""

from __future__ import annotations

import asyncio
import enum
import random
from contextlib import suppress
from typing import Final

from gateway.clients import Clients
from gateway.core import balance, replies
from gateway.core.protocol import Close
from gateway.core.watchers import Watchers
from gateway.logs import logger
from gateway.outbox import Outbox
from gateway.transport.connection import Connection, Stage

# How long a drain waits for the load balancer. HAProxy takes 1.5 s; who connects later is refused, and sent elsewhere.
UNREADY_SECONDS: Final = 4.0
# How long returning clients are refused after the last was moved: the first front end tries after 3 s, then after 6.
GRACE_SECONDS: Final = 12.0
STEP_SECONDS: Final = 0.01  # closes that are due within it go together
MAX_HANDSHAKES: Final = 10_000  # remembered; the load balancer's next try comes within milliseconds


# What a client is told first: action, message, and the code in its data, which for a shutdown is what the first front
# end knows.
_FAREWELLS: Final = {
    Close.SHUTDOWN: ("shutdown", "Server is restarting", 1001),
    Close.MOVE: ("move", "Another server has more room", int(Close.MOVE)),
}


class Phase(enum.Enum):
    """What becomes of clients, those who are here and those who come."""

    STAYING = enum.auto()
    SHEDDING = enum.auto()  # some are told to move; who comes is sent elsewhere, if there is an elsewhere
    UNREADY = enum.auto()  # all will go; who still comes is let in
    REFUSING = enum.auto()  # all go; who comes is refused


class Departures:
    """Sends `clients` away at a pace."""

    def __init__(self, clients: Clients, outbox: Outbox, *, drain_seconds: float) -> None:
        self.phase = Phase.STAYING
        self._clients = clients
        self._outbox = outbox
        self._drain_seconds = drain_seconds
        self._log = logger()
        self._watchers = Watchers()
        self._told = asyncio.Event()
        self._hurry = asyncio.Event()
        self._refused: dict[str, None] = {}  # handshakes, oldest first

    @property
    def draining(self) -> bool:
        """Whether the node is about to leave."""
        return self.phase in (Phase.UNREADY, Phase.REFUSING)

    # ---- who comes

    def asked_ready(self, who: str, refused: bool) -> None:
        """`who` asked whether the node is ready, and was `refused` or not: a drain waits for load balancers to know."""
        now = asyncio.get_running_loop().time()
        self._watchers.polled(who, refused, now)
        if self.draining and self._watchers.all_notified(now):
            self._told.set()

    def refuses(self, handshake: str | None, avoided: bool = False) -> bool:
        """Whether a new client gets 503, after which the load balancer tries another node.

        `handshake` is the load balancer's id of the request, the same at each of its tries. One that was refused
        while shedding, or since the client asks for any node but this (`avoided`), and comes again has found no other
        node, and is let in; so is one without, since nobody would try elsewhere for it.
        """
        if self.phase is Phase.REFUSING:
            return True
        if not (avoided or self.phase is Phase.SHEDDING) or not handshake or handshake in self._refused:
            return False
        if len(self._refused) >= MAX_HANDSHAKES:
            del self._refused[next(iter(self._refused))]
        self._refused[handshake] = None
        return True

    def admitted(self, connection: Connection) -> None:
        """A client was let in; if its handshake began before the node refused, and ended after, it goes at once."""
        if self.phase is Phase.REFUSING:
            self._send_away(connection, Close.SHUTDOWN, balance.reconnect_ms(1, 0, random.random))

    # ---- all

    async def drain(self) -> None:
        """Become unready, wait until the load balancers have seen it, then send all clients away over the window.

        Needs no Redis.
        """
        if self.draining:
            return
        loop = asyncio.get_running_loop()
        self.phase = Phase.UNREADY
        self._log.info("draining", clients=len(self._clients))
        started = loop.time()
        if not self._watchers.all_notified(started):
            await _wait(self._told, started + UNREADY_SECONDS)
        unready_seconds = loop.time() - started
        self.phase = Phase.REFUSING
        leaving = list(self._clients)
        random.shuffle(leaving)
        started, window = loop.time(), self._drain_seconds
        together, within = len(leaving), 0.0 if self._hurry.is_set() else window
        for at, (connection, moment) in enumerate(
            zip(leaving, balance.moments(len(leaving), window, random.random), strict=True)
        ):
            if started + moment - loop.time() > STEP_SECONDS and not self._hurry.is_set():
                await _wait(self._hurry, started + moment)
                if self._hurry.is_set():
                    together, within = len(leaving) - at, 0.0
            self._send_away(connection, Close.SHUTDOWN, balance.reconnect_ms(together, within, random.random))
        self._log.info(
            "drained", clients=len(leaving), seconds=round(loop.time() - started, 3),
            unready_seconds=round(unready_seconds, 3),
        )  # fmt: skip

    def hasten(self) -> None:
        """Let a drain wait for nothing any more: whoever is left is told, and closed, at once."""
        self._told.set()
        self._hurry.set()

    # ---- some

    async def move(self, keep: int, seconds: float, after: float) -> None:
        """Wait for `after` seconds; send away all but `keep` clients over `seconds`, and elsewhere whoever comes then.

        That goes on for a grace, in which those who were moved come back. An order that comes while another is carried
        out is dropped.
        """
        await asyncio.sleep(after)
        if self.phase is not Phase.STAYING:
            self._log.warning("order to move dropped", phase=self.phase.name.lower())
            return
        loop = asyncio.get_running_loop()
        self.phase = Phase.SHEDDING
        here = list(self._clients)
        count, moved = max(0, len(here) - keep), 0
        self._log.info("moving", clients=count, of=len(here), seconds=seconds)
        started = loop.time()
        chosen = random.sample(here, count)
        for connection, moment in zip(chosen, balance.moments(count, seconds, random.random), strict=True):
            if started + moment - loop.time() > STEP_SECONDS:
                await asyncio.sleep(started + moment - loop.time())
            # Who has left of itself meanwhile is sent elsewhere too, and need not be replaced.
            if self.phase is not Phase.SHEDDING or len(self._clients) <= keep:
                break
            moved += self._send_away(connection, Close.MOVE, balance.reconnect_ms(count, seconds, random.random))
        await asyncio.sleep(GRACE_SECONDS)
        self._refused.clear()
        self._log.info("moved", clients=moved, left=len(self._clients))
        if self.phase is Phase.SHEDDING:
            self.phase = Phase.STAYING

    def _send_away(self, connection: Connection, code: Close, reconnect_ms: int) -> bool:
        """Tell it, and close it. False if it is gone already."""
        if connection.stage is not Stage.OPEN:
            return False
        action, message, named = _FAREWELLS[code]
        about = {"message": message, "code": named, "reconnectMs": reconnect_ms}
        self._outbox.send(connection, replies.system(action, about, self._outbox.time()))
        connection.close(code, action)
        return True


async def _wait(event: asyncio.Event, due: float) -> None:
    """Wait until `event` is set, or the loop's time is `due`."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(due):
            await event.wait()
