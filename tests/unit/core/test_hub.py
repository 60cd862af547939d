"""The hub, against a plain model: a set of (client, audience) pairs and the messages of each client."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.core import hub
from gateway.core.events import Broadcast, Delivered, Encoder
from gateway.core.hub import JOIN_BYTES, Audiences, Hub, Recipient
from gateway.protocols.native.protocol import NATIVE
from tests.unit.raw import Raw, body


@dataclass(eq=False)
class Client:
    """A subscriber that keeps what it was handed."""

    client_id: str
    protocol: Encoder = NATIVE
    audiences: Audiences = field(default_factory=Audiences)
    writes: list[bytes] = field(default_factory=list)
    blocked: bool = False  # the client does not read: it rejects every send

    def send(self, data: bytes) -> bool:
        if not self.blocked:
            self.writes.append(data)
        return not self.blocked

    @property
    def received(self) -> bytes:
        return b"".join(self.writes)


class Node:
    """A hub, and what it asked of its owner."""

    def __init__(self) -> None:
        self.wakes = 0
        self.evicted: list[Recipient] = []
        self.emptied: list[str] = []
        self.hub = Hub(self.wake, self.evict)

    def wake(self) -> None:
        self.wakes += 1

    def evict(self, recipient: Recipient) -> None:
        """As a node does: out of the hub in the same turn."""
        self.evicted.append(recipient)
        self.emptied += self.hub.remove(recipient)


def members(node: Node, audience: str, *clients: Client) -> None:
    for client in clients:
        node.hub.join(client, audience)


# ---- all sequences of acts

AUDIENCES = ["topic:a", "topic:b", "joining:b", "user:ann", "role:user"]
SIZES = [12, 40, 500, JOIN_BYTES // 3, JOIN_BYTES // 2, JOIN_BYTES - 12, JOIN_BYTES, JOIN_BYTES + 1, 3 * JOIN_BYTES]


class HubAgainstAModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.node = Node()
        self.clients = [Client(f"n.b.{number}") for number in range(4)]
        self.pairs: set[tuple[Client, str]] = set()
        self.expected: dict[Client, list[bytes]] = {client: [] for client in self.clients}  # handed out already
        self.waiting: dict[Client, list[bytes]] = {client: [] for client in self.clients}  # delivered, not flushed
        self.anything_waits = False
        self.refused: set[Client] = set()  # and not yet evicted
        self.wakes = 0
        self.evicted: list[Client] = []
        self.frames = 0

    def model_members(self, audience: str) -> set[Client]:
        return {client for client, other in self.pairs if other == audience}

    def model_hand_out(self) -> None:
        """Everything that waits is handed out; who refuses any of it gets no more."""
        self.anything_waits = False
        for client in self.clients:
            waiting, self.waiting[client] = self.waiting[client], []
            if waiting and client.blocked:
                self.refused.add(client)
            if client not in self.refused:
                self.expected[client] += waiting

    def model_flush(self) -> None:
        """Who refused is out, too."""
        self.model_hand_out()
        self.evicted += self.refused
        self.pairs = {(client, audience) for client, audience in self.pairs if client not in self.refused}
        self.refused.clear()

    @initialize(pairs=st.sets(st.tuples(st.integers(0, 3), st.sampled_from(AUDIENCES)), max_size=12))
    def some_are_members_already(self, pairs: set[tuple[int, str]]) -> None:
        for number, audience in pairs:
            self.join(self.clients[number], audience)

    @rule(number=st.integers(0, 3), audience=st.sampled_from(AUDIENCES))
    def someone_joins(self, number: int, audience: str) -> None:
        self.join(self.clients[number], audience)

    def join(self, client: Client, audience: str) -> None:
        self.node.hub.join(client, audience)
        if (client, audience) not in self.pairs:
            self.model_hand_out()
            self.pairs.add((client, audience))

    @rule(number=st.integers(0, 3), audience=st.sampled_from(AUDIENCES))
    def someone_leaves(self, number: int, audience: str) -> None:
        client = self.clients[number]
        emptied = self.node.hub.leave(client, audience)
        if (client, audience) in self.pairs:
            self.model_hand_out()
            self.pairs.discard((client, audience))
            assert emptied == (not self.model_members(audience))
        else:
            assert not emptied

    @rule(number=st.integers(0, 3))
    def someone_goes(self, number: int) -> None:
        client = self.clients[number]
        emptied = self.node.hub.remove(client)
        if client in {member for member, _ in self.pairs}:
            self.model_hand_out()
        self.refused.discard(client)
        own = {audience for member, audience in self.pairs if member is client}
        self.pairs = {(member, audience) for member, audience in self.pairs if member is not client}
        assert sorted(emptied) == sorted(audience for audience in own if not self.model_members(audience))

    @rule(
        audience=st.sampled_from(AUDIENCES),
        sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=5),
        excluded=st.one_of(st.none(), st.none(), st.integers(0, 4)),
    )
    def someone_publishes(self, audience: str, sizes: list[int], excluded: int | None) -> None:
        exclude = None if excluded is None else f"n.b.{excluded}"
        for size in sizes:
            self.frames += 1
            frame = b"<%010d" % self.frames + b"." * (size - 12) + b">"
            self.node.hub.deliver(audience, Raw(frame), exclude)
            members = self.model_members(audience)
            if exclude is None and members and not self.anything_waits:
                self.wakes += 1
                self.anything_waits = True
            for client in members:
                if client.client_id != exclude:
                    self.waiting[client].append(frame)
            if exclude is not None and members:  # it goes out at once, behind what waited
                self.model_flush()

    @rule()
    def the_loop_comes_round(self) -> None:
        self.node.hub.flush()
        self.model_flush()

    @rule(number=st.integers(0, 3))
    def someone_stops_reading(self, number: int) -> None:
        self.clients[number].blocked = True

    @precondition(lambda self: any(client.blocked for client in self.clients))
    @rule(number=st.integers(0, 3))
    def someone_reads_again(self, number: int) -> None:
        self.clients[number].blocked = False

    @invariant()
    def members_are_the_models(self) -> None:
        node = self.node.hub
        audiences = {audience for _, audience in self.pairs}
        assert set(node) == audiences
        assert node.memberships == len(self.pairs)
        assert node.topic_count == len(list(node.topics()))
        for audience in AUDIENCES:
            assert (audience in node) == (audience in audiences)
            assert set(node.members(audience)) == self.model_members(audience)
            assert node.count(audience) == len(self.model_members(audience))
        for client in self.clients:
            assert client.audiences == {audience for member, audience in self.pairs if member is client}
            assert client.audiences.topics == len(hub.topics_of(client.audiences))

    @invariant()
    def each_was_handed_each_frame_once_and_in_order(self) -> None:
        for client in self.clients:
            assert client.received == b"".join(self.expected[client])

    @invariant()
    def writes_are_joined_up_to_the_limit(self) -> None:
        for client in self.clients:
            assert all(len(write) <= JOIN_BYTES or write.count(b"<") == 1 for write in client.writes)

    @invariant()
    def it_woke_its_owner_whenever_something_began_to_wait(self) -> None:
        assert self.node.wakes == self.wakes

    @invariant()
    def who_refused_was_evicted_once(self) -> None:
        assert sorted(member.client_id for member in self.node.evicted) == sorted(c.client_id for c in self.evicted)


TestHubAgainstAModel = HubAgainstAModel.TestCase
TestHubAgainstAModel.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)


# ---- in so many words


def test_frames_of_one_turn_reach_a_client_in_one_write() -> None:
    node, ann, bob = Node(), Client("ann"), Client("bob")
    members(node, "topic:a", ann, bob)
    for frame in (b"one", b"two", b"three"):
        node.hub.deliver("topic:a", Raw(frame))
    assert (ann.writes, node.wakes) == ([], 1)
    node.hub.flush()
    assert ann.writes == [b"onetwothree"] == bob.writes
    assert ann.writes[0] is bob.writes[0]  # joined once for all, not once for each


def test_a_frame_alone_is_handed_on_as_it_is() -> None:
    node, ann = Node(), Client("ann")
    members(node, "topic:a", ann)
    frame = b"x" * (2 * JOIN_BYTES)
    node.hub.deliver("topic:a", Raw(frame))
    node.hub.flush()
    assert ann.writes[0] is frame


@pytest.mark.parametrize("over", [0, 1])
def test_a_joined_write_is_at_most_join_bytes_long(over: int) -> None:
    node, ann = Node(), Client("ann")
    members(node, "topic:a", ann)
    node.hub.deliver("topic:a", Raw(b"a" * (JOIN_BYTES // 2)))
    node.hub.deliver("topic:a", Raw(b"b" * (JOIN_BYTES // 2 + over)))
    node.hub.flush()
    assert len(ann.writes) == 1 + over


def test_order_is_arrival_order_over_all_of_a_clients_audiences() -> None:
    node, ann = Node(), Client("ann")
    members(node, "topic:a", ann)
    members(node, "user:ann", ann)
    for audience, frame in [("topic:a", b"1"), ("user:ann", b"2"), ("topic:a", b"3"), ("user:ann", b"4")]:
        node.hub.deliver(audience, Raw(frame))
    node.hub.flush()
    assert ann.received == b"1234"


def test_frames_of_several_audiences_reach_a_client_in_one_write_too() -> None:
    node, ann, bob, cat, dan = Node(), Client("ann"), Client("bob"), Client("cat"), Client("dan")
    members(node, "topic:a", ann, bob, cat)
    members(node, "topic:b", dan, ann, bob)
    members(node, "user:ann", ann)
    for audience, frame in [("topic:a", b"1"), ("topic:b", b"2"), ("user:ann", b"3"), ("topic:a", b"4")]:
        node.hub.deliver(audience, Raw(frame))
    node.hub.flush()
    assert [client.writes for client in (ann, bob, cat, dan)] == [[b"1234"], [b"124"], [b"14"], [b"2"]]
    assert (node.hub.deliveries, node.hub.sent_bytes) == (10, 10)


def test_clients_with_the_same_pending_messages_share_one_joined_buffer() -> None:
    node, ann, bob = Node(), Client("ann"), Client("bob")
    members(node, "topic:a", ann, bob)
    members(node, "topic:b", bob, ann)
    for audience in ("topic:a", "topic:b", "topic:a"):
        node.hub.deliver(audience, Raw(b"x"))
    node.hub.flush()
    assert ann.writes == [b"xxx"] and ann.writes[0] is bob.writes[0]


def test_what_came_before_a_join_is_not_for_the_newcomer() -> None:
    node, ann, bob = Node(), Client("ann"), Client("bob")
    members(node, "topic:a", ann)
    node.hub.deliver("topic:a", Raw(b"before "))
    members(node, "topic:a", bob)
    node.hub.deliver("topic:a", Raw(b"after"))
    node.hub.flush()
    assert (ann.received, bob.received) == (b"before after", b"after")


def test_what_came_before_a_leave_is_still_its_own() -> None:
    node, ann = Node(), Client("ann")
    members(node, "topic:a", ann)
    node.hub.deliver("topic:a", Raw(b"before"))
    assert node.hub.leave(ann, "topic:a")
    node.hub.deliver("topic:a", Raw(b"after"))
    node.hub.flush()
    assert ann.received == b"before"


def test_an_audience_without_members_wakes_no_client() -> None:
    node = Node()
    node.hub.deliver("topic:a", Raw(b"x"))
    node.hub.deliver("topic:a", Raw(b"x"), exclude="ann")
    assert node.wakes == 0


def test_the_excluded_client_receives_nothing_and_the_others_receive_in_order() -> None:
    node, ann, bob = Node(), Client("ann"), Client("bob")
    members(node, "topic:a", ann, bob)
    node.hub.deliver("topic:a", Raw(b"1"))
    node.hub.deliver("topic:a", Raw(b"2"), exclude="ann")
    node.hub.deliver("topic:a", Raw(b"3"))
    node.hub.flush()
    assert (ann.received, bob.received) == (b"13", b"123")


def test_a_client_that_refuses_is_evicted_and_the_others_hear_everything() -> None:
    node, slow, ann = Node(), Client("slow", blocked=True), Client("ann")
    members(node, "topic:a", slow, ann)
    members(node, "topic:b", slow, ann)
    members(node, "user:slow", slow)
    for audience, frame in [("topic:a", b"1"), ("topic:b", b"2"), ("user:slow", b"?"), ("topic:a", b"3")]:
        node.hub.deliver(audience, Raw(frame))
    node.hub.flush()
    assert (ann.received, slow.received) == (b"123", b"")
    assert node.evicted == [slow]
    assert node.emptied == ["user:slow"]
    assert slow.audiences == set()


def test_several_large_writes_evict_a_client_once() -> None:
    node, slow = Node(), Client("slow", blocked=True)
    members(node, "topic:a", slow)
    for _ in range(3):
        node.hub.deliver("topic:a", Raw(b"x" * JOIN_BYTES))
    node.hub.flush()
    assert node.evicted == [slow]


def test_a_blocked_client_is_not_evicted_inside_join_or_leave() -> None:
    node, slow, ann = Node(), Client("slow", blocked=True), Client("ann")
    members(node, "topic:a", slow, ann)
    node.hub.deliver("topic:a", Raw(b"x"))
    node.hub.join(slow, "topic:b")  # hands out what waits, which it refuses
    assert (node.evicted, slow.audiences) == ([], {"topic:a", "topic:b"})
    assert not node.hub.leave(slow, "topic:a")
    node.hub.flush()
    assert node.evicted == [slow]
    assert slow.audiences == set() and list(node.hub) == ["topic:a"]
    assert node.hub.memberships == 1


def test_a_client_that_rejected_a_send_gets_no_further_ones() -> None:
    node, slow, ann = Node(), Client("slow", blocked=True), Client("ann")
    members(node, "topic:a", slow)
    node.hub.deliver("topic:a", Raw(b"lost "))
    members(node, "topic:a", ann)
    slow.blocked = False
    node.hub.deliver("topic:a", Raw(b"received"))
    node.hub.flush()
    assert (slow.received, ann.received) == (b"", b"received")
    assert node.evicted == [slow]


def test_a_client_that_rejects_a_write_is_not_offered_the_next_one() -> None:
    class Moody(Client):
        def send(self, data: bytes) -> bool:
            taken = super().send(data)
            self.blocked = False
            return taken

    node, moody = Node(), Moody("moody", blocked=True)
    members(node, "topic:a", moody)
    for _ in range(2):
        node.hub.deliver("topic:a", Raw(b"x" * JOIN_BYTES))
    node.hub.flush()
    assert (moody.writes, node.evicted) == ([], [moody])


def test_a_blocked_client_that_was_removed_is_not_evicted_again() -> None:
    node, slow = Node(), Client("slow", blocked=True)
    for audience in AUDIENCES:
        members(node, audience, slow)
    node.hub.deliver("topic:a", Raw(b"x"))
    assert sorted(node.hub.remove(slow)) == sorted(AUDIENCES)
    node.hub.flush()
    assert (node.evicted, list(node.hub), node.hub.memberships) == ([], [], 0)


def test_deliveries_and_bytes_are_counted_for_each_subscriber() -> None:
    node = Node()
    members(node, "topic:a", *(Client(str(number)) for number in range(3)))
    for frame in (b"12345", b"678"):
        node.hub.deliver("topic:a", Raw(frame))
    node.hub.flush()
    assert (node.hub.deliveries, node.hub.sent_bytes) == (6, 24)


class Upper:
    """A protocol that counts what it encodes."""

    def __init__(self) -> None:
        self.encoded: list[Broadcast] = []

    def encode_broadcast(self, event: Broadcast) -> bytes:
        self.encoded.append(event)
        return NATIVE.encode_broadcast(event).upper()


def test_each_protocol_encodes_an_event_once_and_only_for_a_client_of_its_own() -> None:
    node, upper, other = Node(), Upper(), Upper()
    ann, bob, cat, dan = Client("ann"), Client("bob", upper), Client("cat", upper), Client("dan", other)
    members(node, "topic:a", ann, bob, cat)
    members(node, "topic:b", dan, ann)
    events = [Delivered(body(b'"x"', "a")), Delivered(body(b'"y"', "a"))]
    for event in events:
        node.hub.deliver("topic:a", event)
    node.hub.flush()
    native = b"".join(NATIVE.encode_broadcast(event) for event in events)
    assert [client.writes for client in (ann, bob, cat)] == [[native], [native.upper()], [native.upper()]]
    assert bob.writes[0] is cat.writes[0]
    assert (upper.encoded, other.encoded, dan.writes) == (events, [], [])
    for client in (bob, cat):
        node.hub.remove(client)
    node.hub.deliver("topic:a", Delivered(body(b"1", "a")))
    node.hub.flush()
    assert len(upper.encoded) == 2, "its last client is gone"


def test_topics_are_listed_while_they_have_subscribers() -> None:
    node, ann = Node(), Client("ann")
    for audience in AUDIENCES:
        members(node, audience, ann)
    assert (sorted(node.hub.topics()), ann.audiences.topics) == (["a", "b"], 2)
    node.hub.leave(ann, "topic:a")
    assert list(node.hub.topics()) == ["b"]


def test_a_topic_counts_once_for_a_client_that_is_in_it_and_waits_for_it_again() -> None:
    audiences = hub.Audiences(["topic:a", "user:topic:a", "joining:a", "joining:b"])
    assert (audiences.topics, audiences.has_topic("a"), audiences.has_topic("b")) == (2, True, True)
    audiences.discard("topic:a")
    audiences.discard("topic:a")
    assert (audiences.topics, audiences.has_topic("a")) == (2, True)
    audiences.discard("joining:a")
    assert (audiences.topics, audiences.has_topic("a")) == (1, False)


def test_audiences_have_names() -> None:
    assert (hub.topic_audience("a:b"), hub.user_audience("ann"), hub.role_audience("admin")) == (
        "topic:a:b",
        "user:ann",
        "role:admin",
    )
    assert hub.topic_of("topic:a:b") == "a:b"
    assert hub.topic_of("user:topic:a") is None and hub.topic_of("role:admin") is None
    assert hub.is_personal("user:a") and hub.is_personal("role:admin")
    assert not hub.is_personal(hub.topic_audience("user:a")) and not hub.is_personal(hub.joining_topic("user:a"))
