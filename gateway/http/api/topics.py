"""Topics over HTTP: subscribers, history and presence."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from gateway.core import topic_rules
from gateway.core.commands import DEFAULT_HISTORY_LIMIT, MAX_HISTORY_LIMIT
from gateway.core.names import MAX_NAME_LENGTH, quoted
from gateway.http.api.openapi import (
    CLIENT_ID,
    COUNT,
    EPOCH,
    MARK,
    TOPIC,
    Schema,
    answer,
    array,
    in_path,
    in_query,
    operation,
    record,
    ref,
)
from gateway.http.api.resource import DEFAULT_LIMIT, ApiError, node_of, parse_limit, resource
from gateway.protocols.native import encoder

MAX_PAGE_TOPICS: Final = 1000


async def list_topics(request: Request) -> Any:
    """A page of the topics that have subscribers, with counts."""
    query = request.query_params
    limit = parse_limit(query.get("limit"), MAX_PAGE_TOPICS)
    for name in ("after", "contains"):
        if len(query.get(name, "")) > MAX_NAME_LENGTH:
            raise ApiError(
                400, "bad_request", f"{name} must have at most {MAX_NAME_LENGTH} characters, like topic names"
            )
    return await node_of(request).registry.listings.topics(
        limit, after=query.get("after", ""), contains=query.get("contains", "")
    )


async def show_topic(request: Request) -> Any:
    """The subscriber counts of one topic. They are zero for a topic without subscribers."""
    topic = request.path_params["topic"]
    if not topic_rules.is_topic(topic):
        raise ApiError(404, "not_found", f"{quoted(topic)} is not a topic: a name has {topic_rules.NAME_FORM}")
    return await node_of(request).registry.topic(topic)


async def show_history(request: Request) -> Any:
    """The latest messages of a topic."""
    node, topic, query = node_of(request), _ruled(request, "history"), request.query_params
    since, reverse = query.get("since"), query.get("reverse", "0")
    if since is not None and not (since.isascii() and since.isdigit() and len(since) < 16):
        raise ApiError(400, "bad_request", "since must be an offset")
    if reverse not in ("0", "1"):
        raise ApiError(400, "bad_request", "reverse must be 0 or 1")
    limit = parse_limit(query.get("limit"), MAX_HISTORY_LIMIT, DEFAULT_HISTORY_LIMIT)
    found = await node.topic_queries.read_history(
        topic, limit=limit, since=None if since is None else int(since), reverse=reverse == "1"
    )
    return {"topic": topic, **encoder.history(found)}


async def delete_history(request: Request) -> Any:
    """Delete a topic's messages in Redis and in the nodes. The offsets continue."""
    return {"deleted": await node_of(request).publisher.delete_history(_ruled(request, "history"))}


async def show_presence(request: Request) -> Any:
    """The people on a topic, or its clients."""
    topic, clients = _ruled(request, "presence"), request.query_params.get("clients", "0")
    if clients not in ("0", "1"):
        raise ApiError(400, "bad_request", f"clients must be 0 or 1, not {quoted(clients)}")
    return {"topic": topic, **await node_of(request).topic_queries.read_presence(topic, clients=clients == "1")}


def _ruled(request: Request, what: str) -> str:
    topic: str = request.path_params["topic"]
    if not topic_rules.is_topic(topic) or not getattr(node_of(request).rules.of(topic), what):
        raise ApiError(
            404,
            "not_found",
            f"The topic {topic[:200]} has no {what}: enable it by a rule in the file of GATEWAY_TOPICS",
        )
    return topic


def _range() -> list[Schema]:
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_HISTORY_LIMIT, "default": DEFAULT_HISTORY_LIMIT}
    return [
        in_query("limit", limit, "The most messages in the answer"),
        in_query("since", COUNT, "Only messages after this offset"),
        in_query("reverse", {"enum": ["0", "1"], "default": "0"}, "1: newest first"),
    ]


