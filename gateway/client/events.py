"""What a caller of the client gets, and what can go wrong.  (pure)

GatewayError
  Refused          the server answered with an ERROR
  NoAnswer         it did not answer in time: what was asked may have been done
  Disconnected     the socket was lost before the answer: the same holds
  TooLarge         the message is larger than the server accepts: it was not sent
  TooSlow          a subscription was not read as fast as its topic speaks
  Closed           this is over: the server said not to come back, or the caller left
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from gateway.core.protocol import Json

# What a DATA message has a name of its own for; all else the publisher gave travels in `extras`.
_KNOWN = frozenset({"type", "topic", "data", "timestamp", "offset", "epoch", "mark", "initialData"})


@dataclass(frozen=True, slots=True)
class Message:
    """Something published on a topic. `offset`, `epoch` and `mark`: its place, on topics with history."""

    topic: str
    data: Json
    timestamp: str  # ISO 8601, of the publish
    offset: int | None = None
    epoch: str | None = None
    initial: bool = False  # the last value, which came with the subscription: not news
    extras: Mapping[str, Json] = field(default_factory=dict)  # action, subtype, priority
    mark: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of the topic may be missing between what was handed on before this and what comes after."""

    topic: str
    reason: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """The connection was lost, and nothing was missed: the messages before this made it good."""

    topic: str


@dataclass(frozen=True, slots=True)
class Presence:
    """Who came to the topic and who left it, as the server says it."""

    topic: str
    about: Mapping[str, Json]


Event: TypeAlias = Message | Gap | Recovered | Presence


def message(frame: Mapping[str, Any]) -> Message:
    """The message that a DATA frame carries."""
    return Message(
        frame["topic"], frame.get("data"), frame.get("timestamp", ""), frame.get("offset"), frame.get("epoch"),
        bool(frame.get("initialData")), {name: value for name, value in frame.items() if name not in _KNOWN},
        frame.get("mark"),
    )  # fmt: skip


class GatewayError(Exception):
    """Anything that this client raises of its own."""


class Refused(GatewayError):
    """The server answered with an ERROR; `temporary`: the same may be carried out later."""

    def __init__(self, code: int, message: str, temporary: bool = False, reason: str | None = None) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.temporary = temporary
        self.reason = reason


class NoAnswer(GatewayError):
    """No answer in time; what was asked may have been done or not."""


class Disconnected(GatewayError):
    """The socket was lost before the answer; what was asked may have been done or not."""


class TooLarge(GatewayError):
    """The message is larger than the server accepts. It was not sent."""

    def __init__(self, what: str, size: int, most: int) -> None:
        super().__init__(f"{what} has {size} bytes; the server accepts at most {most}")


class TooSlow(GatewayError):
    """More events waited on a subscription than it may hold; it has ended."""


class Closed(GatewayError):
    """The client has ended; `code` is the server's close code or HTTP status, None if the caller left."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"closed: {reason}" if code is None else f"closed with {code}: {reason}")
        self.code = code
        self.reason = reason


def refusal(frame: Mapping[str, Any]) -> Refused:
    """What an ERROR says."""
    return Refused(
        int(frame.get("code", 0)), str(frame.get("message")), bool(frame.get("temporary")), frame.get("reason")
    )


def words(error: BaseException) -> str:
    """What an exception says, or its name if it says nothing."""
    return str(error) or type(error).__name__
