"""The JSON texts of clients, decoded into commands. docs/reference/protocol.md is the public description.  (pure)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import orjson

from gateway.core import subscription_options, topic_rules
from gateway.core.commands import Auth, BackendCommand, Command, Logs, Ping, Publish, Request, Subscribe, Unsubscribe
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.json_numbers import NumberError
from gateway.core.json_text import Json, RequestId, loads
from gateway.core.names import MAX_NAME_LENGTH, is_name, quoted
from gateway.core.position import Position
from gateway.core.publication import Publication, common_fields
from gateway.core.subscription_options import DELTA_FORMAT, PLAIN, SubscriptionOptions

MAX_TOKENS: Final = 20  # subscription tokens in one SUBSCRIBE


def decode(text: bytes) -> Command:
    """Decode `text`, the payload of one frame in UTF-8.

    Raises:
        ProtocolError: The message is not valid. The error names the reason.
    """
    try:
        message = loads(text)
    except NumberError as error:
        raise ProtocolError(ErrorReason.DATA_REFUSED, f"Message refused: {error}", _request_id_in(text)) from None
    except ValueError:
        raise ProtocolError(ErrorReason.NOT_JSON, "Message is not valid JSON, or nested too deeply") from None
    if not isinstance(message, dict) or "type" not in message:
        raise ProtocolError(ErrorReason.NO_TYPE, "Message must be a JSON object with a type")
    kind = message["type"]
    reader = _DECODERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ProtocolError(ErrorReason.UNKNOWN_TYPE, f"Unknown message type {quoted(kind)}")
    return reader(message)


def _auth(message: dict[str, Json]) -> Auth:
    token = message.get("authToken")
    return Auth(token if isinstance(token, str) and token else None)


def _subscribe(message: dict[str, Json]) -> Subscribe:
    names, request_id = message.get("topics"), _request_id(message)
    if not isinstance(names, list) or not names:
        raise ProtocolError(ErrorReason.SUBSCRIBE_WITHOUT_TOPICS, "SUBSCRIBE needs topics, a list of names", request_id)
    known = _valid_topics(names)
    if not known:
        raise ProtocolError(
            ErrorReason.NO_VALID_TOPIC,
            f"No valid topic: a name has {topic_rules.NAME_FORM}",
            request_id,
        )
    token = message.get("authToken")
    token = token if isinstance(token, str) and token else None
    return Subscribe(
        known, request_id, token, _recover(message.get("recover"), known), _tokens(message, request_id),
        options=_options(message, request_id),
    )  # fmt: skip


def _options(message: dict[str, Json], request_id: RequestId) -> SubscriptionOptions:
    tree, delta = message.get("filter"), message.get("delta")
    if tree is None and delta is None:
        return PLAIN
    if delta not in (None, DELTA_FORMAT):
        text = f"delta must be {DELTA_FORMAT}, not {quoted(delta)}"
        raise ProtocolError(ErrorReason.DATA_REFUSED, text, request_id)
    try:
        return subscription_options.parse(tree, delta=delta is not None)
    except ValueError as error:
        raise ProtocolError(ErrorReason.DATA_REFUSED, f"filter refused: {error}", request_id) from None


def _tokens(message: dict[str, Json], request_id: RequestId) -> tuple[str, ...]:
    given = message.get("tokens") or []
    good = isinstance(given, list) and len(given) <= MAX_TOKENS and all(isinstance(one, str) for one in given)
    if not good:
        raise ProtocolError(
            ErrorReason.BAD_TOKEN_IN_SUBSCRIBE,
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
        raise ProtocolError(
            ErrorReason.UNSUBSCRIBE_WITHOUT_TOPICS, "UNSUBSCRIBE needs topics, a list of names", request_id
        )
    return Unsubscribe(_valid_topics(names), request_id)


def _publish(message: dict[str, Json]) -> Publish:
    request_id = _request_id(message)
    return Publish(_publication(message, request_id), request_id)


def _request(message: dict[str, Json]) -> Request:
    request_id = _request_id(message)
    topic, action = message.get("topic"), _name(message, "action")
    if not isinstance(topic, str) or not topic or action is None:
        raise ProtocolError(ErrorReason.MISSING_PARAMETER, "REQUEST needs a topic and an action", request_id)
    if not topic_rules.is_topic(topic):
        raise ProtocolError(
            ErrorReason.UNKNOWN_TOPIC, f"{quoted(topic)} is not a topic: a name has {topic_rules.NAME_FORM}", request_id
        )
    # Parameters stand under "data" or at the top level. Those under "data" take precedence.
    parameters = {k: v for k, v in message.items() if k not in ("type", "topic", "action", "requestId", "data")}
    if isinstance(message.get("data"), dict):
        parameters |= message["data"]
    return Request(topic, action, parameters, request_id)


def _command(message: dict[str, Json]) -> BackendCommand:
    topic = message.get("topic")
    return BackendCommand(
        topic if topic_rules.is_topic(topic) else None,
        _name(message, "action"),
        message.get("data"),
        _request_id(message),
    )


def _logs(message: dict[str, Json]) -> Logs:
    entries = message.get("logs")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ProtocolError(ErrorReason.BAD_LOGS, "LOGS needs logs, a list of objects")
    return Logs(tuple(entries))


def _ping(message: dict[str, Json]) -> Ping:
    return Ping(message.get("timestamp"))


_DECODERS: Final[dict[str, Callable[[dict[str, Json]], Command]]] = {
    "AUTH": _auth, "SUBSCRIBE": _subscribe, "UNSUBSCRIBE": _unsubscribe, "PUBLISH": _publish,
    "REQUEST": _request, "COMMAND": _command, "LOGS": _logs, "ping": _ping,
}  # fmt: skip


def _request_id(message: dict[str, Json]) -> RequestId:
    value = message.get("requestId")
    if value is None or (isinstance(value, str) and len(value) <= MAX_NAME_LENGTH):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ProtocolError(
        ErrorReason.DATA_REFUSED, f"requestId must be a string of at most {MAX_NAME_LENGTH} characters or an integer"
    )


def _request_id_in(text: bytes) -> RequestId:
    """The request id of a message with invalid numbers; None if it has no readable one."""
    try:
        message = orjson.loads(text)
        return _request_id(message) if isinstance(message, dict) else None
    except (ValueError, ProtocolError):
        return None


def _valid_topics(names: list[Json]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if topic_rules.is_topic(name)))


def _name(message: dict[str, Json], key: str) -> str | None:
    value = message.get(key)
    return value if is_name(value) else None


def _publication(message: dict[str, Json], request_id: RequestId) -> Publication:
    """The publication of a PUBLISH. Its `to` and `except` are ignored, since only items of the HTTP API have them."""
    if message.get("idempotencyKey") is not None:
        # A client could use the key of another publisher, whose message would then be dropped.
        raise ProtocolError(
            ErrorReason.DATA_REFUSED, "PUBLISH takes no idempotencyKey; POST /api/publish does", request_id
        )
    return Publication(*common_fields(message, request_id))