def _page() -> list[Schema]:
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_TOPICS, "default": DEFAULT_LIMIT}
    text = {"type": "string", "maxLength": MAX_NAME_LENGTH}
    return [
        in_query("after", text, "Only topics after this name: `next` of the previous page"),
        in_query("contains", text, "Only topics with this text in their name"),
        in_query("limit", limit, "Topics on a page"),
    ]


_TOPIC: Final = in_path("topic", TOPIC)

PATHS: Final[Schema] = {
    "/api/topics": {
        "get": operation(
            "listTopics", "A page of the topics that clients are subscribed to",
            answer(ref("Topics"), "Ordered by name"),
            parameters=_page(),
            description="A topic that gets its first subscriber or loses its last one meanwhile may be missing from "
            "all pages. No topic is on two pages. The number of all topics is in `nodes`.",
        )
    },
    "/api/topics/{topic}": {
        "get": operation(
            "showTopic", "One topic", answer(ref("Topic"), "Its subscriber counts, zero if it has no subscribers"),
            "NoSuchName", parameters=[_TOPIC],
        )
    },
    "/api/topics/{topic}/history": {
        "get": operation(
            "showHistory", "The latest messages of a topic",
            answer(ref("History"), "Oldest first, unless `reverse` is 1"),
            "NotFound", parameters=[_TOPIC, *_range()],
            description="The newest messages, or with `since` the first ones after that offset. Only topics with "
            "history.",
        ),
        "delete": operation(
            "deleteHistory", "Delete the messages of a topic; the offsets continue",
            answer(record(deleted={"type": "boolean"}), "false if there were none"),
            "NotFound", parameters=[_TOPIC],
        ),
    },
    "/api/topics/{topic}/presence": {
        "get": operation(
            "showPresence", "The people on a topic", answer(ref("People"), "On all nodes together"),
            "NotFound",
            parameters=[_TOPIC, in_query("clients", {"enum": ["0", "1"], "default": "0"}, "1: list its clients")],
            description="A person is a user with any number of clients, or one anonymous client.",
        )
    },
}  # fmt: skip

SCHEMAS: Final[Schema] = {
    "Topic": record(
        topic=TOPIC,
        subscribers={**COUNT, "description": "On all nodes together"},
        nodes={"type": "object", "additionalProperties": COUNT, "description": "Subscribers by node id",
               "examples": [{"n1.9f2c31ab": 3}]},
    ),
    "Topics": record(
        topics=array(ref("Topic")),
        next={"type": ["string", "null"], "description": "The `after` of the next page; null: this is the last page"},
        nodes={"type": "object", "additionalProperties": COUNT,
               "description": "Number of all topics by node id, not only of this page; a topic counts at each node",
               "examples": [{"n1.9f2c31ab": 3}]},
    ),
    "History": record(
        topic=TOPIC, epoch=EPOCH, offset={**COUNT, "description": "Of the newest message"},
        mark=MARK,
        messages={**array({"type": "object"}), "description": "As they were sent to clients"},
    ),
    "Member": {
        **record(clientId=CLIENT_ID, user={"type": ["string", "null"]}),
        "properties": {
            "clientId": CLIENT_ID, "user": {"type": ["string", "null"]},
            "info": {"description": "The claim `info` of its token, any JSON; absent if there is none"},
        },
    },
    "People": {
        **record(topic=TOPIC, count=COUNT),
        "properties": {
            "topic": TOPIC,
            "count": COUNT,
            "members": {
                **array(ref("Member")),
                "description": "Each person, represented by one client; absent if there are too many",
            },
            "clients": {**array(ref("Member")), "description": "Each client, if asked; absent if there are too many"},
        },
    },
}  # fmt: skip

ROUTES: Final = [
    resource("/api/topics", "after", "contains", "limit", GET=("read", list_topics)),
    resource(
        "/api/topics/{topic:name}/history", "limit", "since", "reverse",
        GET=("read", show_history), DELETE=("admin", delete_history),
    ),
    resource("/api/topics/{topic:name}/presence", "clients", GET=("read", show_presence)),
    resource("/api/topics/{topic:name}", GET=("read", show_topic)),
]  # fmt: skip
