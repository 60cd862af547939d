"""The gateway's own protocol: one JSON object a text frame. docs/protocol.md is the public description."""

from __future__ import annotations

from typing import Final

from gateway.core import frames
from gateway.core.events import Broadcast, Delivered, Event
from gateway.protocols.native import encoder


class Native:
    """The protocol, as the node uses it."""

    def encode(self, event: Event, now_ms: int) -> bytes:
        """One text frame with an event for one client."""
        return frames.build(frames.TEXT, encoder.text(event, now_ms))

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """One text frame with an event for many clients."""
        text = encoder.data(event) if isinstance(event, Delivered) else encoder.broadcast_text(event)
        return frames.build(frames.TEXT, text)


NATIVE: Final = Native()
