"""The shared parts of the wire protocol: error codes, close codes, JSON, names and times.  (pure)

docs/protocol.md is the public description. `messages` has the client's messages, `replies` those of the node.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, TypeAlias

import orjson

from gateway.core import numbers

Json: TypeAlias = Any  # what orjson can read and write
RequestId: TypeAlias = str | int | None

MAX_NAME_LENGTH: Final = 200  # characters of an action, a subtype, a request id, a user or a client id
MAX_NESTING: Final = 254  # levels of a JSON value, the most that orjson writes


class Code(enum.IntEnum):
    """Codes of ERROR messages. The socket stays open."""

    NOT_JSON = 4000
    NO_TYPE = 4001
    UNKNOWN_TYPE = 4002
    SUBSCRIBE_WITHOUT_TOPICS = 4003
    NO_VALID_TOPIC = 4004
    UNSUBSCRIBE_WITHOUT_TOPICS = 4005
    MISSING_PARAMETER = 4006
    UNKNOWN_TOPIC = 4007
    UNKNOWN_ACTION = 4009
    AUTHENTICATION_NEEDED = 4010
    BAD_TOKEN_IN_SUBSCRIBE = 4011
    ROLE_NEEDED = 4012
    COMMAND_WITHOUT_AUTHENTICATION = 4013
    COMMAND_WITHOUT_TOPIC_OR_ACTION = 4014
    BAD_LOGS = 4015
    DATA_REFUSED = 4016
    TOO_MANY_REQUESTS = 4029
    TOKEN = 4401
    NOT_ALLOWED = 4403
    INTERNAL = 5000
    NOT_IMPLEMENTED = 5001
    UNAVAILABLE = 5030


# Only these codes may carry `requestId`. For any other code with one, the front end resends a failed SUBSCRIBE at once
# and endlessly: about 8,000 frames a second from one tab.
_WITH_REQUEST_ID: Final = frozenset({Code.NO_VALID_TOPIC, Code.AUTHENTICATION_NEEDED, Code.ROLE_NEEDED})
_TEMPORARY: Final = frozenset({Code.TOO_MANY_REQUESTS, Code.INTERNAL, Code.UNAVAILABLE})


class Close(enum.IntEnum):
    """Close codes. 3000-3499: the client should reconnect. 3500-3999: it should not. Others: as in RFC 6455."""

    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NOT_UTF8 = 1007
    TOO_LARGE = 1009
    RESTART = 1012
    SHUTDOWN = 3001
    INTERNAL = 3004
    TOKEN_EXPIRED = 3005
    SLOW_CONSUMER = 3008
    MOVE = 3011
    NO_PONG = 3012
    TOO_MANY_REQUESTS = 3013
    BAD_TOKEN = 3500
    BAD_USE = 3501
    DISCONNECTED = 3503
    TOO_MANY_CONNECTIONS = 3504
    TOO_MANY_TOPICS = 3505


class ProtocolError(Exception):
    """The node refuses a client's message. `encode` returns the ERROR message for the client."""

    def __init__(self, code: Code, message: str, request_id: RequestId = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id
        self.reason = reason

    def encode(self, timestamp: str) -> bytes:
        """The ERROR message with `timestamp` (ISO 8601)."""
        error: dict[str, Json] = {
            "type": "ERROR", "code": int(self.code), "error": self.message, "message": self.message,
            "timestamp": timestamp,
        }  # fmt: skip
        if self.reason is not None:
            error["reason"] = self.reason
        if self.code in _TEMPORARY:
            error["temporary"] = True
        if self.request_id is not None:
            # Our own clients match the error to their PUBLISH or REQUEST by `inReplyTo`. The front end ignores it,
            # so it does not resend.
            error["requestId" if self.code in _WITH_REQUEST_ID else "inReplyTo"] = self.request_id
        return orjson.dumps(error)


def loads(text: bytes, beneath: int = 0) -> Json:
    """Parse `text` as JSON. orjson can write the returned value again, even inside `beneath` levels of other values.

    Raises:
        numbers.NumberError: `text` holds an integer beyond 64 bits, or a number beyond the range of floats.
        ValueError: `text` is not JSON, or with `beneath` more levels it is nested deeper than `MAX_NESTING`.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "infinity" in error.msg:
            raise numbers.InfiniteError from None
        raise
    # orjson reads four times as deep as it writes. A text with few brackets cannot be deep, so most texts skip this.
    if text.count(b"[") + text.count(b"{") > MAX_NESTING - beneath:
        wrapped = value
        for _ in range(beneath):
            wrapped = [wrapped]
        try:
            orjson.dumps(wrapped)
        except TypeError:
            raise ValueError(f"nested deeper than {MAX_NESTING - beneath}") from None
    numbers.check(text)
    return value


def dumps(value: Json) -> bytes:
    """Encode a Python value as JSON.

    Raises:
        ValueError: JSON cannot hold the value unchanged. It has an integer beyond 64 bits, NaN, an infinity, a lone
            surrogate, a key that is not a string, an object of another type, or more than `MAX_NESTING` levels.
    """
    try:
        text = orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"the value cannot be written as JSON: {error}") from None
    # orjson writes NaN and infinities as null.
    if b"null" in text and _has_nan_or_infinity(value):
        raise ValueError(
            "the value cannot be written as JSON: NaN and infinities are no JSON numbers; send null or text"
        )
    return text


def _has_nan_or_infinity(value: Json) -> bool:
    """Whether `value`, which orjson can write, contains NaN or an infinity."""
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(map(_has_nan_or_infinity, value.values()))
        case list() | tuple():
            return any(map(_has_nan_or_infinity, value))
        case enum.Enum():
            return _has_nan_or_infinity(value.value)
    if dataclasses.is_dataclass(value):
        return any(_has_nan_or_infinity(getattr(value, each.name)) for each in dataclasses.fields(value))
    return False


def is_name(value: Json) -> bool:
    """Whether `value` is a string that may be a name (of an action, a subtype, a user, …)."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH


def shown(value: Json) -> str:
    """`value` as text for an error message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def iso(milliseconds: int) -> str:
    """Format a time (ms since 1970, UTC) as ISO 8601 with milliseconds: ``2026-01-31T12:00:00.000Z``."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_iso_seconds(seconds)}.{rest:03}Z"


@lru_cache(maxsize=16)  # thousands of messages are sent in the same second
def _iso_seconds(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat().removesuffix("+00:00")
