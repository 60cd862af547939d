"""gateway.relay: what comes from the bus reaches the hub in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from gateway.cluster.envelope import Envelope
from gateway.cluster.keys import Keys
from gateway.cluster.snapshots import NO_EPOCH
from gateway.core import frames, hub
from gateway.core.hub import Audiences, Hub
from gateway.core.topics import parse
from gateway.metrics import Metrics
from gateway.relay import Relay
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

    def __init__(self) -> None:
        self.audiences = Audiences()
        self.heard: list[bytes] = []

    def send(self, data: bytes) -> bool:
        self.heard += frames.payloads(data)
        return True


class Link:
    """Redis: each snapshot has this version and text."""

    sharded = False

    def __init__(self) -> None:
        self.answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    def script(self, _name: str) -> None:
        return None

    async def ask_all(self, _commands: Sequence[Any]) -> list[Any]:
        return [await self.answer]


class Bus:
    """Hears what the test says."""

    callback: Callable[[str, bytes], None]

    def listen(self, _channels: Iterable[str], callback: Callable[[str, bytes], None], _done: Any) -> bool:
        self.callback = callback
        return True

    def ignore(self, _channels: Iterable[str], _callback: Any) -> None:
        """It goes on."""


def relay_of(node: Hub, bus: Bus, link: Link) -> Relay:
    return Relay(
        hub=node, bus=cast(Any, bus), link=cast(Any, link), keys=Keys("gw:", False), rules=parse(RULES, "rules"),
        metrics=Metrics(), outgoing=cast(Any, None), max_message_bytes=1 << 20, now=lambda: 0.0,
        spawn=cast(Any, None), presence=cast(Any, type("Presence", (), {"close": lambda *_: None})()),
    )  # fmt: skip


@in_virtual_time
async def test_a_message_older_than_the_last_value_that_was_sent_first_is_not_delivered() -> None:
    node, bus, link, client = Hub(lambda: None, lambda _: None), Bus(), Link(), Client()
    relay = relay_of(node, bus, link)
    node.join(client, hub.joining("last"))
    relay.join([hub.of_topic("last")], None)

    def publish(version: int) -> None:
        text = b'{"version":%d}' % version
        bus.callback("gw:ws:topic:last", Envelope(0, text, epoch=NO_EPOCH, offset=version).pack())
        node.flush()

    reading = asyncio.create_task(relay.ready(["last"]))
    await later(1)
    publish(3)
    link.answer.set_result([b"5", b'{"version":5}'])
    await reading
    assert relay.snapshot("last") == b'{"version":5}'
    node.join(client, hub.of_topic("last"))
    for version in (4, 5, 6):  # 4 and 5 were under way when Redis was read
        publish(version)
    assert client.heard == [b'{"version":6}']
    assert relay.snapshot("last") == b'{"version":6}'
    node.leave(client, hub.of_topic("last"))
    node.leave(client, hub.joining("last"))
    relay.leave([hub.of_topic("last")])
    node.join(client, hub.of_topic("last"))
    publish(2)  # after a loss of Redis' data its versions may be lower
    assert client.heard[1:] == [b'{"version":2}']


@in_virtual_time
async def test_a_message_of_the_ingest_channel_does_not_overtake_a_conflated_one() -> None:
    node, bus, client = Hub(lambda: None, lambda _: None), Bus(), Client()
    relay = relay_of(node, bus, Link())
    node.join(client, hub.of_topic("price"))
    for text in (b'{"data":0}', b'{"data":1}'):
        relay._on_audience("gw:ws:topic:price", Envelope(0, text).pack())
    relay.on_ingest("gw:ws:broadcast", b'{"topic":"price","data":2}')
    await later(0.2)
    node.flush()
    assert [b'"data":%d' % number in text for number, text in zip((0, 2), client.heard, strict=True)] == [True, True]
