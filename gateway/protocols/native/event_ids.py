"""Server-Sent Events with the native protocol: their ids hold the position of a client in its topics.  (pure)

A browser's `EventSource` does not know offsets. It keeps the id of the last event and sends it as ``Last-Event-ID``
when it reconnects (WHATWG HTML, 9.2). So the id holds the client's position in each of its topics with history:
``contest=4fd1c2:41:1795502108477123,prices=4fd1c2:7:1795502108480000``. In a topic, ``%``, ``=`` and ``,`` are
percent-encoded.

An id depends on the client, so an event that many clients share has none. Instead, a line precedes its text:
`<reconnect delay in ms, or nothing> <positions that the event changes, as in an id>`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import unquote

from gateway.core import frames, message
from gateway.core.events import Broadcast, ClientsChanged, Delivered, Event, ServerLeaving, Subscribed
from gateway.core.position import Position
from gateway.protocols.native import encoder
from gateway.protocols.native.protocol import Native

MAX_ID_LENGTH: Final = 8 << 10  # characters of a received id, which is a header
_PART: Final = re.compile(
    r"(?P<topic>[^=,]{1,600})=(?P<epoch>[A-Za-z0-9]{1,64}):(?P<offset>[0-9]{1,16})(?::(?P<mark>[0-9]{1,16}))?"
)


class NativeEvents(Native):
    """The native protocol with a line before each text, for `EventIds`."""

    def encode(self, event: Event, now_ms: int) -> bytes:
        """One text frame with an event for one client."""
        line = b" "
        if isinstance(event, Subscribed) and event.positions:
            line = b" " + b",".join(_part(topic.encode(), at) for topic, at in event.positions.items())
        elif isinstance(event, ServerLeaving):
            line = b"%d " % event.reconnect_ms
        return frames.build(frames.TEXT, line + b"\n" + encoder.text(event, now_ms))

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """One text frame with an event for many clients."""
        if isinstance(event, ClientsChanged):
            return b""
        line = b" "
        # A last value is older than the position in the acknowledgement, which follows it.
        if isinstance(event, Delivered) and event.position is not None and not event.initial:
            _, topic, _, _ = message.unpack(event.body)
            line = b" " + _part(topic, event.position)
        return frames.build(frames.TEXT, line + b"\n" + encoder.broadcast_text(event))


NATIVE_EVENTS: Final = NativeEvents()


class EventIds:
    """Tracks the positions of a client of `topics` from what it is sent. `last_id`: its ``Last-Event-ID``."""

    def __init__(self, topics: Collection[str], last_id: str = "") -> None:
        found = map(_PART.fullmatch, last_id.split(",") if len(last_id) <= MAX_ID_LENGTH else ())
        self.recover: Mapping[str, Position] = {  # by topic, for the `recover` of a SUBSCRIBE
            topic: Position(part["epoch"], int(part["offset"]), int(part["mark"]) if part["mark"] else None)
            for part in found
            if part and (topic := unquote(part["topic"])) in topics
        }
        self._parts = dict(map(_pair, (_part(topic.encode(), at) for topic, at in self.recover.items())))

    def event(self, payload: bytes) -> bytes:
        """The event for the payload of one frame. It has an `id` if it changes a position, a `retry` if a delay."""
        line, _, text = payload.partition(b"\n")
        delay, _, parts = line.partition(b" ")
        if parts:
            self._parts |= map(_pair, parts.split(b","))
        return b"%s%sdata: %s\n\n" % (
            b"retry: %s\n" % delay if delay else b"",
            b"id: %s\n" % b",".join(self._parts.values()) if parts else b"",
            text,
        )


def _part(topic: bytes, at: Position) -> bytes:
    escaped = topic.replace(b"%", b"%25").replace(b"=", b"%3D").replace(b",", b"%2C")
    position = b"%s=%s:%d" % (escaped, at.epoch.encode(), at.offset)
    return position if at.mark is None else b"%s:%d" % (position, at.mark)


def _pair(part: bytes) -> tuple[bytes, bytes]:
    """The topic of a part of an id, still escaped, and the part."""
    return part.partition(b"=")[0], part
