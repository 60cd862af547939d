"""Where a client of Server-Sent Events is in its topics, as the ids of its events tell.  (pure)

A browser's own `EventSource` knows nothing of offsets. It keeps the id of the last event it had and says it as
``Last-Event-ID`` when it comes back (WHATWG HTML, 9.2). So the id holds the places of all topics with history that
were asked for: ``contest=4fd1c2:41:1795502108477123,prices=4fd1c2:7:1795502108480000``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

import orjson

from gateway.core.position import Position

MAX_ID_LENGTH: Final = 8 << 10  # of what comes back: a header
# A message of a topic with history ends with its place: the step that numbers it puts it there.
_PLACED: Final = re.compile(
    rb'^\{"type":"DATA","topic":"([^"]+)".*,"offset":(\d+),"epoch":"([^"]+)"(?:,"mark":(\d+))?\}$', re.DOTALL
)
_TOLD: Final = (b'{"type":"ACKNOWLEDGMENT","operation":"subscribe"', b'{"type":"SYSTEM"')
_PART: Final = re.compile(
    r"(?P<topic>[A-Za-z0-9_:.\-/]{1,200})=(?P<epoch>[A-Za-z0-9]{1,64}):(?P<offset>[0-9]{1,16})(?::(?P<mark>[0-9]{1,16}))?"
)


class Places:
    """Follows what a client of `topics` is sent; `last_id` is what it came with."""

    def __init__(self, topics: Collection[str], last_id: str = "") -> None:
        found = map(_PART.fullmatch, last_id.split(",") if len(last_id) <= MAX_ID_LENGTH else ())
        self._places = {
            part["topic"]: Position(part["epoch"], int(part["offset"]), _mark(part["mark"]))
            for part in found
            if part and part["topic"] in topics
        }

    @property
    def recover(self) -> Mapping[str, Position]:
        """Its places by topic, as SUBSCRIBE takes them."""
        return self._places

    def event(self, text: bytes) -> bytes:
        """The event for a message: with an id where it moves a place, and with the delay where it says one."""
        fields = [b"data: ", text, b"\n\n"]
        placed = _PLACED.match(text)
        if placed is not None:
            self._places[placed[1].decode()] = Position(placed[3].decode(), int(placed[2]), _mark(placed[4]))
            fields[:0] = [b"id: ", self._id(), b"\n"]
        elif text.startswith(_TOLD):
            told = orjson.loads(text)
            positions = told.get("positions")
            if positions:
                self._places |= {
                    topic: Position(at["epoch"], at["offset"], at.get("mark")) for topic, at in positions.items()
                }
                fields[:0] = [b"id: ", self._id(), b"\n"]
            reconnect_ms = (told.get("data") or {}).get("reconnectMs")
            if reconnect_ms is not None:
                fields[:0] = [b"retry: %d\n" % reconnect_ms]
        return b"".join(fields)

    def _id(self) -> bytes:
        return ",".join(f"{topic}={_place(at)}" for topic, at in self._places.items()).encode()


def _place(at: Position) -> str:
    return f"{at.epoch}:{at.offset}" if at.mark is None else f"{at.epoch}:{at.offset}:{at.mark}"


def _mark(digits: str | bytes | None) -> int | None:
    return None if digits is None else int(digits)
