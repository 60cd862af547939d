"""gateway.core.variants: random members, options and messages; each member receives exactly what it wants, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import frames, message
from gateway.core.errors import ErrorReason
from gateway.core.events import Delivered, Encoder
from gateway.core.hub import Audiences, Hub
from gateway.core.subscription_options import PLAIN, SubscriptionOptions
from gateway.core.tag_filter import TagFilter
from gateway.core.variants import MAX_CLIENT_FILTERS, MAX_TOPIC_NODES
from gateway.protocols.native.protocol import NATIVE
from tests.unit.raw import Raw

TOPIC = "topic:t"


@dataclass(eq=False)
class Client:
    """A subscriber, and the data that it has received."""

    client_id: str
    protocol: Encoder = NATIVE
    audiences: Audiences = field(default_factory=Audiences)
    data: list[Any] = field(default_factory=list)

    def send(self, frame: bytes) -> bool:
        self.data += [orjson.loads(text)["data"] for text in frames.payloads(frame)]
        return True


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


OPTIONS = [PLAIN, a_filter("side", "buy"), a_filter("side", "sell"), a_filter("kind", "fill")]
TAGS: list[dict[str, str]] = [{}, {"side": "buy"}, {"side": "sell"}, {"side": "buy", "kind": "fill"}]
NUMBERS = st.integers(0, 3)
STEPS = st.one_of(
    st.tuples(st.just("subscribe"), NUMBERS, NUMBERS),
    st.tuples(st.just("leave"), NUMBERS, NUMBERS),
    st.tuples(st.just("remove"), NUMBERS, NUMBERS),
    st.tuples(st.just("flush"), NUMBERS, NUMBERS),
    st.tuples(st.just("publish"), NUMBERS, st.integers(0, 4)),
    st.tuples(st.just("publish"), NUMBERS, st.integers(0, 4)),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_each_member_receives_what_it_wants(steps: list[tuple[str, int, int]]) -> None:
    hub, clients = Hub(), [Client(f"{number}") for number in range(4)]
    chosen: dict[Client, SubscriptionOptions] = {}
    wanted: dict[Client, list[Any]] = {client: [] for client in clients}
    for number, (act, first, second) in enumerate(steps):
        client = clients[first]
        match act:
            case "subscribe":
                chosen[client] = OPTIONS[second]
                subscribe(hub, client, OPTIONS[second])
            case "leave":
                chosen.pop(client, None)
                hub.leave(client, TOPIC)
            case "remove":
                chosen.pop(client, None)
                hub.remove(client)
            case "flush":
                hub.flush()
            case "publish":
                exclude = f"{second}" if second < 4 else None
                sent = event({"number": number, "text": "the same in each message"}, **TAGS[first])
                for member, options in chosen.items():
                    if member.client_id != exclude and options.wants(sent.body):
                        wanted[member].append({"number": number, "text": "the same in each message"})
                hub.deliver(TOPIC, sent, exclude)
        assert set(hub.members(TOPIC)) == chosen.keys()
    hub.flush()
    for client in clients:
        assert client.data == wanted[client]
        hub.remove(client)
    assert not list(hub), "no group is left"
    assert not hub.variants.topics


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
    topics = [f"topic:{number}" for number in range(MAX_CLIENT_FILTERS)]
    options = a_filter("side", "buy")
    for topic in topics:
        subscribe(hub, ann, options, topic)
    assert hub.variants.refusal(ann, topics, a_filter("side", "sell"), None) is None, "it replaces its filters"
    error = hub.variants.refusal(ann, [TOPIC], options, None)
    assert error is not None
    assert error.reason is ErrorReason.TOO_MANY_TOPICS
    assert hub.variants.refusal(ann, [TOPIC], PLAIN, None) is None
    subscribe(hub, ann, PLAIN, topics[0])
    assert hub.variants.refusal(ann, [TOPIC], options, None) is None
    hub.remove(ann)
    assert hub.variants.refusal(ann, topics, options, None) is None
    with pytest.raises(KeyError):
        hub.variants.groups(topics[0], event(1))
