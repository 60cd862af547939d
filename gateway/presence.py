"""Presence on this node: tells the cluster of its own people, and its clients of everybody's.

A topic's roster is kept while somebody here hears the topic. What nodes say to each other, and what clients are
shown, goes out in batches of a tenth of a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from gateway.cluster.envelope import Envelope
from gateway.cluster.link import Unavailable
from gateway.cluster.presence import Attendance, heard
from gateway.core.roster import Attendee, Roster
from gateway.logs import StateLog

BATCH_SECONDS: Final = 0.1
MAX_LISTED: Final = 1000  # people; where there are more, only their number is told


class House(Protocol):
    """The node, as far as presence needs it."""

    def attendees(self, topic: str) -> list[Attendee]:
        """Its own clients on the topic, as they are now."""

    def attendee(self, topic: str, client_id: str) -> Attendee | None:
        """One of them; None if it is not on the topic."""

    def channel(self, topic: str) -> str:
        """The topic's channel."""

    def show(self, topic: str, about: dict[str, Any]) -> None:
        """Send a PRESENCE message to the topic's hearers here."""


class _Room:
    __slots__ = ("primed", "roster", "stale", "waiting")

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.primed = False  # who was here before us is known
        self.stale = True  # and must be read
        self.waiting: list[tuple[list[Attendee], list[str], bool]] = []  # heard while it is read


class Presence:
    """Rosters of the topics that are heard here. `run` must run."""

    def __init__(self, attendance: Attendance, *, grace_seconds: float, now_ms: Callable[[], int]) -> None:
        self._attendance = attendance
        self._grace = grace_seconds
        self._now_ms = now_ms
        self._rooms: dict[str, _Room] = {}
        self._dirty: dict[str, set[str]] = {}  # topic -> own clients that came or went
        self._rewrite: set[str] = set()  # topics whose rows of ours must all be written again
        self._wake = asyncio.Event()

    async def ready(self, topic: str) -> None:
        """Know who is on the topic, so that who comes from now on is news. Its channel must be joined.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        room = self._rooms.get(topic)
        if room is None:
            room = self._rooms[topic] = _Room(Roster(self._grace))
        if not room.primed:
            await self._read(topic, room)

    def is_ready(self, topic: str) -> bool:
        """Whether it does."""
        room = self._rooms.get(topic)
        return room is not None and room.primed

    # ---- what the node says

    def touch(self, topic: str, client_id: str) -> None:
        """One of our clients came to the topic or left it."""
        self._dirty.setdefault(topic, set()).add(client_id)
        self._wake.set()

    def close(self, topic: str) -> None:
        """Nobody here hears the topic any more."""
        self._rooms.pop(topic, None)

    def doubt(self, topic: str) -> None:
        """Word may have been missed."""
        room = self._rooms.get(topic)
        if room is not None:
            room.stale = True
            self._wake.set()

    def rewrite(self) -> None:
        """All our rows were lost."""
        self._rewrite.update(self._rooms)
        self._wake.set()

    def receive(self, topic: str, envelope: Envelope) -> None:
        """Word of another node, or our own."""
        room = self._rooms.get(topic)
        if room is None:
            return
        word = heard(envelope)
        if room.stale:
            room.waiting.append(word)
        else:
            self._apply(room, *word)
        self._wake.set()

    # ---- what anybody may ask

    async def people(self, topic: str) -> list[Attendee]:
        """Everybody on the topic, each by one client.

        Raises:
            Unavailable: The topic is not heard here, and Redis did not answer in time.
        """
        room = self._rooms.get(topic)
        if room is not None and room.primed:
            return room.roster.people()
        roster = Roster(0)
        roster.prime(await self._attendance.read(topic))
        return roster.people()

    # ---- the batches

    async def run(self, house: House) -> None:
        """Write, read and show, for ever."""
        state = StateLog("presence not written", over="presence written again")
        while True:
            await self._wake.wait()
            await asyncio.sleep(BATCH_SECONDS)
            self._wake.clear()
            try:
                await self.flush(house)
            except Unavailable as error:
                state.begin(str(error))
                await asyncio.sleep(1)
                self._wake.set()
            else:
                state.end()

    async def flush(self, house: House) -> None:
        """Write who came and went here; read what must be read; show the news.

        Raises:
            Unavailable: Redis did not confirm; what was to be written will be again.
        """
        await self._write(house)
        for topic, room in list(self._rooms.items()):
            if room.stale:
                await self._read(topic, room)
        now = asyncio.get_running_loop().time()
        for topic, room in list(self._rooms.items()):
            if not room.primed:
                continue
            news = room.roster.news(now)
            if news:
                about: dict[str, Any] = {"count": len(room.roster)}
                if len(room.roster) <= MAX_LISTED:
                    about["joined"] = [listed(attendee) for attendee in news.joined]
                    about["left"] = [listed(attendee) for attendee in news.left]
                house.show(topic, about)
            if room.roster.held:
                self._wake.set()

    async def _write(self, house: House) -> None:
        rewrite, self._rewrite = self._rewrite, set()
        dirty, self._dirty = self._dirty, {}
        topics = [*dirty.keys() | rewrite]
        while topics:
            topic = topics.pop()
            ids = dirty.get(topic, set())
            left = [client_id for client_id in ids if house.attendee(topic, client_id) is None]
            if topic in rewrite:
                joined = house.attendees(topic)
            else:
                joined = [a for client_id in ids if (a := house.attendee(topic, client_id)) is not None]
            try:
                written = await self._attendance.write(
                    topic, house.channel(topic), joined, left, self._now_ms(), drop_first=topic in rewrite
                )
            except BaseException:
                for other in (topic, *topics):
                    self._dirty.setdefault(other, set()).update(dirty.get(other, ()))
                self._rewrite |= rewrite & {topic, *topics}
                raise
            if not written:
                # No lease: once the beat has taken it again, the registry has all of us written anew.
                self._dirty.setdefault(topic, set()).update(ids)

    async def _read(self, topic: str, room: _Room) -> None:
        room.stale = True  # what is heard meanwhile waits
        attendees = await self._attendance.read(topic)
        if room.primed:
            room.roster.reconcile(attendees, asyncio.get_running_loop().time())
        else:
            room.roster.prime(attendees)
            room.primed = True
        waiting, room.waiting, room.stale = room.waiting, [], False
        for word in waiting:
            self._apply(room, *word)

    @staticmethod
    def _apply(room: _Room, joined: list[Attendee], left: list[str], dead: bool) -> None:
        now = asyncio.get_running_loop().time()
        for attendee in joined:
            room.roster.join(attendee)
        for client_id in left:
            room.roster.leave(client_id, now, dead=dead)


def listed(attendee: Attendee) -> dict[str, str | None]:
    """A person as clients see it."""
    return {"clientId": attendee.client_id, "user": attendee.user}
