"""Why the node refuses a command or closes a connection. Each protocol has its own codes for these reasons.  (pure)"""

from __future__ import annotations

import enum

from gateway.core.json_text import RequestId


class ErrorReason(enum.Enum):
    """Why a command is refused. The connection stays open."""

    NOT_JSON = enum.auto()
    NO_TYPE = enum.auto()
    UNKNOWN_TYPE = enum.auto()
    SUBSCRIBE_WITHOUT_TOPICS = enum.auto()
    NO_VALID_TOPIC = enum.auto()
    UNSUBSCRIBE_WITHOUT_TOPICS = enum.auto()
    MISSING_PARAMETER = enum.auto()
    UNKNOWN_TOPIC = enum.auto()
    UNKNOWN_NAMESPACE = enum.auto()
    UNKNOWN_ACTION = enum.auto()
    AUTHENTICATION_NEEDED = enum.auto()
    BAD_TOKEN_IN_SUBSCRIBE = enum.auto()
    ROLE_NEEDED = enum.auto()
    COMMAND_WITHOUT_AUTHENTICATION = enum.auto()
    COMMAND_WITHOUT_TOPIC_OR_ACTION = enum.auto()
    BAD_LOGS = enum.auto()
    DATA_REFUSED = enum.auto()
    TOO_MANY_REQUESTS = enum.auto()
    TOKEN = enum.auto()
    NOT_ALLOWED = enum.auto()
    INTERNAL = enum.auto()
    NOT_IMPLEMENTED = enum.auto()
    UNAVAILABLE = enum.auto()
    ALREADY_SUBSCRIBED = enum.auto()
    TOO_MANY_TOPICS = enum.auto()
    UNRECOVERABLE = enum.auto()


class CloseReason(enum.Enum):
    """Why the node closes a connection."""

    RESTART = enum.auto()
    SHUTDOWN = enum.auto()
    INTERNAL = enum.auto()
    TOKEN_EXPIRED = enum.auto()
    NOT_UTF8 = enum.auto()
    SLOW_CONSUMER = enum.auto()
    MOVE = enum.auto()
    NO_PONG = enum.auto()
    NO_CONNECT = enum.auto()
    TOO_MANY_REQUESTS = enum.auto()
    BAD_TOKEN = enum.auto()
    BAD_USE = enum.auto()
    DISCONNECTED = enum.auto()
    TOO_MANY_CONNECTIONS = enum.auto()
    TOO_MANY_TOPICS = enum.auto()


class UnsubscribeReason(enum.Enum):
    """Why the node unsubscribes a client."""

    SERVER = enum.auto()  # by an order, or because it is not allowed any more
    TOKEN_EXPIRED = enum.auto()
    GAP = enum.auto()  # messages are lost, and the client's protocol has no other way to say so


class ProtocolError(Exception):
    """The node refuses a command.

    Args:
        reason: Why.
        message: The reason as text, for people.
        request_id: The id that the client gave to the command.
        detail: What is wrong with a token, or whether the command may have had an effect: for programs.
    """

    def __init__(
        self, reason: ErrorReason, message: str, request_id: RequestId = None, detail: str | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.request_id = request_id
        self.detail = detail


class ProtocolViolation(Exception):
    """The client breaks the rules of its protocol, or is not welcome, and the node closes the connection.

    Args:
        reason: Why.
        message: The reason as text, for people.
    """

    def __init__(self, reason: CloseReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
