"""permessage-deflate without context takeover (RFC 7692): the node compresses a message once for all clients.  (pure)

RFC 7692, section 7: RSV1 on the first frame of a message marks it as compressed. Each message is compressed
independently. So all clients can receive the same bytes, and the node keeps no compression state per client.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from gateway.core import frames
from gateway.core.frames import RSV1, FrameError

# Smaller payloads are sent uncompressed: without context they hardly shrink, and the packet overhead stays.
MIN_BYTES: Final = 256

# A window of 4 KiB. Messages of a few KiB seldom profit from a larger one, which costs more to set up. Level 6 takes
# twice the time of level 3 and saves 5% more.
WINDOW_BITS: Final = 12
_LEVEL: Final = 3
_MEMORY_LEVEL: Final = 5

# RFC 7692, 7.2.1: the sender omits the empty block at the end of a message.
_TAIL: Final = b"\x00\x00\xff\xff"
_LAST: Final = b"\x03\x00"  # an empty final block: if the inflater reaches its end, the message is complete


def _compress(payload: bytes) -> bytes:
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEMORY_LEVEL)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


# Clients with different topics receive different joined buffers of the same messages. So the compressed form of each
# small message is cached, for about one turn of the event loop: at most 8 MiB.
_CACHED_MESSAGES: Final = 256
_CACHED_BYTES: Final = 16 << 10  # larger messages are never joined


class Compressor:
    """A node's `deflate` with a small cache, so that the same buffer is compressed once for all its receivers."""

    def __init__(self) -> None:
        self.in_bytes = 0  # before compression; a buffer for many clients counts once
        self.out_bytes = 0  # after compression
        # The members of an audience receive the same bytes object, one after the other.
        self.deflate: Callable[[bytes], bytes] = lru_cache(maxsize=4)(self._deflate)
        self._compress: Callable[[bytes], bytes] = lru_cache(maxsize=_CACHED_MESSAGES)(_compress)

    def _deflate(self, data: bytes) -> bytes:
        small = deflate(data, self._compress if len(data) <= _CACHED_BYTES else _compress)
        self.in_bytes += len(data)
        self.out_bytes += len(small)
        return small


def deflate(data: bytes, compress: Callable[[bytes], bytes] = _compress) -> bytes:
    """Compress the messages in `data`, which holds whole server frames. Messages that do not shrink stay unchanged."""
    made = []
    for opcode, payload in frames.split(data):
        small = compress(payload) if len(payload) >= MIN_BYTES else payload  # control frames are always smaller
        made.append(frames.build(opcode, payload) if len(small) >= len(payload) else frames.build(RSV1 | opcode, small))
    joined = b"".join(made)
    return joined if len(joined) < len(data) else data


def inflate(payload: bytes, max_bytes: int) -> bytes:
    """Decompress the message `payload`. Decompression stops after `max_bytes` + 1 bytes.

    Raises:
        FrameError: 1007 if `payload` is not a complete compressed message; 1009 if the message is larger than
            `max_bytes`.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        message = stream.decompress(payload + _TAIL + _LAST, max_bytes + 1)
    except zlib.error:
        raise FrameError(1007, "a message cannot be inflated") from None
    if len(message) > max_bytes:
        raise FrameError(1009, f"message is larger than {max_bytes} bytes")
    # RFC 7692, 7.2.3.4: a sender may end the stream with a final block, and then appends a zero byte.
    if not stream.eof or stream.unused_data not in (b"", b"\x00" + _TAIL + _LAST):
        raise FrameError(1007, "a compressed message does not end where its frame does")
    return message
