"""The gateway's own protocol: one JSON object a text frame. docs/protocol.md is the public description."""

from __future__ import annotations

from typing import Final

from gateway.core import frames
from gateway.core.events import Delivered, Event
from gateway.protocols.native.encoder import data, text


class Native:
    """The protocol, as delivery uses it."""

    def encode(self, event: Event) -> bytes:
        """One text frame with the event."""
        return frames.build(frames.TEXT, data(event) if isinstance(event, Delivered) else text(event))


NATIVE: Final = Native()
