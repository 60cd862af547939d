"""Incomplete requests and messages have a size limit and a deadline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.transports import http1
from gateway.transports.connection import ConnectionStage
from gateway.transports.http1 import DRAIN_BYTES, REQUEST_SECONDS, SLICE_BYTES, Http1Protocol
from gateway.transports.websocket import MESSAGE_SECONDS
from tests.kit.raw import frame, text
from tests.unit.one_client_node import MemoryTransport, OneClientNode, broken, refuse
from tests.unit.virtual_time import in_virtual_time, later, quiet

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def answer(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


class ClosableTransport(MemoryTransport):
    """A wire that knows whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class OpenAdmission:
    """An admission that accepts every client, and keeps the reasons of closed connections."""

    def __init__(self) -> None:
        self.cut: list[str] = []

    def refusal(self, _connections: int) -> None:
        pass

    def is_overloaded(self, _connections: int) -> bool:
        return False

    def request_aborted(self, limit: str) -> None:
        self.cut.append(limit)


def connected(admission: OpenAdmission | None = None, app: Any = answer) -> tuple[Http1Protocol, ClosableTransport]:
    """An HTTP connection to a server that answers 200 to everything."""
    config = Config(app, ws="none", lifespan="off", timeout_keep_alive=1000)
    config.load()
    protocol, transport = (
        Http1Protocol(config, ServerState(), {"admission": admission or OpenAdmission()}),
        ClosableTransport(),
    )
    protocol.connection_made(transport)
    return protocol, transport


@pytest.mark.parametrize(
    "sent", [b"", b"GET", HEAD, HEAD + b"Content-Length: 5\r\n", HEAD + b"Transfer-Encoding: chunked\r\n"]
)
@in_virtual_time
async def test_a_request_that_does_not_end_is_ended(sent: bytes) -> None:
    admission = OpenAdmission()
    protocol, transport = connected(admission)
    for octet in sent:
        protocol.data_received(bytes((octet,)))
        await later(0.1)
    await later(REQUEST_SECONDS - 0.1 * len(sent) - 1)
    assert not transport.is_closing()
    await later(1.1)
    assert transport.is_closing()
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    assert admission.cut == ["request_seconds"]
    protocol.connection_lost(None)


@in_virtual_time
async def test_a_second_request_has_a_deadline_too() -> None:
    protocol, transport = connected()
    protocol.data_received(HEAD + b"\r\n")
    await later(2 * REQUEST_SECONDS)
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    assert not transport.is_closing()
    protocol.data_received(b"G")
    await later(REQUEST_SECONDS + 1)
    assert transport.is_closing()
    protocol.connection_lost(None)


@in_virtual_time
async def test_an_unread_body_does_not_keep_the_connection() -> None:
    protocol, transport = connected()
    protocol.data_received(HEAD + b"Content-Length: 1000\r\n\r\n")
    for _ in range(int(REQUEST_SECONDS)):
        assert not transport.is_closing()
        await later(1)
        protocol.data_received(b"x")
    await later(1)
    assert transport.is_closing()
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    protocol.connection_lost(None)


@in_virtual_time
async def test_headers_without_end_are_refused() -> None:
    admission = OpenAdmission()
    protocol, transport = connected(admission)
    protocol.data_received(HEAD)
    sent = 0
    while not transport.is_closing():
        protocol.data_received(b"X-Flood: " + b"x" * 1000 + b"\r\n")
        sent += 1
    assert sent <= 66
    assert transport.written.startswith(b"HTTP/1.1 431 ")
    assert admission.cut == ["head_bytes"]
    protocol.connection_lost(None)


@in_virtual_time
async def test_a_large_body_is_no_head() -> None:
    protocol, transport = connected()
    body = b"x" * 300_000
    for _ in range(2):
        protocol.data_received(HEAD + b"Content-Length: 600000\r\n\r\n")
        protocol.data_received(body)
        protocol.data_received(body)
        await later(1)
    assert transport.written.count(b"HTTP/1.1 200 ") == 2
    assert not transport.is_closing()
    protocol.connection_lost(None)


