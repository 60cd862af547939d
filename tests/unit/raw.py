"""Events and bodies with given bytes."""

from __future__ import annotations

from gateway.core.events import Broadcast, Encoder

TIME = "2026-01-31T12:00:00.000Z"


class Raw(Broadcast):
    """An event that has the same bytes in every protocol."""

    __slots__ = ("_bytes",)

    def __init__(self, frames: bytes) -> None:
        super().__init__()
        self._bytes = frames

    def frame(self, _protocol: Encoder) -> bytes:
        """The bytes."""
        return self._bytes


def body(data: bytes, topic: str = "t") -> bytes:
    """The body of a message with `data`, a JSON text."""
    return b"%s %s {}\n%s" % (TIME.encode(), topic.encode(), data)


def text(data: bytes, topic: str = "t", more: bytes = b"") -> bytes:
    """The native text of that message; `more`: what follows its timestamp."""
    return b'{"type":"DATA","topic":"%s","data":%s,"timestamp":"%s"%s}' % (topic.encode(), data, TIME.encode(), more)
