"""Presence on this node: publishes joins and leaves of its clients, and notifies its clients of all joins and leaves.

The node keeps the roster of a topic while it has a local subscriber. Messages between nodes and to clients are sent in
batches, every tenth of a second.
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
MAX_WAITING: Final = 1000  # presence messages that wait while a topic is read
CHECKED: Final = 500  # commands in one check: topics times living nodes
TOPICS: Final = 100  # topics that are written, read or shown in parallel
MAX_LISTED: Final = 1000  # in a larger roster, clients receive only the count


class Host(Protocol):
    """What presence needs from the node."""

    def attendees(self, topic: str) -> list[Attendee]:
        """The node's own clients on the topic."""

    def attendee(self, topic: str, client_id: str) -> Attendee | None:
        """One of the node's own clients; None if it is not on the topic."""

    def channel(self, topic: str) -> str:
        """The topic's channel."""

    def show(self, topic: str, about: dict[str, Any]) -> None:
        """Send a PRESENCE message to the local subscribers of the topic."""


class _Room:
    __slots__ = ("primed", "reading", "roster", "stale", "waiting")

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.primed = False  # clients that joined before this node subscribed are known
        self.stale = True  # it must be read; until then, messages of other nodes wait
        self.reading: asyncio.Future[None] | None = None  # completes with the current read; one read at a time
        self.waiting: list[tuple[list[Attendee], list[str], bool]] = []


