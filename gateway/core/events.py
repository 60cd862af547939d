"""What clients are sent, as values. The protocol of a client encodes them.  (pure)

An `Event` goes to one client. A `Broadcast` goes to many, and each protocol encodes it at most once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from gateway.core import fossil_delta, message
from gateway.core.commands import BackendCommand, Request
from gateway.core.errors import CloseReason, ProtocolError, UnsubscribeReason
from gateway.core.json_text import Json, RequestId
from gateway.core.position import Position
from gateway.core.presence_set import ClientChanges

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class Encoder(Protocol):
    """A protocol, as far as delivery needs it."""

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """Frames with the event; none if the protocol has no form for it."""


class Broadcast:
    """Something that many clients are sent. Each protocol encodes it at most once, and only for a client of its own."""

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        self._frames: dict[Encoder, bytes] = {}

    def frame(self, protocol: Encoder) -> bytes:
        """The event's frames in `protocol`."""
        frame = self._frames.get(protocol)
        if frame is None:
            frame = self._frames[protocol] = protocol.encode_broadcast(self)
        return frame


class Delivered(Broadcast):
    """A message of a topic, or to one client, user or role. `body`: as `core.message` has it."""

    __slots__ = ("body", "initial", "position")

    def __init__(self, body: bytes, position: Position | None = None, *, initial: bool = False) -> None:
        self._frames = {}
        self.body = body
        self.position = position  # the message's place, if its topic has history
        self.initial = initial  # the last value, sent with a subscription


class DeltaDelivered(Delivered):
    """A message for subscribers that receive deltas.

    `base`: the message that they received before. None: they receive the whole data, in the form that such subscribers
    expect, which lets them apply the next delta.
    """

    __slots__ = ("_base", "_delta")

    def __init__(self, event: Delivered, base: Delivered | None) -> None:
        super().__init__(event.body, event.position)
        self._base = base
        self._delta: bytes | None = None

    def delta(self) -> bytes | None:
        """The difference of the data from the base, computed once; None: send the whole data."""
        if self._base is not None:
            old, new = message.unpack(self._base.body)[3], message.unpack(self.body)[3]
            self._base, self._delta = None, fossil_delta.create(old, new)
        return self._delta


class PresenceChanged(Broadcast):
    """Members joined or left a topic. `about`: `joined`, `left` and `count`, as JSON values."""

    __slots__ = ("about", "time_ms", "topic")

    def __init__(self, topic: str, about: Mapping[str, Json], time_ms: int) -> None:
        super().__init__()
        self.topic = topic
        self.about = about
        self.time_ms = time_ms


class ClientsChanged(Broadcast):
    """Clients joined or left a topic, each for itself and without a grace period. For protocols that show clients."""

    __slots__ = ("changes", "time_ms", "topic")

    def __init__(self, topic: str, changes: ClientChanges, time_ms: int) -> None:
        super().__init__()
        self.topic = topic
        self.changes = changes
        self.time_ms = time_ms


class History(NamedTuple):
    """A part of a topic's history, and the position of the newest message."""

    epoch: str
    offset: int
    mark: int
    messages: Sequence[Delivered]


# The answers to the most frequent commands are tuples, which take a third of the time of a frozen dataclass to make.


class Subscribed(NamedTuple):
    """From now on the client receives every message of these topics, or a `Gap`."""

    topics: Sequence[str]
    request_id: RequestId
    positions: Mapping[str, Position] = _NONE  # of the topics with history
    recovered: Mapping[str, bool] = _NONE  # of those that the client asked to recover
    by_server: bool = False  # the back end has subscribed the client, which has not asked
    data: Json = None  # of the back end that has subscribed the client


class Published(NamedTuple):
    """Redis has accepted the client's message. `position`: set if the topic has history."""

    topic: str
    position: Position | None
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Welcome:
    """The first event on a connection. `limits`: the rate limits of the client, so that it can respect them."""

    client_id: str
    node: str
    version: str
    ping_ms: int
    limits: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The client's AUTH was accepted."""


@dataclass(frozen=True, slots=True)
class GrantRenewed:
    """The client's newer subscription token was accepted."""

    topic: str
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class TokenExpiring:
    """The client's token expires at `ends_ms` (since 1970). The client keeps its topics if it sends a new token."""

    ends_ms: int


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """The client's UNSUBSCRIBE is carried out."""

    topics: Sequence[str]
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class SubscriptionsEnded:
    """The node has unsubscribed the client from these topics."""

    topics: Sequence[str]
    reason: str
    why: UnsubscribeReason = UnsubscribeReason.SERVER


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a REQUEST."""

    request: Request
    content: Json | History


@dataclass(frozen=True, slots=True)
class CommandDone:
    """The back end has carried out the command. `content`: its answer; None: the answer has no body."""

    command: BackendCommand
    content: Json


@dataclass(frozen=True, slots=True)
class LogsAccepted:
    """The node has received `count` log lines."""

    count: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The reply to a ping, with the timestamp of the ping."""

    timestamp: Json


@dataclass(frozen=True, slots=True)
class RequestPong:
    """The reply to the REQUEST system/ping."""

    request: Request


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages of these topics may be missing at the client. No topic: messages to the client's user or role."""

    topics: Iterable[str]


@dataclass(frozen=True, slots=True)
class Degraded:
    """Redis is unreachable, so no messages arrive."""


@dataclass(frozen=True, slots=True)
class Restored:
    """Redis is back."""


@dataclass(frozen=True, slots=True)
class ServerLeaving:
    """The node closes the connection for this reason; the client should wait `reconnect_ms` before it reconnects."""

    reason: CloseReason
    reconnect_ms: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The node refuses a command."""

    error: ProtocolError


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A stream over HTTP is open; the client names it in its requests."""

    name: str


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """A stream over HTTP ends, with the code that would close a WebSocket."""

    code: int
    reason: str


Event: TypeAlias = (
    Subscribed
    | Published
    | Pong
    | Unsubscribed
    | Answer
    | Welcome
    | Authenticated
    | GrantRenewed
    | CommandDone
    | LogsAccepted
    | RequestPong
    | SubscriptionsEnded
    | TokenExpiring
    | Gap
    | Degraded
    | Restored
    | ServerLeaving
    | Failed
    | StreamOpened
    | StreamClosed
)
