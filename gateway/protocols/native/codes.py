"""The codes of errors and closes.  (pure)"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from gateway.core.errors import CloseReason, ErrorReason


class ErrorCode(enum.IntEnum):
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


class CloseCode(enum.IntEnum):
    """Close codes. 3000-3499: the client should reconnect. 3500-3999: it should not. Others: as in RFC 6455."""

    NOT_UTF8 = 1007
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


# A native client causes none of the other reasons without a code of their own.
ERROR_CODES: Final[Mapping[ErrorReason, ErrorCode]] = {
    **{reason: ErrorCode.__members__.get(reason.name, ErrorCode.DATA_REFUSED) for reason in ErrorReason},
    ErrorReason.UNKNOWN_NAMESPACE: ErrorCode.UNKNOWN_TOPIC,
}
CLOSE_CODES: Final[Mapping[CloseReason, CloseCode]] = {CloseReason[code.name]: code for code in CloseCode}

# Only these codes may carry `requestId`. For any other code with one, the front end resends a failed SUBSCRIBE at once
# and endlessly: about 8,000 frames a second from one tab.
WITH_REQUEST_ID: Final = frozenset({ErrorCode.NO_VALID_TOPIC, ErrorCode.AUTHENTICATION_NEEDED, ErrorCode.ROLE_NEEDED})
TEMPORARY: Final = frozenset({ErrorCode.TOO_MANY_REQUESTS, ErrorCode.INTERNAL, ErrorCode.UNAVAILABLE})
