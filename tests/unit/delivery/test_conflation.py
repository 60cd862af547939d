"""gateway.delivery.conflation: of what comes within a window, each client is sent the last message meant for it, in
order.
"""

from __future__ import annotations

import asyncio

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import fossil_delta, frames, hub, message
from gateway.core.events import Delivered, Encoder
from gateway.core.hub import Audiences, Hub, Recipient
from gateway.core.subscription_options import SubscriptionOptions
from gateway.core.tag_filter import TagFilter
from gateway.delivery.conflation import Conflation
from gateway.protocols.native.protocol import NATIVE
from tests.unit.raw import Raw
from tests.unit.virtual_time import VirtualLoop, in_virtual_time, later

WINDOW_MS = 100
TOPIC = "price:x"


class Client:
    protocol: Encoder = NATIVE

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.audiences = Audiences()
        self.received: list[bytes] = []

    def send(self, data: bytes) -> bool:
        self.received.append(data)
        return True


def house(*names: str) -> tuple[Conflation, Hub, dict[str, Client]]:
    node = Hub(lambda: None, refuse)
    clients = {name: Client(name) for name in names}
    for client in clients.values():
        node.join(client, hub.topic_audience(TOPIC))
    return Conflation(node), node, clients


def refuse(_: Recipient) -> None:
    raise AssertionError("no client is slow")


@in_virtual_time
async def test_a_message_that_excludes_a_client_does_not_overtake_the_one_that_waits() -> None:
    conflation, node, clients = house("ann", "bob")
    for frame, exclude in ((b"0", None), (b"1", None), (b"2", None), (b"3", "bob")):
        conflation.conflate(TOPIC, Raw(frame), exclude, WINDOW_MS)
    await later(0.1)
    node.flush()
    assert clients["ann"].received == [b"0", b"3"]
    assert clients["bob"].received == [b"0", b"2"]
    await later(1)
    node.flush()
    assert (len(clients["ann"].received), len(clients["bob"].received)) == (2, 2)


@in_virtual_time
async def test_what_waits_is_dropped_when_the_last_subscriber_leaves() -> None:
    conflation, node, clients = house("ann")
    conflation.conflate(TOPIC, Raw(b"0"), None, WINDOW_MS)
    conflation.conflate(TOPIC, Raw(b"1"), None, WINDOW_MS)
    conflation.forget(TOPIC)
    await later(1)
    node.flush()
    assert clients["ann"].received == [b"0"]


@in_virtual_time
async def test_a_topic_without_a_window_is_delivered_at_once() -> None:
    conflation, node, _ = house()
    client = Client("ann")
    node.join(client, hub.topic_audience("plain"))
    for frame in (b"0", b"1"):
        conflation.conflate("plain", Raw(frame), None, 0)
    node.flush()
    assert b"".join(client.received) == b"01"


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.sampled_from([0, 0, 0.03, 0.2])), max_size=30))
def test_every_client_receives_its_messages_in_order_and_the_last_one(steps: list[tuple[str | None, float]]) -> None:
    async def run() -> None:
        conflation, node, clients = house("a", "b", "c")
        meant: dict[str, list[bytes]] = {name: [] for name in clients}
        for number, (exclude, pause) in enumerate(steps):
            frame = b"%d;" % number
            conflation.conflate(TOPIC, Raw(frame), exclude, WINDOW_MS)
            for name in clients.keys() - {exclude}:
                meant[name].append(frame)
            await asyncio.sleep(pause)
            node.flush()
        await later(1)
        node.flush()
        for name, client in clients.items():
            received = [part + b";" for part in b"".join(client.received).split(b";")[:-1]]
            assert received == [frame for frame in meant[name] if frame in received], "in order, each once"
            assert received[-1:] == meant[name][-1:]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


@in_virtual_time
async def test_a_message_that_is_not_to_be_conflated_is_sent_at_once_behind_what_waits() -> None:
    """Its publisher's topic rules differ from those of the publisher that opened the window."""
    conflation, node, clients = house("ann")
    for frame, window_ms in ((b"0", WINDOW_MS), (b"1", WINDOW_MS), (b"2", 0), (b"3", 0)):
        conflation.conflate(TOPIC, Raw(frame), None, window_ms)
    node.flush()
    assert b"".join(clients["ann"].received) == b"0123"


@in_virtual_time
async def test_a_filtered_client_receives_the_last_message_that_it_wants() -> None:
    """Also if the last message of the window is not for it, and whoever else joins or leaves within the window."""
    conflation, node, clients = house("plain", "buys", "sells")
    audience = hub.topic_audience(TOPIC)

    def publish(number: int, side: str, exclude: str | None = None) -> None:
        event = Delivered(message.pack(TOPIC, number, {"tags": {"side": side}}, 0))
        conflation.conflate(TOPIC, event, exclude, WINDOW_MS)

    def numbers(name: str) -> list[int]:
        node.flush()
        texts = frames.payloads(b"".join(clients[name].received))
        return [orjson.loads(text)["data"] for text in texts]

    publish(0, "buy")
    publish(1, "buy")  # waits for all, before the first filter
    for name, side in (("buys", "buy"), ("sells", "sell")):
        options = SubscriptionOptions(TagFilter({"key": "side", "cmp": "eq", "val": side}))
        node.tailor(clients[name], audience, options)
    publish(2, "buy")
    publish(3, "sell")
    publish(4, "buy", "buys")
    publish(5, "sell", "sells")
    await later(1)
    assert numbers("plain")[-1] == 5
    assert numbers("buys") == [0, 1, 2]
    assert numbers("sells") == [0, 3]
    node.remove(clients["buys"])
    publish(6, "sell")
    publish(7, "sell")
    node.remove(clients["sells"])
    await later(1)
    assert numbers("plain")[-1] == 7


@in_virtual_time
async def test_a_client_with_deltas_reconstructs_each_message_that_it_receives() -> None:
    conflation, node, clients = house("plain", "ann", "bob")
    for name in ("ann", "bob"):
        node.tailor(clients[name], hub.topic_audience(TOPIC), SubscriptionOptions(delta=True))
    for number in range(20):
        data = {"number": number, "text": "the same in each message"}
        conflation.conflate(TOPIC, Delivered(message.pack(TOPIC, data, {}, 0)), ("ann", None)[number % 2], WINDOW_MS)
        await asyncio.sleep(0.03)
    await later(1)
    node.flush()
    numbers: dict[str, list[int]] = {}
    kinds: set[bool] = set()
    for name in ("ann", "bob"):
        base = b""
        for text in map(orjson.loads, frames.payloads(b"".join(clients[name].received))):
            kinds.add(text["delta"])
            raw = text["data"].encode()
            base = fossil_delta.apply(base, raw, 1000) if text["delta"] else raw
            numbers.setdefault(name, []).append(orjson.loads(base)["number"])
    assert kinds == {True, False}
    assert numbers["ann"] == sorted(numbers["ann"]) and numbers["ann"][-1] == 19
    assert numbers["bob"] == sorted(numbers["bob"]) and numbers["bob"][-1] == 19
    assert not [number for number in numbers["ann"] if number % 2 == 0]
