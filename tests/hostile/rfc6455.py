"""The duties of a WebSocket server, case by case, with the numbers of the Autobahn test suite.

Its own program needs Python 2. These are its cases, written for a gateway, which echoes the timestamp of a ping
instead of whole messages, and answers what it does not understand with an ERROR. Of sections 12 and 13, which send the
same message a thousand times, each is sent a few times. Sections 8 and 11 it has none of.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from tests.kit.raw import frame

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KIB, MIB = 1 << 10, 1 << 20
AROUND: Final = b'{"type":"ping","timestamp":"%s"}'


class Case(NamedTuple):
    """The node answers `sent` with `heard` and a close frame with a code of `closed` (1000: after our own close)."""

    number: str
    sent: Sequence[bytes]  # frames
    received: Sequence[bytes | int] = ()  # an echoed text, the code of an ERROR, or, behind a dot, a pong's payload
    closed: Sequence[int] = (1000,)
    chop: int = 0  # write so many octets at a time; 0: all at once, -1: a frame at a time
    rounds: int = 1  # send and hear so often
    offer: bytes = b""  # of extensions, in the handshake
    agreed: bool = False  # whether compression is


def echo(text: bytes) -> bytes:
    """The payload of a message that is answered with `text`."""
    return AROUND % text


def sized(size: int) -> bytes:
    """A text whose message is `size` octets long."""
    return b"*" * (size - len(AROUND) + 2)


def pong(payload: bytes) -> bytes:
    """The frames received when a pong comes."""
    return b"." + payload


def close(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def fragments(opcode: int, payload: bytes, size: int, *, reserved: int = 0) -> list[bytes]:
    """A message in frames of `size` octets, the first with these reserved bits."""
    parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    first = frame(opcode, parts[0], final=len(parts) == 1, reserved=reserved)
    return [first, *(frame(0, part, final=at == len(parts) - 1) for at, part in enumerate(parts[1:], 1))]


def deflated(payload: bytes) -> bytes:
    """The payload of a compressed message."""
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def framing() -> Iterator[Case]:
    """1: messages of all sizes, text and binary."""
    chops = {7: 997, 8: 1}
    for at, size in enumerate([0, 125, 126, 127, 128, 65535, 65536, 65536], 1):
        message = echo(sized(size)) if size else b""
        received: list[bytes | int] = [sized(size) if size else 4000]
        yield Case(f"1.1.{at}", [frame(TEXT, message)], received, chop=chops.get(at, 0))
        yield Case(f"1.2.{at}", [frame(BINARY, b"\xfe" * size)], [4000], chop=chops.get(at, 0))


def pings() -> Iterator[Case]:
    """2: pings and pongs."""
    odd = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
    yield Case("2.1", [frame(PING, b"")], [pong(b"")])
    yield Case("2.2", [frame(PING, b"Hello, world!")], [pong(b"Hello, world!")])
    yield Case("2.3", [frame(PING, odd)], [pong(odd)])
    yield Case("2.4", [frame(PING, b"\xfe" * 125)], [pong(b"\xfe" * 125)])
    yield Case("2.5", [frame(PING, b"\xfe" * 126)], closed=(1002,))
    yield Case("2.6", [frame(PING, b"\xfe" * 125)], [pong(b"\xfe" * 125)], chop=1)
    yield Case("2.7", [frame(PONG, b"")])
    yield Case("2.8", [frame(PONG, b"unasked")])
    yield Case("2.9", [frame(PONG, b"unasked"), frame(PING, b"asked")], [pong(b"asked")])
    many = [b"payload %d" % at for at in range(10)]
    for number, chop in (("2.10", 0), ("2.11", 1)):
        yield Case(number, [frame(PING, one) for one in many], [pong(one) for one in many], chop=chop)


def reserved() -> Iterator[Case]:
    """3: reserved bits; 4 is the one that says that a frame is compressed."""
    good, ping = frame(TEXT, echo(b"Hello")), frame(PING, b"")
    yield Case("3.1", [frame(TEXT, echo(b"Hello"), reserved=0x10)], closed=(1002,))
    for bit, chop in ((2, 0), (3, -1), (4, 1)):
        bad = frame(TEXT, echo(b"Hello"), reserved=bit << 4)
        yield Case(f"3.{bit}", [good, bad, ping], [b"Hello"], (1002,), chop)
    yield Case("3.5", [frame(BINARY, b"\x00\xff", reserved=0x50)], closed=(1002,))
    yield Case("3.6", [frame(PING, b"Hello", reserved=0x60)], closed=(1002,))
    yield Case("3.7", [frame(CLOSE, b"", reserved=0x70)], closed=(1002,))


def opcodes() -> Iterator[Case]:
    """4: reserved opcodes."""
    good, ping = frame(TEXT, echo(b"Hello")), frame(PING, b"")
    for section, first in ((1, 3), (2, 11)):
        yield Case(f"4.{section}.1", [frame(first, b"")], closed=(1002,))
        yield Case(f"4.{section}.2", [frame(first + 1, b"reserved")], closed=(1002,))
        for at, (opcode, payload, chop) in enumerate(
            [(first + 2, b"", 0), (first + 3, b"reserved", 0), (first + 4, b"", 1)], 3
        ):
            yield Case(f"4.{section}.{at}", [good, frame(opcode, payload), ping], [b"Hello"], (1002,), chop)


def fragmentation() -> Iterator[Case]:
    """5: messages in pieces."""
    two = fragments(TEXT, echo(b"fragmented"), 20)
    ways = (0, -1, 1)
    yield Case("5.1", [frame(PING, b"one", final=False), frame(0, b"two")], closed=(1002,))
    yield Case("5.2", [frame(PONG, b"one", final=False), frame(0, b"two")], closed=(1002,))
    for at, chop in enumerate(ways):
        yield Case(f"5.{3 + at}", two, [b"fragmented"], chop=chop)
        between = [two[0], frame(PING, b"ping"), *two[1:]]
        yield Case(f"5.{6 + at}", between, [pong(b"ping"), b"fragmented"], chop=chop)
        for first, final in ((9, True), (12, False)):
            stray = [frame(0, b"nothing to continue", final=final), frame(TEXT, echo(b"Hello"))]
            yield Case(f"5.{first + at}", stray, closed=(1002,), chop=chop)
    yield Case("5.15", [*two, frame(0, b"three", final=False), frame(TEXT, b"four")], [b"fragmented"], (1002,))
    for number, final in (("5.16", False), ("5.17", True)):
        yield Case(number, [frame(0, b"one", final=final), *two] * 2, closed=(1002,))
    yield Case("5.18", [frame(TEXT, b"one", final=False), frame(TEXT, b"two")], closed=(1002,))
    five = fragments(TEXT, echo(b"fragmented and pinged"), 12)
    mixed = [*five[:2], frame(PING, b"first"), *five[2:4], frame(PING, b"second"), *five[4:]]
    for number, chop in (("5.19", 0), ("5.20", -1)):
        yield Case(number, mixed, [pong(b"first"), pong(b"second"), b"fragmented and pinged"], chop=chop)


def text_case(number: str, text: bytes, *, size: int = 0, chop: int = 0) -> Case:
    """A text that is echoed if it is UTF-8, and ends the connection if it is not; in fragments of `size` octets."""
    message = echo(text)
    sent = fragments(TEXT, message, size or len(message))
    try:
        text.decode()
    except UnicodeDecodeError:
        return Case(number, sent, closed=(1007,), chop=chop)
    return Case(number, sent, [4000 if text < b" " else text], chop=chop)  # JSON has no control characters


GREEK: Final = "κ\u1f79σμε".encode()  # noqa: RUF001
FIVE_BYTES: Final = [b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]  # sequences that UTF-8 once had
CUT: Final = [
    b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80",
    b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf",
]  # fmt: skip
SURROGATES: Final = [0xD800, 0xDB7F, 0xDB80, 0xDBFF, 0xDC00, 0xDF80, 0xDFFF]


def encoded(*points: int) -> bytes:
    """Code points as UTF-8 would have them, surrogates too."""
    return "".join(map(chr, points)).encode(errors="surrogatepass")


def sequences() -> Iterator[list[bytes]]:
    """6.5 to 6.23: what is and what is not UTF-8."""
    yield [*(f"hello{one}world".encode() for one in "$¢€𤭢"), GREEK]
    yield [GREEK[:end] for end in range(1, len(GREEK) + 1)]
    yield [encoded(first) for first in (0, 0x80, 0x800, 0x10000)]
    yield FIVE_BYTES
    yield [encoded(last) for last in (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)]
    yield [b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]
    yield [encoded(0xD7FF), encoded(0xE000), encoded(0xFFFD), encoded(0x10FFFF), b"\xf4\x90\x80\x80"]
    yield [b"\x80", b"\xbf", *((b"\x80\xbf" * 3)[:length] for length in range(2, 7)), bytes(range(0x80, 0xBF))]
    starts = [(0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD)]
    yield [b"".join(bytes((octet, 0x20)) for octet in range(first, last)) for first, last in starts]
    yield CUT
    yield [b"".join(CUT)]
    yield [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]
    for overlong in ([0, 0xAF], [1, 0xBF], [0, 0x80]):
        yield list(_overlong(*overlong))
    yield [encoded(one) for one in SURROGATES]
    yield [encoded(high, low) for high in SURROGATES[:4] for low in (0xDC00, 0xDFFF)]
    yield [encoded(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)]
    yield [encoded(special) for special in range(0xFFF9, 0x10000)]


def _overlong(most: int, last: int) -> Iterator[bytes]:
    """One character in two to six octets where fewer would do: the shortest such value, or the longest."""
    for length, start in enumerate((0xC0, 0xE0, 0xF0, 0xF8, 0xFC), 2):
        if not most:
            yield bytes((start, *[0x80] * (length - 2), last))
        elif length == 2:
            yield b"\xc1\xbf"
        else:
            yield bytes((start, (0x9F, 0x8F, 0x87, 0x83)[length - 3], *[0xBF] * (length - 2)))


def utf8() -> Iterator[Case]:
    """6: texts that are UTF-8, and texts that are not."""
    yield Case("6.1.1", [frame(TEXT, b"")], [4000])
    yield Case("6.1.2", [frame(TEXT, b"", final=False), frame(0, b"", final=False), frame(0, b"")], [4000])
    middle = [frame(TEXT, b"", final=False), frame(0, echo(b"middle"), final=False), frame(0, b"")]
    yield Case("6.1.3", middle, [b"middle"])
    good = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    bad = GREEK + b"\xed\xa0\x80" + b"edited"
    for at, size in enumerate((0, 30, 1), 1):
        yield text_case(f"6.2.{at}", good, size=size)
    yield text_case("6.2.4", GREEK, size=1)
    yield text_case("6.3.1", bad)
    yield text_case("6.3.2", bad, size=1)
    beyond = GREEK + b"\xf4\x90\x80\x80" + b"edited"
    for number, size, chop in (("6.4.1", 37, -1), ("6.4.2", 40, -1), ("6.4.3", 0, 37), ("6.4.4", 0, 40)):
        yield text_case(number, beyond, size=size, chop=chop)
    for section, texts in enumerate(sequences(), 5):
        for at, text in enumerate(texts, 1):
            yield text_case(f"6.{section}.{at}", text)


def closing() -> Iterator[Case]:
    """7: how a connection is closed."""
    hello, two = frame(TEXT, echo(b"Hello")), fragments(TEXT, echo(b"fragmented"), 20)
    yield Case("7.1.1", [hello, close(1000)], [b"Hello"])
    yield Case("7.1.2", [close(1000), frame(CLOSE, b"")])
    yield Case("7.1.3", [close(1000), frame(PING, b"")])
    yield Case("7.1.4", [close(1000), hello])
    yield Case("7.1.5", [two[0], close(1000), two[1]])
    large = sized(256 * KIB)
    yield Case("7.1.6", [frame(TEXT, echo(large)), hello, close(1000), frame(PING, b"")], [large, b"Hello"])
    yield Case("7.3.1", [frame(CLOSE, b"")], closed=(1005,))
    yield Case("7.3.2", [frame(CLOSE, b"a")], closed=(1002,))
    yield Case("7.3.3", [close(1000)])
    yield Case("7.3.4", [close(1000, b"Hello, world!")])
    yield Case("7.3.5", [close(1000, b"*" * 123)])
    yield Case("7.3.6", [close(1000, b"*" * 124)], closed=(1002,))
    yield Case("7.5.1", [close(1000, GREEK + b"\xed\xa0\x80")], closed=(1007,))
    codes = [*range(1000, 1004), *range(1007, 1012), 3000, 3999, 4000, 4999]
    for at, code in enumerate(codes, 1):
        yield Case(f"7.7.{at}", [close(code)], closed=(code,))
    for at, code in enumerate([0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999], 1):
        yield Case(f"7.9.{at}", [close(code)], closed=(1002,))
    yield Case("7.13.1", [close(5000)], closed=(1002,))
    yield Case("7.13.2", [close(65535)], closed=(1002,))


def volume() -> Iterator[Case]:
    """9: large messages, small fragments, many messages."""
    for at, size in enumerate((64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB), 1):
        yield Case(f"9.1.{at}", [frame(TEXT, echo(sized(size)))], [sized(size)])
        yield Case(f"9.2.{at}", [frame(BINARY, b"\xfe" * size)], [4000])
    for at in range(9):
        size = 64 << 2 * at
        yield Case(f"9.3.{at + 1}", fragments(TEXT, echo(sized(4 * MIB)), size), [sized(4 * MIB)])
        yield Case(f"9.4.{at + 1}", fragments(BINARY, b"\xfe" * (4 * MIB), size), [4000])
    for at in range(6):
        chop = 64 << at
        yield Case(f"9.5.{at + 1}", [frame(TEXT, echo(sized(MIB)))], [sized(MIB)], chop=chop)
        yield Case(f"9.6.{at + 1}", [frame(BINARY, b"\xfe" * MIB)], [4000], chop=chop)
    for at, size in enumerate((0, 16, 64, 256, 1024, 4096), 1):
        text = b"*" * size
        yield Case(f"9.7.{at}", [frame(TEXT, echo(text))], [text], rounds=1000)
        yield Case(f"9.8.{at}", [frame(BINARY, text)], [4000], rounds=1000)


def automatic() -> Iterator[Case]:
    """10: what a sender may do on the way."""
    text = bytes(random.Random(10).choices(b"abcdefgh", k=65536))
    yield Case("10.1.1", fragments(TEXT, echo(text), 1300), [text])


DEFLATE: Final = b"permessage-deflate"
# Octets of a message, and of its fragments; 0: it has none.
SIZES: Final = [
    *((size, 0) for size in (16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072)),
    *((size, 256) for size in (8192, 16384, 32768, 65536, 131072)),
    *((131072, piece) for piece in (1024, 4096, 32768)),
]


def compression() -> Iterator[Case]:
    """12: compressed messages of all sizes: words, binary, not ASCII, noise; and plain ones, which are good too."""
    chance = random.Random(12)
    words = " ".join(chance.choices(["price", "volume", "contest", "0.25", "1795502108"], k=30_000)).encode()
    umlauts = "Fünf Jäger überquerten ölige Straßen. ".encode() * 4000
    noise = bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-", k=1 << 17))
    for kind, source in enumerate([words, b"\xfe\x00\x01" * 50_000, umlauts, noise, words], 1):
        for at, (size, piece) in enumerate(SIZES, 1):
            text = source[:size].decode(errors="ignore").encode() if kind == 3 else source[:size]
            opcode, message, received = (BINARY, text, 4000) if kind == 2 else (TEXT, echo(text), text)
            payload, mark = (message, 0) if kind == 5 else (deflated(message), 0x40)
            sent = fragments(opcode, payload, piece or len(payload), reserved=mark)
            yield Case(f"12.{kind}.{at}", sent, [received], rounds=5, offer=DEFLATE, agreed=True)


def parameters() -> Iterator[Case]:
    """13: what a client may ask of the server's compression. A window smaller than all others' is not agreed."""
    plain, small, large = b"server_no_context_takeover", b"server_max_window_bits=9", b"server_max_window_bits=15"
    offers: list[list[tuple[bytes, ...]]] = [
        [()],
        [(plain,)],
        [(small,)],
        [(large,)],
        [(plain, small)],
        [(plain, large)],
        [(plain, small), (plain,), ()],
    ]
    for at, alternatives in enumerate(offers, 1):
        offer = b", ".join(b"; ".join([DEFLATE, *wanted]) for wanted in alternatives)
        agreed = any(small not in wanted for wanted in alternatives)
        for number, (size, piece) in enumerate(SIZES, 1):
            message = echo(b"*" * size)
            payload = deflated(message) if agreed else message
            sent = fragments(TEXT, payload, piece or len(payload), reserved=0x40 if agreed else 0)
            yield Case(f"13.{at}.{number}", sent, [b"*" * size], offer=offer, agreed=agreed)


SECTIONS: Final = {
    "1": framing, "2": pings, "3": reserved, "4": opcodes, "5": fragmentation, "6": utf8, "7": closing, "9": volume,
    "10": automatic, "12": compression, "13": parameters,
}  # fmt: skip
