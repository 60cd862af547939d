"""The positions of a client of Server-Sent Events, encoded in the ids of its events.  (pure)

A browser's `EventSource` does not know offsets. It keeps the id of the last event and sends it as ``Last-Event-ID``
when it reconnects (WHATWG HTML, 9.2). So the id holds the client's position in each of its topics with history:
``contest=4fd1c2:41:1795502108477123,prices=4fd1c2:7:1795502108480000``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

import orjson

from gateway.core.position import Position

MAX_ID_LENGTH: Final = 8 << 10  # characters of a received id, which is a header
# A message of a topic with history ends with its position, because append.lua adds the position to the text.
_WITH_POSITION: Final = re.compile(
    rb'^\{"type":"DATA","topic":"([^"]+)".*,"offset":(\d+),"epoch":"([^"]+)"(?:,"mark":(\d+))?\}$', re.DOTALL
)
_ACK_OR_SYSTEM: Final = (b'{"type":"ACKNOWLEDGMENT","operation":"subscribe"', b'{"type":"SYSTEM"')
_PART: Final = re.compile(
    r"(?P<topic>[A-Za-z0-9_:.\-/]{1,200})=(?P<epoch>[A-Za-z0-9]{1,64}):(?P<offset>[0-9]{1,16})(?::(?P<mark>[0-9]{1,16}))?"
)


class Places:
    """Tracks the positions of a client of `topics` from the messages it is sent. `last_id`: its ``Last-Event-ID``."""

    def __init__(self, topics: Collection[str], last_id: str = "") -> None:
        found = map(_PART.fullmatch, last_id.split(",") if len(last_id) <= MAX_ID_LENGTH else ())
        self._places = {
            part["topic"]: Position(part["epoch"], int(part["offset"]), _mark(part["mark"]))
            for part in found
            if part and part["topic"] in topics
        }

    @property
    def recover(self) -> Mapping[str, Position]:
        """The positions by topic, for the `recover` of a SUBSCRIBE."""
        return self._places

    def event(self, text: bytes) -> bytes:
        """The event for one message. It has an `id` if the message changes a position, a `retry` if it has a delay."""
        fields = [b"data: ", text, b"\n\n"]
        match = _WITH_POSITION.match(text)
        if match is not None:
            self._places[match[1].decode()] = Position(match[3].decode(), int(match[2]), _mark(match[4]))
            fields[:0] = [b"id: ", self._id(), b"\n"]
        elif text.startswith(_ACK_OR_SYSTEM):
            message = orjson.loads(text)
            positions = message.get("positions")
            if positions:
                self._places |= {
                    topic: Position(at["epoch"], at["offset"], at.get("mark")) for topic, at in positions.items()
                }
                fields[:0] = [b"id: ", self._id(), b"\n"]
            reconnect_ms = (message.get("data") or {}).get("reconnectMs")
            if reconnect_ms is not None:
                fields[:0] = [b"retry: %d\n" % reconnect_ms]
        return b"".join(fields)

    def _id(self) -> bytes:
        return ",".join(f"{topic}={_place(at)}" for topic, at in self._places.items()).encode()


def _place(at: Position) -> str:
    return f"{at.epoch}:{at.offset}" if at.mark is None else f"{at.epoch}:{at.offset}:{at.mark}"


def _mark(digits: str | bytes | None) -> int | None:
    return None if digits is None else int(digits)
