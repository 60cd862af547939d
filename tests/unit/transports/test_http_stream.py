"""gateway.transports.http_stream: a client's frames wait, within limits, until a response takes them."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

import orjson
import pytest

from gateway.core import frames
from gateway.core.commands import Command, Subscribe
from gateway.core.identity import ANONYMOUS
from gateway.core.session import Session
from gateway.protocols.native.protocol import NATIVE
from gateway.transports.connection import CLOSE_SECONDS, ClientInfo, Connection, ConnectionStage
from gateway.transports.http_stream import GATHER_SECONDS, HttpStream, HttpStreams, StreamInUse
from tests.unit.virtual_time import in_virtual_time, later, quiet


class FakeOwner:
    """An owner that records its calls."""

    max_message_bytes = 100
    client_buffer_bytes = 1000

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.ended: list[int] = []
        self.grown = 0
        self.commands: list[Command] = []
        self.parts = 0  # here, lines with nothing in them

    def message_received(self, _connection: Connection, opcode: int, payload: bytes) -> None:
        assert opcode == frames.TEXT
        self.received.append(payload)

    def command_received(self, _connection: Connection, command: Command) -> None:
        self.commands.append(command)

    def buffer_grew(self, _connection: Connection, size: int) -> None:
        self.grown += size

    def control_frame_received(self, _connection: Connection, _size: int) -> bool:
        raise AssertionError("there are no pings in a stream")

    def fragment_received(self, _connection: Connection) -> None:
        self.parts += 1

    def compress(self, data: bytes) -> bytes:
        raise AssertionError("a stream is sent as it is")

    def connection_closed(self, _connection: Connection, code: int) -> None:
        self.ended.append(code)


class Streamed:
    """A stream, its owner, and where it is found."""

    def __init__(self) -> None:
        self.owner = FakeOwner()
        self.all = HttpStreams()
        self.cuts = 0
        self.stream = HttpStream("sse", self.all, self._cut)
        self.stream.open(self.owner, "n.b.1", Session(cast(Any, None), ANONYMOUS), ClientInfo(0, "", ""), NATIVE)

    def _cut(self) -> None:
        self.cuts += 1

    async def texts(self, gather_seconds: float = 0.0) -> list[Any] | None:
        """What is taken, read."""
        taken = await self.stream.take_frames(gather_seconds)
        return None if taken is None else [orjson.loads(text) for data in taken for text in frames.payloads(data)]

    async def opened(self) -> None:
        """Take its OPEN."""
        assert await self.texts() == [{"type": "OPEN", "stream": self.stream.name}]


def text(value: Any) -> bytes:
    return frames.build(frames.TEXT, orjson.dumps(value))


@in_virtual_time
async def test_it_is_found_by_its_name_and_by_no_other() -> None:
    one, other = Streamed(), Streamed()
    name = one.stream.name.encode()
    assert one.all.find(name) is one.stream
    for wrong in (other.stream.name.encode(), name[:-1], name + b"0", b"n.b.2" + name[5:], b"", b"\xff", b"n.b.1."):
        assert one.all.find(wrong) is None
    one.stream.finish()
    assert one.all.find(name) is None


@in_virtual_time
async def test_frames_are_taken_in_order_whether_taker_or_frame_comes_first() -> None:
    at = Streamed()
    await at.opened()
    at.stream.send(text(1))
    at.stream.send(text(2) + text(3))
    assert await at.texts() == [1, 2, 3]
    taker = asyncio.create_task(at.texts())
    await quiet()
    at.stream.send(text(4))
    assert await taker == [4]
    assert at.stream.held_bytes() == 0


@in_virtual_time
async def test_a_poll_gathers_for_a_moment() -> None:
    at = Streamed()
    await at.opened()
    taker = asyncio.create_task(at.texts(GATHER_SECONDS))
    await quiet()
    at.stream.send(text(1))
    await later(GATHER_SECONDS / 2)
    at.stream.send(text(2))
    assert await taker == [1, 2]


@in_virtual_time
async def test_one_takes_at_a_time() -> None:
    at = Streamed()
    await at.opened()
    taker = asyncio.create_task(at.texts())
    await quiet()
    with pytest.raises(StreamInUse):
        await at.stream.take_frames()
    taker.cancel()
    await quiet()
    at.stream.send(text(1))
    assert await at.texts() == [1]


@in_virtual_time
async def test_a_client_over_its_byte_budget_is_rejected() -> None:
    at = Streamed()
    await at.opened()
    assert at.stream.send(text("x" * 990))
    assert at.owner.grown == 0  # the first may be taken in a moment
    assert at.stream.send(text("y" * 990))
    assert at.owner.grown > 990
    assert not at.stream.send(text("z"))
    at.stream.abort(3008)
    assert (at.owner.ended, at.cuts, at.stream.held_bytes()) == ([3008], 1, 0)
    assert await at.texts() is None


@in_virtual_time
async def test_a_close_is_the_last_that_is_taken() -> None:
    at = Streamed()
    await at.opened()
    at.stream.send(text(1))
    at.stream.close(3001, "shutdown")
    at.stream.send(text(2))  # too late
    assert at.owner.ended == [3001]
    assert await at.texts() == [1, {"type": "CLOSE", "code": 3001, "reason": "shutdown"}]
    assert await at.texts() is None
    await later(2 * CLOSE_SECONDS)
    assert at.cuts == 0
    assert at.all.find(at.stream.name.encode()) is None


@in_virtual_time
async def test_a_client_that_never_takes_its_close_is_cut() -> None:
    at = Streamed()
    at.stream.close(3001, "shutdown")
    await later(CLOSE_SECONDS + 1)
    assert (at.owner.ended, at.cuts, at.stream.stage) == ([3001], 1, ConnectionStage.CLOSED)


@in_virtual_time
async def test_a_ping_is_answered_by_taking_again() -> None:
    at = Streamed()
    await at.opened()
    taker = asyncio.create_task(at.texts())
    await later(30)
    assert at.stream.is_silent(25, asyncio.get_running_loop().time())
    at.stream.ping()
    states = [at.stream.pinged]
    assert await taker == []
    taker = asyncio.create_task(at.texts())
    await quiet()
    assert [*states, at.stream.pinged] == [True, False]
    assert not at.stream.is_silent(25, asyncio.get_running_loop().time())
    taker.cancel()


@in_virtual_time
async def test_a_taker_waits_no_longer_than_its_quiet_seconds() -> None:
    at = Streamed()
    await at.opened()
    began = asyncio.get_running_loop().time()
    assert await at.stream.take_frames(quiet_seconds=5) == []
    assert asyncio.get_running_loop().time() == pytest.approx(began + 5)
    taker = asyncio.create_task(at.stream.take_frames(quiet_seconds=5))
    await later(4)
    at.stream.send(text("in time"))
    assert await taker == [text("in time")]
    taker = asyncio.create_task(at.stream.take_frames(quiet_seconds=math.inf))
    await later(4)  # the deadline of the earlier taker no longer counts
    assert not taker.done()
    taker.cancel()


@in_virtual_time
async def test_input_waits_while_the_client_is_held_up_to_one_message() -> None:
    at = Streamed()
    at.stream.post_received(b"1\n2")
    at.stream.hold("test")
    at.stream.post_received(b"3\n\n4\n")
    assert at.owner.received == [b"1", b"2"]
    assert not at.stream.is_silent(0.5, 1)  # it is we who do not listen
    at.stream.release("test")
    assert at.owner.received == [b"1", b"2", b"3", b"4"]
    at.stream.hold("test")
    at.stream.post_received(b"x" * 60)
    assert at.owner.ended == []
    at.stream.post_received(b"x" * 60 + b"\n5")
    assert at.owner.ended == [3013]
    at.stream.release("test")
    assert at.owner.received[-1] == b"4"
    at.stream.abort(1006)


@in_virtual_time
async def test_a_stream_ends_when_its_response_ends() -> None:
    at = Streamed()
    at.stream.finish()
    at.stream.finish()
    at.stream.post_received(b"1")
    at.stream.close(3001, "too late")
    assert at.stream.send(text(1))
    assert (at.owner.ended, at.owner.received, at.cuts) == ([1006], [], 0)


@in_virtual_time
async def test_a_command_of_the_opening_request_is_handled_once_and_before_the_clients_messages() -> None:
    at, command = Streamed(), Subscribe(("a",), None)
    at.stream.hold("welcome")
    at.stream.receive_command(command)
    at.stream.post_received(b"one\ntwo")
    assert (at.owner.commands, at.owner.received) == ([], [])
    at.stream.release("welcome")
    assert (at.owner.commands, at.owner.received) == ([command], [b"one", b"two"])
