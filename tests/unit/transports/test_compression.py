"""Shared compression, with the `websockets` library's own permessage-deflate on the other side."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from gateway.core import frames
from gateway.core.frames import BINARY, CLOSE, DEFLATED, PING, PONG, TEXT, FrameError
from gateway.transports.compression import MIN_BYTES, Compressor, deflate, inflate
from tests.unit.core.test_frames import MANY, Message, in_chunks, parse, raw
from tests.unit.one_client_node import OneClientNode, broken, refuse

PRICES = orjson.dumps([{"symbol": f"TOKEN{at}", "price": at * 1.07, "change24h": at / 7} for at in range(40)])


def agreed() -> PerMessageDeflate:
    """The library's side of a connection that agreed to what we offer."""
    return PerMessageDeflate(True, True, 15, 15)


def read_by_client(stream: bytes) -> list[Message]:
    """The messages that the library's client sees."""
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    client.extensions = [agreed()]
    client.receive_data(stream)
    assert client.parser_exc is None
    return [(int(frame.opcode), bytes(frame.data)) for frame in client.events_received() if isinstance(frame, Frame)]


def sent_by_client(opcode: int, parts: list[bytes]) -> bytes:
    """A message that the library compresses, in as many frames as there are parts."""
    extension = agreed()
    return b"".join(
        Frame(Opcode(opcode if at == 0 else 0), part, at == len(parts) - 1).serialize(mask=True, extensions=[extension])
        for at, part in enumerate(parts)
    )


def compressed(message: bytes, *, level: int = 9) -> bytes:
    """`message` as another implementation may compress it."""
    stream = zlib.compressobj(level, wbits=-15)
    return (stream.compress(message) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def refusal(payload: bytes, max_bytes: int = MANY) -> int:
    """The code with which it is refused."""
    with pytest.raises(FrameError) as refused:
        inflate(payload, max_bytes)
    return refused.value.code


texts = st.one_of(
    st.text(max_size=400),
    st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=30), st.sampled_from([20, 999, 4000])),
).map(str.encode)
messages = st.one_of(
    st.tuples(st.just(TEXT), texts),
    st.tuples(st.just(BINARY), st.binary(max_size=600)),
    st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125)),
)


# ---- what is sent


@given(st.lists(messages, max_size=6))
def test_a_client_reads_of_the_compressed_what_it_would_have_read_of_the_plain(items: list[Message]) -> None:
    joined = b"".join(frames.build(opcode, payload) for opcode, payload in items)
    assert read_by_client(deflate(joined)) == items


@given(texts)
def test_nothing_is_sent_that_would_be_larger_than_the_plain(text: bytes) -> None:
    plain = frames.build(TEXT, text)
    assert len(deflate(plain)) <= len(plain)


def test_prices_become_a_third() -> None:
    plain = frames.build(TEXT, PRICES)
    assert 3 * len(deflate(plain)) < len(plain)


def test_each_message_is_compressed_by_itself() -> None:
    # Without context: the second is no smaller for what the first said.
    one = deflate(frames.build(TEXT, PRICES))
    assert deflate(2 * frames.build(TEXT, PRICES)) == 2 * one


@pytest.mark.parametrize("payload", [b"", b"x" * (MIN_BYTES - 1), os.urandom(5000)], ids=["empty", "small", "random"])
def test_what_would_gain_nothing_is_handed_on_as_it_is(payload: bytes) -> None:
    plain = frames.build(TEXT, payload)
    assert deflate(plain) is plain


def test_the_small_stay_plain_beside_the_compressed() -> None:
    ping, small, large = frames.build(PING, b"p"), frames.build(TEXT, b"{}"), frames.build(TEXT, PRICES)
    assert deflate(ping + large + small) == ping + deflate(large) + small


def test_all_who_are_handed_the_same_octets_share_one_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def counting(*how: Any) -> Any:
        started.append(how)
        return compressobj(*how)

    compressobj = zlib.compressobj
    monkeypatch.setattr(zlib, "compressobj", counting)
    plain = frames.build(TEXT, PRICES)
    deflater = Compressor()
    assert {deflater.deflate(plain) for _ in range(1000)} == {deflate(plain)}
    assert len(started) == 1 + 1, "for the thousand, and for what they are compared with"
    assert (deflater.in_bytes, deflater.out_bytes) == (len(plain), len(deflate(plain)))
    for number in range(10):  # and each beside something else, as to clients that hear other topics too
        deflater.deflate(plain + frames.build(TEXT, b"%d" % number))
    assert len(started) == 1 + 1 + 1, "for the sizes, and none for these"


