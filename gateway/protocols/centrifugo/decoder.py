"""The commands of Centrifugo's clients, as commands of the node.  (pure)

Fields have the names of Centrifugo's `client.proto`. A command that this gateway does not offer is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.core import subscription_options, topic_rules
from gateway.core.commands import (
    MAX_HISTORY_LIMIT,
    Auth,
    BackendCommand,
    Command,
    Connect,
    Publish,
    RenewGrant,
    Request,
    Subscribe,
    Unsubscribe,
)  # fmt: skip
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError, ProtocolViolation
from gateway.core.json_numbers import NumberError
from gateway.core.names import MAX_NAME_LENGTH, quoted
from gateway.core.position import ANY_EPOCH, Position
from gateway.core.publication import Publication
from gateway.core.subscription_options import DELTA_FORMAT, SubscriptionOptions
from gateway.protocols.centrifugo.codec import Codec, Fields

NO_REPLY: Final = 0  # the id of `send`, which is not answered
RPC_TOPIC: Final = "rpc"  # the topic of the COMMANDs that `rpc` and `send` become
MAX_ID: Final = (1 << 32) - 1
REJECT_UNRECOVERED: Final = 2  # a flag of subscribe: rather an error than a subscription with lost messages


def head(fields: Fields) -> tuple[str, int]:
    """The kind and the id of a command, which is not empty.

    Raises:
        ProtocolViolation: It is none.
    """
    number = fields.get("id", NO_REPLY)
    kinds = [name for name in fields if name in _DECODERS]
    if len(kinds) != 1 or not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_ID:
        raise ProtocolViolation(CloseReason.BAD_USE, "bad request: a command has an id and one kind")
    if (number == NO_REPLY) is not (kinds[0] == "send") or not isinstance(fields[kinds[0]], dict):
        raise ProtocolViolation(CloseReason.BAD_USE, "bad request: every command but send has an id")
    return kinds[0], number


def body(codec: Codec, fields: Fields) -> Command:
    """The meaning of a command for which `head` has found an id.

    Raises:
        ProtocolViolation: The client must be disconnected.
        ProtocolError: The command is not valid, or not offered.
    """
    kind, number = head(fields)
    return _DECODERS[kind](codec, fields[kind], number)


def _connect(codec: Codec, about: Fields, number: int) -> Command:
    recover, topics = {}, []
    subscriptions = about.get("subs") or {}
    if not isinstance(subscriptions, dict):
        raise _bad("subs must be an object", number)
    for topic, each in subscriptions.items():
        # Of a client with commands these are the positions in topics that the node subscribes it to.
        if codec.unidirectional:
            topics.append(_topic({"channel": topic}, number))
        if isinstance(each, dict) and each.get("recover"):
            recover[topic] = _position(each, number)
    return Connect(_text(about, "token", number) or None, number, recover, tuple(topics))


def _subscribe(_codec: Codec, about: Fields, number: int) -> Command:
    topic = about.get("channel")
    if not topic:
        raise ProtocolViolation(CloseReason.BAD_USE, "bad request: subscribe needs a channel")
    topic = _topic(about, number)
    if about.get("type"):
        raise _not_offered("this gateway has no map and no shared poll subscriptions", number)
    token, flag = _text(about, "token", number), _whole(about, "flag", number)
    recover = {topic: _position(about, number)} if about.get("recover") else {}
    tokens = (token,) if token else ()
    return Subscribe(
        (topic,), number, None, recover, tokens, once=True, whole=bool(recover) and bool(flag & REJECT_UNRECOVERED),
        options=_options(about, number), join_leave=bool(about.get("join_leave")),
    )  # fmt: skip


def _options(about: Fields, number: int) -> SubscriptionOptions:
    try:
        return subscription_options.parse(about.get("tf") or None, delta=about.get("delta") == DELTA_FORMAT)
    except ValueError as error:
        raise _bad(f"tags filter refused: {error}", number) from None


def _position(about: Fields, number: int) -> Position:
    return Position(_text(about, "epoch", number) or ANY_EPOCH, _whole(about, "offset", number))


def _unsubscribe(_codec: Codec, about: Fields, number: int) -> Command:
    return Unsubscribe((_topic(about, number),), number)


def _publish(codec: Codec, about: Fields, number: int) -> Command:
    topic = _topic(about, number)
    if about.get("type") or about.get("removed"):
        raise _not_offered("this gateway has no map subscriptions", number)
    if "data" not in about:
        raise _bad("publish needs data", number)
    return Publish(Publication(topic, _json(codec, about, number)), number)


def _presence(_codec: Codec, about: Fields, number: int) -> Command:
    return Request(_topic(about, number), "presence", {"clients": True}, number)


def _history(_codec: Codec, about: Fields, number: int) -> Command:
    topic, limit, reverse = _topic(about, number), about.get("limit", 0), bool(about.get("reverse", False))
    if not isinstance(limit, int):
        raise _bad("limit must be a whole number", number)
    # Without entries the client wants the position, which a page of one message has too.
    size = MAX_HISTORY_LIMIT if limit < 0 else min(max(limit, 1), MAX_HISTORY_LIMIT)
    parameters: dict[str, Any] = {"limit": size, "reverse": reverse, "position_only": limit == 0}
    since = about.get("since")
    if isinstance(since, dict):
        parameters["before" if reverse else "since"] = _whole(since, "offset", number)
        parameters["epoch"] = _text(since, "epoch", number)
    elif not reverse and limit > 0:
        parameters["since"] = 0  # the oldest messages first
    return Request(topic, "history", parameters, number)


def _rpc(codec: Codec, about: Fields, number: int) -> Command:
    method = _text(about, "method", number) or "rpc"
    return BackendCommand(RPC_TOPIC, method, _json(codec, about, number), number)


def _send(codec: Codec, about: Fields, number: int) -> Command:
    return BackendCommand(RPC_TOPIC, "send", _json(codec, about, number), number)


def _refresh(_codec: Codec, about: Fields, number: int) -> Command:
    return Auth(_text(about, "token", number) or None, number, same_user=True)


def _sub_refresh(_codec: Codec, about: Fields, number: int) -> Command:
    if about.get("type"):
        raise _not_offered("this gateway has no map and no shared poll subscriptions", number)
    return RenewGrant(_topic(about, number), _text(about, "token", number), number)


def _ping(_codec: Codec, _about: Fields, number: int) -> Command:
    raise _not_offered("the server sends the pings", number)


_DECODERS: Final[Mapping[str, Callable[[Codec, Fields, int], Command]]] = {
    "connect": _connect, "subscribe": _subscribe, "unsubscribe": _unsubscribe, "publish": _publish,
    "presence": _presence, "presence_stats": _presence, "history": _history, "rpc": _rpc, "send": _send,
    "refresh": _refresh, "sub_refresh": _sub_refresh, "ping": _ping,
}  # fmt: skip


def _topic(about: Fields, number: int) -> str:
    topic = about.get("channel")
    if not isinstance(topic, str) or not topic_rules.is_topic(topic):
        raise _bad(f"channel must be {topic_rules.NAME_FORM}, not {quoted(topic)}", number)
    return topic


def _text(about: Fields, name: str, number: int) -> str:
    value = about.get(name, "")
    if not isinstance(value, str) or (name != "token" and len(value) > MAX_NAME_LENGTH):
        raise _bad(f"{name} must be a string of at most {MAX_NAME_LENGTH} characters", number)
    return value


def _whole(about: Fields, name: str, number: int) -> int:
    value = about.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _bad(f"{name} must be a whole number", number)
    return value


def _json(codec: Codec, about: Fields, number: int) -> Any:
    try:
        return codec.json(about.get("data"))
    except NumberError as error:
        raise _bad(f"data refused: {error}", number) from None
    except ValueError:
        raise _bad("data must be JSON", number) from None


def _bad(message: str, number: int) -> ProtocolError:
    return ProtocolError(ErrorReason.DATA_REFUSED, message, number)


def _not_offered(message: str, number: int) -> ProtocolError:
    return ProtocolError(ErrorReason.NOT_IMPLEMENTED, message, number)
