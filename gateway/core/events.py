"""Events that many clients are sent; each protocol encodes them in its own form.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.core.position import Position
from gateway.core.protocol import Json


class Encoder(Protocol):
    """A protocol, as far as delivery needs it."""

    def encode(self, event: Event) -> bytes:
        """WebSocket frames with the event."""


class Event:
    """Something that many clients are sent. Each protocol encodes it at most once, and only for a client of its own."""

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        self._frames: dict[Encoder, bytes] = {}

    def frame(self, protocol: Encoder) -> bytes:
        """The event's frames in `protocol`."""
        frame = self._frames.get(protocol)
        if frame is None:
            frame = self._frames[protocol] = protocol.encode(self)
        return frame


class Delivered(Event):
    """A message of a topic, or to one client, user or role. `body`: as `core.message` has it."""

    __slots__ = ("body", "initial", "position")

    def __init__(self, body: bytes, position: Position | None = None, *, initial: bool = False) -> None:
        self._frames = {}
        self.body = body
        self.position = position  # the message's place, if its topic has history
        self.initial = initial  # the last value, sent with a subscription


class PresenceChanged(Event):
    """Members joined or left a topic. `about`: `joined`, `left` and `count`, as JSON values."""

    __slots__ = ("about", "time_ms", "topic")

    def __init__(self, topic: str, about: Mapping[str, Json], time_ms: int) -> None:
        super().__init__()
        self.topic = topic
        self.about = about
        self.time_ms = time_ms


class History(NamedTuple):
    """A part of a topic's history, and the position of the newest message."""

    epoch: str
    offset: int
    mark: int
    messages: Sequence[Delivered]
