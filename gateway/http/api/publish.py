"""Publishing over HTTP, for back ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request

from gateway.auth.api_keys import ApiKey
from gateway.core.errors import ProtocolError
from gateway.core.identity import ROLES
from gateway.core.json_text import Json
from gateway.core.names import MAX_NAME_LENGTH
from gateway.core.position import Position
from gateway.core.publication import (
    MAX_BROADCAST_BYTES,
    MAX_BROADCAST_TOPICS,
    Publication,
    PublicationTooLarge,
    of_broadcast,
    refuse_reserved,
)
from gateway.core.tags import MAX_TAGS
from gateway.core.topic_rules import MAX_TOPIC_LENGTH
from gateway.http.api.openapi import (
    CLIENT_ID,
    COUNT,
    EPOCH,
    MARK,
    NAME,
    TOPIC,
    Schema,
    answer,
    array,
    operation,
    record,
    ref,
)
from gateway.http.api.resource import ApiError, api_key, node_of, read_body, resource

MAX_MESSAGES: Final = 1000  # in one request


async def publish(request: Request) -> Any:
    """Publish ``{"topic", "data", …}`` or ``{"messages": [{…}, …]}``: either all messages, or none."""
    return await _publish(request, parse(await read_body(request, 2 * node_of(request).settings.max_message_bytes)))


async def broadcast(request: Request) -> Any:
    """Publish one message on many topics, ``{"topics", "data", …}``: either on all of them, or on none."""
    limit = 2 * node_of(request).settings.max_message_bytes + MAX_BROADCAST_TOPICS * (MAX_TOPIC_LENGTH + 3)
    body = await read_body(request, limit)
    try:
        publications = of_broadcast(body)
    except PublicationTooLarge as error:
        raise ApiError(413, "too_large", str(error)) from None
    except ProtocolError as error:
        raise ApiError(400, "bad_request", error.message) from None
    return await _publish(request, publications)


async def _publish(request: Request, publications: Sequence[Publication]) -> Any:
    check_permission(api_key(request), publications)
    try:
        positions = await node_of(request).publisher.publish(publications)
    except PublicationTooLarge as error:
        raise ApiError(413, "too_large", str(error)) from None
    return results(publications, positions)


def parse(body: Json) -> list[Publication]:
    """The publications in the body of a request.

    Raises:
        ApiError: The body is not of this form, or one of them is invalid.
    """
    items = body.get("messages", [body]) if isinstance(body, dict) else None
    if not isinstance(items, list) or not 0 < len(items) <= MAX_MESSAGES:
        raise ApiError(
            400, "bad_request", f'Send {{"topic", "data"}}, or {{"messages": […]}} with 1 to {MAX_MESSAGES} of them'
        )
    if "messages" in body and len(body) > 1:
        raise ApiError(400, "bad_request", "messages must be the only field of the body; remove the others")
    publications = []
    for at, item in enumerate(items):
        try:
            publications.append(Publication.of_item(item))
        except ProtocolError as error:
            where = f"messages[{at}]: " if "messages" in body else ""
            raise ApiError(400, "bad_request", where + error.message) from None
    return publications


def check_permission(key: ApiKey, publications: Sequence[Publication]) -> None:
    """Check that `key`, which has the scope, may publish on all of these topics.

    Raises:
        ApiError: It may not.
    """
    for publication in publications:
        try:
            refuse_reserved(publication.topic)
        except ProtocolError as error:
            raise ApiError(403, "forbidden", error.message) from None
        if not key.may_publish(publication.topic):
            raise ApiError(403, "forbidden", f"The key {key.name} may not publish on {publication.topic}")


def results(publications: Sequence[Publication], positions: Sequence[Position | None]) -> Json:
    """The content of the response: the topic of each message, and its position if its topic has history."""
    return {
        "results": [
            {"topic": publication.topic, **(position._asdict() if position is not None else {})}
            for publication, position in zip(publications, positions, strict=True)
        ]
    }


def _body() -> Schema:
    price = {"topic": "token:price:ABC", "data": {"price": 42}}
    examples = {
        "one": price,
        "several": {"messages": [price, {"topic": "contest", "data": {"leader": "ann"}, "action": "LEADER"}]},
        "to a user": {"topic": "portfolio", "data": {"balance": 7}, "to": {"user": "ann"}},
        "to all but one": {"topic": "contest-chat", "data": "hi", "except": "n1.9f2c31ab.7"},
    }
    several = record(messages={**array(ref("Message")), "minItems": 1, "maxItems": MAX_MESSAGES})
    return {
        "required": True,
        "description": "JSON, with any content type; at most twice GATEWAY_MAX_MESSAGE_BYTES.",
        "content": {
            "application/json": {
                "schema": {"oneOf": [ref("Message"), {**several, "additionalProperties": False}]},
                "examples": {name: {"value": value} for name, value in examples.items()},
            }
        },
    }


PATHS: Final[Schema] = {
    "/api/publish": {
        "post": operation(
            "publish", "Publish one or several messages", answer(ref("Published"), "Redis has accepted all messages"),
            body=_body(),
            description="All messages are published, or none. 200 means that Redis has accepted them and delivers "
            "them to every node with subscribers, even if there are none. After a 503 or a broken connection it is "
            "unknown whether they were published.",
        )
    },
    "/api/broadcast": {
        "post": operation(
            "broadcast", "Publish one message on several topics",
            answer(ref("Published"), "Redis has accepted the message on all topics"),
            body={
                "required": True,
                "description": "JSON, with any content type. The data on all topics together have at most "
                f"{MAX_BROADCAST_BYTES:,} bytes.",
                "content": {
                    "application/json": {
                        "schema": ref("Broadcast"),
                        "examples": {"two": {"value": {"topics": ["room:1", "room:2"], "data": {"text": "hello"}}}},
                    }
                },
            },
            description="As `publish` with one message for each topic, but the request has the message once.",
        )
    },
}  # fmt: skip

_MESSAGE = record(
    topic=TOPIC,
    data={"description": "Any JSON value"},
    action={**NAME, "type": ["string", "null"], "description": "Delivered beside `data`, like the next two"},
    subtype={**NAME, "type": ["string", "null"]},
    priority={**NAME, "type": ["string", "number", "null"]},
    tags={
        "type": ["object", "null"],
        "description": "Delivered beside `data`",
        "propertyNames": NAME,
        "additionalProperties": {"type": "string", "maxLength": MAX_NAME_LENGTH},
        "maxProperties": MAX_TAGS,
    },
    to={
        "type": ["object", "null"],
        "description": "Deliver only to these clients, on any node, even if they are not subscribed to the topic",
        "properties": {"user": NAME, "role": {**NAME, "examples": sorted(ROLES)}, "client": CLIENT_ID},
        "minProperties": 1, "maxProperties": 1, "additionalProperties": False,
    },
    idempotencyKey={
        "type": ["string", "null"], "pattern": r"^[A-Za-z0-9_.:\-]{1,200}$",
        "description": "A message with the same key within 5 minutes is the same message: nothing is published, and "
        "the answer is the first one. Not with `to`",
    },
    **{"except": {**CLIENT_ID, "type": ["string", "null"], "description": "Exclude this client"}},
)  # fmt: skip

_NOT_BOTH: Final[Schema] = {
    "required": ["to", "except"], "properties": {"to": {"type": "object"}, "except": {"type": "string"}},
}  # fmt: skip
_TOPICS: Final[Schema] = {**array(TOPIC), "minItems": 1, "maxItems": MAX_BROADCAST_TOPICS, "uniqueItems": True}

SCHEMAS: Final[Schema] = {
    "Message": {**_MESSAGE, "required": ["topic", "data"], "additionalProperties": False, "not": _NOT_BOTH},
    "Broadcast": {
        **_MESSAGE,
        "properties": {
            "topics": _TOPICS, **{name: part for name, part in _MESSAGE["properties"].items() if name != "topic"}
        },
        "required": ["topics", "data"],
        "additionalProperties": False,
        "not": _NOT_BOTH,
    },
    "Published": record(
        results=array(
            {**record(topic=TOPIC), "properties": {"topic": TOPIC, "epoch": EPOCH, "offset": COUNT, "mark": MARK}}
        )
    ),
}  # fmt: skip

ROUTES: Final = [
    resource("/api/publish", POST=("publish", publish)),
    resource("/api/broadcast", POST=("publish", broadcast)),
]