# ---- what comes


@given(
    st.sampled_from([TEXT, BINARY]),
    st.lists(texts, min_size=1, max_size=4),
    st.lists(st.integers(0, 1 << 20), max_size=9),
)
def test_what_a_client_compresses_is_read_however_it_is_cut(opcode: int, parts: list[bytes], cuts: list[int]) -> None:
    [(found, payload)], code = parse(in_chunks(sent_by_client(opcode, parts), cuts), deflate=True)
    assert (found, code) == (DEFLATED | opcode, None)
    assert inflate(payload, MANY) == b"".join(parts)


# RFC 7692, 7.2.3: its examples.
@pytest.mark.parametrize(
    "payload",
    [
        "f2 48 cd c9 c9 07 00",
        "00 05 00 fa ff 48 65 6c 6c 6f 00",
        "f3 48 cd c9 c9 07 00 00",
        "f2 48 05 00 00 00 ff ff ca c9 c9 07 00",
    ],
    ids=["one block", "no compression", "the last block", "two blocks"],
)
def test_all_ways_to_compress_hello_are_read(payload: str) -> None:
    assert inflate(bytes.fromhex(payload), 5) == b"Hello"


def test_an_empty_message_has_a_compressed_form() -> None:
    assert inflate(b"\x00", 0) == b""


def test_what_counts_on_the_message_before_is_refused() -> None:
    # 7.2.3.2: "Hello" once more, by a client that keeps its window though it was agreed that it does not.
    assert refusal(bytes.fromhex("f2 00 11 00 00")) == 1007


@pytest.mark.parametrize("payload", [b"", b"\xff", b"Hello", b"\x07", PRICES])
def test_what_is_not_compressed_is_refused(payload: bytes) -> None:
    assert refusal(payload) == 1007


def test_a_message_that_is_cut_short_anywhere_is_refused() -> None:
    whole = compressed(PRICES)
    assert inflate(whole, MANY) == PRICES
    assert {refusal(whole[:size]) for size in range(len(whole))} == {1007}


def test_nothing_hides_behind_the_end_of_a_message() -> None:
    ended = bytes.fromhex("f3 48 cd c9 c9 07 00")
    assert refusal(ended + b"\x00" + compressed(b"more")) == 1007
    assert refusal(ended) == 1007, "without the octet that 7.2.3.4 asks for"


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_any_octets_are_a_message_within_the_limit_or_refused(payload: bytes, max_bytes: int) -> None:
    code, size = None, 0
    try:
        size = len(inflate(payload, max_bytes))
    except FrameError as error:
        code = error.code
    assert code in (None, 1007, 1009) and size <= max_bytes


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 20])
def test_a_message_may_be_as_large_as_the_limit_and_no_larger(size: int, level: int) -> None:
    message = b"x" * size
    assert inflate(compressed(message, level=level), size) == message
    assert refusal(compressed(message + b"x", level=level), size) == 1009


# ---- what it costs


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Fail if more than `size` bytes are taken, even for a moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= size, f"{peak:,} bytes"


BOMB = compressed(bytes(64 << 20))


def test_inflation_stops_at_the_message_limit() -> None:
    with at_most(2 * len(BOMB) + (64 << 10)):
        assert refusal(BOMB, 1000) == 1009


async def test_waiting_messages_are_inflated_one_at_a_time() -> None:
    node = OneClientNode(broken(), refuse, deflates=True)
    node.connection.hold("a test")
    stream = 200 * raw(0xC1, compressed(b'{"type":"ping","timestamp":' + b" " * 1_000_000 + b"1}"))
    with at_most(4 * len(stream)):
        node.connection.data_received(stream)


async def test_a_compressed_message_is_answered_and_a_broken_one_closes_the_socket() -> None:
    node = OneClientNode(broken(), refuse, deflates=True)
    node.connection.data_received(raw(0xC1, compressed(b'{"type":"ping","timestamp":7}')))
    assert (await node.answers())[-1] == {"type": "pong", "timestamp": 7}
    node.connection.data_received(raw(0xC1, compressed(b'{"type":"ping","timestamp":8}')[:-3]))
    [(opcode, payload)] = frames.split(node.wire.written)
    assert (opcode, frames.read_close(payload)[0]) == (CLOSE, 1007)
