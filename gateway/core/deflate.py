"""permessage-deflate without context takeover (RFC 7692): one compression serves all who agreed to it.  (pure)

The law (section 7): RSV1 on a message's first frame says that it is compressed; each message by itself, so that the
same octets are right for every client, and nothing is kept for any of them from one message to the next.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from gateway.core import frames
from gateway.core.frames import RSV1, FrameError

# Smaller payloads stay as they are: without context they hardly shrink, and the packet around them does not.
MIN_BYTES: Final = 256

# Of a window of 4 KiB, which a message of some KiB seldom needs more of: a larger one costs more to set up than it
# saves. Level 6 would take twice the time for a twentieth less.
WINDOW_BITS: Final = 12
_LEVEL: Final = 3
_MEMORY_LEVEL: Final = 5

# 7.2.1: the empty block at the end of a message is not sent.
_TAIL: Final = b"\x00\x00\xff\xff"
_LAST: Final = b"\x03\x00"  # an empty block that ends the stream: what is read to here was whole


def _compress(payload: bytes) -> bytes:
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEMORY_LEVEL)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


# Clients that hear different topics are handed different joins of the same messages. So small messages are kept each:
# those of a turn, 8 MiB with what became of them at the very most.
_KEPT_MESSAGES: Final = 256
_KEPT_BYTES: Final = 16 << 10  # what is larger is never joined


class Deflater:
    """A node's `deflate`: what was asked for just now is not made again."""

    def __init__(self) -> None:
        self.in_bytes = 0  # given to be compressed: what many are sent, once
        self.out_bytes = 0  # what became of it
        # The members of an audience are handed the same object, one after the other.
        self.deflate: Callable[[bytes], bytes] = lru_cache(maxsize=4)(self._deflate)
        self._compress: Callable[[bytes], bytes] = lru_cache(maxsize=_KEPT_MESSAGES)(_compress)

    def _deflate(self, data: bytes) -> bytes:
        small = deflate(data, self._compress if len(data) <= _KEPT_BYTES else _compress)
        self.in_bytes += len(data)
        self.out_bytes += len(small)
        return small


def deflate(data: bytes, compress: Callable[[bytes], bytes] = _compress) -> bytes:
    """Whole, joined server frames with their messages compressed, where that makes them smaller; else as they were."""
    made = []
    for opcode, payload in frames.split(data):
        small = compress(payload) if len(payload) >= MIN_BYTES else payload  # a control frame never is as large
        made.append(frames.build(opcode, payload) if len(small) >= len(payload) else frames.build(RSV1 | opcode, small))
    joined = b"".join(made)
    return joined if len(joined) < len(data) else data


def inflate(payload: bytes, max_bytes: int) -> bytes:
    """The message whose compressed form is `payload`; never more than `max_bytes` + 1 are made of it.

    Raises:
        FrameError: 1007 for what is no compressed message, or none that is whole; 1009 for one that is too large.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        message = stream.decompress(payload + _TAIL + _LAST, max_bytes + 1)
    except zlib.error:
        raise FrameError(1007, "a message cannot be inflated") from None
    if len(message) > max_bytes:
        raise FrameError(1009, f"message is larger than {max_bytes} bytes")
    # 7.2.3.4: a sender may end the stream itself, and then appends an octet of zeros.
    if not stream.eof or stream.unused_data not in (b"", b"\x00" + _TAIL + _LAST):
        raise FrameError(1007, "a compressed message does not end where its frame does")
    return message
