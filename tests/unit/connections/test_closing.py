"""A connection that closes at any moment leaves nothing behind in its node."""

from __future__ import annotations

from typing import Any, cast

import orjson
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.core.identity import Identity
from gateway.protocols.native.protocol import NATIVE
from gateway.transports.connection import Connection, ConnectionStage
from gateway.transports.http_stream import HttpStream
from gateway.transports.websocket import WebSocket
from tests.kit.raw import frame
from tests.unit.one_client_node import MemoryTransport, OneClientNode, broken

SAID: list[dict[str, Any]] = [
    {"type": "SUBSCRIBE", "topics": ["a", "kept"], "requestId": "1"},
    {"type": "AUTH", "authToken": "ann"},
    {"type": "SUBSCRIBE", "topics": ["kept", "b"], "authToken": "bob", "requestId": "2"},
    {"type": "UNSUBSCRIBE", "topics": ["a"], "requestId": "3"},
    {"type": "ping", "timestamp": 1},
    {"type": "SUBSCRIBE", "topics": ["c"], "requestId": "4"},
]


class Breaking(MemoryTransport):
    """Ends the connection amid the write that comes after so many; `slow`: it takes nothing any more instead."""

    def __init__(self, writes: int, slow: bool) -> None:
        super().__init__()
        self.writes = writes
        self.slow = slow
        self.socket: WebSocket | None = None

    def write(self, data: Any) -> None:
        assert self.socket is not None
        self.writes -= 1
        if self.writes >= 0:
            super().write(data)
        elif not self.slow:
            self.socket.connection_lost(None)

    def get_write_buffer_size(self) -> int:
        assert self.socket is not None
        if self.slow and self.writes <= 0:
            self.socket.pause_writing()
            return 1 << 30
        return 0

    def abort(self) -> None:
        assert self.socket is not None
        self.socket.connection_lost(None)


def verify(token: str | None) -> Identity:
    return Identity(token, None, None)


def node() -> OneClientNode:
    left: list[Connection] = []
    dispatcher = broken(
        is_plain=lambda topic: topic != "kept", has_history=lambda _: False, has_presence=lambda _: False,
        snapshot=lambda _: b'{"type":"DATA"}', cancel_wait=lambda *_: None,
    )  # fmt: skip
    found = OneClientNode(dispatcher, verify)
    cast(Any, found.admission).release = left.append
    return found


def assert_no_trace(found: OneClientNode, connection: Connection) -> None:
    assert connection.stage in (ConnectionStage.CLOSED, ConnectionStage.CLOSING)
    assert not list(found.hub)
    assert not connection.audiences
    assert len(found.open_connections) == 0
    assert not found.event_streams._streams
    assert not found.limits._buffer_limit._holders
    assert not found.subscriptions._subscribing
    assert not found.subscriptions._unanswered


@pytest.mark.parametrize("slow", [False, True], ids=["it breaks", "it takes nothing"])
@pytest.mark.parametrize("writes", range(9))
async def test_a_socket_that_ends_amid_any_write(writes: int, slow: bool) -> None:
    found = node()
    found.connection.connection_lost(None)
    wire = Breaking(writes, slow)
    connection = wire.socket = WebSocket(Config(lambda: None, ws="none"), ServerState(), {})
    connection.connection_made(wire)
    assert connection._handshake is not None
    connection._handshake.cancel()
    connection.handshake_accepted(deflates=False)
    found.connections.accept(connection, NATIVE, Identity("first", None, None), "", "")
    for message in SAID:
        connection.data_received(frame(1, orjson.dumps(message)))
    connection.connection_lost(None)
    assert_no_trace(found, connection)


@pytest.mark.parametrize("sends", range(9))
async def test_an_event_stream_that_ends_amid_any_send(sends: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = node()
    found.connection.connection_lost(None)
    stream = HttpStream("sse", found.event_streams)
    send, left = HttpStream.send, iter(range(sends))

    def breaking(self: HttpStream, data: bytes) -> bool:
        if next(left, None) is None:
            self.finish()
        return send(self, data)

    monkeypatch.setattr(HttpStream, "send", breaking)
    found.connections.accept(stream, NATIVE, Identity("first", None, None), "", "")
    stream.post_received(b"\n".join(map(orjson.dumps, SAID)))
    stream.finish()
    assert_no_trace(found, stream)
