"""Tells clients when Redis is away and back, and which messages they may have missed.

All of it is done in turns of the event loop and in order: a client is told of an outage, then of its gaps in one
message, then that messages flow again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from gateway.core import hub, replies
from gateway.core.hub import Hub
from gateway.logs import logger
from gateway.memberships import Memberships
from gateway.outbox import Outbox
from gateway.relay import Relay
from gateway.transport.connection import Connection
from gateway.turns import TURN_ITEMS, InOrder, each_in_turns

DEGRADED: Final = "Live updates are interrupted; you stay connected"


class Outages:
    """Listener of the bus. `clients` gives the clients of the node."""

    def __init__(
        self, clients: Callable[[], list[Connection]], hub: Hub, relay: Relay, outbox: Outbox, memberships: Memberships
    ) -> None:
        self._clients = clients
        self._hub = hub
        self._relay = relay
        self._outbox = outbox
        self._memberships = memberships
        # An outage adds four works at most, and the bus waits between two tries to connect.
        self._works = InOrder()
        self._log = logger()

    def bus_lost(self, reason: str, channels: list[str]) -> None:
        """Redis, or a part of it, is away: tell the clients, and handle the frames that wait for it."""
        self._works.begin(self._distrust(channels))
        self._log.warning("degraded", reason=reason)
        if self._memberships.degraded:
            return  # of another part, that has been told
        self._memberships.degrade()
        self._tell_all("degraded", DEGRADED)
        each_in_turns(self._clients(), self._memberships.go_on)

    def _distrust(self, channels: list[str]) -> Iterator[None]:
        for at in range(0, len(channels), TURN_ITEMS):
            if at:
                yield
            self._relay.lost(channels[at : at + TURN_ITEMS])

    def bus_missed(self, channels: list[str]) -> None:
        """Messages on these channels may be lost: repair what can be repaired, and tell each client its gaps."""
        self._works.begin(self._tell_gaps(channels))

    def _tell_gaps(self, channels: list[str]) -> Iterator[None]:
        """First find who has a gap, then tell each client all of its gaps at once.

        A client that subscribes meanwhile may be told of a gap that it does not have; this does no harm. No client
        is told of a topic that it has left.
        """
        missed: dict[Connection, list[str]] = {}
        personally: set[Connection] = set()  # by the channels of users and roles
        done = 0  # in this turn
        for channel in channels:
            audience = self._relay.audience_of(channel)
            topic = hub.topic_of(audience)
            done += 1
            if topic is None or self._relay.missed([topic]):  # else its stream has what was missed
                for member in self._hub.members(audience):
                    assert isinstance(member, Connection)
                    topics = missed.setdefault(member, [])
                    if topic is None:
                        personally.add(member)
                    else:
                        topics.append(topic)
                    done += 1
                    if done >= TURN_ITEMS:
                        yield
                        done = 0
            if done >= TURN_ITEMS:
                yield
                done = 0
        now = self._outbox.time()
        for connection, topics in missed.items():
            topics = [topic for topic in topics if hub.of_topic(topic) in connection.audiences]
            if topics or connection in personally:
                self._outbox.reply(connection, replies.gap(topics, now))
            done += 1 + len(topics)
            if done >= TURN_ITEMS:
                yield
                done = 0
        if missed:
            self._log.warning("gap told", clients=len(missed))

    def bus_resumed(self) -> None:
        """All of Redis is back."""
        if self._memberships.degraded:
            self._memberships.degraded = False
            self._tell_all("restored", "Live updates flow again")

    def _tell_all(self, action: str, message: str) -> None:
        """Send each client a SYSTEM message."""
        data = replies.system(action, {"message": message}, self._outbox.time())
        # Clients that come later are not told: they know it from their welcome, or it is over.
        self._works.begin(self._tell_each(self._clients(), data))

    def _tell_each(self, connections: list[Connection], data: bytes) -> Iterator[None]:
        for number, connection in enumerate(connections, 1):
            self._outbox.reply(connection, data)
            if number % TURN_ITEMS == 0:
                yield
