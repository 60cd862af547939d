"""Presence of one node: its rows, its reads and its events, and that it checks only topics with pending work."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, cast

import pytest

from gateway.broker.client import Unavailable
from gateway.cluster.presence_store import PresenceStore, presence_envelope
from gateway.core.presence_set import ClientChanges, Member, PresenceChanges, PresenceSet
from gateway.delivery.presence import BATCH_SECONDS, MAX_LISTED, MAX_WAITING, WRITE_TOPICS, PresenceTracker
from tests.unit.virtual_time import in_virtual_time, later, quiet

ANN = Member("n.b.1", "ann")
BOB = Member("n.b.2", "bob")
GRACE = 5.0


class Rows:
    """The rows in Redis. Stands for `PresenceStore`."""

    node_id = "me.b"

    def __init__(self) -> None:
        self.nodes = {self.node_id, "n.b"}
        self.people: dict[str, list[Member]] = {}
        self.answer: asyncio.Future[None] | None = None  # a read is answered when this is done
        self.written: list[tuple[str, list[Member], list[str], bool]] = []
        self.asked: list[str] = []  # topics that were to be read
        self.reads: list[str] = []
        self.at_once = self.most_at_once = 0
        self.refused: set[str] = set()  # topics
        self.leased = True

    async def write(
        self, topic: str, joined: Sequence[Member], left: Sequence[str], _now: int, *, drop_first: bool
    ) -> bool:
        await self._travel(topic)
        if self.leased:
            self.written.append((topic, list(joined), list(left), drop_first))
        return self.leased

    async def read(self, topic: str) -> list[Member]:
        self.asked.append(topic)
        found = list(self.people.get(topic, []))
        if self.answer is not None:
            await asyncio.wait([self.answer])
        await self._travel(topic)
        self.reads.append(topic)
        return found

    async def live_nodes(self) -> set[str]:
        return self.nodes

    async def count(self, topics: Sequence[str], _nodes: Collection[str]) -> list[int | None]:
        return [len(self.people.get(topic, [])) for topic in topics]

    async def _travel(self, topic: str) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        if topic in self.refused:
            raise Unavailable("refused")


class FakeClients:
    """A node with some clients; keeps what it shows."""

    def __init__(self) -> None:
        self.here: dict[str, list[Member]] = {}
        self.shown: list[tuple[str, dict[str, Any]]] = []
        self.clients_shown: list[tuple[str, ClientChanges]] = []

    def topic_members(self, topic: str) -> list[Member]:
        return self.here.get(topic, [])

    def topic_member(self, topic: str, client_id: str) -> Member | None:
        return next((one for one in self.topic_members(topic) if one.client_id == client_id), None)

    def send_presence(self, topic: str, about: dict[str, Any]) -> None:
        self.shown.append((topic, about))

    def send_client_changes(self, topic: str, changes: ClientChanges) -> None:
        self.clients_shown.append((topic, changes))


class At:
    """A node's presence and what is around it."""

    def __init__(self) -> None:
        self.rows, self.clients = Rows(), FakeClients()
        self.presence = PresenceTracker(cast(PresenceStore, self.rows), grace_seconds=GRACE, now_ms=lambda: 0)

    async def open(self, *topics: str) -> None:
        await asyncio.gather(*map(self.presence.prepare, topics))
        await self.presence.flush(self.clients)

    def hear(self, topic: str, joined: Sequence[Member] = (), left: Sequence[str] = ()) -> None:
        """Word of another node."""
        self.presence.word_received(topic, presence_envelope(joined, left, 0))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[PresenceSet]:
    """The rosters that were asked for changes."""
    found: list[PresenceSet] = []
    changes = PresenceSet.changes

    def counting(presence_set: PresenceSet, now: float) -> PresenceChanges:
        found.append(presence_set)
        return changes(presence_set, now)

    monkeypatch.setattr(PresenceSet, "changes", counting)
    return found


