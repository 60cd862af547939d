"""A protocol needs no change elsewhere: session, hub and sender serve clients of two protocols at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from gateway.core import frames, hub, message
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.events import Broadcast, Delivered
from gateway.core.identity import ANONYMOUS
from gateway.protocols import registry
from gateway.protocols.native.protocol import NATIVE, Native
from gateway.protocols.protocol import ClientProtocol
from gateway.transports.connection import ConnectionStage
from gateway.transports.websocket import WebSocket
from tests.kit.raw import frame
from tests.unit.one_client_node import MemoryTransport, OneClientNode, broken, refuse
from tests.unit.protocols import toy
from tests.unit.protocols.toy import Toy

TOY: ClientProtocol = Toy()


class Client:
    """A client that speaks `protocol` at `node`."""

    def __init__(self, node: OneClientNode, protocol: ClientProtocol) -> None:
        self.wire = MemoryTransport()
        self.socket = WebSocket(Config(lambda: None, ws="none"), ServerState(), {})
        self.socket.connection_made(self.wire)
        assert self.socket._handshake is not None
        self.socket._handshake.cancel()
        self.socket.handshake_accepted(deflates=False)
        node.connections.accept(self.socket, protocol, ANONYMOUS, "", "")

    def say(self, text: str) -> list[str]:
        """The answers to it."""
        self.received()
        self.socket._handle(frames.TEXT, text.encode())
        return self.received()

    def received(self) -> list[str]:
        """What it was sent since the last call."""
        texts = [text.decode() for text in frames.payloads(bytes(self.wire.written))]
        self.wire.written = b""
        return texts


@pytest.fixture
async def node() -> OneClientNode:
    return OneClientNode(broken(is_plain=lambda _: True, has_presence=lambda _: False), refuse)


def deliver(node: OneClientNode, topic: str, data: object) -> None:
    node.hub.deliver(hub.topic_audience(topic), Delivered(message.pack(topic, data, {}, 0)))
    node.hub.flush()


async def test_each_client_is_answered_in_its_own_protocol(node: OneClientNode) -> None:
    one, other = Client(node, TOY), Client(node, NATIVE)
    assert one.received() == ["welcome"] and '"welcome"' in other.received()[0]
    assert one.say("ping") == ["pong"]
    assert one.say("subscribe chat") == ["subscribed chat"]
    assert '"operation":"subscribe"' in other.say('{"type":"SUBSCRIBE","topics":["chat"]}')[0]
    assert one.say("dance")[0].startswith(f"error {Toy.error_codes[ErrorReason.UNKNOWN_TYPE]} write: ")
    assert node.metrics.errors.labels(str(Toy.error_codes[ErrorReason.UNKNOWN_TYPE])).value == 1
    deliver(node, "chat", "hi")
    assert one.received() == ['message chat "hi"']
    assert '"data":"hi"' in other.received()[0]
    node.outage_notifier.topic_gap("chat")
    assert one.received() == ["gap chat"] and '"gap"' in other.received()[0]
    assert one.say("unsubscribe chat") == ["unsubscribed"]


async def test_each_protocol_encodes_a_message_once_and_only_for_clients_of_its_own(
    node: OneClientNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: Counter[str] = Counter()
    for protocol in (Toy, Native):

        def count(self: ClientProtocol, event: Broadcast, encode: object = protocol.encode_broadcast) -> bytes:
            encoded[self.name] += 1
            return encode(self, event)  # type: ignore[operator,no-any-return]

        monkeypatch.setattr(protocol, "encode_broadcast", count)
    clients = [Client(node, protocol) for protocol in (TOY, TOY, TOY, NATIVE, NATIVE)]
    for client in clients[:3]:
        client.say("subscribe chat")
        client.say("subscribe other")
    for client in clients[3:]:
        client.say('{"type":"SUBSCRIBE","topics":["chat"]}')
    deliver(node, "chat", 1)
    assert encoded == {"toy": 1, "native": 1}
    assert all(len(client.received()) == 1 for client in clients)
    deliver(node, "other", 2)
    assert encoded == {"toy": 2, "native": 1}


async def test_a_frame_may_hold_several_messages(node: OneClientNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "split", lambda _self, _opcode, payload: payload.splitlines())
    client = Client(node, TOY)
    client.received()
    client.socket.data_received(frame(frames.TEXT, b"subscribe a\nsubscribe b\ndance\nping"))
    assert [text.split(" ")[0] for text in client.received()] == ["subscribed", "subscribed", "error", "pong"]


async def test_messages_of_a_frame_wait_for_those_before_them(
    node: OneClientNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "split", lambda _self, _opcode, payload: payload.splitlines())
    client = Client(node, TOY)
    client.received()
    client.socket.hold("test")
    client.socket.data_received(frame(frames.TEXT, b"ping\nping") + frame(frames.TEXT, b"subscribe a"))
    assert client.received() == []
    client.socket.release("test")
    assert client.received() == ["pong", "pong", "subscribed a"]


async def test_each_message_of_a_frame_counts(node: OneClientNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "split", lambda _self, _opcode, payload: payload.splitlines())
    client = Client(node, TOY)
    client.socket.data_received(frame(frames.TEXT, b"\n".join([b"ping"] * 3000)))
    while client.socket._source is not None:  # noqa: ASYNC110  its turn of the loop ends many times
        await asyncio.sleep(0)
    assert any(text.startswith(f"error {Toy.error_codes[ErrorReason.TOO_MANY_REQUESTS]}") for text in client.received())


async def test_a_protocol_may_close_instead_of_an_error(node: OneClientNode, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(node, TOY)
    monkeypatch.setattr(Toy, "close_reason", lambda _self, _error: CloseReason.BAD_TOKEN)
    error = ProtocolError(ErrorReason.TOKEN, "no token", None, "token_required")
    node.outage_notifier._sender.send_error(client.socket, error)
    assert client.socket.stage is ConnectionStage.CLOSING


async def test_a_close_has_the_code_of_the_clients_protocol(node: OneClientNode) -> None:
    client = Client(node, TOY)
    client.received()
    client.socket.disconnect(CloseReason.NO_PONG, "no pong")
    [close] = frames.payloads(bytes(client.wire.written))
    assert frames.read_close(close) == (Toy.close_codes[CloseReason.NO_PONG], "no pong")
    assert client.socket.stage is ConnectionStage.CLOSING
    code = str(Toy.close_codes[CloseReason.NO_PONG])
    assert node.metrics.closes.labels(code).value == 1


def test_it_takes_less_than_sixty_lines() -> None:
    assert len(Path(toy.__file__).read_text().splitlines()) < 60


def test_a_client_chooses_its_protocol_by_subprotocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PROTOCOLS", {"native": NATIVE, "toy": TOY})
    assert registry.choose([]) == (NATIVE, None)
    assert registry.choose(["unknown", "other"]) == (NATIVE, "unknown")
    assert registry.choose(["unknown", "toy", "native"]) == (TOY, "toy")