@in_virtual_time
async def test_a_request_that_is_answered_early_and_ends_the_connection_is_read_to_its_end_first() -> None:
    protocol, transport = connected()
    protocol.data_received(HEAD + b"Connection: close\r\nContent-Length: 1000000\r\n\r\n")
    await later(1)
    assert transport.written.startswith(b"HTTP/1.1 200 ")
    for _ in range(10):
        assert not transport.is_closing()
        protocol.data_received(b"x" * 100_000)
        await later(0.1)
    assert transport.is_closing()
    assert transport.written.count(b"HTTP/1.1 ") == 1
    protocol.connection_lost(None)


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
@in_virtual_time
async def test_but_not_without_end(connection: str) -> None:
    protocol, transport = connected()
    protocol.data_received(HEAD + f"Connection: {connection}\r\nContent-Length: {1 << 40}\r\n\r\n".encode())
    sent = 0
    while not transport.is_closing():
        protocol.data_received(b"x" * (1 << 20))
        sent += 1 << 20
        await later(0.01)
    assert DRAIN_BYTES <= sent <= DRAIN_BYTES + (2 << 20)
    assert transport.written.count(b"HTTP/1.1 ") == 1
    protocol.connection_lost(None)


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
@in_virtual_time
async def test_nor_while_nothing_comes(connection: str) -> None:
    protocol, transport = connected()
    protocol.data_received(HEAD + f"Connection: {connection}\r\nContent-Length: 1000\r\n\r\n".encode())
    await later(1)
    protocol.data_received(b"x")
    await later(1.5)
    assert not transport.is_closing()
    await later(1)
    assert transport.is_closing()
    protocol.connection_lost(None)


@in_virtual_time
async def test_a_connection_whose_request_was_answered_early_does_not_idle_for_ever() -> None:
    protocol, transport = connected()
    protocol.data_received(HEAD + b"Content-Length: 10\r\n\r\n12345")
    await later(1)
    protocol.data_received(b"67890")
    await later(999)
    assert not transport.is_closing()
    await later(2)
    assert transport.is_closing()
    protocol.connection_lost(None)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@in_virtual_time
