"""A publication: a message to publish on a topic, and its validation.  (pure)

A client sends it as PUBLISH. Back ends and other programs send it as an item of ``POST /api/publish``. An item has
more options: it can address or exclude a client, and an idempotency key makes a retry safe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import orjson

from gateway.core import tags, topic_rules
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.json_text import Json, RequestId, dumps, loads
from gateway.core.names import MAX_NAME_LENGTH, is_name, quoted

_FIELDS: Final = frozenset({"topic", "data", "action", "subtype", "priority", "tags", "to", "except", "idempotencyKey"})

MAX_BROADCAST_TOPICS: Final = 1000
MAX_BROADCAST_BYTES: Final = 16 << 20  # of the data on all topics of one broadcast together

_IDEMPOTENCY_KEY: Final = re.compile(r"[A-Za-z0-9_.:\-]+")
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9_.\-]+")  # it becomes part of a header line in Redis pub/sub
_NO_EXTRAS: Final[Mapping[str, Json]] = MappingProxyType({})


class PublicationTooLarge(ValueError):
    """The message is over the size limit, so no node would deliver it."""


class Publication(NamedTuple):
    """A message to publish on a topic. Only an item may have `to`, `except_client` and `key`."""

    topic: str
    data: Json
    extras: Mapping[str, Json] = _NO_EXTRAS  # action, subtype, priority, tags
    to: tuple[str, str] | None = None  # ("user" | "role" | "client", its name or id)
    except_client: str | None = None
    key: str | None = None  # idempotency key: within five minutes, the same key means the same message

    @classmethod
    def of_item(cls, item: Json) -> Publication:
        """Read the publication of one item of ``POST /api/publish``.

        Raises:
            ProtocolError: A field is missing, unknown or invalid.
        """
        if not isinstance(item, dict):
            raise ProtocolError(ErrorReason.DATA_REFUSED, "a message must be an object with topic and data")
        if not item.keys() <= _FIELDS:
            raise ProtocolError(ErrorReason.DATA_REFUSED, f"unknown field {quoted(min(item.keys() - _FIELDS))}")
        topic, data, extras = common_fields(item, None)
        to = _to(item)
        except_client = item.get("except")
        if except_client is not None and (to is not None or not _is_client_id(except_client)):
            raise ProtocolError(ErrorReason.DATA_REFUSED, "except must be a client id, and stands without to")
        key = item.get("idempotencyKey")
        if key is not None and not is_idempotency_key(key):
            raise ProtocolError(ErrorReason.DATA_REFUSED, "idempotencyKey must be 1 to 200 of A-Z a-z 0-9 _ . : -")
        if key is not None and to is not None:
            raise ProtocolError(ErrorReason.DATA_REFUSED, "idempotencyKey has no effect with to: leave one of them out")
        return cls(topic, data, extras, to, except_client, key)

    @classmethod
    def of_python(cls, item: Mapping[str, Any]) -> Publication:
        """Read the publication of an item made by a Python program.

        Raises:
            ProtocolError: JSON cannot hold the item unchanged, or the item is invalid as in `of_item`.
        """
        _check_python(item)
        return cls.of_item(dict(item))


def of_broadcast(item: Json) -> list[Publication]:
    """Read the publications of a broadcast: one message with `topics`, a list of names, instead of `topic`.

    They share one JSON text of the data, which is written once.

    Raises:
        ProtocolError: A field is missing, unknown or invalid, or a topic is named twice.
        PublicationTooLarge: The data on all topics together are over the limit.
    """
    topics = item.get("topics") if isinstance(item, dict) else None
    if not isinstance(topics, list) or not 0 < len(topics) <= MAX_BROADCAST_TOPICS or "topic" in item:
        raise ProtocolError(
            ErrorReason.DATA_REFUSED,
            f"a broadcast needs topics, a list of 1 to {MAX_BROADCAST_TOPICS} names, instead of topic; "
            "send several broadcasts for more",
        )
    named: set[str] = set()
    for topic in topics:
        check_topic(topic, None)
        if topic in named:
            raise ProtocolError(ErrorReason.DATA_REFUSED, f"topics names {topic} twice; name it once")
        named.add(topic)
    first = Publication.of_item({**{name: item[name] for name in item if name != "topics"}, "topic": topics[0]})
    text = orjson.dumps(first.data)
    if len(text) * len(topics) > MAX_BROADCAST_BYTES:
        raise PublicationTooLarge(
            f"{len(text)} bytes of data on {len(topics)} topics are {len(text) * len(topics)} bytes; the limit of a "
            f"broadcast is {MAX_BROADCAST_BYTES}: send several broadcasts with fewer topics"
        )
    data = orjson.Fragment(text)
    return [first._replace(topic=topic, data=data) for topic in topics]


def of_python_broadcast(item: Mapping[str, Any]) -> list[Publication]:
    """As `of_broadcast`, for an item made by a Python program. Errors: also as `Publication.of_python`."""
    _check_python(item)
    return of_broadcast(dict(item))


def _check_python(item: Mapping[str, Any]) -> None:
    try:
        dumps([item])  # at the depth that the item has in the message for clients
    except ValueError as error:
        raise ProtocolError(ErrorReason.DATA_REFUSED, str(error)) from None


def copied(publication: Publication) -> Publication:
    """`publication` with a copy of its data, which later changes of the caller's objects do not reach."""
    return publication._replace(data=loads(dumps(publication.data)))


