"""RFC 6455 frames, with the `websockets` library on the other side: it writes what we read and reads what we write."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.exceptions import ProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.speedups import apply_mask
from websockets.uri import parse_uri

from gateway.core import frames
from gateway.core.frames import BINARY, CLOSE, CONTINUATION, DEFLATED, PING, PONG, TEXT, FrameError, FrameParser

MANY = 1 << 30
Message = tuple[int, bytes]
FRAGMENT: Message = (CONTINUATION, b"")  # the header of a frame that does not end its message


def from_client(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A client's frame, as the library writes it."""
    return Frame(Opcode(opcode), payload, fin).serialize(mask=True)


def raw(head: int, payload: bytes, *, masked: bool = True) -> bytes:
    """A frame whose first octet is any at all."""
    size, bit = len(payload), 0x80 if masked else 0
    short = size if size < 126 else 126 if size < 1 << 16 else 127
    extended = size.to_bytes({126: 2, 127: 8}.get(short, 0), "big") if short > 125 else b""
    key = b"\x11\x22\x33\x44" if masked else b""
    return bytes((head, bit | short)) + extended + key + (apply_mask(payload, key) if masked else payload)


def in_chunks(stream: bytes, cuts: list[int]) -> list[bytes]:
    """`stream`, cut at these places."""
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def parse(
    chunks: list[bytes], max_bytes: int = MANY, *, deflate: bool = False
) -> tuple[list[Message], int | None]:  # fmt: skip
    """What the parser made of them: messages, and the code it failed with."""
    parser = FrameParser(deflate=deflate)
    messages: list[Message] = []
    try:
        for chunk in chunks:
            messages.extend(item for item in parser.receive(chunk, max_bytes) if item != FRAGMENT)
    except FrameError as error:
        return messages, error.code
    return messages, None


def parse_with_library(stream: bytes) -> tuple[list[Message], int | None]:
    """The same by `websockets`, its fragments put together."""
    library = ServerProtocol(state=State.OPEN, max_size=None)
    library.receive_data(stream)
    messages: list[Message] = []
    opcode, parts = 0, b""
    for frame in library.events_received():
        assert isinstance(frame, Frame)
        if frame.opcode >= CLOSE:
            messages.append((int(frame.opcode), bytes(frame.data)))
            continue
        opcode, parts = int(frame.opcode) or opcode, parts + bytes(frame.data)
        if frame.fin:
            messages.append((opcode, parts))
            parts = b""
    return messages, 1002 if isinstance(library.parser_exc, ProtocolError) else None


payloads = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda size, octet: bytes((octet,)) * size,
        st.sampled_from([124, 125, 126, 127, 300, 65535, 65536, 70000]),
        st.integers(0, 255),
    ),
)
controls = st.tuples(st.sampled_from([PING, PONG, CLOSE]), st.binary(max_size=125))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Message]]:
    """Messages, fragmented anyhow with control frames between the fragments: on the wire, and what they are."""
    wire: list[bytes] = []
    messages: list[Message] = []
    for _ in range(draw(st.integers(0, 6))):
        opcode = draw(st.sampled_from([TEXT, BINARY]))
        parts = draw(st.lists(payloads, min_size=1, max_size=4))
        for at, part in enumerate(parts):
            for control, payload in draw(st.lists(controls, max_size=2)):
                wire.append(from_client(control, payload))
                messages.append((control, payload))
            wire.append(from_client(opcode if at == 0 else CONTINUATION, part, fin=at == len(parts) - 1))
        messages.append((opcode, b"".join(parts)))
    return b"".join(wire), messages


@settings(deadline=None, max_examples=150)
@given(conversations(), st.lists(st.integers(0, 1 << 20), max_size=30))
def test_any_split_of_a_stream_gives_the_same_messages(
    conversation: tuple[bytes, list[Message]], cuts: list[int]
) -> None:
    stream, messages = conversation
    assert parse(in_chunks(stream, cuts)) == (messages, None)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=140), st.integers(0, 9)), max_size=6),
    st.lists(st.integers(0, 1 << 12), max_size=6),
)
def test_the_library_judges_any_frames_as_we_do(items: list[tuple[int, bytes, int]], cuts: list[int]) -> None:
    # After a close frame the library reads no more; here that is the connection's business.
    sent = [raw(head, payload, masked=bool(odds)) for head, payload, odds in items if head & 0xF != CLOSE]
    assert parse(in_chunks(b"".join(sent), cuts)) == parse_with_library(b"".join(sent))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=30), max_size=10))
def test_no_octets_at_all_give_anything_but_messages_or_a_frame_error(chunks: list[bytes]) -> None:
    messages, code = parse(chunks, 1000)
    assert code in (None, 1002, 1009)
    assert all(opcode in (TEXT, BINARY, CLOSE, PING, PONG) for opcode, _ in messages)


