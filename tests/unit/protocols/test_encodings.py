"""Subscribers of one topic in several protocols: each encodes a message once, and all see the same order."""

from __future__ import annotations

from collections import Counter

import orjson
import pytest

from gateway.core import frames, hub, message
from gateway.core.events import Broadcast, Delivered
from gateway.protocols.centrifugo import protobuf
from gateway.protocols.centrifugo.protocol import JSON, PROTOBUF, Centrifugo
from gateway.protocols.native.protocol import NATIVE, Native
from gateway.protocols.protocol import ClientProtocol
from tests.unit.one_client_node import OneClientNode, broken, refuse
from tests.unit.protocols.test_toy import Client

MESSAGES = 20
CLIENTS = 3  # of each protocol
WORDS = {
    "native": (frames.TEXT, [b'{"type":"SUBSCRIBE","topics":["chat"]}']),
    "centrifuge-json": (frames.TEXT, [b'{"id":1,"connect":{}}', b'{"id":2,"subscribe":{"channel":"chat"}}']),
    "centrifuge-protobuf": (
        frames.BINARY,
        [
            protobuf.with_length(protobuf.encode("Command", command))
            for command in ({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "chat"}})
        ],
    ),
}


def values(protocol: ClientProtocol, client: Client) -> list[object]:
    """The data of the messages that a client was sent."""
    payloads = list(frames.payloads(bytes(client.wire.written)))
    if protocol is NATIVE:
        return [orjson.loads(payload)["data"] for payload in payloads]
    if protocol is JSON:
        return [orjson.loads(payload)["push"]["pub"]["data"] for payload in payloads]
    replies = [protobuf.decode("Reply", part) for payload in payloads for part in protobuf.split(payload, 100)]
    return [orjson.loads(reply["push"]["pub"]["data"]) for reply in replies]


async def test_one_encoding_for_each_protocol_and_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    node = OneClientNode(broken(is_plain=lambda _: True, has_presence=lambda _: False), refuse)
    encoded: Counter[str] = Counter()
    for kind in (Native, Centrifugo):

        def count(self: ClientProtocol, event: Broadcast, encode: object = kind.encode_broadcast) -> bytes:
            encoded[self.name] += 1
            return encode(self, event)  # type: ignore[operator,no-any-return]

        monkeypatch.setattr(kind, "encode_broadcast", count)
    clients = [(protocol, Client(node, protocol)) for protocol in (NATIVE, JSON, PROTOBUF) for _ in range(CLIENTS)]
    for protocol, client in clients:
        opcode, words = WORDS[protocol.name]
        for word in words:
            client.socket._handle(opcode, word)
        assert client.socket.audiences.has_topic("chat")
        client.wire.written = b""
    for number in range(MESSAGES):
        node.hub.deliver(hub.topic_audience("chat"), Delivered(message.pack("chat", number, {}, 0)))
        if number % 7 == 0:
            node.hub.flush()
    node.hub.flush()
    assert encoded == dict.fromkeys(WORDS, MESSAGES)
    assert [values(protocol, client) for protocol, client in clients] == [list(range(MESSAGES))] * len(clients)