@in_virtual_time
async def test_a_batch_looks_at_rooms_with_news_only_and_at_one_that_holds_a_leave_until_it_is_shown(
    looks: list[PresenceSet],
) -> None:
    at = At()
    await at.open(*(f"t{number}" for number in range(1000)))
    looks.clear()
    at.hear("t7", [ANN])
    await at.presence.flush(at.clients)
    assert at.clients.shown == [("t7", {"count": 1, "joined": [{"clientId": "n.b.1", "user": "ann"}], "left": []})]
    at.hear("t7", left=[ANN.client_id])
    await at.presence.flush(at.clients)
    assert len(looks) == 2
    running = asyncio.create_task(at.presence.run(at.clients))
    await later(GRACE + 1)
    running.cancel()
    assert at.clients.shown[1:] == [("t7", {"count": 0, "joined": [], "left": [{"clientId": "n.b.1", "user": "ann"}]})]
    assert len({id(presence_set) for presence_set in looks}) == 1
    looks.clear()
    await at.presence.flush(at.clients)
    assert looks == []


@in_virtual_time
async def test_only_rooms_in_doubt_are_read_again_side_by_side_and_no_more_than_stated() -> None:
    at = At()
    topics = [f"t{number}" for number in range(3 * WRITE_TOPICS)]
    await at.open(*topics)
    at.rows.reads.clear()
    at.rows.most_at_once = 0
    for topic in topics[: 2 * WRITE_TOPICS + 1]:
        at.presence.mark_stale(topic)
    at.presence.close_topic(topics[0])
    await at.presence.flush(at.clients)
    assert sorted(at.rows.reads) == sorted(topics[1 : 2 * WRITE_TOPICS + 1])
    assert at.rows.most_at_once == WRITE_TOPICS
    at.rows.reads.clear()
    await at.presence.flush(at.clients)
    assert at.rows.reads == []


@in_virtual_time
async def test_a_room_that_could_not_be_read_is_read_again() -> None:
    at = At()
    await at.open("a", "b")
    at.rows.refused = {"a"}
    at.rows.reads.clear()
    for topic in "ab":
        at.presence.mark_stale(topic)
    with pytest.raises(Unavailable):
        await at.presence.flush(at.clients)
    at.hear("a", [ANN])  # waits until the room is read
    at.rows.refused = set()
    await at.presence.flush(at.clients)
    assert sorted(at.rows.reads) == ["a", "b"]
    assert [topic for topic, _ in at.clients.shown] == ["a"]


@in_virtual_time
async def test_a_client_of_many_topics_is_written_to_all_of_them_side_by_side() -> None:
    at = At()
    topics = [f"t{number}" for number in range(2 * WRITE_TOPICS + 5)]
    for topic in topics:
        at.clients.here[topic] = [ANN]
        at.presence.touch(topic, ANN.client_id)
    await at.presence.flush(at.clients)
    assert sorted(at.rows.written) == sorted((topic, [ANN], [], False) for topic in topics)
    assert at.rows.most_at_once == WRITE_TOPICS


@in_virtual_time
async def test_what_could_not_be_written_is_written_again_and_nothing_else() -> None:
    at = At()
    await at.open("a", "b", "c")
    at.clients.here = {"a": [ANN], "c": [ANN]}
    at.presence.touch("a", ANN.client_id)
    at.presence.touch("b", ANN.client_id)
    at.presence.rewrite()
    at.rows.refused = {"a"}
    with pytest.raises(Unavailable):
        await at.presence.flush(at.clients)
    assert sorted(at.rows.written) == [("b", [], [ANN.client_id], True), ("c", [ANN], [], True)]
    at.rows.written.clear()
    at.rows.refused = set()
    await at.presence.flush(at.clients)
    assert at.rows.written == [("a", [ANN], [], True)]


@in_virtual_time
async def test_rows_of_these_topics_alone_are_written_again() -> None:
    at = At()
    await at.open("a", "b")
    at.clients.here = {"a": [ANN], "b": [ANN], "closed": []}
    at.presence.rewrite(["b", "closed"])
    await at.presence.flush(at.clients)
    assert sorted(at.rows.written) == [("b", [ANN], [], True), ("closed", [], [], True)]


@in_virtual_time
async def test_what_a_cancelled_batch_had_to_write_is_not_lost() -> None:
    at = At()
    at.clients.here = {"a": [ANN]}
    at.presence.touch("a", ANN.client_id)
    batch = asyncio.create_task(at.presence.flush(at.clients))
    await quiet()
    batch.cancel()
    await quiet()
    at.rows.written.clear()
    await at.presence.flush(at.clients)
    assert at.rows.written == [("a", [ANN], [], False)]


