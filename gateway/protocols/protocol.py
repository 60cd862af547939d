"""The interface that all protocols share."""

from __future__ import annotations

from typing import Protocol

from gateway.core.events import Broadcast, Event


class ClientProtocol(Protocol):
    """A protocol of clients: what it does with each side of the conversation."""

    def encode(self, event: Event, now_ms: int) -> bytes:
        """Frames with an event for one client. `now_ms`: the time, in ms since 1970."""

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """Frames with an event for many clients, which has its own time."""
