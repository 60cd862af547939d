"""The codes of errors, closes and ended subscriptions, as Centrifugo's clients know them.  (pure)"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from gateway.core.errors import CloseReason, ErrorReason, ProtocolError, UnsubscribeReason
from gateway.protocols.native.codes import CLOSE_CODES as NATIVE_CLOSE_CODES


class ErrorCode(enum.IntEnum):
    """Codes of error replies. A client may retry after those in `TEMPORARY`."""

    INTERNAL = 100
    UNKNOWN_CHANNEL = 102
    PERMISSION_DENIED = 103
    METHOD_NOT_FOUND = 104
    ALREADY_SUBSCRIBED = 105
    LIMIT_EXCEEDED = 106
    BAD_REQUEST = 107
    NOT_AVAILABLE = 108
    TOKEN_EXPIRED = 109
    TOO_MANY_REQUESTS = 111
    UNRECOVERABLE_POSITION = 112


TEMPORARY: Final = frozenset({ErrorCode.INTERNAL, ErrorCode.TOO_MANY_REQUESTS})

ERROR_CODES: Final[Mapping[ErrorReason, ErrorCode]] = {
    ErrorReason.NOT_JSON: ErrorCode.BAD_REQUEST,
    ErrorReason.NO_TYPE: ErrorCode.BAD_REQUEST,
    ErrorReason.UNKNOWN_TYPE: ErrorCode.BAD_REQUEST,
    ErrorReason.SUBSCRIBE_WITHOUT_TOPICS: ErrorCode.BAD_REQUEST,
    ErrorReason.NO_VALID_TOPIC: ErrorCode.BAD_REQUEST,
    ErrorReason.UNSUBSCRIBE_WITHOUT_TOPICS: ErrorCode.BAD_REQUEST,
    ErrorReason.MISSING_PARAMETER: ErrorCode.BAD_REQUEST,
    ErrorReason.UNKNOWN_TOPIC: ErrorCode.NOT_AVAILABLE,  # a request that the topic does not answer
    ErrorReason.UNKNOWN_NAMESPACE: ErrorCode.UNKNOWN_CHANNEL,
    ErrorReason.UNKNOWN_ACTION: ErrorCode.METHOD_NOT_FOUND,
    ErrorReason.AUTHENTICATION_NEEDED: ErrorCode.PERMISSION_DENIED,
    ErrorReason.BAD_TOKEN_IN_SUBSCRIBE: ErrorCode.PERMISSION_DENIED,
    ErrorReason.ROLE_NEEDED: ErrorCode.PERMISSION_DENIED,
    ErrorReason.COMMAND_WITHOUT_AUTHENTICATION: ErrorCode.PERMISSION_DENIED,
    ErrorReason.COMMAND_WITHOUT_TOPIC_OR_ACTION: ErrorCode.BAD_REQUEST,
    ErrorReason.BAD_LOGS: ErrorCode.BAD_REQUEST,
    ErrorReason.DATA_REFUSED: ErrorCode.BAD_REQUEST,
    ErrorReason.TOO_MANY_REQUESTS: ErrorCode.TOO_MANY_REQUESTS,
    ErrorReason.TOKEN: ErrorCode.PERMISSION_DENIED,  # the client is disconnected, unless the token has expired
    ErrorReason.NOT_ALLOWED: ErrorCode.PERMISSION_DENIED,
    ErrorReason.INTERNAL: ErrorCode.INTERNAL,
    ErrorReason.NOT_IMPLEMENTED: ErrorCode.NOT_AVAILABLE,
    ErrorReason.UNAVAILABLE: ErrorCode.INTERNAL,
    ErrorReason.ALREADY_SUBSCRIBED: ErrorCode.ALREADY_SUBSCRIBED,
    ErrorReason.TOO_MANY_TOPICS: ErrorCode.LIMIT_EXCEEDED,
    ErrorReason.UNRECOVERABLE: ErrorCode.UNRECOVERABLE_POSITION,
}

# The native codes follow Centrifugo's: 3000-3499 the client reconnects, 3500-3999 it does not.
CLOSE_CODES: Final[Mapping[CloseReason, int]] = {**NATIVE_CLOSE_CODES, CloseReason.NO_CONNECT: 3502}

# 2500 and 2501: the client subscribes again. 2000: it does not.
UNSUBSCRIBE_CODES: Final[Mapping[UnsubscribeReason, int]] = {
    UnsubscribeReason.SERVER: 2000,
    UnsubscribeReason.GAP: 2500,
    UnsubscribeReason.TOKEN_EXPIRED: 2501,
}


def error_code(error: ProtocolError) -> ErrorCode:
    """The code of the reply to a command that is refused with `error`."""
    return ErrorCode.TOKEN_EXPIRED if error.detail == "token_expired" else ERROR_CODES[error.reason]