class CountingParser(FrameParser):
    """Counts how often it looks at the beginning of a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def _check_head(self, head: int, opcode: int, length: int) -> None:
        self.looks += 1
        super()._check_head(head, opcode, length)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
def test_a_frame_sent_byte_by_byte_is_looked_at_no_more_often_than_its_header_is_long(size: int) -> None:
    # Each look copies what has arrived: one look a byte would cost the square of the size.
    payload = os.urandom(size)
    parser = CountingParser()
    stream = from_client(TEXT, payload) + from_client(BINARY, b"the next, a short one")
    messages = [m for octet in stream for m in parser.receive(bytes((octet,)), MANY)]
    assert messages == [(TEXT, payload), (BINARY, b"the next, a short one")]
    assert parser.looks <= 2 * 14


def test_an_idle_parser_holds_nothing_of_what_it_has_parsed() -> None:
    parser = FrameParser()
    list(parser.receive(from_client(TEXT, b"a", fin=False) + from_client(CONTINUATION, b"b") + b"\x81", MANY))
    list(parser.receive(from_client(TEXT, b"c")[1:], MANY))
    assert {name: getattr(parser, name) for name in FrameParser.__slots__} == {
        "_message": None, "_need": 0, "_opcode": 0, "_reserved": 0x70, "_rest": None,
    }  # fmt: skip


# ---- what is refused


@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG])
def test_an_unmasked_frame_is_refused(opcode: int) -> None:
    assert parse([raw(0x80 | opcode, b"x", masked=False)]) == ([], 1002)


@pytest.mark.parametrize("bit", [0x40, 0x20, 0x10])
def test_a_reserved_bit_is_refused(bit: int) -> None:
    assert parse([raw(0x80 | bit | TEXT, b"x")]) == ([], 1002)


def test_where_compression_was_agreed_the_first_one_marks_a_compressed_message() -> None:
    pieces = [raw(0x41, b"a"), raw(0x89, b"ping"), raw(0x80, b"b"), raw(0xC2, b"c"), raw(0x81, b"d")]
    assert parse(pieces, deflate=True) == (
        [(PING, b"ping"), (DEFLATED | TEXT, b"ab"), (DEFLATED | BINARY, b"c"), (TEXT, b"d")], None,
    )  # fmt: skip


@pytest.mark.parametrize("head", [0xA1, 0x91, 0xE1, 0xC0 | CLOSE, 0xC0 | PING, 0xC0 | PONG, 0xC3])
def test_no_other_is_allowed_nor_that_one_elsewhere(head: int) -> None:
    assert parse([raw(head, b"x")], deflate=True) == ([], 1002)


@pytest.mark.parametrize("first", [0x01, 0x41])
def test_a_continuation_is_never_marked(first: int) -> None:
    assert parse([raw(first, b"x"), raw(0xC0, b"x")], deflate=True) == ([], 1002)


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_an_undefined_opcode_is_refused(opcode: int) -> None:
    assert parse([raw(0x80 | opcode, b"x")]) == ([], 1002)


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_a_control_frame_has_at_most_125_bytes(opcode: int) -> None:
    assert parse([raw(0x80 | opcode, b"x" * 125)]) == ([(opcode, b"x" * 125)], None)
    assert parse([raw(0x80 | opcode, b"x" * 126)[:2]]) == ([], 1002)


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_a_control_frame_is_never_a_fragment(opcode: int) -> None:
    assert parse([raw(opcode, b"x")]) == ([], 1002)


def test_a_continuation_needs_something_to_continue() -> None:
    assert parse([from_client(CONTINUATION, b"x")]) == ([], 1002)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_no_message_begins_within_another(opcode: int) -> None:
    assert parse([from_client(TEXT, b"a", fin=False), from_client(opcode, b"b")]) == ([], 1002)


def test_what_stood_before_the_fault_is_still_given() -> None:
    stream = from_client(TEXT, b"one") + from_client(PING, b"two") + raw(0x83, b"bad") + from_client(TEXT, b"three")
    assert parse([stream]) == ([(TEXT, b"one"), (PING, b"two")], 1002)


# ---- how large a message may be


@pytest.mark.parametrize("size", [100, 126, 65536])
def test_a_message_may_be_as_large_as_the_limit(size: int) -> None:
    assert parse([from_client(TEXT, b"x" * size)], size) == ([(TEXT, b"x" * size)], None)


@pytest.mark.parametrize(
    "size",
    [b"\xe5", b"\xfe\x00\x7e", b"\xff" + (1 << 16).to_bytes(8, "big"), b"\xff" + (1 << 63).to_bytes(8, "big")],
    ids=["101", "126", "65536", "2**63"],
)
def test_a_larger_frame_is_rejected_before_its_payload_arrives(size: bytes) -> None:
    key = b"\x11\x22\x33\x44"
    assert parse([b"\x81", size, key], 100) == ([], 1009)


def test_fragments_count_together() -> None:
    first, rest = from_client(TEXT, b"x" * 60, fin=False), from_client(CONTINUATION, b"x" * 41)
    assert parse([first, from_client(CONTINUATION, b"x" * 40)], 100) == ([(TEXT, b"x" * 100)], None)
    assert parse([first, rest[:2]], 100) == ([], 1009)


def test_a_control_frame_between_fragments_does_not_count() -> None:
    stream = [from_client(TEXT, b"x" * 60, fin=False), from_client(PING, b"p" * 125), from_client(CONTINUATION, b"")]
    assert parse(stream, 60) == ([(PING, b"p" * 125), (TEXT, b"x" * 60)], None)


# ---- close frames


def test_the_close_codes_that_may_be_sent_are_the_librarys() -> None:
    def theirs(payload: bytes) -> tuple[int, str] | None:
        try:
            close = Close.parse(payload)
        except ProtocolError:
            return None
        return int(close.code), close.reason

    def ours(payload: bytes) -> tuple[int, str] | None:
        try:
            return frames.read_close(payload)
        except FrameError as error:
            return None if error.code == 1002 else (error.code, "refused otherwise")

    for code in range(1 << 16):
        payload = code.to_bytes(2, "big") + b"why"
        assert ours(payload) == theirs(payload), code


def test_a_close_without_a_code_is_1005() -> None:
    assert frames.read_close(b"") == (1005, "")


def test_a_close_of_one_octet_is_refused() -> None:
    with pytest.raises(FrameError) as refused:
        frames.read_close(b"\x03")
    assert refused.value.code == 1002


def test_a_close_whose_reason_is_not_utf8_is_refused_with_1007() -> None:
    with pytest.raises(FrameError) as refused:
        frames.read_close(b"\x03\xe8\xff")
    assert refused.value.code == 1007


# ---- what is built


def read_by_client(stream: bytes) -> list[tuple[int, bytes, bool]]:
    """The frames that the library's client sees."""
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    client.receive_data(stream)
    assert client.parser_exc is None
    return [(int(f.opcode), bytes(f.data), f.fin) for f in client.events_received() if isinstance(f, Frame)]


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 65537, 1 << 20])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_client_reads_what_was_built(opcode: int, size: int) -> None:
    payload = os.urandom(size)
    assert read_by_client(frames.build(opcode, payload)) == [(opcode, payload, True)]


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_built_frame_has_the_shortest_header_there_is(size: int) -> None:
    assert frames.build(TEXT, b"x" * size) == Frame(Opcode.TEXT, b"x" * size).serialize(mask=False)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([TEXT, BINARY, PING, PONG]), st.binary(max_size=125)), max_size=8))
