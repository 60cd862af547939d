"""What a socket writes straight to the kernel, and what it leaves to its transport: in order, and within its budget."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.transports.connection import ConnectionOwner, ConnectionStage
from gateway.transports.websocket import WebSocket
from tests.unit.test_failing import Wire
from tests.unit.transports.test_handshake import GOOD, request

BUDGET = 1000


class Pipe(Wire):
    """A transport of a real socket, that holds what it is given until it is told to `flush`."""

    def __init__(self, plain: socket.socket, *, tls: bool = False) -> None:
        super().__init__()
        self.plain = plain
        self.tls = tls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": self.plain, "sslcontext": self.tls or None}.get(name, default)

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def flush(self) -> None:
        self.plain.sendall(self.written)
        self.written = b""


class Ledger:
    """An owner that notes what it is told."""

    client_buffer_bytes = BUDGET

    def __init__(self) -> None:
        self.held = 0
        self.ended: list[int] = []

    def buffer_grew(self, _: WebSocket, size: int) -> None:
        self.held += size

    def connection_closed(self, _: WebSocket, code: int) -> None:
        self.ended.append(code)


class Line:
    """An open socket, its transport and its peer."""

    def __init__(self, *, tls: bool = False) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.pipe = Pipe(ours, tls=tls)
        self.owner = Ledger()
        self.socket = WebSocket(Config(lambda: None, ws="none"), ServerState(), {})
        self.socket.connection_made(self.pipe)
        assert self.socket._handshake is not None
        self.socket._handshake.cancel()
        self.socket.handshake_accepted(deflates=False)
        self.socket._owner = cast(ConnectionOwner, self.owner)

    def heard(self) -> bytes:
        """What has come to the peer."""
        found = b""
        try:
            while more := self.peer.recv(1 << 16):
                found += more
        except BlockingIOError:
            pass
        return found

    def close(self) -> None:
        self.pipe.plain.close()
        self.peer.close()

    def fill(self) -> bytes:
        """Send until the kernel takes no more; what was sent."""
        sent = b""
        while not self.pipe.written:
            block = b"%07d " % len(sent) * 1000
            assert self.socket.send(block)
            sent += block
        return sent


@pytest.fixture
async def line(request: pytest.FixtureRequest) -> AsyncIterator[Line]:
    made = Line(tls=getattr(request, "param", False))
    yield made
    made.close()


def test_what_the_kernel_takes_does_not_go_through_the_transport(line: Line) -> None:
    assert line.socket.send(b"one ") and line.socket.send(b"two")
    assert (line.heard(), line.pipe.written) == (b"one two", b"")


def test_what_the_transport_holds_goes_first(line: Line) -> None:
    line.pipe.write(b"101 ")  # as the handshake's answer
    assert line.socket.send(b"one ") and line.socket.send(b"two ")
    assert line.heard() == b""
    line.pipe.flush()
    assert line.socket.send(b"three")
    assert (line.heard(), line.pipe.written) == (b"101 one two three", b"")


def test_what_the_kernel_does_not_take_waits_in_order(line: Line) -> None:
    sent = line.fill()
    assert line.socket.send(b"more ")  # though the peer may have made room by now
    heard = line.heard()
    assert line.socket.send(b"and more")
    assert line.heard() == b""
    line.pipe.flush()
    assert heard + line.heard() == sent + b"more and more"
    assert line.socket.send(b"!")
    assert (line.heard(), line.pipe.written) == (b"!", b"")


def test_who_does_not_read_is_refused_beyond_its_budget(line: Line) -> None:
    line.fill()
    line.pipe.written = b"x" * BUDGET
    line.socket.pause_writing()
    assert line.socket.send(b"y")
    assert line.owner.held == 1
    assert not line.socket.send(b"z")
    assert line.pipe.written == b"x" * BUDGET + b"y"


def test_a_broken_line_is_left_to_the_transport(line: Line) -> None:
    line.peer.close()
    assert line.socket.send(b"lost")
    assert line.pipe.written == b"lost"  # which meets the error, and says `connection_lost`
    assert line.owner.ended == []


async def test_what_comes_before_the_handshakes_answer_is_refused() -> None:
    """RFC 6455, 4.1."""

    async def undecided(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.Event().wait()

    config, wire = Config(undecided, ws="none", proxy_headers=False), Wire()
    config.load()
    asked = WebSocket(config, ServerState(), {})
    asked.connection_made(wire)
    asked.upgrade(request(GOOD), b"/ws")
    assert wire.written == b""
    asked.data_received(b"\x81\x80early")
    assert wire.written.startswith(b"HTTP/1.1 400 ")
    assert asked.stage is ConnectionStage.CLOSING
    asked.connection_lost(None)


@pytest.mark.parametrize("how", ["lost", "aborted"])
def test_nothing_is_written_to_a_descriptor_that_may_be_anothers_by_now(line: Line, how: str) -> None:
    assert line.socket.send(b"ours")
    if how == "lost":
        line.socket.connection_lost(None)
    else:
        line.socket.abort(1006)
    assert line.socket.send(b" another's")
    assert (line.heard(), line.pipe.written) == (b"ours", b"")
    assert line.owner.ended == [1006]


@pytest.mark.parametrize("line", [True], indirect=True, ids=["tls"])
def test_under_tls_all_goes_through_the_transport(line: Line) -> None:
    assert line.socket.send(b"one ") and line.socket.send(b"two")
    assert (line.heard(), line.pipe.written) == (b"", b"one two")


def test_in_order_and_whole_whatever_a_real_transport_holds_meanwhile() -> None:
    async def talk() -> None:
        loop = asyncio.get_running_loop()
        ours, peer = socket.socketpair()
        with peer:
            peer.setblocking(False)
            config, owner = Config(lambda: None, ws="none"), Ledger()
            owner.client_buffer_bytes = 1 << 30
            _, one = await loop.create_connection(lambda: WebSocket(config, ServerState(), {}), sock=ours)
            assert one._handshake is not None
            one._handshake.cancel()
            one.handshake_accepted(deflates=False)
            one._owner = cast(ConnectionOwner, owner)
            sent = heard = b""
            for turn in range(60):
                for _ in range(40):
                    block = b"%07d " % len(sent) * (1 + len(sent) % 501)
                    assert one.send(block)
                    sent += block
                if turn % 20 > 12:  # now it reads more than comes, now nothing
                    heard += await loop.sock_recv(peer, 1 << 22)
            while len(heard) < len(sent):
                heard += await loop.sock_recv(peer, 1 << 22)
            assert heard == sent
            assert owner.held > 0, "it never paused"
            one.abort(1006)
            await asyncio.sleep(0)

    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(talk())
