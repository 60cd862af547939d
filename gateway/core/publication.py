"""What is said on a topic, and its place among all that was said there.  (pure)

A client says it by PUBLISH; everybody else - back ends, services, the original plan's ingest - as an item of
``POST /api/publish``, which can do more: address somebody, leave somebody out, be repeated safely.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.core import topics
from gateway.core.position import Position as Position
from gateway.core.protocol import MAX_NAME_LENGTH, Code, Json, ProtocolError, RequestId, dumps, is_name, shown

_FIELDS: Final = frozenset({"topic", "data", "action", "subtype", "priority", "to", "except", "idempotencyKey"})

_IDEMPOTENCY_KEY: Final = re.compile(r"[A-Za-z0-9_.:\-]+")
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9_.\-]+")  # it stands in a header line on the bus


@dataclass(frozen=True, slots=True)
class Publication:
    """Something to say on a topic. `to`, `except_client` and `key` stand only in an item."""

    topic: str
    data: Json
    extras: Mapping[str, Json] = field(default_factory=dict)  # action, subtype, priority
    to: tuple[str, str] | None = None  # ("user" | "role" | "client", who)
    except_client: str | None = None
    key: str | None = None  # idempotency key: the same again within five minutes is the same message

    @classmethod
    def of_client(cls, message: Mapping[str, Json], request_id: RequestId) -> Publication:
        """What a client's PUBLISH says; `to` and `except`, which only an item may have, are not read.

        Raises:
            ProtocolError: A field is missing or of the wrong form, or there is an idempotency key: a client could use
                up another publisher's.
        """
        if message.get("idempotencyKey") is not None:
            raise ProtocolError(
                Code.DATA_REFUSED, "PUBLISH takes no idempotencyKey; POST /api/publish does", request_id
            )
        return cls(*_said(message, request_id))

    @classmethod
    def of_item(cls, item: Json) -> Publication:
        """What one item of ``POST /api/publish`` says.

        Raises:
            ProtocolError: A field is missing, unknown or of the wrong form.
        """
        if not isinstance(item, dict):
            raise ProtocolError(Code.DATA_REFUSED, "a message must be an object with topic and data")
        unknown = item.keys() - _FIELDS
        if unknown:
            raise ProtocolError(Code.DATA_REFUSED, f"unknown field {shown(min(unknown))}")
        topic, data, extras = _said(item, None)
        to = _to(item)
        except_client = item.get("except")
        if except_client is not None and (to is not None or not _is_client_id(except_client)):
            raise ProtocolError(Code.DATA_REFUSED, "except must be a client id, and stands without to")
        key = item.get("idempotencyKey")
        if key is not None and not (is_name(key) and _IDEMPOTENCY_KEY.fullmatch(key)):
            raise ProtocolError(Code.DATA_REFUSED, "idempotencyKey must be 1 to 200 of A-Z a-z 0-9 _ . : -")
        if key is not None and to is not None:
            raise ProtocolError(Code.DATA_REFUSED, "idempotencyKey has no effect with to: leave one of them out")
        return cls(topic, data, extras, to, except_client, key)

    @classmethod
    def of_python(cls, item: Mapping[str, Any]) -> Publication:
        """What an item says that a Python program made; JSON must be able to hold it unchanged.

        Raises:
            ProtocolError: It cannot; or as `of_item`.
        """
        try:
            dumps([item])  # as deep as in the message that it becomes a part of
        except ValueError as error:
            raise ProtocolError(Code.DATA_REFUSED, str(error)) from None
        return cls.of_item(dict(item))


def refuse_key(topic: str) -> ProtocolError:
    """What a publication with an idempotency key is answered on `topic`, which has no history to find it in."""
    return ProtocolError(
        Code.DATA_REFUSED,
        f"idempotencyKey has no effect on {topic}, a topic without history: leave it out, or give the topic history",
    )


def refuse_reserved(topic: str) -> None:
    """See that `topic` is not one of the gateway's own, on which nothing else publishes: neither program nor API key.

    Raises:
        ProtocolError: It is one.
    """
    if topics.is_reserved(topic):
        raise ProtocolError(Code.NOT_ALLOWED, f"{topic} is the cluster's own: only the gateway publishes there")


def _said(message: Mapping[str, Json], request_id: RequestId) -> tuple[str, Json, dict[str, Json]]:
    if "topic" not in message or "data" not in message:
        raise ProtocolError(Code.MISSING_PARAMETER, "a publication needs a topic and data", request_id)
    topic = message["topic"]
    if not topics.is_topic(topic):
        raise ProtocolError(
            Code.NO_VALID_TOPIC,
            f"topic must be {topics.NAME_FORM}, not {shown(topic)}",
            request_id,
        )
    extras: dict[str, Json] = {}
    for name in ("action", "subtype", "priority"):
        value = message.get(name)
        if value is None:
            continue
        number = name == "priority" and isinstance(value, int | float) and not isinstance(value, bool)
        if not is_name(value) and not number:
            also = " or a number" if name == "priority" else ""
            raise ProtocolError(
                Code.DATA_REFUSED, f"{name} must be a string of 1 to {MAX_NAME_LENGTH} characters{also}", request_id
            )
        extras[name] = value
    return topic, message["data"], extras


def _to(item: Mapping[str, Json]) -> tuple[str, str] | None:
    to = item.get("to")
    if to is None:
        return None
    if isinstance(to, dict) and len(to) == 1:
        [(kind, who)] = to.items()
        if kind in ("user", "role", "client") and (_is_client_id(who) if kind == "client" else is_name(who)):
            return kind, who
    raise ProtocolError(Code.DATA_REFUSED, 'to must be one of {"user":…}, {"role":…}, {"client":…}')


def _is_client_id(value: Json) -> bool:
    return is_name(value) and _CLIENT_ID.fullmatch(value) is not None
