"""Presence on this node: publishes joins and leaves of its clients, and notifies its clients of all joins and leaves.

The node keeps the presence set of a topic while it has a local subscriber. Messages between nodes and to clients are
sent in batches, every tenth of a second.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import orjson

from gateway.broker.client import Unavailable
from gateway.broker.envelope import Envelope
from gateway.broker.keys import node_of
from gateway.cluster.presence_store import ROWS, PresenceStore, parse_presence
from gateway.core.presence_set import ClientChanges, Member, PresenceSet
from gateway.logging import StateLog

BATCH_SECONDS: Final = 0.1
MAX_WAITING: Final = 1000  # presence messages that wait while a topic is read
CHECKED_TOPICS: Final = 500  # commands in one check: topics times living nodes
WRITE_TOPICS: Final = 100  # topics that are written, read or shown in parallel
MAX_LISTED: Final = 1000  # in a larger presence set, clients receive only the count
MAX_LISTED_BYTES: Final = 256 << 10  # of info in one list; with more, clients receive only the count


class LocalClients(Protocol):
    """What presence needs from the node."""

    def topic_members(self, topic: str) -> list[Member]:
        """The node's own clients on the topic."""

    def topic_member(self, topic: str, client_id: str) -> Member | None:
        """One of the node's own clients; None if it is not on the topic."""

    def send_presence(self, topic: str, about: dict[str, Any]) -> None:
        """Send a PRESENCE message to the local subscribers of the topic."""

    def send_client_changes(self, topic: str, changes: ClientChanges) -> None:
        """Send the clients that joined and left to the local subscribers whose protocol shows them."""


class _TopicPresence:
    __slots__ = ("presence_set", "primed", "reading", "stale", "waiting")

    def __init__(self, presence_set: PresenceSet) -> None:
        self.presence_set = presence_set
        self.primed = False  # clients that joined before this node subscribed are known
        self.stale = True  # it must be read; until then, messages of other nodes wait
        self.reading: asyncio.Future[None] | None = None  # completes with the current read; one read at a time
        self.waiting: list[tuple[list[Member], list[str], bool]] = []


