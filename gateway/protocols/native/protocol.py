"""The native protocol as the node uses it: commands from text frames, events to text frames."""

from __future__ import annotations

from typing import Final

from gateway.core import frames
from gateway.core.commands import Command
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.events import Broadcast, ClientsChanged, Delivered, Event
from gateway.protocols.native import codes, decoder, encoder
from gateway.protocols.stateless import Stateless


class Native(Stateless):
    """The native protocol."""

    name: Final = "native"
    error_codes: Final = codes.ERROR_CODES
    close_codes: Final = codes.CLOSE_CODES

    def split(self, opcode: int, payload: bytes) -> tuple[bytes]:
        """The text of one frame, which holds one command."""
        if opcode != frames.TEXT:
            raise ProtocolError(ErrorReason.NOT_JSON, "Messages are text frames, not binary ones")
        return (payload,)

    def decode(self, message: bytes) -> Command:
        """The command in the text of one frame."""
        return decoder.decode(message)

    def encode(self, event: Event, now_ms: int) -> bytes:
        """One text frame with an event for one client."""
        return frames.build(frames.TEXT, encoder.text(event, now_ms))

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """One text frame with an event for many clients; nothing for changes of single clients."""
        if isinstance(event, ClientsChanged):
            return b""
        text = encoder.data(event) if isinstance(event, Delivered) else encoder.broadcast_text(event)
        return frames.build(frames.TEXT, text)


NATIVE: Final = Native()
