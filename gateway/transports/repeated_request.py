"""The head of a request that a fast path answers, to recognise the next requests of the connection without a parser.

A program that publishes sends the same head again and again: only the length and the body differ. The parser has read
this head once, so a request that begins with the same bytes has the same meaning.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from gateway.transports.fast_exchange import Start

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)\r\n", re.IGNORECASE)
MAX_DIGITS: Final = 9  # of Content-Length


class RepeatedRequest(NamedTuple):
    """A head without the digits of its Content-Length, and what starts the work of such a request."""

    before: bytes
    after: bytes
    start: Start

    @classmethod
    def of(cls, data: bytes, body_bytes: int, start: Start) -> RepeatedRequest | None:
        """Read the head of `data`, of which the parser has accepted a request with a body of `body_bytes`.

        None: `data` is not exactly that one request, or its head cannot be used again.
        """
        end = data.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(data, 0, end)
        if length is None or not data.startswith(b"POST ") or end + body_bytes != len(data):
            return None
        return cls(data[: length.start(1)], data[length.end(1) : end], start)

    def body_of(self, data: bytes) -> bytes | None:
        """The body of `data`, if it is exactly one request with this head; otherwise None."""
        if not data.startswith(self.before):
            return None
        at = len(self.before)
        end = data.find(b"\r", at, at + MAX_DIGITS + 1)
        digits = data[at:end]
        begin = end + len(self.after)
        if end < 0 or not digits.isdigit() or not data.startswith(self.after, end) or len(data) - begin != int(digits):
            return None
        return data[begin:]