@in_virtual_time
async def test_without_a_lease_who_came_is_written_later() -> None:
    at = At()
    at.clients.here = {"a": [ANN]}
    at.presence.touch("a", ANN.client_id)
    at.rows.leased = False
    await at.presence.flush(at.clients)
    at.rows.leased = True
    await at.presence.flush(at.clients)
    assert at.rows.written == [("a", [ANN], [], False)]


# ---- reads


@in_virtual_time
async def test_a_thousand_clients_that_come_at_once_cost_one_read() -> None:
    at = At()
    at.rows.people["t"] = [ANN]
    await asyncio.gather(*(at.presence.prepare("t") for _ in range(1000)))
    assert at.rows.reads == ["t"]
    assert (await at.presence.members("t")).members() == [ANN]


@in_virtual_time
async def test_a_read_that_was_begun_before_word_was_missed_is_done_again() -> None:
    at = At()
    at.rows.people["t"] = [ANN]
    await at.open("t")
    at.rows.answer = asyncio.get_running_loop().create_future()
    at.presence.mark_stale("t")
    reading = asyncio.create_task(at.presence.flush(at.clients))
    await quiet()
    at.rows.people["t"] = [BOB]  # of which no word arrives
    at.presence.mark_stale("t")
    at.rows.answer.set_result(None)
    await reading
    await later(GRACE + 1)
    await at.presence.flush(at.clients)
    assert (await at.presence.members("t")).members() == [BOB]


@in_virtual_time
async def test_an_older_answer_does_not_undo_newer_notices() -> None:
    at = At()
    at.rows.people["t"] = [ANN]
    at.rows.answer = asyncio.get_running_loop().create_future()
    both = [asyncio.create_task(at.presence.prepare("t")) for _ in range(2)]
    await quiet()
    at.hear("t", [BOB], [ANN.client_id])
    at.rows.answer.set_result(None)
    await asyncio.gather(*both)
    await later(GRACE + 1)
    await at.presence.flush(at.clients)
    assert (await at.presence.members("t")).members() == [BOB]


@in_virtual_time
async def test_callers_of_a_shared_read_share_its_failure_and_survive_its_cancellation() -> None:
    at = At()
    at.rows.refused = {"t"}
    found = await asyncio.gather(*(at.presence.prepare("t") for _ in range(3)), return_exceptions=True)
    assert [type(failure) for failure in found] == [Unavailable] * 3
    assert at.rows.asked == ["t"]
    at.rows.refused = set()
    first, second = (asyncio.create_task(at.presence.prepare("t")) for _ in range(2))
    await quiet()
    first.cancel()
    await second
    assert at.presence.is_ready("t")


@in_virtual_time
async def test_word_that_waits_for_a_read_has_a_limit() -> None:
    at = At()
    at.rows.answer = asyncio.get_running_loop().create_future()
    reading = asyncio.create_task(at.presence.prepare("t"))
    await quiet()
    for number in range(MAX_WAITING + 1):
        at.hear("t", [Member(f"n.b.{number}", None)])
    assert len(at.presence._states["t"].waiting) <= MAX_WAITING
    at.rows.people["t"] = [ANN]
    at.rows.answer.set_result(None)
    await reading
    assert at.rows.reads == ["t", "t"]
    assert (await at.presence.members("t")).members() == [ANN]


# ---- checks


@in_virtual_time
async def test_clients_of_a_node_without_a_lease_are_removed_at_the_second_check() -> None:
    at = At()
    at.rows.people["t"] = [ANN, BOB]
    await at.open("t")
    at.rows.nodes = {Rows.node_id}
    at.rows.people["t"] = []
    await at.presence.check()
    assert len(await at.presence.members("t")) == 2
    await at.presence.check()
    await at.presence.flush(at.clients)
    assert len(await at.presence.members("t")) == 0, "no grace: they are dead"
    assert {person["user"] for person in at.clients.shown[-1][1]["left"]} == {"ann", "bob"}


@in_virtual_time
async def test_an_index_without_this_node_does_not_prove_others_absent() -> None:
    at = At()
    at.rows.people["t"] = [ANN]
    await at.open("t")
    at.rows.nodes = set()
    for _ in range(3):
        await at.presence.check()
    assert (await at.presence.members("t")).members() == [ANN]


