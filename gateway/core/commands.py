"""What a client asks of the node, as values: a protocol decodes its bytes into these.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, TypeAlias

from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.json_text import Json, RequestId
from gateway.core.position import Position
from gateway.core.publication import Publication
from gateway.core.subscription_options import PLAIN, SubscriptionOptions

MAX_HISTORY_LIMIT: Final = 1000  # messages in one answer
DEFAULT_HISTORY_LIMIT: Final = 100


@dataclass(frozen=True, slots=True)
class Auth:
    """Log in with `token`."""

    kind: ClassVar = "auth"
    token: str | None
    request_id: RequestId = None
    same_user: bool = False  # only a token of the client's user renews its session


@dataclass(frozen=True, slots=True)
class Connect:
    """Begin: log in with `token`, or go on as the handshake has found, and subscribe.

    The topics are those that the token names, and `topics`.
    """

    kind: ClassVar = "connect"
    token: str | None
    request_id: RequestId
    recover: Mapping[str, Position] = field(default_factory=dict)
    topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe to these topics. The names are valid and distinct, in the order of the message."""

    kind: ClassVar = "subscribe"
    topics: tuple[str, ...]
    request_id: RequestId
    token: str | None = None
    recover: Mapping[str, Position] = field(default_factory=dict)  # the client's position, by topic
    tokens: tuple[str, ...] = ()  # subscription tokens
    # A topic that the client has already, or one too many, is refused. A token of others disconnects the client.
    once: bool = False
    whole: bool = False  # refused if the client cannot recover all messages
    options: SubscriptionOptions = PLAIN
    join_leave: bool = False  # the client is sent each client that joins or leaves


@dataclass(frozen=True, slots=True)
class RenewGrant:
    """Replace the subscription token of a topic by a newer one."""

    kind: ClassVar = "renew"
    topic: str
    token: str
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Unsubscribe from these topics. Invalid names are left out."""

    kind: ClassVar = "unsubscribe"
    topics: tuple[str, ...]
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish a message on a topic."""

    kind: ClassVar = "publish"
    publication: Publication
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for a reply, such as a topic's history or the answer of the back end."""

    kind: ClassVar = "request"
    topic: str
    action: str
    parameters: Mapping[str, Json]
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class BackendCommand:
    """Have the back end carry out an action.

    A missing or invalid topic or action is None, because the session checks authentication first.
    """

    kind: ClassVar = "command"
    topic: str | None
    action: str | None
    data: Json
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Logs:
    """Log lines of the browser."""

    kind: ClassVar = "logs"
    entries: tuple[Mapping[str, Json], ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """The node echoes `timestamp` in its pong."""

    kind: ClassVar = "ping"
    timestamp: Json


Command: TypeAlias = (
    Auth | Connect | RenewGrant | Subscribe | Unsubscribe | Publish | Request | BackendCommand | Logs | Ping
)


def read_cost(request: Request) -> int:
    """The extra cost of a REQUEST that reads from Redis, in messages: one for each 100 entries that it asks for."""
    if request.action == "presence":
        return MAX_HISTORY_LIMIT // 100
    limit = request.parameters.get("limit", DEFAULT_HISTORY_LIMIT)
    return min(max(limit, 1), MAX_HISTORY_LIMIT) // 100 if request.action == "history" and isinstance(limit, int) else 0


def history_range(request: Request) -> dict[str, Any]:
    """The part of a topic's history that a REQUEST asks for: `limit`, `since`, `before` and `reverse` of
    `TopicQueries.read_history`.

    Raises:
        ProtocolError: A parameter is invalid.
    """
    before = request.parameters.get("before")
    limit, since = request.parameters.get("limit", DEFAULT_HISTORY_LIMIT), request.parameters.get("since")
    reverse = request.parameters.get("reverse", False)
    good = isinstance(limit, int) and not isinstance(limit, bool) and 1 <= limit <= MAX_HISTORY_LIMIT
    if not good or not isinstance(reverse, bool):
        raise ProtocolError(
            ErrorReason.DATA_REFUSED,
            f"limit must be a whole number from 1 to {MAX_HISTORY_LIMIT}, reverse true or false",
            request.request_id,
        )
    for name, offset in (("since", since), ("before", before)):
        if offset is not None and (not isinstance(offset, int) or isinstance(offset, bool) or offset < 0):
            raise ProtocolError(ErrorReason.DATA_REFUSED, f"{name} must be an offset", request.request_id)
    return {"limit": limit, "since": since, "before": before, "reverse": reverse}
