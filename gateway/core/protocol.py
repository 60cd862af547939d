"""The wire: what a client may send, error codes and close codes.  (pure)

One JSON object a text frame; `decode` turns any text at all into a `ClientMessage` or a `ProtocolError`
and nothing else. docs/protocol.md is the public description; `replies` has the other direction.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from gateway.core import topics

Json: TypeAlias = Any  # what orjson can read and write
RequestId: TypeAlias = str | int | None

MAX_NAME_LENGTH: Final = 200  # characters of an action, a subtype, a request id, a user or a client id
MAX_TOKENS: Final = 20  # subscription tokens in one SUBSCRIBE
MAX_HISTORY_LIMIT: Final = 1000  # messages in one answer
DEFAULT_HISTORY_LIMIT: Final = 100
MAX_NESTING: Final = 254  # levels of a JSON value: as deep as orjson writes

_IDEMPOTENCY_KEY: Final = re.compile(r"[A-Za-z0-9_.:\-]+")
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9_.\-]+")  # it stands in a header line on the bus


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


# Only these may carry `requestId`: upon any other code the front end resends a failed SUBSCRIBE at once
# and without end, about 8,000 frames a second from one tab.
_WITH_REQUEST_ID: Final = frozenset({Code.NO_VALID_TOPIC, Code.AUTHENTICATION_NEEDED, Code.ROLE_NEEDED})
_TEMPORARY: Final = frozenset({Code.TOO_MANY_REQUESTS, Code.INTERNAL, Code.UNAVAILABLE})


class Close(enum.IntEnum):
    """Close codes. 3000-3499: come back; 3500-3999: do not; the rest as RFC 6455 has them."""

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
    """A message that cannot be carried out; `encode` gives the ERROR that says so."""

    def __init__(self, code: Code, message: str, request_id: RequestId = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id
        self.reason = reason

    def encode(self, timestamp: str) -> bytes:
        """The ERROR message, at `timestamp` (ISO 8601)."""
        error: dict[str, Json] = {
            "type": "ERROR", "code": int(self.code), "error": self.message, "message": self.message,
            "timestamp": timestamp,
        }  # fmt: skip
        if self.reason is not None:
            error["reason"] = self.reason
        if self.code in _TEMPORARY:
            error["temporary"] = True
        if self.request_id is not None:
            # `inReplyTo` is ours: it lets a caller of PUBLISH or REQUEST match the error to the call
            # without waking the front end's resend.
            error["requestId" if self.code in _WITH_REQUEST_ID else "inReplyTo"] = self.request_id
        return orjson.dumps(error)


# ---- what a client may send ----------------------------------------------------------------------


class Position(NamedTuple):
    """A place in a topic with history: the last message that was had."""

    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class Auth:
    """Who I am."""

    token: str | None


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Send me these topics: valid names, each once, in the order given."""

    topics: tuple[str, ...]
    request_id: RequestId
    token: str | None = None
    recover: Mapping[str, Position] = field(default_factory=dict)  # where the client was, by topic
    tokens: tuple[str, ...] = ()  # subscription tokens


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Send me these no more; names that are no topics are kept out."""

    topics: tuple[str, ...]
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Publication:
    """Something to say on a topic. `to` and `except_client` come only over the HTTP API."""

    topic: str
    data: Json
    extras: Mapping[str, Json] = field(default_factory=dict)  # action, subtype, priority
    to: tuple[str, str] | None = None  # ("user" | "role" | "client", who)
    except_client: str | None = None
    key: str | None = None  # idempotency key: the same again within five minutes is the same message


@dataclass(frozen=True, slots=True)
class Publish:
    """Say this to all who hear the topic."""

    publication: Publication
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Request:
    """Answer me this."""

    topic: str
    action: str
    parameters: Mapping[str, Json]
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Command:
    """Do this for me. Topic and action may be missing: who is not authenticated is told that first."""

    topic: str | None
    action: str | None
    data: Json
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Logs:
    """What went wrong in the browser."""

    entries: tuple[Mapping[str, Json], ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? `timestamp` is echoed."""

    timestamp: Json


ClientMessage: TypeAlias = Auth | Subscribe | Unsubscribe | Publish | Request | Command | Logs | Ping


def loads(text: bytes, beneath: int = 0) -> Json:
    """The value that `text` is; it can be written again, also `beneath` so many levels of others.

    Raises:
        ValueError: It is not JSON, or nested deeper than `MAX_NESTING` with these.
    """
    value = orjson.loads(text)
    # orjson reads four times as deep as it writes. Nothing is deeper than it has brackets, so few messages are tried.
    if text.count(b"[") + text.count(b"{") > MAX_NESTING - beneath:
        wrapped = value
        for _ in range(beneath):
            wrapped = [wrapped]
        try:
            orjson.dumps(wrapped)
        except TypeError:
            raise ValueError(f"nested deeper than {MAX_NESTING - beneath}") from None
    return value


