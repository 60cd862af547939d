"""gateway.core.variants: random members, options and messages; each member receives exactly what it wants, in order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import fossil_delta, frames, message, variants
from gateway.core.errors import ErrorReason
from gateway.core.events import Delivered, Encoder
from gateway.core.hub import Audiences, Hub
from gateway.core.subscription_options import PLAIN, SubscriptionOptions
from gateway.core.tag_filter import TagFilter
from gateway.core.variants import MAX_CLIENT_BYTES, MAX_TOPIC_NODES
from gateway.protocols.centrifugo import protobuf
from gateway.protocols.centrifugo.protocol import JSON, PROTOBUF
from gateway.protocols.native.protocol import NATIVE
from tests.unit.raw import Raw

TOPIC = "topic:t"


@dataclass(eq=False)
class Client:
    """A subscriber, and the data that it has received. It applies deltas as the clients of its protocol do."""

    client_id: str
    protocol: Encoder = NATIVE
    audiences: Audiences = field(default_factory=Audiences)
    data: list[Any] = field(default_factory=list)
    delta: bool = False  # it has subscribed with deltas
    base: bytes = b""
    deltas: int = 0  # that it has received

    def send(self, frame: bytes) -> bool:
        for payload in frames.payloads(frame):
            if self.protocol is NATIVE:
                text = orjson.loads(payload)
                self._take(text["data"].encode() if "delta" in text else None, text.get("delta"), text["data"])
            else:
                self._take_publication(payload)
        return True

    def _take_publication(self, payload: bytes) -> None:
        if self.protocol is JSON:
            publication = orjson.loads(payload)["push"]["pub"]
            raw = publication["data"].encode() if self.delta else orjson.dumps(publication["data"])
        else:
            [reply] = protobuf.split(payload, 1)
            publication = protobuf.decode("Reply", reply)["push"]["pub"]
            raw = publication["data"]
        assert self.delta or "delta" not in publication
        self._take(raw, publication.get("delta", False))

    def _take(self, raw: bytes | None, delta: bool | None, data: Any = None) -> None:
        if raw is not None:
            self.deltas += bool(delta)
            self.base = fossil_delta.apply(self.base, raw, 1 << 20) if delta else raw
            data = orjson.loads(self.base)
        self.data.append(data)


def a_filter(tag: str, value: str) -> SubscriptionOptions:
    return SubscriptionOptions(TagFilter({"key": tag, "cmp": "eq", "val": value}))


def any_of(count: int) -> SubscriptionOptions:
    """A filter of `count` nodes and one more."""
    nodes = [{"key": "k", "cmp": "eq", "val": f"{number}"} for number in range(count)]
    return SubscriptionOptions(TagFilter({"op": "or", "nodes": nodes}))


def event(data: Any, **tags: str) -> Delivered:
    return Delivered(message.pack("t", data, {"tags": tags} if tags else {}, 0))


def subscribe(hub: Hub, client: Client, options: SubscriptionOptions, audience: str = TOPIC) -> None:
    """As a node does it."""
    assert hub.variants.refusal(client, [audience], options, None) is None
    hub.join(client, audience)
    hub.tailor(client, audience, options)
    client.delta = options.delta


DELTA = SubscriptionOptions(delta=True)
OPTIONS = [PLAIN, a_filter("side", "buy"), a_filter("side", "sell"), DELTA, DELTA]
TAGS: list[dict[str, str]] = [{}, {"side": "buy"}, {"side": "sell"}, {"side": "buy", "kind": "fill"}]
TEXT = "the same in each message, so a delta is small"
PROTOCOLS: list[Encoder] = [NATIVE, JSON, PROTOBUF, NATIVE]
NUMBERS = st.integers(0, 3)
STEPS = st.one_of(
    st.tuples(st.just("subscribe"), NUMBERS, st.integers(0, 4)),
    st.tuples(st.just("subscribe"), NUMBERS, st.integers(0, 4)),
    st.tuples(st.just("join"), NUMBERS, NUMBERS),
    st.tuples(st.just("leave"), NUMBERS, NUMBERS),
    st.tuples(st.just("remove"), NUMBERS, NUMBERS),
    st.tuples(st.just("flush"), NUMBERS, NUMBERS),
    st.tuples(st.just("direct"), NUMBERS, st.integers(0, 4)),
    st.tuples(st.just("only"), NUMBERS, NUMBERS),
    *(st.tuples(st.just("publish"), NUMBERS, st.integers(0, 9)) for _ in range(4)),
)


def state(number: int, large: bool) -> dict[str, Any]:
    """Data of which a half is in the previous message, and nothing in an older one: a wrong base does not pass."""
    halves = [hashlib.sha256(b"%d" % each).hexdigest() for each in (number, number - 1)]
    return {"number": number, "halves": halves, **({"more": "é" * (33 << 10)} if large else {})}


@settings(deadline=None, max_examples=400)
@given(st.lists(STEPS, min_size=10, max_size=60), st.sets(st.integers(0, 60), max_size=3))
def test_each_member_receives_what_it_wants(steps: list[tuple[str, int, int]], large: set[int]) -> None:
    hub, clients = Hub(), [Client(f"{number}", PROTOCOLS[number]) for number in range(4)]
    chosen: dict[Client, SubscriptionOptions] = {}
    wanted: dict[Client, list[Any]] = {client: [] for client in clients}
    for client in clients:
        hub.join(client, "user:u")
    published = 0
    for number, (act, first, second) in enumerate(steps):
        client = clients[first]
        data = state(published if act == "publish" else 100 + number, number in large)
        sent, exclude = event(data, **TAGS[first]), f"{second}"
        match act:
            case "subscribe":
                chosen[client] = OPTIONS[second]
                subscribe(hub, client, OPTIONS[second])
            case "join":  # as the back end subscribes it: it keeps its options
                chosen.setdefault(client, PLAIN)
                hub.join(client, TOPIC)
            case "leave":
                chosen.pop(client, None)
                hub.leave(client, TOPIC)
                client.delta = False
            case "remove":
                chosen.pop(client, None)
                hub.remove(client)
                client.delta = False
                hub.join(client, "user:u")
            case "flush":
                hub.flush()
            case "direct":
                hub.deliver_directly("user:u", sent, exclude)
                for member in clients:
                    wanted[member] += [data] if member.client_id != exclude else []
            case "only":
                hub.deliver(TOPIC, sent, only=exclude)
                for member, options in chosen.items():
                    wanted[member] += [data] if member.client_id == exclude and options.wants(sent.body) else []
            case "publish":
                published += 1
                hub.deliver(TOPIC, sent, exclude if second < 4 else None)
                for member, options in chosen.items():
                    wanted[member] += [data] if member.client_id != exclude and options.wants(sent.body) else []
        assert set(hub.members(TOPIC)) == chosen.keys()
    hub.flush()
    for client in clients:
        assert client.data == wanted[client]
        hub.remove(client)
    assert not list(hub), "no group is left"
    assert not (hub.variants.topics or hub.variants.deltas or hub.variants.varied)


def test_deltas_are_sent_once_a_member_has_a_message_and_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, created = Hub(), 0
    clients = [Client(f"{number}", protocol) for number, protocol in enumerate(PROTOCOLS)]
    create = fossil_delta.create

    def counted(old: bytes, new: bytes) -> bytes | None:
        nonlocal created
        created += 1
        return create(old, new)

    monkeypatch.setattr(fossil_delta, "create", counted)
    for client in clients:
        subscribe(hub, client, DELTA)
    for number in range(5):
        hub.deliver(TOPIC, event({"number": number, "text": TEXT}))
    hub.flush()
    assert [client.deltas for client in clients] == [4] * 4
    assert created == 4
    subscribe(hub, clients[0], DELTA)
    hub.deliver(TOPIC, event({"number": 5, "text": TEXT}))
    hub.flush()
    assert [client.deltas for client in clients] == [4, 5, 5, 5], "a subscription begins with a whole message"
    assert all([each["number"] for each in client.data] == [*range(6)] for client in clients)


def test_the_previous_message_is_kept_only_for_members_with_deltas_and_only_if_it_is_small() -> None:
    hub, ann, bob = Hub(), Client("ann"), Client("bob")
    subscribe(hub, bob, PLAIN)
    subscribe(hub, ann, DELTA)

    def kept() -> list[Any]:
        return [message.unpack(each._previous.body)[3] for each in hub.variants.deltas.values() if each._previous]

    hub.deliver(TOPIC, event("small"))
    assert kept() == [b'"small"']
    hub.deliver(TOPIC, event("x" * fossil_delta.MAX_BYTES))
    assert kept() == []
    hub.leave(ann, TOPIC)
    assert not hub.variants.deltas
    assert hub.count(TOPIC) == 1


def test_a_filter_is_evaluated_once_for_all_its_members() -> None:
    hub, evaluated = Hub(), 0
    clients = [Client(f"{number}") for number in range(3)]
    for client in clients:
        subscribe(hub, client, a_filter("side", "buy"))
    [groups] = hub.variants.topics.values()
    [wanted] = groups.filters.values()

    class Counted(TagFilter):
        def matches(self, tags: Any) -> bool:
            nonlocal evaluated
            evaluated += 1
            return wanted.matches(tags)

    groups.filters = dict.fromkeys(groups.filters, Counted({"key": "side", "cmp": "eq", "val": "buy"}))
    hub.deliver(TOPIC, event(1, side="buy"))
    hub.flush()
    assert [client.data for client in clients] == [[1]] * 3
    assert evaluated == 1


def test_what_is_no_message_reaches_all_members() -> None:
    hub, ann = Hub(), Client("ann")
    subscribe(hub, ann, a_filter("side", "buy"))
    hub.deliver(TOPIC, Raw(frames.build(frames.TEXT, b'{"data":"joined"}')))
    hub.flush()
    assert ann.data == ["joined"]


def test_action_and_subtype_count_as_tags_and_damaged_extras_have_none() -> None:
    hub, ann, bob = Hub(), Client("ann"), Client("bob")
    subscribe(hub, ann, a_filter("action", "fill"))
    subscribe(hub, bob, SubscriptionOptions(TagFilter({"key": "action", "cmp": "nex"})))
    hub.deliver(TOPIC, Delivered(message.pack("t", 1, {"action": "fill"}, 0)))
    hub.flush()
    assert (ann.data, bob.data) == ([1], [])
    damaged = hub.variants.groups(TOPIC, Delivered(b"2026-01-31T12:00:00.000Z t {damaged}\n2"))
    assert len(damaged) == 2, "the plain members, and those who want messages without an action"


def test_the_filters_of_a_topic_have_a_bound() -> None:
    hub, many = Hub(), MAX_TOPIC_NODES // 51
    clients = [Client(f"{number}") for number in range(many)]
    for number, client in enumerate(clients):
        nodes = [{"key": f"k{number}", "cmp": "eq", "val": f"{value}"} for value in range(50)]
        subscribe(hub, client, SubscriptionOptions(TagFilter({"op": "or", "nodes": nodes})))
    late = Client("late")
    error = hub.variants.refusal(late, [TOPIC], any_of(50), "r")
    assert error is not None
    assert (error.reason, error.request_id) == (ErrorReason.UNAVAILABLE, "r")
    assert hub.variants.refusal(late, ["topic:other"], any_of(50), "r") is None
    known = SubscriptionOptions(next(iter(hub.variants.topics[TOPIC].filters.values())))
    assert hub.variants.refusal(late, [TOPIC], known, "r") is None, "the filter of others costs nothing more"
    hub.leave(clients[0], TOPIC)
    assert hub.variants.refusal(late, [TOPIC], any_of(50), "r") is None


def test_the_filters_of_a_client_have_a_bound() -> None:
    hub, ann = Hub(), Client("ann")
    options = a_filter("side", "buy")
    assert options.tag_filter is not None
    size = len(options.tag_filter.canonical)
    topics = [f"topic:{number}" for number in range(MAX_CLIENT_BYTES // size)]
    for topic in topics:
        subscribe(hub, ann, options, topic)
    assert hub.variants.refusal(ann, topics, a_filter("side", "yes"), None) is None, "it replaces its filters"
    for more in ([TOPIC], [*topics, TOPIC]):
        error = hub.variants.refusal(ann, more, options, None)
        assert error is not None
        assert error.reason is ErrorReason.TOO_MANY_TOPICS
    assert hub.variants.refusal(ann, [TOPIC], PLAIN, None) is None
    subscribe(hub, ann, PLAIN, topics[0])
    assert hub.variants.refusal(ann, [TOPIC], options, None) is None
    hub.remove(ann)
    assert hub.variants.refusal(ann, topics, options, None) is None
    assert not hub.variants.topics


def test_the_filters_of_a_node_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, ann, bob = Hub(), Client("ann"), Client("bob")
    options = a_filter("side", "buy")
    assert options.tag_filter is not None
    monkeypatch.setattr(variants, "MAX_NODE_BYTES", 2 * len(options.tag_filter.canonical))
    for topic in ("topic:a", "topic:b"):
        subscribe(hub, ann, options, topic)
        subscribe(hub, bob, options, topic)
    error = hub.variants.refusal(bob, ["topic:c"], options, None)
    assert error is not None
    assert error.reason is ErrorReason.UNAVAILABLE
    hub.leave(ann, "topic:a")
    assert hub.variants.refusal(bob, ["topic:c"], options, None) is not None, "another client has the filter still"
    hub.leave(bob, "topic:a")
    subscribe(hub, bob, options, "topic:c")
    for client in (ann, bob):
        hub.remove(client)
    assert hub.variants.refusal(bob, ["topic:a", "topic:b"], options, None) is None