class Presence:
    """The rosters of topics with local subscribers. `run` must be running."""

    def __init__(self, attendance: Attendance, *, grace_seconds: float, now_ms: Callable[[], int]) -> None:
        self._attendance = attendance
        self._grace = grace_seconds
        self._now_ms = now_ms
        self._rooms: dict[str, _Room] = {}
        self._stale: set[str] = set()  # topics whose roster must be read again
        self._changed: set[str] = set()  # topics whose roster may have changes, or holds back a leave
        self._dirty: dict[str, set[str]] = {}  # topic -> own clients that joined or left
        self._rewrite: set[str] = set()  # topics for which all rows of this node must be written again
        self._nodes: set[str] = set()  # nodes whose clients are or were on a roster
        self._absent: set[str] = set()  # those of them without a lease at the last check
        self._checks = 0
        self._suspects: set[str] = set()  # topics whose roster and Redis had different numbers of clients
        self._wake = asyncio.Event()

    async def ready(self, topic: str) -> None:
        """Read the roster of the topic if it is not known. The channel of the topic must be subscribed.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        room = self._rooms.get(topic)
        if room is None:
            room = self._rooms[topic] = _Room(Roster(self._grace))
        while not room.primed and self._rooms.get(topic) is room:
            await self._read(topic, room)

    def is_ready(self, topic: str) -> bool:
        """Whether the roster of the topic is known."""
        room = self._rooms.get(topic)
        return room is not None and room.primed

    # ---- changes

    def touch(self, topic: str, client_id: str) -> None:
        """Note that one of this node's clients joined or left the topic."""
        self._dirty.setdefault(topic, set()).add(client_id)
        self._wake.set()

    def close(self, topic: str) -> None:
        """Drop the roster of a topic that has no local subscriber."""
        self._rooms.pop(topic, None)

    def mark_stale(self, topic: str) -> None:
        """Read the roster again: presence messages may have been missed."""
        room = self._rooms.get(topic)
        if room is not None:
            room.stale = True  # a read in progress may be older, so another follows
            self._stale.add(topic)
            self._wake.set()

    def rewrite(self, topics: Iterable[str] | None = None) -> None:
        """Write this node's rows of `topics` again; None: of all topics with a roster here."""
        self._rewrite.update(self._rooms if topics is None else topics)
        self._wake.set()

    def receive(self, topic: str, envelope: Envelope) -> None:
        """Handle a presence message of a node, this one included."""
        room = self._rooms.get(topic)
        if room is None:
            return
        changes = parse_presence(envelope)
        if not room.stale and room.reading is None:
            self._apply(topic, room, *changes)
        elif len(room.waiting) < MAX_WAITING:
            room.waiting.append(changes)
        else:
            room.waiting.clear()
            self.mark_stale(topic)  # a read that starts now includes all of these changes

    # ---- queries

    async def people(self, topic: str) -> Roster:
        """The roster of the topic.

        Raises:
            Unavailable: The topic has no local subscriber, and Redis did not answer in time.
        """
        room = self._rooms.get(topic)
        if room is not None and room.primed:
            return room.roster
        roster = Roster(0)
        roster.prime(await self._attendance.read(topic))
        return roster

    # ---- periodic check

    async def check(self) -> None:
        """Compare some of the rosters with Redis, because a presence message may be lost unnoticed.

        Clients of a node that had no lease at this check and the last one are removed. If the number of clients differs
        from Redis at two checks in a row, the node reads the roster and writes its own rows again. One more roster, in
        turn, is read in any case, because the user of a client may have changed.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if not self._rooms:
            self._nodes, self._absent, self._suspects = set(), set(), set()
            return
        living = await self._attendance.living()
        if self._attendance.node_id not in living:
            return  # the index of nodes was lost, so it proves nothing about other nodes
        absent = self._nodes - living
        await self._bury(absent & self._absent)
        self._absent = absent & self._nodes
        some = min(TOPICS, max(1, CHECKED // len(living)))
        topics = list(dict.fromkeys([*self._suspects, *itertools.islice(self._rooms, some)]))[:some]
        if not topics:
            return  # the last roster was closed meanwhile
        counts = await self._attendance.count(topics, living)
        for topic, count in zip(topics, counts, strict=True):
            room = self._rooms.pop(topic, None)
            suspected = topic in self._suspects
            self._suspects.discard(topic)
            if room is None:
                continue
            self._rooms[topic] = room  # to the end: the others come first next time
            if not room.primed or room.stale or count is None or count == len(room.roster.clients):
                continue
            if suspected:
                self._rewrite.add(topic)
                self.mark_stale(topic)
            else:  # a message may be in flight
                self._suspects.add(topic)
        self._checks += 1
        in_turn = topics[self._checks % len(topics)]
        if in_turn not in self._suspects:  # otherwise its number is compared once more first
            self.mark_stale(in_turn)

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
                await asyncio.sleep(0)  # let other tasks run

    # ---- batches

    async def run(self, host: Host) -> None:
        """Write, read and show changes until cancelled."""
        state = StateLog("presence not written", over="presence written again")
        while True:
            await self._wake.wait()
            await asyncio.sleep(BATCH_SECONDS)
            self._wake.clear()
            try:
                await self.flush(host)
            except Unavailable as error:
                state.begin(str(error))
                await asyncio.sleep(1)
                self._wake.set()
            else:
                state.end()

    async def flush(self, host: Host) -> None:
        """Write joins and leaves of this node, read stale rosters, and send changes to clients.

        Raises:
            Unavailable: Redis did not confirm; the changes stay scheduled.
        """
        await self._write(host)
        await self._refresh()
        await self._show(host)

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
            again = [topic for topic, room in some if room.stale]  # the task that was reading it was cancelled
            if again:
                self._stale.update(again)
                self._wake.set()

    async def _show(self, host: Host) -> None:
        changed, self._changed = self._changed, set()
        for at, topic in enumerate(changed, 1):
            room = self._rooms.get(topic)
            if room is not None and room.primed:
                self._show_room(host, topic, room)
            if at % TOPICS == 0:
                await asyncio.sleep(0)  # let other tasks run

    def _show_room(self, host: Host, topic: str, room: _Room) -> None:
        changes = room.roster.changes(asyncio.get_running_loop().time())
        if changes:
            about: dict[str, Any] = {"count": len(room.roster)}
            if len(room.roster) <= MAX_LISTED:
                about["joined"] = [listed(attendee) for attendee in changes.joined]
                about["left"] = [listed(attendee) for attendee in changes.left]
            host.show(topic, about)
        if room.roster.held:
            self._changed.add(topic)
            self._wake.set()

    async def _write(self, host: Host) -> None:
        rewrite, self._rewrite = self._rewrite, set()
        dirty, self._dirty = self._dirty, {}
        topics = [*dirty.keys() | rewrite]
        while topics:
            some = [topics.pop() for _ in range(min(len(topics), TOPICS))]
            # In parallel, so that writes to one Redis share a round trip.
            work = (self._write_topic(host, topic, dirty.get(topic, ()), all_rows=topic in rewrite) for topic in some)
            try:
                found = await asyncio.gather(*work, return_exceptions=True)
            except asyncio.CancelledError:
                self._write_again([*some, *topics], dirty, rewrite)
                raise
            failures = [failure for failure in found if isinstance(failure, BaseException)]
            # Not written without a lease: once a heartbeat has taken it, all rows are written again.
            self._write_again([topic for topic, written in zip(some, found, strict=True) if not written], dirty, set())
            if failures:
                failed = [topic for topic, written in zip(some, found, strict=True) if written in failures]
                self._write_again([*failed, *topics], dirty, rewrite)
                raise failures[0]

    def _write_again(self, topics: Iterable[str], dirty: Mapping[str, set[str]], rewrite: set[str]) -> None:
        for topic in topics:
            self._dirty.setdefault(topic, set()).update(dirty.get(topic, ()))
            self._rewrite |= rewrite & {topic}

    async def _write_topic(self, host: Host, topic: str, ids: Collection[str], *, all_rows: bool) -> bool:
        """Write joins and leaves of one topic, or all rows of it. False if there is no lease."""
        left = [client_id for client_id in ids if host.attendee(topic, client_id) is None]
        if all_rows:
            joined = host.attendees(topic)
        else:
            joined = [a for client_id in ids if (a := host.attendee(topic, client_id)) is not None]
        for at in range(0, max(len(joined), len(left), 1), ROWS):
            written = await self._attendance.write(
                topic, host.channel(topic), joined[at : at + ROWS], left[at : at + ROWS], self._now_ms(),
                drop_first=all_rows and at == 0,
            )  # fmt: skip
            if not written:
                return False
        return True

    async def _read(self, topic: str, room: _Room) -> None:
        """Read a roster from Redis, or wait for the read in progress and share its result.

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
            reading.exception()  # mark as retrieved: no other task may wait for it
            raise
        finally:
            room.reading = None
            if not reading.done():
                reading.set_result(None)  # cancelled: the next caller reads it

    async def _read_alone(self, topic: str, room: _Room) -> None:
        room.stale = True
        while room.stale:
            room.stale = False  # set again by `mark_stale` if this read may be too old
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
        self._mark_changed(topic)
        for changes in waiting:
            self._apply(topic, room, *changes)

    def _apply(self, topic: str, room: _Room, joined: list[Attendee], left: list[str], dead: bool) -> None:
        now = asyncio.get_running_loop().time()
        for attendee in joined:
            self._nodes.add(node_of(attendee.client_id))
            room.roster.join(attendee)
        for client_id in left:
            room.roster.leave(client_id, now, dead=dead)
        self._mark_changed(topic)

    def _mark_changed(self, topic: str) -> None:
        self._changed.add(topic)
        self._wake.set()


def listed(attendee: Attendee) -> dict[str, str | None]:
    """A member of the roster in the format for clients."""
    return {"clientId": attendee.client_id, "user": attendee.user}