def decode(text: bytes) -> ClientMessage:
    """The message that `text` (the payload of one frame, UTF-8) is.

    Raises:
        ProtocolError: It is none; the error says why.
    """
    try:
        message = loads(text)
    except ValueError:
        raise ProtocolError(Code.NOT_JSON, "Message is not valid JSON, or nested too deeply") from None
    if not isinstance(message, dict) or "type" not in message:
        raise ProtocolError(Code.NO_TYPE, "Message must be a JSON object with a type")
    kind = message["type"]
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ProtocolError(Code.UNKNOWN_TYPE, f"Unknown message type {_shown(kind)}")
    return reader(message)


def _auth(message: dict[str, Json]) -> Auth:
    token = message.get("authToken")
    return Auth(token if isinstance(token, str) and token else None)


def _subscribe(message: dict[str, Json]) -> Subscribe:
    names, request_id = message.get("topics"), _request_id(message)
    if not isinstance(names, list) or not names:
        raise ProtocolError(Code.SUBSCRIBE_WITHOUT_TOPICS, "SUBSCRIBE needs topics, a list of names", request_id)
    known = _valid_topics(names)
    if not known:
        raise ProtocolError(
            Code.NO_VALID_TOPIC,
            f"No valid topic: a name has 1 to {topics.MAX_TOPIC_LENGTH} of A-Z a-z 0-9 _ : . - /",
            request_id,
        )
    token = message.get("authToken")
    token = token if isinstance(token, str) and token else None
    return Subscribe(known, request_id, token, _recover(message.get("recover")), _tokens(message, request_id))


def _tokens(message: dict[str, Json], request_id: RequestId) -> tuple[str, ...]:
    given = message.get("tokens") or []
    good = isinstance(given, list) and len(given) <= MAX_TOKENS and all(isinstance(one, str) for one in given)
    if not good:
        raise ProtocolError(
            Code.BAD_TOKEN_IN_SUBSCRIBE,
            f"tokens must be a list of at most {MAX_TOKENS} subscription tokens",
            request_id,
            "token_invalid",
        )
    return tuple(given)


def _recover(asked: Json) -> dict[str, Position]:
    """Where the client says it was. What cannot be a place is one that cannot be recovered from, and told as such."""
    if not isinstance(asked, dict):
        return {}
    places = {}
    for topic, place in asked.items():
        match place:
            case {"epoch": str(epoch), "offset": int(offset)} if not isinstance(offset, bool) and offset >= 0:
                places[topic] = Position(epoch, offset)
            case _:
                places[topic] = Position("", 0)
    return places


def _unsubscribe(message: dict[str, Json]) -> Unsubscribe:
    names, request_id = message.get("topics"), _request_id(message)
    if not isinstance(names, list) or not names:
        raise ProtocolError(Code.UNSUBSCRIBE_WITHOUT_TOPICS, "UNSUBSCRIBE needs topics, a list of names", request_id)
    return Unsubscribe(_valid_topics(names), request_id)


def _publish(message: dict[str, Json]) -> Publish:
    request_id = _request_id(message)
    topic, data, extras = _said(message, request_id)
    return Publish(Publication(topic, data, extras), request_id)


def _request(message: dict[str, Json]) -> Request:
    request_id = _request_id(message)
    topic, action = _name(message, "topic"), _name(message, "action")
    if topic is None or action is None:
        raise ProtocolError(Code.MISSING_PARAMETER, "REQUEST needs a topic and an action", request_id)
    # Parameters stand under "data" or at the top level; under "data" they win.
    parameters = {k: v for k, v in message.items() if k not in ("type", "topic", "action", "requestId", "data")}
    if isinstance(message.get("data"), dict):
        parameters |= message["data"]
    return Request(topic, action, parameters, request_id)


def _command(message: dict[str, Json]) -> Command:
    return Command(_name(message, "topic"), _name(message, "action"), message.get("data"), _request_id(message))


def _logs(message: dict[str, Json]) -> Logs:
    entries = message.get("logs")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ProtocolError(Code.BAD_LOGS, "LOGS needs logs, a list of objects")
    return Logs(tuple(entries))


def _ping(message: dict[str, Json]) -> Ping:
    return Ping(message.get("timestamp"))


_READERS: Final[dict[str, Callable[[dict[str, Json]], ClientMessage]]] = {
    "AUTH": _auth, "SUBSCRIBE": _subscribe, "UNSUBSCRIBE": _unsubscribe, "PUBLISH": _publish,
    "REQUEST": _request, "COMMAND": _command, "LOGS": _logs, "ping": _ping,
}  # fmt: skip


