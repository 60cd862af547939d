"""The interface that all protocols share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.core.commands import Command
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.events import Broadcast, Event
from gateway.core.session import Session


class Conversation(Protocol):
    """One client's side of a protocol. It may keep state; a protocol without state is its own conversation."""

    @property
    def knows_gaps(self) -> bool:
        """Whether a client stays subscribed to a topic of which messages are lost, because it is sent a `Gap`."""

    def split(self, opcode: int, payload: bytes) -> Sequence[bytes]:
        """The messages in one WebSocket message, or in one line of a stream over HTTP. A text is valid UTF-8.

        The node handles each of them when the one before is done, and counts each of them.

        Raises:
            ProtocolError: The payload is not valid.
            ProtocolViolation: The client must be disconnected.
        """

    def decode(self, message: bytes) -> Command | None:
        """The command in one message; None: there is nothing to do.

        Raises:
            ProtocolError: The message is not valid. The error names the reason.
            ProtocolViolation: The client must be disconnected.
        """

    def encode(self, event: Event, now_ms: int) -> bytes:
        """Frames with an event for this client; none if the protocol has no form for it. `now_ms`: since 1970."""

    def encode_missed(self, messages: Sequence[Broadcast]) -> bytes:
        """Frames with messages that precede the `Subscribed` of their topic; none if that event carries them."""

    @property
    def held_bytes(self) -> int:
        """The bytes of messages that `encode_missed` has kept for a later event."""

    @property
    def is_connected(self) -> bool:
        """Whether the client has sent what its protocol begins with. The node does not wait long for it."""

    def wants_ping(self, now: float, *, silent: bool) -> bool:
        """Whether to ping the client at `now` (loop time). `silent`: it has sent nothing for the ping interval."""

    def ping(self) -> bytes:
        """Frames that ask the client for a sign of life."""

    def close_reason(self, error: ProtocolError) -> CloseReason | None:
        """Why the client is disconnected for `error`; None: it is sent the error."""


class ClientProtocol(Protocol):
    """What the node needs of a protocol of clients. Each protocol is a package beside this file."""

    @property
    def name(self) -> str:
        """The WebSocket subprotocol by which a client asks for it. Metrics name it so, too."""

    @property
    def error_codes(self) -> Mapping[ErrorReason, int]:
        """The number of each reason for which a command is refused."""

    @property
    def close_codes(self) -> Mapping[CloseReason, int]:
        """The close code of each reason for which the node closes a connection."""

    def conversation(self, client_id: str, session: Session) -> Conversation:
        """The conversation with a new client."""

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """Frames with an event for many clients, which has its own time."""