def test_joined_frames_are_read_one_by_one(items: list[Message]) -> None:
    joined = b"".join(frames.build(opcode, payload) for opcode, payload in items)
    assert read_by_client(joined) == [(opcode, payload, True) for opcode, payload in items]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([TEXT, BINARY, PING]), payloads), max_size=8))
def test_joined_frames_are_split_into_what_they_were_built_of(items: list[Message]) -> None:
    assert list(frames.split(b"".join(frames.build(opcode, payload) for opcode, payload in items))) == items


@settings(deadline=None)
@given(st.one_of(st.integers(3000, 4999), st.sampled_from([1000, 1001, 1009, 1012])), st.text(max_size=200))
def test_a_built_close_carries_its_code_and_as_much_of_its_reason_as_fits(code: int, reason: str) -> None:
    [(opcode, payload, _)] = read_by_client(frames.build_close(code, reason))
    found_code, found = frames.read_close(payload)
    assert (opcode, found_code) == (CLOSE, code)
    assert reason.startswith(found)
    rest = reason[len(found) :]
    assert not rest or len((found + rest[0]).encode()) > 123


@pytest.mark.parametrize("reason", ["x" * 123, "x" * 124, "é" * 100, "a" + "é" * 100, "\U0001f600" * 50], ids=ascii)
def test_a_long_reason_is_cut_between_characters_to_what_a_control_frame_carries(reason: str) -> None:
    [(_, payload, _)] = read_by_client(frames.build_close(3001, reason))
    found = frames.read_close(payload)[1]
    assert reason.startswith(found) and 120 <= len(found.encode()) <= 123


@given(st.lists(st.binary(max_size=70_000), max_size=4))
def test_joined_frames_give_back_their_payloads(payloads: list[bytes]) -> None:
    assert list(frames.payloads(b"".join(frames.build(frames.TEXT, one) for one in payloads))) == payloads


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_each_length_of_a_frame_is_read_as_it_is_built(size: int) -> None:
    assert list(frames.payloads(frames.build(frames.TEXT, b"x" * size) * 2)) == [b"x" * size] * 2
