"""The messages that a client sends, and their decoder.  (pure)

Each text frame holds one JSON object. `decode` returns a `ClientMessage` or raises a `ProtocolError`, for any text.
docs/protocol.md is the public description. `replies` has the messages that the node sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson

from gateway.core import topics
from gateway.core.numbers import NumberError
from gateway.core.position import Position
from gateway.core.protocol import MAX_NAME_LENGTH, Code, Json, ProtocolError, RequestId, is_name, loads, shown
from gateway.core.publication import Publication

MAX_TOKENS: Final = 20  # subscription tokens in one SUBSCRIBE
MAX_HISTORY_LIMIT: Final = 1000  # messages in one answer
DEFAULT_HISTORY_LIMIT: Final = 100


@dataclass(frozen=True, slots=True)
class Auth:
    """AUTH: log in with `token`."""

    token: str | None


@dataclass(frozen=True, slots=True)
class Subscribe:
    """SUBSCRIBE: subscribe to these topics. The names are valid and distinct, in the order of the message."""

    topics: tuple[str, ...]
    request_id: RequestId
    token: str | None = None
    recover: Mapping[str, Position] = field(default_factory=dict)  # the client's position, by topic
    tokens: tuple[str, ...] = ()  # subscription tokens


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """UNSUBSCRIBE: unsubscribe from these topics. Invalid names are left out."""

    topics: tuple[str, ...]
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Publish:
    """PUBLISH: publish a message on a topic."""

    publication: Publication
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Request:
    """REQUEST: ask for a reply, such as a topic's history or the answer of the back end."""

    topic: str
    action: str
    parameters: Mapping[str, Json]
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Command:
    """COMMAND: have the back end carry out an action.

    A missing or invalid topic or action is None, because the session checks authentication first.
    """

    topic: str | None
    action: str | None
    data: Json
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Logs:
    """LOGS: log lines of the browser."""

    entries: tuple[Mapping[str, Json], ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """ping: the node echoes `timestamp` in its pong."""

    timestamp: Json


ClientMessage: TypeAlias = Auth | Subscribe | Unsubscribe | Publish | Request | Command | Logs | Ping


def decode(text: bytes) -> ClientMessage:
    """Decode `text`, the payload of one frame in UTF-8.

    Raises:
        ProtocolError: The message is not valid. The error names the reason.
    """
    try:
        message = loads(text)
    except NumberError as error:
        raise ProtocolError(Code.DATA_REFUSED, f"Message refused: {error}", _request_id_in(text)) from None
    except ValueError:
        raise ProtocolError(Code.NOT_JSON, "Message is not valid JSON, or nested too deeply") from None
    if not isinstance(message, dict) or "type" not in message:
        raise ProtocolError(Code.NO_TYPE, "Message must be a JSON object with a type")
    kind = message["type"]
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ProtocolError(Code.UNKNOWN_TYPE, f"Unknown message type {shown(kind)}")
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
            f"No valid topic: a name has {topics.NAME_FORM}",
            request_id,
        )
    token = message.get("authToken")
    token = token if isinstance(token, str) and token else None
    return Subscribe(known, request_id, token, _recover(message.get("recover"), known), _tokens(message, request_id))


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


def _recover(given: Json, known: tuple[str, ...]) -> dict[str, Position]:
    """The client's positions, by topic.

    An invalid position becomes one that no topic can recover from, so that the client receives `recovered: false`.
    """
    if not isinstance(given, dict):
        return {}
    positions = {}
    for topic in known:
        if topic not in given:
            continue
        match given[topic]:
            case {"epoch": str(epoch), "offset": int(offset), **rest} if not isinstance(offset, bool) and offset >= 0:
                positions[topic] = Position(epoch, offset, _mark(rest.get("mark")))
            case _:
                positions[topic] = Position("", 0)
    return positions


def _mark(mark: object) -> int | None:
    """The mark of a position. An invalid mark becomes -1, which equals no real mark."""
    if mark is None:
        return None
    return mark if isinstance(mark, int) and not isinstance(mark, bool) and mark >= 0 else -1


def _unsubscribe(message: dict[str, Json]) -> Unsubscribe:
    names, request_id = message.get("topics"), _request_id(message)
    if not isinstance(names, list) or not names:
        raise ProtocolError(Code.UNSUBSCRIBE_WITHOUT_TOPICS, "UNSUBSCRIBE needs topics, a list of names", request_id)
    return Unsubscribe(_valid_topics(names), request_id)


def _publish(message: dict[str, Json]) -> Publish:
    request_id = _request_id(message)
    return Publish(Publication.of_client(message, request_id), request_id)


def _request(message: dict[str, Json]) -> Request:
    request_id = _request_id(message)
    topic, action = message.get("topic"), _name(message, "action")
    if not isinstance(topic, str) or not topic or action is None:
        raise ProtocolError(Code.MISSING_PARAMETER, "REQUEST needs a topic and an action", request_id)
    if not topics.is_topic(topic):
        raise ProtocolError(
            Code.UNKNOWN_TOPIC, f"{shown(topic)} is not a topic: a name has {topics.NAME_FORM}", request_id
        )
    # Parameters stand under "data" or at the top level. Those under "data" take precedence.
    parameters = {k: v for k, v in message.items() if k not in ("type", "topic", "action", "requestId", "data")}
    if isinstance(message.get("data"), dict):
        parameters |= message["data"]
    return Request(topic, action, parameters, request_id)


def _command(message: dict[str, Json]) -> Command:
    topic = message.get("topic")
    return Command(
        topic if topics.is_topic(topic) else None, _name(message, "action"), message.get("data"), _request_id(message)
    )


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


def read_price(request: Request) -> int:
    """The extra cost of a REQUEST that reads from Redis, in messages: one for each 100 entries that it asks for."""
    if request.action == "presence":
        return MAX_HISTORY_LIMIT // 100
    limit = request.parameters.get("limit", DEFAULT_HISTORY_LIMIT)
    return min(max(limit, 1), MAX_HISTORY_LIMIT) // 100 if request.action == "history" and isinstance(limit, int) else 0


def history_range(request: Request) -> dict[str, Any]:
    """The part of a topic's history that a REQUEST asks for: `limit`, `since` and `reverse` of `Relay.read_history`.

    Raises:
        ProtocolError: A parameter is invalid.
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


def _request_id(message: dict[str, Json]) -> RequestId:
    value = message.get("requestId")
    if value is None or (isinstance(value, str) and len(value) <= MAX_NAME_LENGTH):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ProtocolError(
        Code.DATA_REFUSED, f"requestId must be a string of at most {MAX_NAME_LENGTH} characters or an integer"
    )


def _request_id_in(text: bytes) -> RequestId:
    """The request id of a message with invalid numbers; None if it has no readable one."""
    try:
        message = orjson.loads(text)
        return _request_id(message) if isinstance(message, dict) else None
    except (ValueError, ProtocolError):
        return None


def _valid_topics(names: list[Json]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if topics.is_topic(name)))


def _name(message: dict[str, Json], key: str) -> str | None:
    value = message.get(key)
    return value if is_name(value) else None