def publication(item: Json) -> Publication:
    """What one item of ``POST /api/publish`` says.

    Raises:
        ProtocolError: A field is missing or of the wrong form.
    """
    if not isinstance(item, dict):
        raise ProtocolError(Code.DATA_REFUSED, "a message must be an object with topic and data")
    unknown = item.keys() - {"topic", "data", "action", "subtype", "priority", "to", "except", "idempotencyKey"}
    if unknown:
        raise ProtocolError(Code.DATA_REFUSED, f"unknown field {_shown(min(unknown))}")
    topic, data, extras = _said(item, None)
    to, target = item.get("to"), None
    if to is not None:
        if not isinstance(to, dict) or len(to) != 1:
            raise ProtocolError(Code.DATA_REFUSED, 'to must be one of {"user":…}, {"role":…}, {"client":…}')
        kind, who = next(iter(to.items()))
        good = _is_client_id(who) if kind == "client" else _is_name(who)
        if kind not in ("user", "role", "client") or not good:
            raise ProtocolError(Code.DATA_REFUSED, 'to must be one of {"user":…}, {"role":…}, {"client":…}')
        target = kind, who
    except_client = item.get("except")
    if except_client is not None and (target is not None or not _is_client_id(except_client)):
        raise ProtocolError(Code.DATA_REFUSED, "except must be a client id, and stands without to")
    key = item.get("idempotencyKey")
    if key is not None and not (_is_name(key) and _IDEMPOTENCY_KEY.fullmatch(key)):
        raise ProtocolError(Code.DATA_REFUSED, "idempotencyKey must be 1 to 200 of A-Z a-z 0-9 _ . : -")
    return Publication(topic, data, extras, target, except_client, key)


def history_range(request: Request) -> dict[str, Any]:
    """What part of a topic's history a REQUEST wants: `limit`, `since`, `reverse` for `Relay.read_history`.

    Raises:
        ProtocolError: A parameter is of the wrong form.
    """
    limit, since = request.parameters.get("limit", DEFAULT_HISTORY_LIMIT), request.parameters.get("since")
    reverse = request.parameters.get("reverse", False)
    good = isinstance(limit, int) and not isinstance(limit, bool) and 1 <= limit <= MAX_HISTORY_LIMIT
    if not good or not isinstance(reverse, bool):
        raise ProtocolError(
            Code.DATA_REFUSED,
            f"limit must be a whole number from 1 to {MAX_HISTORY_LIMIT}, reverse true or false",
            request.request_id,
        )
    if since is not None and (not isinstance(since, int) or isinstance(since, bool) or since < 0):
        raise ProtocolError(Code.DATA_REFUSED, "since must be an offset", request.request_id)
    return {"limit": limit, "since": since, "reverse": reverse}


def _said(message: dict[str, Json], request_id: RequestId) -> tuple[str, Json, dict[str, Json]]:
    if "topic" not in message or "data" not in message:
        raise ProtocolError(Code.MISSING_PARAMETER, "a publication needs a topic and data", request_id)
    topic = message["topic"]
    if not topics.is_topic(topic):
        raise ProtocolError(
            Code.NO_VALID_TOPIC,
            f"topic must be 1 to {topics.MAX_TOPIC_LENGTH} of A-Z a-z 0-9 _ : . - /, not {_shown(topic)}",
            request_id,
        )
    extras: dict[str, Json] = {}
    for name in ("action", "subtype", "priority"):
        value = message.get(name)
        if value is None:
            continue
        number = name == "priority" and isinstance(value, int | float) and not isinstance(value, bool)
        if not _is_name(value) and not number:
            also = " or a number" if name == "priority" else ""
            raise ProtocolError(
                Code.DATA_REFUSED, f"{name} must be a string of 1 to {MAX_NAME_LENGTH} characters{also}", request_id
            )
        extras[name] = value
    return topic, message["data"], extras


def _request_id(message: dict[str, Json]) -> RequestId:
    value = message.get("requestId")
    if value is None or (isinstance(value, str) and len(value) <= MAX_NAME_LENGTH):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ProtocolError(
        Code.DATA_REFUSED, f"requestId must be a string of at most {MAX_NAME_LENGTH} characters or an integer"
    )


def _valid_topics(names: list[Json]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if topics.is_topic(name)))


def _name(message: dict[str, Json], key: str) -> str | None:
    value = message.get(key)
    return value if _is_name(value) else None


def _is_name(value: Json) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH


def _is_client_id(value: Json) -> bool:
    return _is_name(value) and _CLIENT_ID.fullmatch(value) is not None


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def iso(milliseconds: int) -> str:
    """A time (ms since 1970, UTC) as ISO 8601 with milliseconds: ``2026-01-31T12:00:00.000Z``."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_iso_seconds(seconds)}.{rest:03}Z"


@lru_cache(maxsize=16)  # thousands of messages are sent in the same second
def _iso_seconds(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat().removesuffix("+00:00")