class PresenceTracker:
    """The presence sets of topics with local subscribers. `run` must be running."""

    def __init__(self, presence_store: PresenceStore, *, grace_seconds: float, now_ms: Callable[[], int]) -> None:
        self._presence_store = presence_store
        self._grace = grace_seconds
        self._now_ms = now_ms
        self._states: dict[str, _TopicPresence] = {}
        self._stale: set[str] = set()  # topics whose presence set must be read again
        self._changed: set[str] = set()  # topics whose presence set may have changes, or holds back a leave
        self._dirty: dict[str, set[str]] = {}  # topic -> own clients that joined or left
        self._rewrite: set[str] = set()  # topics for which all rows of this node must be written again
        self._nodes: set[str] = set()  # nodes whose clients are or were on a presence set
        self._absent: set[str] = set()  # those of them without a lease at the last check
        self._checks = 0
        self._suspects: set[str] = set()  # topics whose presence set and Redis had different numbers of clients
        self._wake = asyncio.Event()

    async def prepare(self, topic: str) -> None:
        """Read the presence set of the topic if it is not known. The channel of the topic must be subscribed.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        state = self._states.get(topic)
        if state is None:
            state = self._states[topic] = _TopicPresence(PresenceSet(self._grace))
        while not state.primed and self._states.get(topic) is state:
            await self._read_topic(topic, state)

    def is_ready(self, topic: str) -> bool:
        """Whether the presence set of the topic is known."""
        state = self._states.get(topic)
        return state is not None and state.primed

    # ---- changes

    def touch(self, topic: str, client_id: str) -> None:
        """Note that one of this node's clients joined or left the topic."""
        self._dirty.setdefault(topic, set()).add(client_id)
        self._wake.set()

    def close_topic(self, topic: str) -> None:
        """Drop the presence set of a topic that has no local subscriber."""
        self._states.pop(topic, None)

    def mark_stale(self, topic: str) -> None:
        """Read the presence set again: presence messages may have been missed."""
        state = self._states.get(topic)
        if state is not None:
            state.stale = True  # a read in progress may be older, so another follows
            self._stale.add(topic)
            self._wake.set()

    def rewrite(self, topics: Iterable[str] | None = None) -> None:
        """Write this node's rows of `topics` again; None: of all topics with a presence set here."""
        self._rewrite.update(self._states if topics is None else topics)
        self._wake.set()

    def word_received(self, topic: str, envelope: Envelope) -> None:
        """Handle a presence message of a node, this one included."""
        state = self._states.get(topic)
        if state is None:
            return
        changes = parse_presence(envelope)
        if not state.stale and state.reading is None:
            self._apply(topic, state, *changes)
        elif len(state.waiting) < MAX_WAITING:
            state.waiting.append(changes)
        else:
            state.waiting.clear()
            self.mark_stale(topic)  # a read that starts now includes all of these changes

    # ---- queries

    async def members(self, topic: str) -> PresenceSet:
        """The presence set of the topic.

        Raises:
            Unavailable: The topic has no local subscriber, and Redis did not answer in time.
        """
        state = self._states.get(topic)
        if state is not None and state.primed:
            return state.presence_set
        presence_set = PresenceSet(0)
        presence_set.prime(await self._presence_store.read(topic))
        return presence_set

    # ---- periodic check

    async def check(self) -> None:
        """Compare some of the presence sets with Redis, because a presence message may be lost unnoticed.

        Clients of a node that had no lease at this check and the last one are removed. If the number of clients differs
        from Redis at two checks in a row, the node reads the presence set and writes its own rows again. It also
        reads one set at each check, in turn, because the user of a client may have changed.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if not self._states:
            self._nodes, self._absent, self._suspects = set(), set(), set()
            return
        living = await self._presence_store.live_nodes()
        if self._presence_store.node_id not in living:
            return  # the index of nodes was lost, so it proves nothing about other nodes
        absent = self._nodes - living
        await self._remove_nodes(absent & self._absent)
        self._absent = absent & self._nodes
        some = min(WRITE_TOPICS, max(1, CHECKED_TOPICS // len(living)))
        topics = list(dict.fromkeys([*self._suspects, *itertools.islice(self._states, some)]))[:some]
        if not topics:
            return  # the last presence set was closed meanwhile
        counts = await self._presence_store.count(topics, living)
        for topic, count in zip(topics, counts, strict=True):
            state = self._states.pop(topic, None)
            suspected = topic in self._suspects
            self._suspects.discard(topic)
            if state is None:
                continue
            self._states[topic] = state  # to the end: the others come first next time
            if not state.primed or state.stale or count is None or count == len(state.presence_set.clients):
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

    async def _remove_nodes(self, nodes: set[str]) -> None:
        """Remove the clients of dead nodes from all presence sets."""
        self._nodes -= nodes
        for at, topic in enumerate(list(self._states) if nodes else (), 1):
            state = self._states.get(topic)
            clients = state.presence_set.clients if state is not None else ()
            gone = [client_id for client_id in clients if node_of(client_id) in nodes]
            if state is not None and gone:
                self._apply(topic, state, [], gone, True)
            if at % WRITE_TOPICS == 0:
                await asyncio.sleep(0)  # let other tasks run

    # ---- batches

    async def run(self, clients: LocalClients) -> None:
        """Write, read and show changes until cancelled."""
        state = StateLog("presence not written", over="presence written again")
        while True:
            await self._wake.wait()
            await asyncio.sleep(BATCH_SECONDS)
            self._wake.clear()
            try:
                await self.flush(clients)
            except Unavailable as error:
                state.begin(str(error))
                await asyncio.sleep(1)
                self._wake.set()
            else:
                state.end()

    async def flush(self, clients: LocalClients) -> None:
        """Write joins and leaves of this node, read stale presence sets, and send changes to clients.

        Raises:
            Unavailable: Redis did not confirm; the changes stay scheduled.
        """
        await self._write(clients)
        await self._refresh()
        await self._show(clients)

    async def _refresh(self) -> None:
        stale = [(topic, state) for topic in self._stale if (state := self._states.get(topic)) and state.stale]
        self._stale.clear()
        for at in range(0, len(stale), WRITE_TOPICS):
            some = stale[at : at + WRITE_TOPICS]
            found = await asyncio.gather(
                *(self._read_topic(topic, state) for topic, state in some), return_exceptions=True
            )
            failures = [failure for failure in found if failure is not None]
            if failures:
                self._stale.update(topic for topic, state in stale[at:] if state.stale)
                raise failures[0]
            again = [topic for topic, state in some if state.stale]  # the task that was reading it was cancelled
            if again:
                self._stale.update(again)
                self._wake.set()

    async def _show(self, clients: LocalClients) -> None:
        changed, self._changed = self._changed, set()
        for at, topic in enumerate(changed, 1):
            state = self._states.get(topic)
            if state is not None and state.primed:
                self._show_room(clients, topic, state)
            if at % WRITE_TOPICS == 0:
                await asyncio.sleep(0)  # let other tasks run

    def _show_room(self, clients: LocalClients, topic: str, state: _TopicPresence) -> None:
        changes = state.presence_set.changes(asyncio.get_running_loop().time())
        if changes:
            about: dict[str, Any] = {"count": len(state.presence_set)}
            if len(state.presence_set) <= MAX_LISTED and is_listed([*changes.joined, *changes.left]):
                about["joined"] = [member_json(member) for member in changes.joined]
                about["left"] = [member_json(member) for member in changes.left]
            clients.send_presence(topic, about)
        of_clients = state.presence_set.client_changes()
        if of_clients and len(state.presence_set.clients) <= MAX_LISTED:
            clients.send_client_changes(topic, of_clients)
        if state.presence_set.held:
            self._changed.add(topic)
            self._wake.set()

    async def _write(self, clients: LocalClients) -> None:
        rewrite, self._rewrite = self._rewrite, set()
        dirty, self._dirty = self._dirty, {}
        topics = [*dirty.keys() | rewrite]
        while topics:
            some = [topics.pop() for _ in range(min(len(topics), WRITE_TOPICS))]
            # In parallel, so that writes to one Redis share a round trip.
            work = (
                self._write_topic(clients, topic, dirty.get(topic, ()), all_rows=topic in rewrite) for topic in some
            )
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

    async def _write_topic(self, clients: LocalClients, topic: str, ids: Collection[str], *, all_rows: bool) -> bool:
        """Write joins and leaves of one topic, or all rows of it. False if there is no lease."""
        left = [client_id for client_id in ids if clients.topic_member(topic, client_id) is None]
        if all_rows:
            joined = clients.topic_members(topic)
        else:
            joined = [a for client_id in ids if (a := clients.topic_member(topic, client_id)) is not None]
        for at in range(0, max(len(joined), len(left), 1), ROWS):
            written = await self._presence_store.write(
                topic, joined[at : at + ROWS], left[at : at + ROWS], self._now_ms(),
                drop_first=all_rows and at == 0,
            )  # fmt: skip
            if not written:
                return False
        return True

    async def _read_topic(self, topic: str, state: _TopicPresence) -> None:
        """Read a presence set from Redis, or wait for the read in progress and share its result.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if state.reading is not None:
            await asyncio.shield(state.reading)
            return
        reading = state.reading = asyncio.get_running_loop().create_future()
        try:
            await self._read_alone(topic, state)
        except Unavailable as error:
            reading.set_exception(error)
            reading.exception()  # mark as retrieved: no other task may wait for it
            raise
        finally:
            state.reading = None
            if not reading.done():
                reading.set_result(None)  # cancelled: the next caller reads it

    async def _read_alone(self, topic: str, state: _TopicPresence) -> None:
        state.stale = True
        while state.stale:
            state.stale = False  # set again by `mark_stale` if this read may be too old
            try:
                members = await self._presence_store.read(topic)
            except BaseException:
                state.stale = True
                raise
        if self._states.get(topic) is not state:
            return
        self._nodes.update(node_of(member.client_id) for member in members)
        if state.primed:
            state.presence_set.reconcile(members, asyncio.get_running_loop().time())
        else:
            state.presence_set.prime(members)
            state.primed = True
        waiting, state.waiting = state.waiting, []
        self._mark_changed(topic)
        for changes in waiting:
            self._apply(topic, state, *changes)

    def _apply(self, topic: str, state: _TopicPresence, joined: list[Member], left: list[str], dead: bool) -> None:
        now = asyncio.get_running_loop().time()
        for member in joined:
            self._nodes.add(node_of(member.client_id))
            state.presence_set.join(member)
        for client_id in left:
            state.presence_set.leave(client_id, now, dead=dead)
        self._mark_changed(topic)

    def _mark_changed(self, topic: str) -> None:
        self._changed.add(topic)
        self._wake.set()


def is_listed(members: Sequence[Member]) -> bool:
    """Whether clients receive a list of these members, because it is short enough."""
    infos = (len(member.info) for member in members if member.info is not None)
    return len(members) <= MAX_LISTED and sum(infos) <= MAX_LISTED_BYTES


def member_json(member: Member) -> dict[str, Any]:
    """A member of the presence set in the format for clients."""
    about: dict[str, Any] = {"clientId": member.client_id, "user": member.user}
    return about if member.info is None else {**about, "info": orjson.Fragment(member.info)}
