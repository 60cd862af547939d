"""The bound of one client's input in a turn of the loop: the rest waits in order, and reading pauses."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.frames import FrameParser, split
from gateway.core.rate_limits import PARTS_PER_MESSAGE
from gateway.transports import connection, http1_output
from gateway.transports.connection import ConnectionStage
from gateway.transports.websocket import CLOSING_BYTES, CLOSING_FRAME_BYTES
from tests.kit.raw import frame, text
from tests.unit.one_client_node import OneClientNode, broken, refuse
from tests.unit.virtual_time import in_virtual_time, quiet

BURST = 1000  # messages of a client at once, by default
EMPTY = b"\x00\x80\x00\x00\x00\x00"  # a continuation frame with nothing in it


@pytest.fixture
def one_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is over when a frame is carried out."""
    monkeypatch.setattr(connection, "TURN_SECONDS", 0.0)


def pings(count: int) -> bytes:
    return b"".join(text({"type": "ping", "timestamp": at}) for at in range(count))


def pongs(node: OneClientNode) -> list[int]:
    """The timestamps of the pongs that the client was sent."""
    return [at for at in range(100) if b'{"type":"pong","timestamp":%d}' % at in node.wire.written]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The opcodes of the frames that were parsed."""
    found: list[int] = []
    check = FrameParser._check_head

    def counting(parser: FrameParser, head: int, opcode: int, length: int) -> None:
        found.append(opcode)
        check(parser, head, opcode, length)

    monkeypatch.setattr(FrameParser, "_check_head", counting)
    return found


@pytest.mark.usefixtures("one_a_turn")
@in_virtual_time
async def test_what_a_read_brings_is_carried_out_in_turns_and_in_order() -> None:
    node = OneClientNode(broken(), refuse)
    node.wire.written = b""
    node.connection.data_received(pings(20))
    assert (pongs(node), node.wire.reading) == ([0], False)
    await quiet()
    assert pongs(node) == list(range(20))
    assert [text for _, text in split(node.wire.written)] == [
        b'{"type":"pong","timestamp":%d}' % at for at in range(20)
    ]
    assert node.wire.reading
    assert not node.connection.is_late(1e9)
    node.connection.abort(1006)


@pytest.mark.usefixtures("one_a_turn")
@in_virtual_time
async def test_what_comes_while_the_rest_waits_its_turn_is_carried_out_behind_it() -> None:
    node = OneClientNode(broken(), refuse)
    stream = pings(9)
    node.connection.data_received(stream[:100])  # amid a frame
    node.connection.data_received(stream[100:150])
    node.connection.data_received(stream[150:])
    await quiet()
    assert pongs(node) == list(range(9))
    node.connection.abort(1006)


@pytest.mark.usefixtures("one_a_turn")
@in_virtual_time
async def test_a_message_that_holds_keeps_those_behind_it_waiting_in_every_turn() -> None:
    node = OneClientNode(broken(), refuse)
    node.connection.hold("test")
    node.connection.data_received(frame(9, b"?") + pings(3) + frame(9, b"!"))
    await quiet()
    assert b"\x8a\x01?" in node.wire.written  # a ping is answered meanwhile
    assert (pongs(node), node.wire.reading) == ([], False)
    node.connection.release("test")
    assert pongs(node) == [0]
    node.connection.hold("again")
    await quiet()
    assert pongs(node) == [0]
    node.connection.release("again")
    await quiet()
    assert (pongs(node), node.wire.reading) == ([0, 1, 2], True)
    assert node.wire.written.endswith(b"\x8a\x01!")
    node.connection.abort(1006)


@pytest.mark.usefixtures("one_a_turn")
@in_virtual_time
async def test_a_farewell_amid_what_waits_its_turn_comes_in_its_place() -> None:
    node = OneClientNode(broken(), refuse)
    node.connection.data_received(pings(3) + frame(8, b"\x03\xe8") + pings(9)[-40:])
    assert node.connection.stage is ConnectionStage.OPEN
    await quiet()
    assert (pongs(node), node.connection.stage) == ([0, 1, 2], ConnectionStage.CLOSING)
    node.connection.abort(1006)
    await quiet()


@pytest.mark.usefixtures("one_a_turn")
@in_virtual_time
async def test_waiting_input_of_a_closed_client_is_dropped() -> None:
    ends: list[tuple[str, Any]] = [("close", (3001, "shutdown")), ("connection_lost", (None,))]
    for end, arguments in ends:
        node = OneClientNode(broken(), refuse)
        node.connection.data_received(pings(5))
        getattr(node.connection, end)(*arguments)
        await quiet()
        assert pongs(node) == [0]
        node.connection.abort(1006)


@pytest.mark.parametrize(
    "part", [EMPTY, frame(0, b"x", final=False), frame(9, b"")], ids=["empty fragments", "bytes", "pings"]
)
@in_virtual_time
async def test_each_frame_counts_and_a_flood_of_them_ends_its_connection(part: bytes, looks: list[int]) -> None:
    node = OneClientNode(broken(), refuse)
    node.connection.data_received(frame(1, b"{", final=False))
    while node.wire.reading:
        node.connection.data_received(part * 1000)
        await quiet()
    assert node.connection.stage is ConnectionStage.CLOSING
    assert node.metrics.totals()[0]["gateway_limited_total:messages"] == 1
    price = 1 if part[0] == 0x89 else PARTS_PER_MESSAGE
    assert 2 * BURST * price - 2 < len(looks) <= 2 * BURST * price + 2 + CLOSING_BYTES // CLOSING_FRAME_BYTES
    node.connection.abort(1006)


@in_virtual_time
async def test_one_read_of_a_flood_is_more_than_a_turns_work(looks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TURN_SECONDS", http1_output.TURN_SECONDS)  # as it is at a node
    node = OneClientNode(broken(), refuse)
    node.connection.data_received(frame(1, b"{", final=False) + EMPTY * 20_000)
    assert len(looks) < 20_000
    assert not node.wire.reading
    await quiet()
    assert (len(looks), node.wire.reading) == (20_001, True)
    node.connection.abort(1006)


@in_virtual_time
async def test_a_message_of_a_mebibyte_in_fragments_or_small_reads_is_within_the_rate() -> None:
    node = OneClientNode(broken(), refuse)
    body = text({"type": "ping", "timestamp": "x" * ((1 << 20) - 100)})
    payload = b'{"type":"ping","timestamp":"' + b"x" * ((1 << 20) - 100) + b'"}'
    for size in (4 << 10, 1 << 10):
        node.wire.written = b""
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
        for at, piece in enumerate(pieces):
            node.connection.data_received(frame(0 if at else 1, piece, final=at == len(pieces) - 1))
            await quiet()
        for at in range(0, len(body), 1460):
            node.connection.data_received(body[at : at + 1460])
            await quiet()
        assert [answer[:20] for _, answer in split(node.wire.written)] == [b'{"type":"pong","time'] * 2
    node.connection.abort(1006)


@in_virtual_time
async def test_after_our_close_no_more_is_read_than_stated() -> None:
    node = OneClientNode(broken(), refuse)
    node.connection.close(3001, "shutdown")
    sent = 0
    while node.wire.reading:
        node.connection.data_received(EMPTY if sent else frame(1, b"", final=False))
        sent += 1
    assert sent <= CLOSING_BYTES / CLOSING_FRAME_BYTES
    node.connection.abort(1006)
