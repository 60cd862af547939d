"""gateway.transports.fast_exchange: a fast path in uvicorn's protocol, from the head of a request to its response."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.transports.fast_exchange import FastExchange, Headers, Start
from gateway.transports.http1 import REQUEST_SECONDS, Http1Protocol
from tests.unit.transports.test_http1 import ClosableTransport, OpenAdmission
from tests.unit.virtual_time import in_virtual_time, later

FAST = b"POST /fast HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
OTHER = b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 2\r\n\r\nok"


class Path:
    """Accepts /fast, and has started these exchanges."""

    def __init__(self) -> None:
        self.started: list[FastExchange] = []
        self.accepted = 0
        self.declines = False

    def accept(self, method: bytes, target: bytes, headers: Headers) -> Start | None:
        assert (b"host", b"a") in headers
        self.accepted += target == b"/fast"
        return self.start if target == b"/fast" else None

    def start(self, exchange: FastExchange) -> bool:
        assert not exchange.response_complete
        if not self.declines:
            self.started.append(exchange)
        return not self.declines

    def respond(self) -> None:
        self.started.pop(0).respond(b"HTTP/1.1 200 OK\r\n", b"content-length: 2\r\n", b"ok")


class At:
    """A connection, its fast path, and the requests that ASGI got: path and body."""

    def __init__(self) -> None:
        self.path = Path()
        self.asgi: list[tuple[str, bytes]] = []
        config = Config(self.app, interface="asgi3", ws="none", lifespan="off", timeout_keep_alive=5, access_log=False)
        config.load()
        state = ServerState()
        state.default_headers = [(b"date", b"now")]
        self.state = state
        self.admission = OpenAdmission()
        self.transport = ClosableTransport()
        self.protocol = Http1Protocol(config, state, {"admission": self.admission, "fast_path": self.path})
        self.protocol.connection_made(self.transport)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        while message.get("more_body"):
            message = {**(more := await receive()), "body": message["body"] + more["body"]}
        self.asgi.append((scope["path"], message["body"]))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def receive(self, data: bytes, size: int | None = None) -> None:
        for start in range(0, len(data), size or len(data)):
            self.protocol.data_received(data[start : start + (size or len(data))])
        await later(0.01)


@in_virtual_time
async def test_it_answers_without_asgi_and_the_connection_goes_on() -> None:
    at = At()
    for size in (None, 1, 10):
        await at.receive(FAST, size)
        assert bytes(at.path.started[0].body) == b"body"
        at.path.respond()
        await later(0.01)
    assert at.transport.written == 3 * RESPONSE
    assert at.state.total_requests == 3
    assert not at.asgi
    assert not at.transport.is_closing()
    await later(5.1)  # the keep-alive timeout
    assert at.transport.is_closing()
    at.protocol.connection_lost(None)


@in_virtual_time
async def test_what_it_declines_goes_to_asgi_whole() -> None:
    at = At()
    at.path.declines = True
    await at.receive(FAST, 3)
    await at.receive(OTHER)
    assert at.asgi == [("/fast", b"body"), ("/other", b"")]
    at.protocol.connection_lost(None)


@in_virtual_time
async def test_a_request_with_the_head_of_the_last_one_is_not_parsed() -> None:
    at = At()
    for body in (b"body", b"", b"longer body", b"POST /fast HTTP/1.1\r\n\r\n"):
        await at.receive(FAST.replace(b"4", b"%d" % len(body)).replace(b"body", body))
        assert bytes(at.path.started[0].body) == body
        assert not at.path.started[0].more_body
        at.path.respond()
        await later(3)  # less than the keep-alive timeout
    assert at.path.accepted == 1
    assert at.transport.written == 4 * RESPONSE
    assert at.state.total_requests == 4
    await later(1.9)
    assert not at.transport.is_closing()
    await later(0.2)
    assert at.transport.is_closing()
    at.protocol.connection_lost(None)


@in_virtual_time
async def test_what_follows_a_repeated_request_is_parsed_and_answered_in_order() -> None:
    for behind in (OTHER, FAST + OTHER, OTHER + FAST):
        at = At()
        await at.receive(FAST)
        at.path.respond()
        await at.receive(FAST)
        await at.receive(behind)  # before the response
        assert at.asgi == []
        at.path.respond()
        await later(0.01)
        while at.path.started:
            at.path.respond()
            await later(0.01)
        answered = len(at.asgi) + at.transport.written.count(b" 200 OK")
        assert answered == 2 + behind.count(b"HTTP/1.1")
        assert at.transport.written.startswith(2 * RESPONSE)
        assert ("/other", b"") in at.asgi
        at.protocol.connection_lost(None)


@in_virtual_time
async def test_a_repeated_request_that_is_declined_goes_to_asgi() -> None:
    at = At()
    await at.receive(FAST)
    at.path.respond()
    at.path.declines = True
    await at.receive(FAST)
    at.path.declines = False
    await at.receive(FAST)
    at.path.respond()
    await later(0.01)
    assert at.asgi == [("/fast", b"body")]
    assert at.transport.written.count(b"HTTP/1.1 ") == 3
    at.protocol.connection_lost(None)


@in_virtual_time
async def test_only_a_request_that_came_whole_and_alone_is_repeated() -> None:
    for first, pieces in ((FAST, 2), (FAST + FAST, 1), (b"\r\n" + FAST, 1), (FAST + b"\r\n", 1)):
        at = At()
        await at.receive(first, len(first) // pieces)
        at.path.respond()
        await later(0.01)
        accepted = at.path.accepted
        await at.receive(FAST)
        assert at.path.accepted == accepted + 1
        at.protocol.connection_lost(None)


@in_virtual_time
async def test_the_keep_alive_timeout_waits_for_the_response() -> None:
    at = At()
    await at.receive(FAST)
    at.path.respond()
    await at.receive(FAST)
    await later(8)
    assert not at.transport.is_closing()
    at.path.respond()
    await later(0.01)
    assert at.transport.written == 2 * RESPONSE
    await later(10)
    assert at.transport.is_closing()
    at.protocol.connection_lost(None)


@in_virtual_time
async def test_pipelined_requests_are_answered_in_order() -> None:
    at = At()
    await at.receive(FAST + FAST + OTHER + FAST)
    assert (len(at.path.started), at.asgi, at.transport.written) == (1, [], b"")
    at.path.respond()
    await later(0.01)
    assert at.transport.written.startswith(RESPONSE + b"HTTP/1.1 204 ")
    assert at.transport.written.count(b"HTTP/1.1 ") == 4
    assert at.asgi == [("/fast", b"body"), ("/other", b""), ("/fast", b"body")]
    at.protocol.connection_lost(None)


@in_virtual_time
async def test_a_stop_of_the_server_waits_for_the_response_and_closes() -> None:
    at = At()
    await at.receive(FAST)
    at.protocol.shutdown()
    assert not at.transport.is_closing()
    at.path.respond()
    await later(0.01)
    assert at.transport.written == RESPONSE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    assert at.transport.is_closing()
    at.protocol.connection_lost(None)


@in_virtual_time
async def test_a_client_that_left_gets_nothing() -> None:
    for shared in (FAST, FAST + OTHER):
        at = At()
        await at.receive(shared)
        at.transport.closed = True
        at.protocol.connection_lost(None)
        at.path.respond()
        await later(10)
        assert at.transport.written == b""


@in_virtual_time
async def test_a_body_that_does_not_end_has_a_deadline() -> None:
    at = At()
    await at.receive(FAST[:-1])
    await later(REQUEST_SECONDS - 1)
    assert not at.transport.is_closing()
    await later(1.1)
    assert at.transport.is_closing()
    assert at.admission.cut == ["request_seconds"]
    assert not at.path.started
    at.protocol.connection_lost(None)


@in_virtual_time
async def test_a_client_that_does_not_read_is_left_to_uvicorn() -> None:
    at = At()
    at.protocol.pause_writing()
    await at.receive(FAST)
    assert not at.path.started
    assert at.transport.written == b""
    at.protocol.resume_writing()
    await later(0.01)
    assert at.transport.written.startswith(b"HTTP/1.1 204 ")
    at.protocol.connection_lost(None)


@in_virtual_time
async def test_http_1_0_and_upgrades_are_left_to_uvicorn() -> None:
    at = At()
    await at.receive(FAST.replace(b"Host: a", b"Host: a\r\nConnection: Upgrade\r\nUpgrade: h2c"))
    await at.receive(FAST.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert [path for path, _ in at.asgi] == ["/fast", "/fast"]
    at.protocol.connection_lost(None)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
