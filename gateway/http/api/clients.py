"""The clients of all nodes over HTTP: list, show, disconnect, unsubscribe."""

from __future__ import annotations

import re
from typing import Any, Final

from starlette.requests import Request

from gateway.core.control_messages import MAX_SUBSCRIBED
from gateway.core.identity import ROLES
from gateway.core.names import MAX_NAME_LENGTH, quoted
from gateway.core.topic_rules import MAX_TOPIC_LENGTH, NAME_FORM, is_reserved, is_topic
from gateway.http.api.openapi import (
    CLIENT_ID,
    NAME,
    NODE_ID,
    TIME,
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
from gateway.http.api.resource import DEFAULT_LIMIT, MAX_LIMIT, ApiError, node_of, parse_limit, read_body, resource

MAX_PAGE_TOPICS: Final = 20_000  # of all clients on a page together, unless it has one client: about 1 MB
SUBSCRIBE_BYTES: Final = 2 * MAX_SUBSCRIBED * MAX_TOPIC_LENGTH  # of a body that names topics
_CLIENT_ID: Final = r"[A-Za-z0-9_.\-]{1,200}"
_CURSOR: Final = r"[A-Za-z0-9_.\-]+\.[0-9]{1,18}"  # a client's id


async def list_clients(request: Request) -> Any:
    """A page of clients, filtered by user, address, topic and node."""
    query = request.query_params
    limit, cursor = parse_limit(query.get("limit")), _cursor(query.get("cursor"))
    _check_user(query.get("user"))
    topic = query.get("topic")
    if topic is not None and not is_topic(topic):
        raise ApiError(400, "bad_request", f"{quoted(topic)} is not a topic: a name has {NAME_FORM}")
    found: list[dict[str, Any]] = []
    held = 0
    async for client in node_of(request).registry.listings.clients(
        user=query.get("user"), ip=query.get("ip"), topic=topic, node=query.get("node"), after=cursor
    ):
        held += len(client["topics"])
        if len(found) == limit or (found and held > MAX_PAGE_TOPICS):
            return {"clients": found, "next": found[-1]["id"]}
        found.append(client)
    return {"clients": found, "next": None}


async def show_client(request: Request) -> Any:
    """One client."""
    return await _client(request)


async def disconnect_client(request: Request) -> Any:
    """Close the socket of one client, on any node, with code 3503."""
    client = await _client(request)
    await node_of(request).control_publisher.broadcast("disconnect", client=client["id"])
    return {"disconnected": [client["id"]]}


async def unsubscribe_client(request: Request) -> Any:
    """Unsubscribe one client from one topic. The client is notified."""
    client, topic = await _client(request), request.path_params["topic"]
    if topic not in client["topics"]:
        raise ApiError(404, "not_found", f"{client['id']} is not subscribed to {topic[:200]}")
    await node_of(request).control_publisher.broadcast("unsubscribe", client=client["id"], topics=[topic])
    return {"unsubscribed": [topic]}


async def subscribe_client(request: Request) -> Any:
    """Subscribe one client to topics, ``{"topics": [...]}``, and notify it. The topic rules do not restrict this."""
    client, topics = await _client(request), await _topics(request)
    await node_of(request).control_publisher.broadcast("subscribe", client=client["id"], topics=topics)
    return {"subscribed": topics}


async def subscribe_user(request: Request) -> Any:
    """Subscribe all clients that a user has now to topics. They are notified."""
    user, topics = _user(request), await _topics(request)
    await node_of(request).control_publisher.broadcast("subscribe", user=user, topics=topics)
    return {"subscribed": topics}


async def unsubscribe_user(request: Request) -> Any:
    """Unsubscribe all clients of a user from one topic. They are notified."""
    user, topic = _user(request), request.path_params["topic"]
    if not is_topic(topic):
        raise ApiError(404, "not_found", f"{quoted(topic)} is not a topic: a name has {NAME_FORM}")
    await node_of(request).control_publisher.broadcast("unsubscribe", user=user, topics=[topic])
    return {"unsubscribed": [topic]}


async def _topics(request: Request) -> list[str]:
    """The topics in the body of the request, each once."""
    body = await read_body(request, SUBSCRIBE_BYTES)
    topics = body.get("topics") if isinstance(body, dict) and body.keys() == {"topics"} else None
    if not isinstance(topics, list) or not 0 < len(topics) <= MAX_SUBSCRIBED:
        raise ApiError(
            400, "bad_request",
            f'Send {{"topics": […]}} with 1 to {MAX_SUBSCRIBED} names; send several requests for more',
        )  # fmt: skip
    for topic in topics:
        if not is_topic(topic):
            raise ApiError(400, "bad_request", f"{quoted(topic)} is not a topic: a name has {NAME_FORM}")
        if is_reserved(topic):
            raise ApiError(403, "forbidden", f"{topic} is reserved: only its rule decides who may subscribe to it")
    return list(dict.fromkeys(topics))


def _user(request: Request) -> str:
    user: str = request.path_params["user"]
    if not user:
        raise ApiError(404, "not_found", f"There is no user at {request.url.path[:200]}: the name is empty")
    _check_user(user)
    return user


async def disconnect_user(request: Request) -> Any:
    """Close all sockets of a user, on all nodes, with code 3503."""
    node, user = node_of(request), _user(request)
    found = [client["id"] async for client in node.registry.listings.clients(user=user)]
    # Send the order even if no client is listed, since one may be connecting now.
    await node.control_publisher.broadcast("disconnect", user=user)
    return {"disconnected": found}


async def _client(request: Request) -> dict[str, Any]:
    client_id = request.path_params["id"]
    if not re.fullmatch(_CLIENT_ID, client_id):  # it becomes part of a Redis key
        raise ApiError(
            404, "not_found", f"There is no client at {request.url.path[:200]}: an id looks like n1.9f2c31ab.7"
        )
    client = await node_of(request).registry.client(client_id)
    if client is None:
        raise ApiError(404, "not_found", f"No client {client_id[:200]!r} is connected")
    return client


def _cursor(text: str | None) -> str | None:
    # Any other text would sort before all clients, so the caller would get the first page again and again.
    if text is not None and not re.fullmatch(_CURSOR, text):
        raise ApiError(400, "bad_request", "cursor must be the value of next on the previous page")
    return text


def _check_user(name: str | None) -> None:
    if name is not None and not 0 < len(name) <= MAX_NAME_LENGTH:
        raise ApiError(400, "bad_request", f"The name of a user must have 1 to {MAX_NAME_LENGTH} characters")


def _filters() -> list[Schema]:
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
    return [
        in_query("user", NAME, "Only clients of this user"),
        in_query("ip", {"type": "string", "examples": ["203.0.113.7"]}, "Only clients with this address"),
        in_query("topic", TOPIC, "Only clients that are subscribed to this topic"),
        in_query("node", {"type": "string"}, "Only clients on this node, given by name or id"),
        in_query("limit", limit, "Clients on a page"),
        in_query("cursor", {"type": "string", "pattern": f"^{_CURSOR}$"}, "`next` of the previous page"),
    ]


def _topics_body() -> Schema:
    topics = {**array(TOPIC), "minItems": 1, "maxItems": MAX_SUBSCRIBED}
    schema = {**record(topics=topics), "additionalProperties": False}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


_CLIENT: Final = in_path("id", CLIENT_ID)

PATHS: Final[Schema] = {
    "/api/clients": {
        "get": operation(
            "listClients", "A page of clients",
            answer(ref("Clients"), "Ordered by node, then by connect time"),
            parameters=_filters(),
            description="A client that connects or disconnects meanwhile may be missing from all pages. No client is "
            f"on two pages. A page has fewer than `limit` clients if they have more than {MAX_PAGE_TOPICS:,} topics "
            "together. `next` shows whether more clients follow.",
        )
    },
    "/api/clients/{id}": {
        "get": operation(
            "showClient", "One client", answer(ref("Client"), "Its node and its topics"),
            "NotFound", parameters=[_CLIENT],
        ),
        "delete": operation(
            "disconnectClient", "Close the client's socket, on any node",
            answer(ref("Disconnected"), "Its node has been asked to close the socket with code 3503"),
            "NotFound", parameters=[_CLIENT],
        ),
    },
    "/api/clients/{id}/topics": {
        "post": operation(
            "subscribeClient", "Subscribe a client to topics and notify it",
            answer(record(subscribed=array(TOPIC)), "Its node has been asked to subscribe it"),
            "NotFound", parameters=[_CLIENT], body=_topics_body(),
            description="The topic rules do not restrict it. The subscription ends with the connection, and when the "
            "client logs in as another user. A client that would have too many topics (GATEWAY_MAX_CLIENT_TOPICS) is "
            "not subscribed; its node logs a warning.",
        )
    },
    "/api/clients/{id}/topics/{topic}": {
        "delete": operation(
            "unsubscribeClient", "Unsubscribe a client from a topic and notify it",
            answer(record(unsubscribed=array(TOPIC)), "Its node has been asked to unsubscribe it"),
            "NotFound", parameters=[_CLIENT, in_path("topic", TOPIC)],
        )
    },
    "/api/users/{user}/topics": {
        "post": operation(
            "subscribeUser", "Subscribe all clients of a user to topics and notify them",
            answer(record(subscribed=array(TOPIC)), "All nodes have been asked to subscribe its clients"),
            parameters=[in_path("user", NAME)], body=_topics_body(),
            description="Only the clients that the user has now. Otherwise as `subscribeClient`.",
        )
    },
    "/api/users/{user}/topics/{topic}": {
        "delete": operation(
            "unsubscribeUser", "Unsubscribe all clients of a user from a topic and notify them",
            answer(record(unsubscribed=array(TOPIC)), "All nodes have been asked to unsubscribe its clients"),
            "NotFound", parameters=[in_path("user", NAME), in_path("topic", TOPIC)],
        )
    },
    "/api/users/{user}/clients": {
        "delete": operation(
            "disconnectUser", "Close all sockets of a user, on all nodes",
            answer(ref("Disconnected"), "All nodes have been asked to close them with code 3503. The list holds the "
                   "known clients of the user and may be empty"),
            parameters=[in_path("user", NAME)],
        )
    },
}  # fmt: skip

SCHEMAS: Final[Schema] = {
    "Client": record(
        id=CLIENT_ID,
        node=NODE_ID,
        connectedAt=TIME,
        ip={"type": "string", "examples": ["203.0.113.7"]},
        userAgent={"type": "string"},
        transport={"enum": ["websocket", "sse", "poll"]},
        user={"type": ["string", "null"], "description": "null: the client is anonymous"},
        role={"enum": [*sorted(ROLES), None]},
        topics={**array(TOPIC), "description": "Its subscriptions, ordered by name"},
    ),
    "Clients": record(
        clients=array(ref("Client")),
        next={"type": ["string", "null"], "description": "The `cursor` of the next page; null: this is the last page"},
    ),
    "Disconnected": record(disconnected={**array(CLIENT_ID), "description": "Ids of the clients"}),
}  # fmt: skip

ROUTES: Final = [
    resource("/api/clients", "user", "ip", "topic", "node", "limit", "cursor", GET=("read", list_clients)),
    resource("/api/clients/{id}", GET=("read", show_client), DELETE=("admin", disconnect_client)),
    resource("/api/clients/{id}/topics", POST=("admin", subscribe_client)),
    resource("/api/clients/{id}/topics/{topic:name}", DELETE=("admin", unsubscribe_client)),
    resource("/api/users/{user:name}/topics", POST=("admin", subscribe_user)),
    resource("/api/users/{user:name}/topics/{topic:name}", DELETE=("admin", unsubscribe_user)),
    resource("/api/users/{user:name}/clients", DELETE=("admin", disconnect_user)),
]
