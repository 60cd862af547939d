"""gateway.delivery.subscriptions: SUBSCRIBEs that overlap, clients that close at any step, recovery at the client's
own pace.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import frames, hub
from gateway.core import message as messages
from gateway.core.effects import SubscribeTopics
from gateway.core.events import Delivered, Unsubscribed, Welcome
from gateway.core.hub import Hub
from gateway.core.identity import ANONYMOUS, Identity
from gateway.core.position import Position
from gateway.core.stream_position import StreamEntry
from gateway.core.subscription_options import SubscriptionOptions
from gateway.core.tag_filter import MAX_NODES, TagFilter
from gateway.core.variants import MAX_TOPIC_NODES
from gateway.delivery.sender import Sender
from gateway.delivery.slices import SLICE_ITEMS
from gateway.delivery.subscriptions import MAX_WAITING, READ_SECONDS, RECOVERY_BYTES, Subscriptions
from gateway.metrics import Metrics
from gateway.protocols.native.protocol import NATIVE
from gateway.transports.connection import HIGH_WATER_BYTES, ClientInfo, Connection, ConnectionOwner, ConnectionStage
from tests.unit.virtual_time import VirtualLoop, in_virtual_time, later, quiet

ANSWER_SECONDS = 2.0
BUDGET = 1 << 20


class Streams:
    """Topics named `kept…` have history, in the epoch "e"."""

    def __init__(self) -> None:
        self.entries: dict[str, list[StreamEntry]] = {}

    def position(self, topic: str) -> Position:
        kept = self.entries.get(topic)
        return Position("e", kept[-1].offset if kept else 0, 0)

    def losses(self, _topic: str) -> int:
        return 0

    def messages(self, _topic: str, entries: Iterable[StreamEntry]) -> list[Delivered]:
        return [Delivered(entry.body) for entry in entries]

    def missed_since(self, topic: str, position: Position) -> list[StreamEntry] | None:
        kept = self.entries.get(topic, [])
        if position.epoch != "e" or (kept and kept[0].offset > position.offset + 1):
            return None
        return [entry for entry in kept if entry.offset > position.offset]

    def publish(self, topic: str, size: int = 10) -> StreamEntry:
        entry = StreamEntry(self.position(topic).offset + 1, messages.pack(topic, "x" * size, {}, 0))
        self.entries.setdefault(topic, []).append(entry)
        return entry


class FakeDispatcher:
    """Redis as the test wants it: what is confirmed and what is ready is the test's choice."""

    def __init__(self, node: Hub) -> None:
        self.hub = node
        self.recovery = Streams()
        self.confirms = True
        self.unready: set[str] = set()
        self.snapshots: dict[str, Any] = {}  # data by topic
        self.waiting: dict[Callable[[], None], int] = {}  # how often each is called
        self.parts: list[int] = []  # audiences of each call of `join` and `leave`
        self.received: set[str] = set()
        self.changed = asyncio.Event()
        self.touched: list[tuple[str, str]] = []  # of presence

    def join_channels(self, audiences: Iterable[str], confirmed: Callable[[], None] | None) -> bool:
        wanted = set(audiences)
        self.parts.append(len(wanted))
        self.received |= wanted
        if self.confirms or not wanted:
            return True
        if confirmed is not None:
            self.waiting[confirmed] = self.waiting.get(confirmed, 0) + 1
        return False

    def cancel_wait(self, _audiences: Iterable[str], confirmed: Callable[[], None]) -> None:
        self.waiting.pop(confirmed, None)

    def leave_channels(self, audiences: Iterable[str]) -> None:
        for audience in {hub.channel_of(audience) for audience in audiences}:
            topic = hub.topic_of(audience)
            if audience not in self.hub and (topic is None or hub.joining_topic(topic) not in self.hub):
                self.received.discard(audience)

    def confirm(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for confirmed, times in waiting.items():
            for _ in range(times):
                confirmed()

    def is_plain(self, topic: str) -> bool:
        return not topic.startswith(("kept", "last", "room"))

    def is_ready(self, topic: str) -> bool:
        return topic not in self.unready

    async def prepare(self, topics: Iterable[str]) -> None:
        while self.unready & set(topics):
            self.changed.clear()
            await self.changed.wait()

    def make_ready(self, *topics: str) -> None:
        self.unready -= set(topics or self.unready)
        self.changed.set()

    def catch_up(self, _places: object) -> None:
        """It is never behind."""

    def has_history(self, topic: str) -> bool:
        return topic.startswith("kept")

    def has_presence(self, topic: str) -> bool:
        return topic.startswith("room")

    @property
    def presence(self) -> FakeDispatcher:
        return self

    def touch(self, topic: str, client_id: str) -> None:
        self.touched.append((topic, client_id))

    def snapshot(self, topic: str) -> Delivered | None:
        if topic not in self.snapshots:
            return None
        return Delivered(messages.pack(topic, self.snapshots[topic], {}, 0), initial=True)


class Client(Connection):
    """A client in memory, which reads when the test says so."""

    kind = "websocket"

    def __init__(self) -> None:
        super().__init__()
        self.stage = ConnectionStage.OPEN
        self.sent: list[dict[str, Any]] = []
        self.unsent = 0
        self.most_unsent = 0
        self.reads = True
        self.sends_left = -1  # after so many sends the connection is lost; -1: never
        self.refuses = False  # then that send is refused, as of a slow consumer

    def send(self, data: bytes) -> bool:
        if self.stage is not ConnectionStage.OPEN:
            return True
        if self.unsent > BUDGET:
            return False
        if self.sends_left == 0:
            if self.refuses:
                return False
            asyncio.get_running_loop().call_soon(self.abort, 1006)  # as a transport says that it is lost
            return True
        self.sends_left -= 1
        self.sent += [orjson.loads(text) for text in frames.payloads(data)]
        if not self.reads:
            self.unsent += len(data)
            self.most_unsent = max(self.most_unsent, self.unsent)
        return True

    def read(self) -> None:
        self.unsent = 0
        self._drain()

    def unsent_bytes(self) -> int:
        return self.unsent

    def held_bytes(self) -> int:
        return self.unsent

    def is_late(self, now: float) -> bool:
        return False

    def ping(self) -> None:
        """It is never asked."""

    def close(self, code: int, reason: str) -> None:
        self.abort(code)

    def abort(self, code: int) -> None:
        if self.stage is not ConnectionStage.CLOSED:
            self.stage = ConnectionStage.CLOSED
            self._report_closed(code)

    def _read(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """It says nothing: the tests speak for it."""
        return iter(())

    def _must_wait(self, opcode: int) -> bool:
        return True

    def _handle(self, opcode: int, payload: bytes) -> None:
        """The same."""

    def _pause(self, paused: bool) -> None:
        """The same."""


class Node:
    """Memberships with a hub, and everything else in memory."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.hub = Hub(lambda: None, lambda recipient: self.sender.evict(recipient))
        self.sender = Sender(self.hub, self.metrics, lambda: 0)
        self.dispatcher = FakeDispatcher(self.hub)
        self.tasks: set[asyncio.Task[None]] = set()
        registry = cast(Any, type("Registry", (), {"touch_client": lambda *_: None, "touch_topic": lambda *_: None})())
        self.subscriptions = Subscriptions(
            self.hub, cast(Any, self.dispatcher), cast(Any, self.dispatcher), registry, self.sender, self._spawn,
            answer_seconds=ANSWER_SECONDS,
        )  # fmt: skip
        self.grown: list[int] = []
        self.max_message_bytes = self.client_buffer_bytes = BUDGET

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def connect(self, user: str | None = None) -> Client:
        client = Client()
        session = type(
            "Session", (), {"identity": Identity(user, None, None) if user else ANONYMOUS, "info_changed": False}
        )()
        client.open(cast(ConnectionOwner, self), "n.1.1", cast(Any, session), ClientInfo(0, "", ""), NATIVE)
        self.subscriptions.accept(client, Welcome("n.1.1", "n", "1", 0, {}))
        return client

    def buffer_grew(self, connection: Connection, size: int) -> None:
        self.grown.append(size)

    def connection_closed(self, connection: Connection, _code: int) -> None:
        self.subscriptions.remove(connection)

    def subscribe(self, client: Client, *topics: str, request_id: str = "r", offset: int | None = None) -> None:
        recover = {topic: Position("e", offset) for topic in topics} if offset is not None else {}
        self.subscriptions.subscribe(client, SubscribeTopics(topics, request_id, False, recover))

    def publish(self, topic: str, size: int = 10) -> None:
        self.hub.deliver(hub.topic_audience(topic), Delivered(self.dispatcher.recovery.publish(topic, size).body))
        self.hub.flush()

    def assert_no_trace(self) -> None:
        assert not list(self.hub)
        assert not self.subscriptions._subscribing
        assert not self.subscriptions._unanswered
        assert not self.dispatcher.waiting
        assert not self.dispatcher.received
        assert not self.tasks


def answers(client: Client) -> dict[str, Any]:
    """Request id -> topics acknowledged, or the code of the ERROR; each is answered once at most."""
    found: dict[str, Any] = {}
    for message in client.sent:
        request_id = message.get("requestId", message.get("inReplyTo"))
        if request_id is not None:
            assert request_id not in found, "answered twice"
            found[request_id] = message.get("topics", message.get("code"))
    return found


def kinds(client: Client) -> list[str]:
    """The operation or action of each message that it was sent."""
    return [message.get("operation") or message["action"] for message in client.sent]


# ---- SUBSCRIBEs that overlap


@in_virtual_time
async def test_overlapping_subscribes_are_acknowledged_each_with_its_own_topics() -> None:
    node = Node()
    client = node.connect()
    node.dispatcher.confirms = False
    node.subscriptions.redis_lost()
    node.subscribe(client, "kept:1", "kept:2", request_id="first")
    node.subscribe(client, "kept:1", "kept:3", request_id="second")
    node.subscribe(client, "kept:2", request_id="third")
    await quiet()
    assert answers(client) == {}
    node.dispatcher.confirm()
    await quiet()
    assert answers(client) == {"first": ["kept:1", "kept:2"], "second": ["kept:1", "kept:3"], "third": ["kept:2"]}


@in_virtual_time
async def test_an_unsubscribe_takes_its_topic_from_all_that_wait_and_a_later_subscribe_brings_it_back() -> None:
    node = Node()
    client = node.connect()
    node.dispatcher.confirms = False
    node.subscriptions.redis_lost()
    node.subscribe(client, "a", "b", request_id="first")
    node.subscribe(client, "a", request_id="second")
    node.subscriptions.unsubscribe(client, ["a"])
    await quiet()
    node.dispatcher.confirm()
    await quiet()
    assert answers(client) == {"first": ["b"], "second": 4004}
    node.subscribe(client, "a", request_id="third")
    node.subscriptions.unsubscribe(client, ["a"])
    node.subscribe(client, "a", request_id="fourth")
    await quiet()
    node.dispatcher.confirm()
    await quiet()
    assert (answers(client)["third"], answers(client)["fourth"]) == (["a"], ["a"])
    assert client.audiences == {"topic:a", "topic:b"}


@in_virtual_time
async def test_a_failure_of_one_subscribe_leaves_the_topics_of_another() -> None:
    node = Node()
    client = node.connect()
    node.dispatcher.unready = {"kept:bad", "kept:good"}
    node.subscribe(client, "kept:good", "kept:bad", request_id="first")
    node.subscribe(client, "kept:good", request_id="second")
    await quiet()
    cast(Any, node.dispatcher.recovery).position = broken_for("kept:bad", node.dispatcher.recovery.position)
    node.dispatcher.make_ready()
    await quiet()
    assert answers(client) == {"first": 5000, "second": ["kept:good"]}
    assert client.stage is ConnectionStage.OPEN


def broken_for(topic: str, work: Callable[[str], Any]) -> Callable[[str], Any]:
    def broken(asked: str) -> Any:
        if asked == topic:
            raise RuntimeError("broken")
        return work(asked)

    return broken


@in_virtual_time
async def test_more_waiting_subscribes_than_the_limit_are_refused_for_now() -> None:
    node = Node()
    client = node.connect()
    node.dispatcher.confirms = False
    node.subscriptions.redis_lost()
    for number in range(MAX_WAITING + 1):
        node.subscribe(client, "a", request_id=str(number))
    await quiet()
    assert answers(client) == {str(MAX_WAITING): 5030}
    assert client.sent[-1]["temporary"] is True
    node.dispatcher.confirm()
    await quiet()
    assert len(answers(client)) == MAX_WAITING + 1


# ---- how long anything waits


@in_virtual_time
async def test_a_login_is_answered_in_time_though_redis_confirms_nothing() -> None:
    node = Node()
    node.dispatcher.confirms = False
    client = node.connect(user="ann")
    await quiet()
    assert client.sent == []
    assert client._held
    await later(ANSWER_SECONDS)
    assert kinds(client) == ["welcome"]
    assert not client._held
    node.subscriptions.change_identity(client)
    await later(ANSWER_SECONDS)
    node.dispatcher.confirm()
    await quiet()
    assert kinds(client) == ["welcome", "authenticate"]
    node.subscriptions.redis_lost()
    node.subscriptions.change_identity(client)
    assert kinds(client) == ["welcome", "authenticate", "authenticate"]
    assert not node.dispatcher.waiting, "nothing piles up while Redis is away"


@in_virtual_time
async def test_a_subscribe_that_waits_holds_back_the_next_frames_for_a_while_only() -> None:
    node = Node()
    client = node.connect()
    node.dispatcher.confirms = False
    node.subscribe(client, "a", request_id="first")
    await quiet()
    assert client._held
    await later(ANSWER_SECONDS)
    assert not client._held
    node.subscribe(client, "b", request_id="second")
    assert not client._held
    node.dispatcher.confirm()
    await quiet()
    assert answers(client) == {"first": ["a"], "second": ["b"]}


@in_virtual_time
async def test_an_outage_answers_the_welcome_before_anything_else() -> None:
    node = Node()
    node.dispatcher.confirms = False
    client = node.connect(user="ann")
    node.subscriptions.redis_lost()
    assert kinds(client) == ["welcome"]


@in_virtual_time
async def test_only_a_new_identity_is_published_on_topics_with_presence() -> None:
    node = Node()
    client = node.connect()
    node.subscribe(client, "room", "plain")
    node.dispatcher.touched.clear()
    for user, reported in (("ann", 1), ("ann", 1), ("bob", 2)):
        cast(Any, client.session).identity = Identity(user, None, None)
        node.subscriptions.change_identity(client)
        assert node.dispatcher.touched == [("room", client.client_id)] * reported
    assert client.audiences == {"user:bob", "topic:room", "topic:plain"}


# ---- clients that close at any step


def test_a_connection_that_closes_at_any_send_leaves_no_trace() -> None:
    for refuses in (False, True):
        for sends in range(8):
            with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                runner.run(_close_at(sends, refuses))


async def _close_at(sends: int, refuses: bool) -> None:
    node = Node()
    node.dispatcher.snapshots = {"last:1": 1, "last:2": 2}
    for _ in range(40):
        node.publish("kept:1", 8000)
    client = node.connect()
    client.sends_left, client.refuses = sends, refuses
    node.subscribe(client, "plain", request_id="1")
    node.subscribe(client, "last:1", "last:2", request_id="2")
    node.dispatcher.confirms = False
    node.subscribe(client, "kept:1", "last:1", request_id="3", offset=0)
    node.subscribe(client, "last:3", request_id="4")
    node.subscriptions.change_identity(client)
    await quiet()
    node.dispatcher.confirms = True
    node.dispatcher.confirm()
    await quiet()
    client.abort(1006)
    await quiet()
    node.subscriptions.change_identity(client)
    node.subscribe(client, "plain", "kept:1", request_id="5")
    await later(10)
    node.assert_no_trace()


TOPICS = ("a", "b", "kept:1", "kept:2")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("subscribe"), st.lists(st.sampled_from(TOPICS), min_size=1, max_size=3, unique=True)),
        st.tuples(st.just("unsubscribe"), st.lists(st.sampled_from(TOPICS), min_size=1, max_size=2, unique=True)),
        st.tuples(st.just("login"), st.sampled_from(["ann", "bob"])),
        st.tuples(st.just("unready"), st.lists(st.sampled_from(TOPICS[2:]), max_size=2)),
        st.tuples(st.just("ready"), st.none()),
        st.tuples(st.just("confirm"), st.booleans()),
        st.tuples(st.just("degrade"), st.booleans()),
        st.tuples(st.just("publish"), st.sampled_from(TOPICS[2:])),
        st.tuples(st.just("wait"), st.sampled_from([1e-6, 0.3, 3.0])),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(STEPS, st.one_of(st.none(), st.integers(0, 12)), st.booleans())
def test_every_subscribe_is_answered_once_and_correctly(
    steps: list[tuple[str, Any]], closes: int | None, refuses: bool
) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(_run(steps, closes, refuses))


async def _run(steps: list[tuple[str, Any]], closes: int | None, refuses: bool) -> None:
    node = Node()
    client = node.connect()
    client.sends_left, client.refuses = -1 if closes is None else closes, refuses
    asked: dict[str, list[str]] = {}
    wanted: set[str] = set()
    for number, (step, what) in enumerate(steps):
        match step:
            case "subscribe":
                asked[str(number)] = what
                before = len(node.subscriptions._subscribing.get(client, ()))
                node.subscribe(client, *what, request_id=str(number))
                if before < MAX_WAITING:
                    wanted |= set(what)
            case "unsubscribe":
                node.subscriptions.unsubscribe(client, what)
                wanted -= set(what)
            case "login":
                cast(Any, client.session).identity = Identity(what, None, None)
                node.subscriptions.change_identity(client)
            case "unready":
                node.dispatcher.unready |= set(what)
            case "ready":
                node.dispatcher.make_ready()
            case "confirm":
                node.dispatcher.confirms = what
                node.dispatcher.confirm()
            case "degrade":
                if what:
                    node.subscriptions.redis_lost()
                    node.subscriptions.resume(client)
                else:
                    node.subscriptions.degraded = False
            case "publish":
                node.publish(what)
            case "wait":
                await asyncio.sleep(what)
    node.dispatcher.confirms = True
    node.dispatcher.make_ready()
    node.dispatcher.confirm()
    await later(10)
    if client.stage is ConnectionStage.OPEN:
        found = answers(client)
        assert found.keys() == asked.keys()
        for request_id, answer in found.items():
            assert answer in (4004, 5030) or set(answer) <= set(asked[request_id])
        assert {hub.topic_of(a) for a in client.audiences} - {None} == wanted
        assert {hub.topic_of(a) for a in node.dispatcher.received} - {None} == wanted
        assert not client._held
        client.abort(1006)
        await quiet()
    node.assert_no_trace()


# ---- recovery


@in_virtual_time
async def test_a_client_recovers_at_the_rate_at_which_it_reads_and_live_messages_come_behind() -> None:
    node = Node()
    for _ in range(200):
        node.publish("kept:1", 60_000)
    client = node.connect()
    client.reads = False
    node.subscribe(client, "kept:1", offset=0)
    turns = 0
    while "r" not in answers(client):
        turns += 1
        await quiet()
        client.read()
        if turns in (3, 60):
            node.publish("kept:1")
        await quiet()
    node.publish("kept:1")
    assert [m["topic"] for m in client.sent if m["type"] == "DATA"] == ["kept:1"] * 203
    acknowledged = next(m for m in client.sent if m.get("requestId") == "r")
    assert acknowledged["positions"] == {"kept:1": {"epoch": "e", "offset": 202, "mark": 0, "recovered": True}}
    assert client.sent.index(acknowledged) == len(client.sent) - 2
    assert client.most_unsent < HIGH_WATER_BYTES + RECOVERY_BYTES + 61_000
    assert turns > 50
    assert max(node.grown) == client.most_unsent, "what waits is counted with all that is held for clients"


@in_virtual_time
async def test_a_member_that_recovers_again_gets_no_live_message_between_the_parts() -> None:
    """The client would drop messages with a lower offset than the live one, and believe that it has all."""
    node = Node()
    for _ in range(20):
        node.publish("kept:1", 60_000)
    client = node.connect()
    node.subscribe(client, "kept:1", offset=20)
    await quiet()
    client.reads, client.sent = False, []
    node.subscribe(client, "kept:1", offset=5)
    while "r" not in answers(client):
        node.publish("kept:1", 10)
        await quiet()
        client.read()
        await quiet()
    sizes = [len(m["data"]) for m in client.sent if m["type"] == "DATA"]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes.count(60_000) == 15
    node.publish("kept:1", 5)
    assert len(client.sent[-1]["data"]) == 5, "it is a member again"


@in_virtual_time
async def test_a_client_slower_than_the_topic_gets_a_gap_and_is_not_closed() -> None:
    node = Node()
    for _ in range(20):
        node.publish("kept:1", 60_000)
    client = node.connect()
    client.reads = False
    node.subscribe(client, "kept:1", offset=0)
    await quiet()
    for _ in range(100):
        node.publish("kept:1", 60_000)
    del node.dispatcher.recovery.entries["kept:1"][:100]
    client.read()
    await quiet()
    acknowledged = client.sent[-1]
    assert acknowledged["positions"] == {"kept:1": {"epoch": "e", "offset": 120, "mark": 0, "recovered": False}}
    assert client.stage is ConnectionStage.OPEN
    assert hub.topic_audience("kept:1") in client.audiences


@in_virtual_time
async def test_a_client_that_reads_nothing_of_what_it_recovers_is_closed_in_time() -> None:
    node = Node()
    for _ in range(20):
        node.publish("kept:1", 60_000)
    client = node.connect()
    client.reads = False
    node.subscribe(client, "kept:1", offset=0)
    await later(READ_SECONDS - 1)
    assert client in node.subscriptions._subscribing
    await later(2)
    assert client.stage is ConnectionStage.CLOSED
    node.assert_no_trace()


@in_virtual_time
async def test_last_values_of_many_topics_are_paced_too() -> None:
    node = Node()
    topics = [f"last:{number}" for number in range(100)]
    node.dispatcher.snapshots = dict.fromkeys(topics, "x" * 50_000)
    client = node.connect()
    client.reads = False
    node.subscribe(client, *topics)
    while "r" not in answers(client):
        await quiet()
        client.read()
    assert answers(client)["r"] == topics
    assert client.most_unsent < HIGH_WATER_BYTES + RECOVERY_BYTES + 51_000


@in_virtual_time
async def test_a_message_that_excludes_the_client_is_not_recovered_by_it() -> None:
    node = Node()
    node.publish("kept:1")
    client = node.connect()
    own = node.dispatcher.recovery.publish("kept:1")
    node.dispatcher.recovery.entries["kept:1"][-1] = own._replace(exclude=client.client_id)
    node.subscribe(client, "kept:1", offset=0)
    assert [m["type"] for m in client.sent] == ["SYSTEM", "DATA", "ACKNOWLEDGMENT"]


# ---- thousands of topics


MANY = tuple(f"kept:{number}" for number in range(3 * SLICE_ITEMS + 1))


@pytest.mark.parametrize("confirms", [True, False])
@in_virtual_time
async def test_a_subscribe_of_many_topics_is_done_in_parts_and_acknowledged_as_a_whole(confirms: bool) -> None:
    node = Node()
    client = node.connect()
    node.dispatcher.parts.clear()
    node.dispatcher.confirms = confirms
    node.dispatcher.unready = {MANY[-1]}
    node.dispatcher.snapshots = dict.fromkeys(MANY, 1)
    node.subscribe(client, *MANY)
    assert node.dispatcher.parts == [], "nothing of it in the turn of the message itself"
    await quiet()
    node.dispatcher.confirm()
    await quiet()
    assert answers(client) == {}
    assert (len(node.dispatcher.parts), max(node.dispatcher.parts)) == (4, SLICE_ITEMS)
    node.dispatcher.make_ready()
    await quiet()
    assert answers(client) == {"r": list(MANY)}
    assert [message["topic"] for message in client.sent[1:-1]] == list(MANY), "their last values, in order"
    assert client.audiences == {hub.topic_audience(topic) for topic in MANY}


@in_virtual_time
async def test_a_client_joins_at_most_the_stated_number_of_topics_in_a_turn() -> None:
    node = Node()
    client = node.connect()
    node.subscribe(client, *MANY)
    entered = [0]
    while not answers(client):
        await asyncio.sleep(0)
        entered.append(sum(audience.startswith("topic:") for audience in client.audiences))
    assert max(after - before for before, after in itertools.pairwise(entered)) == SLICE_ITEMS


@in_virtual_time
async def test_an_unsubscribe_of_many_topics_is_done_in_parts_and_what_follows_waits() -> None:
    node = Node()
    client = node.connect()
    node.subscribe(client, *MANY)
    await quiet()
    node.subscriptions.unsubscribe_all(client, MANY, Unsubscribed([], "u"))
    await asyncio.sleep(0)
    assert (answers(client).get("u"), client._held) == (None, "unsubscribe")
    assert len(client.audiences) >= len(MANY) - 2 * SLICE_ITEMS
    await quiet()
    assert (answers(client)["u"], client._held, client.audiences) == ([], "", set())
    assert not node.dispatcher.received


@pytest.mark.parametrize("turns", range(1, 20))
@in_virtual_time
async def test_a_client_that_goes_amid_a_subscribe_of_many_topics_leaves_nothing(turns: int) -> None:
    node = Node()
    client = node.connect()
    node.subscribe(client, *MANY)
    for _ in range(turns):
        await asyncio.sleep(0)
    client.abort(1006)
    await quiet()
    node.assert_no_trace()


# ---- filters


def only(side: str) -> SubscriptionOptions:
    return SubscriptionOptions(TagFilter({"key": "side", "cmp": "eq", "val": side}))


@in_virtual_time
async def test_a_filter_holds_for_missed_messages_the_last_value_and_new_messages() -> None:
    node = Node()
    client = node.connect()
    for number in range(SLICE_ITEMS):
        body = messages.pack("kept:1", number, {"tags": {"side": ("buy", "sell")[number % 2]}}, 0)
        node.dispatcher.recovery.entries.setdefault("kept:1", []).append(StreamEntry(number + 1, body))
    node.dispatcher.snapshots["last:1"] = "no tag"
    effect = SubscribeTopics(("kept:1", "last:1"), "r", False, {"kept:1": Position("e", 0)}, options=only("buy"))
    node.subscriptions.subscribe(client, effect)
    await quiet()
    for side in ("buy", "sell"):
        node.hub.deliver("topic:kept:1", Delivered(messages.pack("kept:1", side, {"tags": {"side": side}}, 0)))
    node.hub.flush()
    received = [message["data"] for message in client.sent if message["type"] == "DATA"]
    assert received == [*range(0, SLICE_ITEMS, 2), "buy"]
    assert answers(client) == {"r": ["kept:1", "last:1"]}


@in_virtual_time
async def test_messages_that_a_filter_refuses_take_their_time_too() -> None:
    """Otherwise many of them would be read in one turn of the loop."""
    node = Node()
    client = node.connect()
    wanted = [{"key": "side", "cmp": "gt", "val": f"{number}"} for number in range(60)]
    for number in range(200):
        body = messages.pack("kept:1", number, {}, 0)
        node.dispatcher.recovery.entries.setdefault("kept:1", []).append(StreamEntry(number + 1, body))
    options = SubscriptionOptions(TagFilter({"op": "or", "nodes": wanted}))
    effect = SubscribeTopics(("kept:1",), "r", False, {"kept:1": Position("e", 0)}, options=options)
    node.subscriptions.subscribe(client, effect)
    assert answers(client) == {}
    await quiet()
    assert answers(client) == {"r": ["kept:1"]}


def many_nodes(tag: str, count: int) -> SubscriptionOptions:
    nodes = [{"key": tag, "cmp": "eq", "val": f"{number}"} for number in range(count - 1)]
    return SubscriptionOptions(TagFilter({"op": "or", "nodes": nodes}))


@in_virtual_time
async def test_a_filter_beyond_the_limit_is_refused_at_once_or_when_its_subscribe_has_waited() -> None:
    node = Node()
    clients = [node.connect() for _ in range(4)]
    whole, rest = divmod(MAX_TOPIC_NODES, MAX_NODES)
    assert rest >= 20
    for number in range(whole):
        options = many_nodes(f"{number}", MAX_NODES)
        node.subscriptions.subscribe(node.connect(), SubscribeTopics(("a",), "r", False, options=options))
    node.dispatcher.confirms = False
    for number, client in enumerate(clients[:3]):
        options = many_nodes(f"late{number}", rest // 2)
        node.subscriptions.subscribe(client, SubscribeTopics(("a",), "r", False, options=options))
    node.dispatcher.confirm()
    await quiet()
    node.subscriptions.subscribe(clients[3], SubscribeTopics(("a",), "r", False, options=many_nodes("late3", rest)))
    assert [answers(client) for client in clients] == [{"r": ["a"]}, {"r": ["a"]}, {"r": 5030}, {"r": 5030}]
    assert [client.audiences.topics for client in clients] == [1, 1, 0, 0]
