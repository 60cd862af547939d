"""A protocol of plain text lines, as a contributor would add one: `subscribe chat`, `publish chat hello`."""

from __future__ import annotations

from typing import Final

from gateway.core import events, frames, message
from gateway.core.commands import Auth, Command, Ping, Publish, Subscribe, Unsubscribe
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.events import Broadcast, Delivered, Event
from gateway.core.publication import Publication
from gateway.protocols.stateless import Stateless


class Toy(Stateless):
    """The protocol. Its codes are the names of the reasons, numbered."""

    name: Final = "toy"
    error_codes: Final = {reason: number for number, reason in enumerate(ErrorReason)}
    close_codes: Final = {reason: 4100 + number for number, reason in enumerate(CloseReason)}

    def decode(self, message: bytes) -> Command:
        """The command in one line."""
        match message.decode().split(" ", 2):
            case ["ping"]:
                return Ping(None)
            case ["token", token]:
                return Auth(token)
            case ["subscribe", topic]:
                return Subscribe((topic,), None)
            case ["unsubscribe", topic]:
                return Unsubscribe((topic,), None)
            case ["publish", topic, text]:
                return Publish(Publication(topic, text), None)
        raise ProtocolError(ErrorReason.UNKNOWN_TYPE, "write: ping, token, subscribe, unsubscribe or publish")

    def encode(self, event: Event, now_ms: int) -> bytes:
        """One line with an event for one client."""
        match event:
            case events.Failed(error):
                return _line(f"error {self.error_codes[error.reason]} {error.message}")
            case events.Subscribed(topics) | events.Gap(topics):
                return _line(f"{type(event).__name__.lower()} {' '.join(topics)}")
        return _line(type(event).__name__.lower())

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """One line with a message."""
        if isinstance(event, Delivered):
            _, topic, _, data = message.unpack(event.body)
            return _line(f"message {topic.decode()} {data.decode()}")
        return _line("presence")


def _line(text: str) -> bytes:
    return frames.build(frames.TEXT, text.encode())