async def test_an_answer_without_a_length_is_in_chunks_for_http_1_1_alone(version: str) -> None:
    async def stream(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one ", b"two ", b""):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"three"})

    protocol, transport = connected(app=stream)
    protocol.data_received(f"GET / HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n".encode())
    await later(1)
    head, _, body = transport.written.partition(b"\r\n\r\n")
    if version == "1.0":
        assert b"transfer-encoding" not in head.lower() and b"connection: close" in head
        assert body == b"one two three"
    else:
        assert b"transfer-encoding: chunked" in head
        assert body == b"4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n"
    assert transport.is_closing() is (version == "1.0")
    protocol.connection_lost(None)


@in_virtual_time
async def test_pipelined_requests_are_parsed_no_further_than_the_one_that_waits() -> None:
    protocol, transport = connected()
    asked = HEAD + b"\r\n"
    protocol.data_received(asked * 1000)
    assert len(protocol.pipeline) <= SLICE_BYTES / len(asked) + 1
    assert _is_paused(transport)
    protocol.data_received(asked)  # read already, by TLS perhaps
    for _ in range(200):
        if transport.written.count(b"HTTP/1.1 200 ") == 1001:
            break
        assert len(protocol.pipeline) <= SLICE_BYTES / len(asked) + 1
        await quiet()
    assert transport.written.count(b"HTTP/1.1 200 ") == 1001
    assert not _is_paused(transport)
    protocol.connection_lost(None)


@pytest.mark.parametrize("size", [1, 5000])
@in_virtual_time
async def test_a_body_of_any_chunks_is_parsed_in_turns(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "TURN_SECONDS", 0.0)
    protocol, transport = connected()
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    count = 100_000 // len(chunk)
    protocol.data_received(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * count + b"0\r\n\r\n" + HEAD + b"\r\n")
    assert _is_paused(transport)
    await quiet()
    assert transport.written.count(b"HTTP/1.1 200 ") == 2
    assert not _is_paused(transport)
    protocol.connection_lost(None)


@in_virtual_time
async def test_a_connection_that_ends_is_parsed_no_further() -> None:
    protocol, transport = connected()
    protocol.data_received((HEAD + b"\r\n") * 1000)
    transport.closed = True
    protocol.connection_lost(None)
    await quiet()
    assert transport.written.count(b"HTTP/1.1 200 ") <= 1


@in_virtual_time
async def test_a_whole_request_is_answered_and_ends_its_deadline() -> None:
    protocol, transport = connected()
    for _ in range(3):
        protocol.data_received(HEAD + b"\r\n")
        await later(REQUEST_SECONDS * 0.9)
    assert transport.written.count(b"HTTP/1.1 200 ") == 3
    assert not transport.is_closing()
    protocol.connection_lost(None)


def _is_paused(transport: ClosableTransport) -> bool:
    return not transport.reading


LONG = text({"type": "x" * 200})


@pytest.mark.parametrize(
    ("begin", "drops"),
    [
        (LONG[:1], [LONG[at : at + 1] for at in range(1, 150)]),
        (frame(1, b"x", final=False), [frame(9, b"")] * 150),
        (frame(2, b"x", final=False), [frame(0, b"", final=False)] * 150),
    ],
    ids=["a frame", "pings between", "empty fragments"],
)
@in_virtual_time
async def test_a_message_that_does_not_end_closes_its_socket(begin: bytes, drops: list[bytes]) -> None:
    node = OneClientNode(broken(), refuse)
    client = node.connection
    client.data_received(begin)
    for drop in drops:
        await later(1)
        client.data_received(drop)
        node.enforcer.check_timeouts(client.last_received)
        if client.stage is not ConnectionStage.OPEN:
            break
    assert client.stage is ConnectionStage.CLOSING
    assert MESSAGE_SECONDS < client.last_received < MESSAGE_SECONDS + 3
    assert node.metrics.totals()[0]["gateway_limited_total:message_seconds"] == 1
    client.abort(1006)


@in_virtual_time
async def test_a_message_that_ends_in_time_and_one_that_waits_for_us_are_not_late() -> None:
    node = OneClientNode(broken(), refuse)
    client = node.connection
    for _ in range(3):
        client.data_received(frame(1, b'{"type":', final=False))
        await later(MESSAGE_SECONDS * 0.9)
        client.data_received(frame(0, b'"ping"}'))
    await later(MESSAGE_SECONDS * 2)
    now = asyncio.get_running_loop().time()
    assert not client.is_late(now)
    client.hold("test")
    client.data_received(text({"type": "ping"}) + b"\x81")
    await later(MESSAGE_SECONDS * 2)
    now = asyncio.get_running_loop().time()
    assert not client.is_late(now)
    client.release("test")
    assert not client.is_late(now)
    assert client.is_late(now + MESSAGE_SECONDS + 1)
    client.abort(1006)


@in_virtual_time
async def test_a_client_that_waits_for_the_node_is_not_silent() -> None:
    node = OneClientNode(broken(), refuse)
    loop = asyncio.get_running_loop()
    connection, patience = node.connection, 35.5  # ping_seconds and pong_seconds, and a little

    node.enforcer.check_timeouts(loop.time() + patience)  # silent: it is pinged
    assert connection.pinged
    connection.hold("publish")
    node.say(type="ping")  # waits for it, and nothing more is read
    assert not node.wire.reading
    await later(patience)
    connection.pinged = True
    node.enforcer.check_timeouts(loop.time())
    assert connection.stage.name == "OPEN", "closed for not having said what was not read"
    connection.release("publish")
    node.enforcer.check_timeouts(loop.time())
    assert connection.stage.name == "OPEN", "its pong is still on its way through the loop"
    connection.pinged = True
    await later(patience)
    node.enforcer.check_timeouts(loop.time())
    assert connection.stage.name == "CLOSING"