@in_virtual_time
async def test_a_roster_that_differs_from_redis_twice_is_read_again_and_own_rows_are_written_again() -> None:
    at = At()
    at.rows.people["t"] = [ANN]
    await at.open("t", "quiet", "quieter")
    at.rows.reads.clear()
    at.rows.people["t"] = []
    for reads in (["quiet"], ["quiet", "quieter", "t"]):
        await at.presence.check()
        await at.presence.flush(at.clients)
        assert sorted(at.rows.reads) == reads
    assert at.rows.written == [("t", [], [], True)]
    await later(GRACE + 1)
    await at.presence.flush(at.clients)
    assert len(await at.presence.members("t")) == 0


@in_virtual_time
async def test_a_user_that_changed_without_word_is_found_in_time() -> None:
    at = At()
    at.rows.people["t"] = [ANN]
    await at.open("t", "u")
    at.rows.people["t"] = [ANN._replace(user="bob")]
    for _ in range(2):
        await at.presence.check()
        await at.presence.flush(at.clients)
    assert (await at.presence.members("t")).members() == [ANN._replace(user="bob")]


@in_virtual_time
async def test_a_check_looks_at_some_topics_and_the_next_at_others() -> None:
    at = At()
    topics = [f"t{number}" for number in range(2 * WRITE_TOPICS)]
    await at.open(*topics)
    asked: list[str] = []
    count = at.rows.count

    async def counting(some: Sequence[str], nodes: Collection[str]) -> list[int | None]:
        asked.extend(some)
        return await count(some, nodes)

    cast(Any, at.rows).count = counting
    await at.presence.check()
    assert len(asked) == WRITE_TOPICS
    await at.presence.check()
    assert sorted(asked) == sorted(topics)


@in_virtual_time
async def test_without_a_topic_a_check_asks_redis_nothing() -> None:
    at = At()
    cast(Any, at.rows).live_nodes = cast(Any, at.rows).count = None
    await at.presence.check()


@in_virtual_time
@pytest.mark.parametrize("number", [MAX_LISTED, MAX_LISTED + 1])
async def test_a_topic_with_over_a_thousand_members_publishes_only_the_count(number: int) -> None:
    at = At()
    await at.open("t")
    people = [Member(f"n.b.{one}", f"u{one}") for one in range(number)]
    at.hear("t", people)
    await at.presence.flush(at.clients)
    [(_, about)] = at.clients.shown
    assert about["count"] == number
    assert ("joined" in about) is ("left" in about) is (number == MAX_LISTED)


@in_virtual_time
async def test_all_that_happens_within_a_tenth_of_a_second_is_shown_in_one_message() -> None:
    at = At()
    await at.open("t")
    running = asyncio.create_task(at.presence.run(at.clients))
    await later(10)
    assert at.rows.written == []
    at.clients.here["t"] = [ANN, BOB]
    at.presence.touch("t", ANN.client_id)
    at.presence.touch("t", BOB.client_id)
    at.hear("t", [ANN, BOB])
    await later(BATCH_SECONDS / 2)
    assert (at.rows.written, at.clients.shown) == ([], [])
    await later(BATCH_SECONDS)
    [(topic, joined, left, whole)] = at.rows.written
    assert (topic, set(joined), left, whole) == ("t", {ANN, BOB}, [], False)
    assert [(topic, about["count"]) for topic, about in at.clients.shown] == [("t", 2)]
    await later(60)
    assert (len(at.rows.written), len(at.clients.shown)) == (1, 1), "no change is published twice"
    running.cancel()


@in_virtual_time
async def test_what_was_refused_is_tried_again_after_a_second() -> None:
    at = At()
    await at.open("t")
    running = asyncio.create_task(at.presence.run(at.clients))
    at.rows.refused = {"t"}
    at.clients.here["t"] = [ANN]
    at.presence.touch("t", ANN.client_id)
    await later(0.5)
    at.rows.refused = set()
    await later(0.5)
    assert at.rows.written == []
    await later(0.5)
    assert at.rows.written == [("t", [ANN], [], False)]
    running.cancel()


@in_virtual_time
async def test_a_topic_that_is_closed_is_not_shown_and_its_roster_is_read_anew() -> None:
    at = At()
    at.rows.people["t"] = [ANN]
    await at.open("t")
    at.hear("t", [BOB])
    at.presence.close_topic("t")
    await at.presence.flush(at.clients)
    assert (at.clients.shown, at.presence.is_ready("t")) == ([], False)
    at.rows.people["t"] = [BOB]
    assert (await at.presence.members("t")).members() == [BOB]
    await at.open("t")
    assert at.clients.shown == [], "who was here before is no news"
