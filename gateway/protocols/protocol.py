"""The interface that all protocols share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gateway.core.commands import Command
from gateway.core.errors import CloseReason, ErrorReason
from gateway.core.events import Broadcast, Event


class ClientProtocol(Protocol):
    """What the node needs of a protocol of clients. Each protocol is a package beside this file."""

    @property
    def name(self) -> str:
        """The WebSocket subprotocol by which a client asks for it."""

    @property
    def error_codes(self) -> Mapping[ErrorReason, int]:
        """The number of each reason for which a command is refused."""

    @property
    def close_codes(self) -> Mapping[CloseReason, int]:
        """The close code of each reason for which the node closes a connection."""

    def decode(self, opcode: int, payload: bytes) -> Command:
        """The command in one WebSocket message, or in one line of a stream over HTTP. A text is valid UTF-8.

        Raises:
            ProtocolError: The message is not valid. The error names the reason.
        """

    def encode(self, event: Event, now_ms: int) -> bytes:
        """Frames with an event for one client. `now_ms`: the time, in ms since 1970."""

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """Frames with an event for many clients, which has its own time."""
