"""Errors and parameters of Centrifugo's server API.  (pure)"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from gateway.core.names import MAX_NAME_LENGTH, quoted
from gateway.core.topic_rules import NAME_FORM, TopicRules, is_reserved, is_topic

Params: TypeAlias = Mapping[str, Any]
Result: TypeAlias = dict[str, Any]


class ErrorCode(enum.IntEnum):
    """Numbers of Centrifugo's errors (https://centrifugal.dev/docs/server/codes)."""

    INTERNAL = 100
    UNKNOWN_CHANNEL = 102
    PERMISSION_DENIED = 103
    METHOD_NOT_FOUND = 104
    LIMIT_EXCEEDED = 106
    BAD_REQUEST = 107
    NOT_AVAILABLE = 108
    UNRECOVERABLE_POSITION = 112


# The HTTP status in the error mode `transport`.
STATUS: Final = {
    ErrorCode.INTERNAL: 500, ErrorCode.UNKNOWN_CHANNEL: 404, ErrorCode.PERMISSION_DENIED: 403,
    ErrorCode.METHOD_NOT_FOUND: 404, ErrorCode.LIMIT_EXCEEDED: 413, ErrorCode.BAD_REQUEST: 400,
    ErrorCode.NOT_AVAILABLE: 404, ErrorCode.UNRECOVERABLE_POSITION: 416,
}  # fmt: skip


class Refused(Exception):
    """The API refuses a command."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def as_dict(self) -> Result:
        """The error as the API sends it."""
        return {"code": int(self.code), "message": self.message}


def bad_request(message: str) -> Refused:
    """The error for an invalid parameter."""
    return Refused(ErrorCode.BAD_REQUEST, message)


def channel(params: Params, rules: TopicRules) -> str:
    """The topic in the parameter `channel`.

    Raises:
        Refused: It is missing, is not a valid name, is reserved for the gateway, or no rule names its namespace.
    """
    return check_channel(params.get("channel"), rules)


def check_channel(value: Any, rules: TopicRules) -> str:
    """`value`, which must be a topic that is known and not reserved. Raises Refused otherwise."""
    if not is_topic(value):
        raise bad_request(f"channel must have {NAME_FORM}, not {quoted(value)}")
    topic: str = value
    if is_reserved(topic):
        raise Refused(ErrorCode.PERMISSION_DENIED, f"{topic} is reserved for the gateway")
    if rules.is_unknown(topic):
        raise Refused(
            ErrorCode.UNKNOWN_CHANNEL,
            f"unknown channel: no topic rule names the namespace of {topic}, and strict_namespaces demands one",
        )
    return topic


def text(params: Params, name: str) -> str:
    """The parameter `name`, a text; "" if it is missing.

    Raises:
        Refused: It is not a text, or too long.
    """
    value = params.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_NAME_LENGTH:
        raise bad_request(f"{name} must be a text of at most {MAX_NAME_LENGTH} characters, not {quoted(value)}")
    return value


def flag(params: Params, name: str) -> bool:
    """The parameter `name`, true or false; false if it is missing. Raises Refused if it is anything else."""
    value = params.get(name)
    if not isinstance(value, bool | None):
        raise bad_request(f"{name} must be true or false, not {quoted(value)}")
    return bool(value)


def number(params: Params, name: str) -> int:
    """The parameter `name`, a whole number; 0 if it is missing. Raises Refused if it is anything else."""
    value = params.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_request(f"{name} must be a whole number, not {quoted(value)}")
    return value


def refuse_unknown(params: Params, *names: str) -> None:
    """Refuse parameters that this gateway does not have, instead of ignoring them.

    Raises:
        Refused: One of `names` has a value other than Centrifugo's default.
    """
    for name in names:
        if params.get(name):
            raise Refused(ErrorCode.NOT_AVAILABLE, f"{name} is not available: leave it out")
