"""The events and errors of the client.  (pure)

GatewayError
  Refused          the server replied with an ERROR
  NoAnswer         the server did not reply in time; the request may have been carried out
  Disconnected     the socket was lost before the reply; the request may have been carried out
  TooLarge         the message is larger than the server accepts; it was not sent
  TooSlow          the caller did not read a subscription as fast as messages arrived
  Closed           the client has ended: the server asked it not to reconnect, or the caller closed it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from gateway.core.json_text import Json

# The fields of DATA that `Message` has by name. `Message.extras` has all others.
_KNOWN = frozenset({"type", "topic", "data", "timestamp", "offset", "epoch", "mark", "initialData"})


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a topic. On topics with history `offset`, `epoch` and `mark` are its position."""

    topic: str
    data: Json
    timestamp: str  # ISO 8601, of the publish
    offset: int | None = None
    epoch: str | None = None
    initial: bool = False  # the snapshot that the server sends after a SUBSCRIBE, not a new message
    extras: Mapping[str, Json] = field(default_factory=dict)  # action, subtype, priority, tags
    mark: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of the topic may be missing between the events before and after this one."""

    topic: str
    reason: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """The client has recovered after a lost connection: the events before this one include all missed messages."""

    topic: str


@dataclass(frozen=True, slots=True)
class Presence:
    """A presence change of the topic. `about` has the fields of the server's message."""

    topic: str
    about: Mapping[str, Json]


Event: TypeAlias = Message | Gap | Recovered | Presence


def message(frame: Mapping[str, Any]) -> Message:
    """Convert a DATA frame into a message."""
    return Message(
        frame["topic"], frame.get("data"), frame.get("timestamp", ""), frame.get("offset"), frame.get("epoch"),
        bool(frame.get("initialData")), {name: value for name, value in frame.items() if name not in _KNOWN},
        frame.get("mark"),
    )  # fmt: skip


class GatewayError(Exception):
    """The base of all errors of this client."""


class Refused(GatewayError):
    """The server replied with an ERROR. `temporary`: a retry may succeed."""

    def __init__(self, code: int, message: str, temporary: bool = False, reason: str | None = None) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.temporary = temporary
        self.reason = reason


class NoAnswer(GatewayError):
    """The server did not reply in time. The request may or may not have been carried out."""


class Disconnected(GatewayError):
    """The socket was lost before the reply. The request may or may not have been carried out."""


class TooLarge(GatewayError):
    """The message is larger than the server accepts. It was not sent."""

    def __init__(self, what: str, size: int, most: int) -> None:
        super().__init__(f"{what} has {size} bytes; the server accepts at most {most}")


class TooSlow(GatewayError):
    """A subscription has ended, because more events waited than its buffer may hold."""


class Closed(GatewayError):
    """The client has ended. `code`: the server's close code or HTTP status; None if the caller closed the client."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"closed: {reason}" if code is None else f"closed with {code}: {reason}")
        self.code = code
        self.reason = reason


def refusal(frame: Mapping[str, Any]) -> Refused:
    """Convert an ERROR frame into an exception."""
    return Refused(
        int(frame.get("code", 0)), str(frame.get("message")), bool(frame.get("temporary")), frame.get("reason")
    )


def describe(error: BaseException) -> str:
    """The message of an exception, or its class name if the message is empty."""
    return str(error) or type(error).__name__
