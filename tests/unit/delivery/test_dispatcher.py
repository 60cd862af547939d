"""gateway.delivery.dispatcher: messages from pub/sub reach the hub in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from gateway.broker.envelope import Envelope, EnvelopeKind
from gateway.broker.history import History
from gateway.broker.keys import Keys
from gateway.broker.rows import RowDecoder
from gateway.broker.snapshots import Snapshots
from gateway.core import frames, hub, message
from gateway.core.events import Encoder
from gateway.core.hub import Audiences, Hub
from gateway.core.topic_rules import parse
from gateway.delivery.dispatcher import Dispatcher
from gateway.delivery.ingest import Ingest
from gateway.delivery.publisher import MessagePublisher
from gateway.delivery.recovery import Recovery
from gateway.delivery.topic_copies import TopicCopies
from gateway.metrics import Metrics
from gateway.protocols.native.protocol import NATIVE
from tests.unit.raw import body, text
from tests.unit.virtual_time import in_virtual_time, later

RULES = """
[[topic]]
pattern = "last"
snapshot = true

[[topic]]
pattern = "price"
conflate_ms = 100
"""


class Client:
    client_id = "n.1.1"
    protocol: Encoder = NATIVE

    def __init__(self) -> None:
        self.audiences = Audiences()
        self.received: list[bytes] = []

    def send(self, data: bytes) -> bool:
        self.received += frames.payloads(data)
        return True


class FakeRedis:
    """Redis: each snapshot has this version and text."""

    sharded = False

    def __init__(self) -> None:
        self.answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.rows = RowDecoder(Metrics())

    def script(self, name: str) -> Callable[[Sequence[str], Sequence[Any]], Sequence[Any]]:
        return lambda keys, arguments: (name, keys, arguments)

    async def execute_each(self, _commands: Sequence[Any]) -> list[Any]:
        return [await self.answer]


class FakePubSub:
    """Hears what the test says."""

    callback: Callable[[str, bytes], None]

    def subscribe(self, _channels: Iterable[str], callback: Callable[[str, bytes], None], _done: Any) -> bool:
        self.callback = callback
        return True

    def unsubscribe(self, _channels: Iterable[str], _callback: Any) -> None:
        """It goes on."""


def last(dispatcher: Dispatcher) -> bytes:
    """The data of the last value."""
    event = dispatcher._topic_copies.snapshot("last")
    assert event is not None and event.initial
    return message.unpack(event.body)[3]


def dispatcher_of(node: Hub, pubsub: FakePubSub, redis_client: FakeRedis) -> Dispatcher:
    keys, rules, redis, metrics = Keys("gw:", False), parse(RULES, "rules"), cast(Any, redis_client), Metrics()
    presence = cast(Any, type("Presence", (), {"close_topic": lambda *_: None})())
    recovery = Recovery(History(redis, keys), rules, metrics, cast(Any, None))
    topic_copies = TopicCopies(node, rules, recovery, Snapshots(redis, keys), presence, metrics)
    return Dispatcher(
        hub=node, pubsub=cast(Any, pubsub), keys=keys, topic_copies=topic_copies, metrics=metrics, now=lambda: 0.0
    )


@in_virtual_time
async def test_a_message_older_than_the_last_value_that_was_sent_first_is_not_delivered() -> None:
    node, pubsub, redis, client = Hub(lambda: None, lambda _: None), FakePubSub(), FakeRedis(), Client()
    dispatcher = dispatcher_of(node, pubsub, redis)
    node.join(client, hub.joining_topic("last"))
    dispatcher.join_channels([hub.topic_audience("last")], None)

    def publish(version: int) -> None:
        pubsub.callback(
            "gw:ws:topic:last", Envelope(0, body(b"%d" % version), kind=EnvelopeKind.SNAPSHOT, version=version).pack()
        )
        node.flush()

    reading = asyncio.create_task(dispatcher._topic_copies.prepare(["last"]))
    await later(1)
    publish(3)
    redis.answer.set_result([b"5", body(b"5")])
    await reading
    assert last(dispatcher) == b"5"
    node.join(client, hub.topic_audience("last"))
    for version in (4, 5, 6):  # 4 and 5 were under way when Redis was read
        publish(version)
    assert client.received == [text(b"6")]
    assert last(dispatcher) == b"6"
    node.leave(client, hub.topic_audience("last"))
    node.leave(client, hub.joining_topic("last"))
    dispatcher.leave_channels([hub.topic_audience("last")])
    node.join(client, hub.topic_audience("last"))
    publish(2)  # after a loss of Redis' data its versions may be lower
    assert client.received[1:] == [text(b"2")]


@in_virtual_time
async def test_a_message_of_the_ingest_channel_does_not_overtake_a_conflated_one() -> None:
    node, pubsub, client = Hub(lambda: None, lambda _: None), FakePubSub(), Client()
    dispatcher = dispatcher_of(node, pubsub, FakeRedis())
    publisher = MessagePublisher(
        cast(Any, FakeRedis()), Keys("gw:", False), parse(RULES, "rules"), Metrics(), max_message_bytes=1 << 20,
        now=lambda: 0.0,
    )  # fmt: skip
    rules = parse(RULES, "rules")
    ingest = Ingest(
        node, dispatcher.conflation, publisher, cast(Any, None), cast(Any, None), rules, Metrics(), cast(Any, None)
    )
    node.join(client, hub.topic_audience("price"))
    for number in (b"0", b"1"):
        dispatcher._message_received("gw:ws:topic:price", Envelope(0, body(number), conflate_ms=100).pack())
    ingest.message_received("gw:ws:broadcast", b'{"topic":"price","data":2}')
    await later(0.2)
    node.flush()
    assert [b'"data":%d' % number in text for number, text in zip((0, 2), client.received, strict=True)] == [True, True]


def numbered(offset: int, data: bytes) -> bytes:
    return Envelope(
        0, body(data), kind=EnvelopeKind.HISTORY, epoch="e", offset=offset, mark=offset * 10, previous=(offset - 1) * 10
    ).pack()  # fmt: skip


class Opened:
    """A dispatcher whose topics are subscribed to by one client, and what was reported as lost."""

    def __init__(self, *topics: str) -> None:
        self.node, self.client = Hub(lambda: None, lambda _: None), Client()
        self.dispatcher = dispatcher_of(self.node, FakePubSub(), FakeRedis())
        self.missed: list[str] = []
        self.gaps: list[str] = []
        self.dispatcher.gap_listener = self
        for topic in topics:
            self.node.join(self.client, hub.topic_audience(topic))

    def topic_gap(self, topic: str) -> None:
        self.gaps.append(topic)

    def pubsub_missed(self, channels: list[str]) -> None:
        self.missed += channels

    def hear(self, topic: str, payload: bytes) -> list[bytes]:
        self.dispatcher._message_received(f"gw:ws:topic:{topic}", payload)
        self.node.flush()
        received, self.client.received = self.client.received, []
        return received

    def skipped(self) -> float:
        """How many messages could not be read."""
        return float(self.dispatcher._metrics.relayed.labels("unreadable").value)


@in_virtual_time
async def test_a_numbered_message_is_delivered_where_the_topic_has_no_history() -> None:
    opened = Opened("plain", "last")
    assert opened.hear("plain", numbered(7, b"{}")) == [text(b"{}", more=b',"offset":7,"epoch":"e","mark":70')]
    opened.dispatcher._topic_copies.snapshots.value_received("last", 5, body(b"5"))
    assert len(opened.hear("last", numbered(8, b"8"))) == 1
    assert last(opened.dispatcher) == b"8", "a client that subscribes now is sent the newest"
    assert opened.hear("last", Envelope(0, body(b"9")).pack()) == [text(b"9")]
    assert last(opened.dispatcher) == b"9"
    assert opened.gaps == []


@in_virtual_time
async def test_only_a_message_that_its_publisher_conflates_is_conflated() -> None:
    opened = Opened("price", "plain")
    numbers = [body(b"%d" % n) for n in range(3)]
    texts = [text(b"%d" % n) for n in range(3)]
    assert [opened.hear("price", Envelope(0, number).pack()) for number in numbers] == [[each] for each in texts]
    late = [opened.hear("plain", Envelope(0, number, conflate_ms=50).pack()) for number in numbers]
    assert late == [texts[:1], [], []]
    await later(0.06)
    opened.node.flush()
    assert opened.client.received == texts[2:]


@in_virtual_time
async def test_a_version_that_cannot_be_read_is_reported_as_a_loss_at_once_and_then_every_ten_seconds() -> None:
    opened = Opened("plain")
    assert opened.hear("plain", b"4 0 - P 0\n{}") == []
    assert opened.missed == ["gw:ws:topic:plain"]
    for _ in range(100):
        opened.hear("plain", b"4 0 - P 0\n{}")
    assert (opened.missed, opened.skipped()) == (["gw:ws:topic:plain"], 101)
    await later(10)
    assert opened.missed == ["gw:ws:topic:plain"] * 2, "what came since the first report is reported too"
    await later(30)
    assert opened.missed == ["gw:ws:topic:plain"] * 2, "nothing came since"
    opened.hear("plain", b"4 0 - P 0\n{}")
    assert opened.missed == ["gw:ws:topic:plain"] * 3
    await later(10)


@in_virtual_time
async def test_bytes_that_are_no_envelope_are_dropped_without_a_report() -> None:
    opened = Opened("plain")
    for payload in (b"", b"{}", b"hello there world\n", b"3 x\n{}", b"3 0 - P 0\n{}", b"3 0 - P 0\ntime topic []\n1"):
        assert opened.hear("plain", payload) == []
    assert (opened.missed, opened.gaps, opened.skipped()) == ([], [], 0)
