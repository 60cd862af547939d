"""Presence on this node: tells the cluster of its own people, and its clients of everybody's.

A topic's roster is kept while somebody here hears the topic. What nodes say to each other, and what clients are
shown, goes out in batches of a tenth of a second.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, Protocol

from gateway.cluster.envelope import Envelope
from gateway.cluster.keys import node_of
from gateway.cluster.link import Unavailable
from gateway.cluster.presence import ROWS, Attendance, parse_presence
from gateway.core.roster import Attendee, Roster
from gateway.logs import StateLog

BATCH_SECONDS: Final = 0.1
MAX_WAITING: Final = 1000  # words of other nodes that wait while a topic is read
CHECKED: Final = 500  # commands of one check: topics times living nodes
TOPICS: Final = 100  # written, read or shown side by side
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
    __slots__ = ("primed", "reading", "roster", "stale", "waiting")

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.primed = False  # who was here before this node subscribed is known
        self.stale = True  # it must be read; until it was, word of other nodes waits
        self.reading: asyncio.Future[None] | None = None  # ends with the read that is under way; one at a time
        self.waiting: list[tuple[list[Attendee], list[str], bool]] = []


class Presence:
    """Rosters of the topics that are heard here. `run` must run."""

    def __init__(self, attendance: Attendance, *, grace_seconds: float, now_ms: Callable[[], int]) -> None:
        self._attendance = attendance
        self._grace = grace_seconds
        self._now_ms = now_ms
        self._rooms: dict[str, _Room] = {}
        self._stale: set[str] = set()  # topics of rooms that must be read again
        self._stirred: set[str] = set()  # topics of rooms that may have news, or hold a leave back
        self._dirty: dict[str, set[str]] = {}  # topic -> own clients that came or went
        self._rewrite: set[str] = set()  # topics whose rows of ours must all be written again
        self._nodes: set[str] = set()  # whose clients are or were on the rosters
        self._absent: set[str] = set()  # of those: had no lease at the last check
        self._checks = 0
        self._suspects: set[str] = set()  # topics whose roster had another number of clients than Redis
        self._wake = asyncio.Event()

    async def ready(self, topic: str) -> None:
        """Know who is on the topic, so that who comes from now on is news. Its channel must be joined.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        room = self._rooms.get(topic)
        if room is None:
            room = self._rooms[topic] = _Room(Roster(self._grace))
        while not room.primed and self._rooms.get(topic) is room:
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
            room.stale = True  # a read that is under way may be older: it is read once more
            self._stale.add(topic)
            self._wake.set()

    def rewrite(self, topics: Iterable[str] | None = None) -> None:
        """Write this node's rows of `topics` again; None: of all topics with a roster here."""
        self._rewrite.update(self._rooms if topics is None else topics)
        self._wake.set()

    def receive(self, topic: str, envelope: Envelope) -> None:
        """Word of another node, or our own."""
        room = self._rooms.get(topic)
        if room is None:
            return
        word = parse_presence(envelope)
        if not room.stale and room.reading is None:
            self._apply(topic, room, *word)
        elif len(room.waiting) < MAX_WAITING:
            room.waiting.append(word)
        else:
            room.waiting.clear()
            self.doubt(topic)  # a read that begins now has all of it

    # ---- what anybody may ask

    async def people(self, topic: str) -> Roster:
        """The roster of the topic.

        Raises:
            Unavailable: The topic is not heard here, and Redis did not answer in time.
        """
        room = self._rooms.get(topic)
        if room is not None and room.primed:
            return room.roster
        roster = Roster(0)
        roster.prime(await self._attendance.read(topic))
        return roster

    # ---- now and then

    async def check(self) -> None:
        """Compare rosters with Redis, some at a time: word of another node may be lost without a trace.

        Clients of a node that had no lease at this check nor at the last one are removed. A roster that has another
        number of clients than Redis, twice in a row, is read again, and this node's own rows of it are written again.
        One more, in turn, is read again whatever its number: a client may have another user by now.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if not self._rooms:
            self._nodes, self._absent, self._suspects = set(), set(), set()
            return
        living = await self._attendance.living()
        if self._attendance.node_id not in living:
            return  # the index of nodes was lost: it says nothing about others either
        absent = self._nodes - living
        await self._bury(absent & self._absent)
        self._absent = absent & self._nodes
        some = min(TOPICS, max(1, CHECKED // len(living)))
        topics = list(dict.fromkeys([*self._suspects, *itertools.islice(self._rooms, some)]))[:some]
        if not topics:
            return  # the last one was closed meanwhile
        counts = await self._attendance.count(topics, living)
        for topic, count in zip(topics, counts, strict=True):
            room = self._rooms.pop(topic, None)
            suspected = topic in self._suspects
            self._suspects.discard(topic)
            if room is None:
                continue
            self._rooms[topic] = room  # to the end: the others are next
            if not room.primed or room.stale or count is None or count == len(room.roster.clients):
                continue
            if suspected:
                self._rewrite.add(topic)
                self.doubt(topic)
            else:  # it may be on its way
                self._suspects.add(topic)
        self._checks += 1
        in_turn = topics[self._checks % len(topics)]
        if in_turn not in self._suspects:  # else its number is compared once more first
            self.doubt(in_turn)

    async def _bury(self, nodes: set[str]) -> None:
        """Remove the clients of dead nodes from all rosters."""
        self._nodes -= nodes
        for at, topic in enumerate(list(self._rooms) if nodes else (), 1):
            room = self._rooms.get(topic)
            clients = room.roster.clients if room is not None else ()
            gone = [client_id for client_id in clients if node_of(client_id) in nodes]
            if room is not None and gone:
                self._apply(topic, room, [], gone, True)
            if at % TOPICS == 0:
                await asyncio.sleep(0)  # others get their turn

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
        await self._refresh()
        await self._show(house)

    async def _refresh(self) -> None:
        stale = [(topic, room) for topic in self._stale if (room := self._rooms.get(topic)) and room.stale]
        self._stale.clear()
        for at in range(0, len(stale), TOPICS):
            some = stale[at : at + TOPICS]
            found = await asyncio.gather(*(self._read(topic, room) for topic, room in some), return_exceptions=True)
            failures = [failure for failure in found if failure is not None]
            if failures:
                self._stale.update(topic for topic, room in stale[at:] if room.stale)
                raise failures[0]
            again = [topic for topic, room in some if room.stale]  # who had begun to read it has gone
            if again:
                self._stale.update(again)
                self._wake.set()

    async def _show(self, house: House) -> None:
        stirred, self._stirred = self._stirred, set()
        for at, topic in enumerate(stirred, 1):
            room = self._rooms.get(topic)
            if room is not None and room.primed:
                self._show_room(house, topic, room)
            if at % TOPICS == 0:
                await asyncio.sleep(0)  # others get their turn

    def _show_room(self, house: House, topic: str, room: _Room) -> None:
        changes = room.roster.changes(asyncio.get_running_loop().time())
        if changes:
            about: dict[str, Any] = {"count": len(room.roster)}
            if len(room.roster) <= MAX_LISTED:
                about["joined"] = [listed(attendee) for attendee in changes.joined]
                about["left"] = [listed(attendee) for attendee in changes.left]
            house.show(topic, about)
        if room.roster.held:
            self._stirred.add(topic)
            self._wake.set()

    async def _write(self, house: House) -> None:
        rewrite, self._rewrite = self._rewrite, set()
        dirty, self._dirty = self._dirty, {}
        topics = [*dirty.keys() | rewrite]
        while topics:
            some = [topics.pop() for _ in range(min(len(topics), TOPICS))]
            # Side by side: what waits for the same Redis shares a round trip.
            work = (self._write_topic(house, topic, dirty.get(topic, ()), all_rows=topic in rewrite) for topic in some)
            try:
                found = await asyncio.gather(*work, return_exceptions=True)
            except asyncio.CancelledError:
                self._write_again([*some, *topics], dirty, rewrite)
                raise
            failures = [failure for failure in found if isinstance(failure, BaseException)]
            # Without a lease: once the beat has taken it again, the registry has all of us written anew.
            self._write_again([topic for topic, written in zip(some, found, strict=True) if not written], dirty, set())
            if failures:
                failed = [topic for topic, written in zip(some, found, strict=True) if written in failures]
                self._write_again([*failed, *topics], dirty, rewrite)
                raise failures[0]

    def _write_again(self, topics: Iterable[str], dirty: Mapping[str, set[str]], rewrite: set[str]) -> None:
        for topic in topics:
            self._dirty.setdefault(topic, set()).update(dirty.get(topic, ()))
            self._rewrite |= rewrite & {topic}

    async def _write_topic(self, house: House, topic: str, ids: Collection[str], *, all_rows: bool) -> bool:
        """Write who came and who went on one topic, or all rows of it. False if there is no lease."""
        left = [client_id for client_id in ids if house.attendee(topic, client_id) is None]
        if all_rows:
            joined = house.attendees(topic)
        else:
            joined = [a for client_id in ids if (a := house.attendee(topic, client_id)) is not None]
        for at in range(0, max(len(joined), len(left), 1), ROWS):
            written = await self._attendance.write(
                topic, house.channel(topic), joined[at : at + ROWS], left[at : at + ROWS], self._now_ms(),
                drop_first=all_rows and at == 0,
            )  # fmt: skip
            if not written:
                return False
        return True

    async def _read(self, topic: str, room: _Room) -> None:
        """Bring a roster to what Redis has; or wait for the read that is under way, and share its result.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if room.reading is not None:
            await asyncio.shield(room.reading)
            return
        reading = room.reading = asyncio.get_running_loop().create_future()
        try:
            await self._read_alone(topic, room)
        except Unavailable as error:
            reading.set_exception(error)
            reading.exception()  # perhaps nobody shares it
            raise
        finally:
            room.reading = None
            if not reading.done():
                reading.set_result(None)  # if this one was cancelled, the next does it

    async def _read_alone(self, topic: str, room: _Room) -> None:
        room.stale = True
        while room.stale:
            room.stale = False  # until `doubt` says that what is being read may be too old
            try:
                attendees = await self._attendance.read(topic)
            except BaseException:
                room.stale = True
                raise
        if self._rooms.get(topic) is not room:
            return
        self._nodes.update(node_of(attendee.client_id) for attendee in attendees)
        if room.primed:
            room.roster.reconcile(attendees, asyncio.get_running_loop().time())
        else:
            room.roster.prime(attendees)
            room.primed = True
        waiting, room.waiting = room.waiting, []
        self._stir(topic)
        for word in waiting:
            self._apply(topic, room, *word)

    def _apply(self, topic: str, room: _Room, joined: list[Attendee], left: list[str], dead: bool) -> None:
        now = asyncio.get_running_loop().time()
        for attendee in joined:
            self._nodes.add(node_of(attendee.client_id))
            room.roster.join(attendee)
        for client_id in left:
            room.roster.leave(client_id, now, dead=dead)
        self._stir(topic)

    def _stir(self, topic: str) -> None:
        self._stirred.add(topic)
        self._wake.set()


def listed(attendee: Attendee) -> dict[str, str | None]:
    """A person as clients see it."""
    return {"clientId": attendee.client_id, "user": attendee.user}
