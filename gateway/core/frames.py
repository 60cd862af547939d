"""The server's side of RFC 6455 framing: parses received bytes into messages, builds frames from payloads.  (pure)

RFC 6455, section 5: the frames of a client are masked, those of a server are not. The RSV bits are zero, except RSV1
if compression was negotiated. Control frames are not fragmented and carry at most 125 bytes. A message is one data
frame, or a first frame with continuations; control frames may come between them.

A node has one parser per connection, so an idle parser holds only small attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from websockets.speedups import apply_mask

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

RSV1: Final = 0x40  # on a message's first frame: it is compressed (RFC 7692, 6)
# The parser adds this to the opcode of a compressed message. RFC 6455 does not assign the resulting 5 and 6.
DEFLATED: Final = 0x4
PART: Final = 0x3  # never on the wire: one of several messages in the payload of a frame

_FIN: Final = 0x80
_RSV: Final = 0x70
_MASKED: Final = 0x80


class FrameError(Exception):
    """The client violated the framing. The node must fail the connection with `code` (RFC 6455, 7.4.1)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def build(opcode: int, payload: bytes) -> bytes:
    """One whole, unmasked frame around `payload` (bytes)."""
    size = len(payload)
    if size < 126:
        return bytes((_FIN | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((_FIN | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8, "big") + payload


def split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The opcode and payload of each frame in `data`, a sequence of frames from `build`."""
    at, end = 0, len(data)
    while at < end:
        opcode, size, start = data[at] & 0x0F, data[at + 1], at + 2
        if size > 125:
            start += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : start], "big")
        at = start + size
        yield opcode, data[start:at]


def payloads(data: bytes) -> Iterator[bytes]:
    """The payload of each frame in `data`, a sequence of frames from `build`."""
    return (payload for _, payload in split(data))


def build_close(code: int, reason: str) -> bytes:
    """Build a close frame. `reason` is cut at a character boundary to fit into a control frame."""
    text = reason.encode()[:123].decode(errors="ignore")
    return build(CLOSE, code.to_bytes(2, "big") + text.encode())


def read_close(payload: bytes) -> tuple[int, str]:
    """The code and reason of a received close frame. The code is 1005 if the frame has none.

    Raises:
        FrameError: 1002 for a code that may not be sent, 1007 for a reason that is not UTF-8.
    """
    if not payload:
        return 1005, ""
    code = int.from_bytes(payload[:2], "big")
    # RFC 6455, 7.4: 1004, 1005, 1006 and 1015 are never sent; 1016-2999 and 5000 up are not assigned.
    if len(payload) < 2 or not (code in range(1000, 1004) or code in range(1007, 1015) or 3000 <= code < 5000):
        raise FrameError(1002, f"close code {code} may not be sent")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise FrameError(1007, "close reason is not UTF-8") from None


class FrameParser:
    """Parses the bytes of one connection into `(opcode, payload)` of whole messages and control frames.

    A fragment that does not end its message yields `(CONTINUATION, b"")`, so that the caller can count each frame.
    With `deflate`, a compressed message yields its compressed payload, and `DEFLATED` is added to its opcode.
    """

    __slots__ = ("_message", "_need", "_opcode", "_reserved", "_rest")

    def __init__(self, *, deflate: bool = False) -> None:
        self._reserved = _RSV ^ RSV1 if deflate else _RSV  # bits that the first frame of a message must not set
        self._rest: bytearray | None = None  # the received part of an unfinished frame
        self._need = 0  # the parser waits until `_rest` has this size, so that a byte-by-byte frame costs no more
        self._opcode = 0  # of the unfinished fragmented message; 0: none
        self._message: bytearray | None = None  # the payload of that message so far

    @property
    def held_bytes(self) -> int:
        """The bytes that the parser buffers: an unfinished frame and an unfinished message."""
        return len(self._rest or b"") + len(self._message or b"")

    @property
    def unfinished(self) -> bool:
        """Whether the parser buffers an unfinished frame or message."""
        return self._rest is not None or self._message is not None

    def receive(self, data: bytes, max_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Parse `data` and yield `(opcode, payload)` for each completed frame.

        The caller may pause the iteration and continue it later, but must not call `receive` in between.

        Args:
            data: Received bytes.
            max_bytes: The largest allowed message, before decompression.

        Raises:
            FrameError: At the first byte that violates the rules. The frames before it have been yielded.
        """
        if self._rest is not None:
            self._rest += data
            if len(self._rest) < self._need:
                return
            data, self._rest = bytes(self._rest), None
        self._need = 0
        at, end = 0, len(data)
        while end - at >= 2:
            head, length = data[at], data[at + 1]
            opcode = head & 0x0F
            self._check_head(head, opcode, length)
            start = at + 6
            length &= 0x7F
            if length == 126:
                start += 2
                if end < start:
                    break
                length = int.from_bytes(data[at + 2 : at + 4], "big")
            elif length == 127:
                start += 8
                if end < start:
                    break
                length = int.from_bytes(data[at + 2 : at + 10], "big")
            # Check the size from the header, so that the node never buffers a message that it will reject.
            if length + (len(self._message) if self._message is not None else 0) > max_bytes and opcode < CLOSE:
                raise FrameError(1009, f"message is larger than {max_bytes} bytes")
            stop = start + length
            if end < stop:
                self._need = stop - at
                break
            payload = apply_mask(data[start:stop], data[start - 4 : start])
            at = stop
            if head & RSV1:
                opcode |= DEFLATED
            if opcode >= CLOSE or (head & _FIN and self._message is None):
                yield opcode, payload
            else:
                yield self._collect(opcode, payload, bool(head & _FIN))
        if at < end:
            self._rest = bytearray(data[at:])

    def _check_head(self, head: int, opcode: int, length: int) -> None:
        if head & _RSV and (head & self._reserved or not TEXT <= opcode <= BINARY):
            raise FrameError(1002, "a reserved bit is set, and no negotiated extension uses it here")
        if not length & _MASKED:
            raise FrameError(1002, "a client's frame must be masked")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise FrameError(1002, f"opcode {opcode} is not defined")
            if not head & _FIN or length & 0x7F > 125:
                raise FrameError(1002, "a control frame must be whole and at most 125 bytes")
        elif opcode > BINARY:
            raise FrameError(1002, f"opcode {opcode} is not defined")
        elif (opcode == CONTINUATION) != (self._message is not None):
            raise FrameError(1002, "continuation out of place")

    def _collect(self, opcode: int, payload: bytes, final: bool) -> tuple[int, bytes]:
        if self._message is None:
            self._opcode, self._message = opcode, bytearray()
        self._message += payload
        if not final:
            return CONTINUATION, b""
        whole = self._opcode, bytes(self._message)
        self._opcode, self._message = 0, None
        return whole
