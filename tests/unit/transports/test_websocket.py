"""Writes of a socket to the kernel or its transport: in order, and within the byte budget."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.transports.connection import ConnectionOwner, ConnectionStage
from gateway.transports.handshake import Handshake
from gateway.transports.websocket import WebSocket
from tests.unit.one_client_node import MemoryTransport
from tests.unit.transports.test_handshake import GOOD, request

BUDGET = 1000


class Pipe(MemoryTransport):
    """A transport of a real socket that holds its data until the test calls `flush`."""

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


class FakeOwner:
    """An owner that records its calls."""

    client_buffer_bytes = BUDGET

    def __init__(self) -> None:
        self.held = 0
        self.ended: list[int] = []

    def buffer_grew(self, _: WebSocket, size: int) -> None:
        self.held += size

    def connection_closed(self, _: WebSocket, code: int) -> None:
        self.ended.append(code)


class SocketPair:
    """An open socket, its transport and its peer."""

    def __init__(self, *, tls: bool = False) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.pipe = Pipe(ours, tls=tls)
        self.owner = FakeOwner()
        self.socket = WebSocket(Config(lambda: None, ws="none"), ServerState(), {})
        self.socket.connection_made(self.pipe)
        assert self.socket._handshake is not None
        self.socket._handshake.cancel()
        self.socket.handshake_accepted(deflates=False)
        self.socket._owner = cast(ConnectionOwner, self.owner)

    def received(self) -> bytes:
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
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[SocketPair]:
    made = SocketPair(tls=getattr(request, "param", False))
    yield made
    made.close()


def test_what_the_kernel_takes_does_not_go_through_the_transport(pair: SocketPair) -> None:
    assert pair.socket.send(b"one ") and pair.socket.send(b"two")
    assert (pair.received(), pair.pipe.written) == (b"one two", b"")


def test_what_the_transport_holds_goes_first(pair: SocketPair) -> None:
    pair.pipe.write(b"101 ")  # as the handshake's answer
    assert pair.socket.send(b"one ") and pair.socket.send(b"two ")
    assert pair.received() == b""
    pair.pipe.flush()
    assert pair.socket.send(b"three")
    assert (pair.received(), pair.pipe.written) == (b"101 one two three", b"")


def test_what_the_kernel_does_not_take_waits_in_order(pair: SocketPair) -> None:
    sent = pair.fill()
    assert pair.socket.send(b"more ")  # though the peer may have made room by now
    received = pair.received()
    assert pair.socket.send(b"and more")
    assert pair.received() == b""
    pair.pipe.flush()
    assert received + pair.received() == sent + b"more and more"
    assert pair.socket.send(b"!")
    assert (pair.received(), pair.pipe.written) == (b"!", b"")


def test_a_client_that_does_not_read_is_rejected_over_its_budget(pair: SocketPair) -> None:
    pair.fill()
    pair.pipe.written = b"x" * BUDGET
    pair.socket.pause_writing()
    assert pair.socket.send(b"y")
    assert pair.owner.held == 1
    assert not pair.socket.send(b"z")
    assert pair.pipe.written == b"x" * BUDGET + b"y"


def test_a_broken_line_is_left_to_the_transport(pair: SocketPair) -> None:
    pair.peer.close()
    assert pair.socket.send(b"lost")
    assert pair.pipe.written == b"lost"  # which meets the error, and says `connection_lost`
    assert pair.owner.ended == []


async def test_what_comes_before_the_handshakes_answer_is_refused() -> None:
    """RFC 6455, 4.1."""

    class Undecided:
        def decide(self, _scope: dict[str, Any], _handshake: Handshake) -> None:
            """Neither accept nor reject."""

    wire = MemoryTransport()
    asked = WebSocket(Config(lambda: None, ws="none"), ServerState(), {"handshakes": Undecided()})
    asked.connection_made(wire)
    asked.upgrade(request(GOOD), b"/ws")
    assert wire.written == b""
    asked.data_received(b"\x81\x80early")
    assert wire.written.startswith(b"HTTP/1.1 400 ")
    assert asked.stage is ConnectionStage.CLOSING
    asked.connection_lost(None)


@pytest.mark.parametrize("how", ["lost", "aborted"])
def test_nothing_is_written_to_a_descriptor_that_may_be_anothers_by_now(pair: SocketPair, how: str) -> None:
    assert pair.socket.send(b"ours")
    if how == "lost":
        pair.socket.connection_lost(None)
    else:
        pair.socket.abort(1006)
    assert pair.socket.send(b" another's")
    assert (pair.received(), pair.pipe.written) == (b"ours", b"")
    assert pair.owner.ended == [1006]


@pytest.mark.parametrize("pair", [True], indirect=True, ids=["tls"])
def test_under_tls_all_goes_through_the_transport(pair: SocketPair) -> None:
    assert pair.socket.send(b"one ") and pair.socket.send(b"two")
    assert (pair.received(), pair.pipe.written) == (b"", b"one two")


def test_frames_stay_in_order_and_whole_behind_a_real_transports_buffer() -> None:
    async def talk() -> None:
        loop = asyncio.get_running_loop()
        ours, peer = socket.socketpair()
        with peer:
            peer.setblocking(False)
            config, owner = Config(lambda: None, ws="none"), FakeOwner()
            owner.client_buffer_bytes = 1 << 30
            _, one = await loop.create_connection(lambda: WebSocket(config, ServerState(), {}), sock=ours)
            assert one._handshake is not None
            one._handshake.cancel()
            one.handshake_accepted(deflates=False)
            one._owner = cast(ConnectionOwner, owner)
            sent = received = b""
            for turn in range(60):
                for _ in range(40):
                    block = b"%07d " % len(sent) * (1 + len(sent) % 501)
                    assert one.send(block)
                    sent += block
                if turn % 20 > 12:  # now it reads more than comes, now nothing
                    received += await loop.sock_recv(peer, 1 << 22)
            while len(received) < len(sent):
                received += await loop.sock_recv(peer, 1 << 22)
            assert received == sent
            assert owner.held > 0, "it never paused"
            one.abort(1006)
            await asyncio.sleep(0)

    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(talk())