def refuse_reserved(topic: str) -> None:
    """Check that programs and API keys may publish on `topic`.

    Raises:
        ProtocolError: `topic` is reserved for the gateway itself.
    """
    if topic_rules.is_reserved(topic):
        raise ProtocolError(ErrorReason.NOT_ALLOWED, f"{topic} is reserved: only the gateway publishes there")


def check_topic(topic: Json, request_id: RequestId) -> None:
    """Check that `topic` is a valid topic.

    Raises:
        ProtocolError: It is not.
    """
    if not topic_rules.is_topic(topic):
        raise ProtocolError(
            ErrorReason.NO_VALID_TOPIC, f"topic must be {topic_rules.NAME_FORM}, not {quoted(topic)}", request_id
        )


def common_fields(message: Mapping[str, Json], request_id: RequestId) -> tuple[str, Json, dict[str, Json]]:
    """Topic, data and extras of a message to publish: what a client and a program may both say.

    Raises:
        ProtocolError: A field is missing or invalid.
    """
    if "topic" not in message or "data" not in message:
        raise ProtocolError(ErrorReason.MISSING_PARAMETER, "a publication needs a topic and data", request_id)
    topic = message["topic"]
    check_topic(topic, request_id)
    extras: dict[str, Json] = {}
    for name in ("action", "subtype", "priority"):
        value = message.get(name)
        if value is None:
            continue
        number = name == "priority" and isinstance(value, int | float) and not isinstance(value, bool)
        if not is_name(value) and not number:
            also = " or a number" if name == "priority" else ""
            raise ProtocolError(
                ErrorReason.DATA_REFUSED,
                f"{name} must be a string of 1 to {MAX_NAME_LENGTH} characters{also}",
                request_id,
            )
        extras[name] = value
    if message.get("tags") is not None:
        try:
            checked = tags.check(message["tags"])
        except ValueError as error:
            raise ProtocolError(ErrorReason.DATA_REFUSED, str(error), request_id) from None
        if checked:
            extras["tags"] = checked
    return topic, message["data"], extras


def _to(item: Mapping[str, Json]) -> tuple[str, str] | None:
    to = item.get("to")
    if to is None:
        return None
    if isinstance(to, dict) and len(to) == 1:
        [(kind, name)] = to.items()
        if kind in ("user", "role", "client") and (_is_client_id(name) if kind == "client" else is_name(name)):
            return kind, name
    raise ProtocolError(ErrorReason.DATA_REFUSED, 'to must be one of {"user":…}, {"role":…}, {"client":…}')


def is_idempotency_key(value: Json) -> bool:
    """Whether `value` can be an idempotency key. It becomes a part of a Redis key."""
    return is_name(value) and _IDEMPOTENCY_KEY.fullmatch(value) is not None


def _is_client_id(value: Json) -> bool:
    return is_name(value) and _CLIENT_ID.fullmatch(value) is not None
