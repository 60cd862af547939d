"""The interface that all protocols share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gateway.core.commands import Command
from gateway.core.errors import CloseReason, ErrorReason
from gateway.core.events import Broadcast, Event


class ClientProtocol(Protocol):
    """What the node needs of a protocol of clients. Each protocol is a package beside this file."""

    name: str  # also the WebSocket subprotocol by which a client asks for it
    error_codes: Mapping[ErrorReason, int]
    close_codes: Mapping[CloseReason, int]

    def decode(self, opcode: int, payload: bytes) -> Command:
        """The command in one WebSocket message, or in one line of a stream over HTTP. A text is valid UTF-8.

        Raises:
            ProtocolError: The message is not valid. The error names the reason.
        """

    def encode(self, event: Event, now_ms: int) -> bytes:
        """Frames with an event for one client. `now_ms`: the time, in ms since 1970."""

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """Frames with an event for many clients, which has its own time."""
