"""What protocols without state share: one message in a frame, and WebSocket pings.  (pure)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

from gateway.core import frames
from gateway.core.errors import CloseReason, ProtocolError
from gateway.core.events import Broadcast, Encoder
from gateway.core.session import Session

PING: Final = frames.build(frames.PING, b"")


class Stateless(Encoder):
    """What a protocol that is its own conversation inherits."""

    knows_gaps: Final = True
    is_connected: Final = True
    held_bytes: Final = 0

    def conversation(self, _client_id: str, _session: Session) -> Self:
        """The protocol itself."""
        return self

    def split(self, _opcode: int, payload: bytes) -> Sequence[bytes]:
        """The payload, one message."""
        return (payload,)

    def encode_missed(self, messages: Sequence[Broadcast]) -> bytes:
        """The frames of each message."""
        return b"".join([message.frame(self) for message in messages])

    def wants_ping(self, _now: float, *, silent: bool) -> bool:
        """Only a silent client is pinged."""
        return silent

    def ping(self) -> bytes:
        """A WebSocket ping, which the client's protocol layer answers."""
        return PING

    def close_reason(self, _error: ProtocolError) -> CloseReason | None:
        """None: every error is sent."""
        return None
