"""The HTTP API described (OpenAPI 3.1), with the limits that it states and `api` keeps.

A test holds this page against the routes, and every answer of a running node against its schemas.
"""

from __future__ import annotations

from typing import Any, Final

from gateway import __version__, balance, topics
from gateway.auth import ROLES
from gateway.protocol import DEFAULT_HISTORY_LIMIT, MAX_HISTORY_LIMIT, MAX_NAME_LENGTH

MAX_MESSAGES: Final = 1000  # in one request
MAX_LIMIT: Final = 10_000  # clients on one page
DEFAULT_LIMIT: Final = 1000

Schema = dict[str, Any]

_ABOUT: Final = """\
For back ends that publish, and for people who operate the cluster. Every node answers for the whole cluster. \
The internal port of the load balancer leads here; the public one never does.

Names in paths are percent-encoded: the topic `a/b` is at `/api/topics/a%2Fb`. \
A query parameter that is unknown, or given twice, is refused. GET implies HEAD."""

_NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH}
_TOPIC: Final[Schema] = {
    "type": "string", "pattern": r"^[A-Za-z0-9_:.\-/]+$", "minLength": 1, "maxLength": topics.MAX_TOPIC_LENGTH,
    "examples": ["token:price:ABC"],
}  # fmt: skip
_CLIENT_ID: Final[Schema] = {
    **_NAME, "pattern": r"^[A-Za-z0-9_.\-]+$", "description": "Its node's id, and a number",
    "examples": ["n1.9f2c31ab.7"],
}  # fmt: skip
_NODE_ID: Final[Schema] = {
    "type": "string", "description": "Its name, and a word that is new at each start", "examples": ["n1.9f2c31ab"],
}  # fmt: skip
_TIME: Final[Schema] = {"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00.000Z"]}
_EPOCH: Final[Schema] = {"type": "string", "description": "Offsets count within it", "examples": ["4516a920"]}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}


def document() -> Schema:
    """The OpenAPI document, made anew: the caller may change it."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "WebSocket gateway cluster", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"apiKey": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "The nodes' GATEWAY_API_KEY"}
            },
            "schemas": _schemas(),
            "responses": _responses(),
        },
    }


# ---- what can be asked


def _paths() -> Schema:
    client_id, topic = _in_path("id", _CLIENT_ID), _in_path("topic", _TOPIC)
    return {
        "/api/openapi.json": {
            "get": _operation(
                "openapi", "This description", _json({"type": "object"}, "An OpenAPI 3.1 document"), security=[]
            )
        },
        "/api/publish": {
            "post": _operation(
                "publish", "Publish one message, or several", _json(_ref("Published"), "Redis has taken all of them"),
                "TooLarge", body=_publish_body(),
                description="All are published, or none. 200 means that Redis has taken them, and so that every node "
                "hears them; not that somebody listens. After a 503 or a broken connection it is not known whether "
                "they were published.",
            )
        },
        "/api/topics": {
            "get": _operation(
                "listTopics", "Every topic that somebody hears",
                _json(_object(topics=_list(_ref("Topic"))), "By name"),
            )
        },
        "/api/topics/{topic}": {
            "get": _operation(
                "showTopic", "One topic", _json(_ref("Topic"), "With no subscribers, if nobody hears it"),
                "NotFound", parameters=[topic],
            )
        },
        "/api/topics/{topic}/history": {
            "get": _operation(
                "showHistory", "A topic's last messages", _json(_ref("History"), "In order, unless `reverse` is 1"),
                "NotFound", parameters=[topic, *_range()],
                description="The newest, or with `since` the first behind it. Only topics whose rule keeps some.",
            ),
            "delete": _operation(
                "deleteHistory", "Drop a topic's messages; the numbering goes on",
                _json(_object(deleted={"type": "boolean"}), "false, if there were none"),
                "NotFound", parameters=[topic],
            ),
        },
        "/api/topics/{topic}/presence": {
            "get": _operation(
                "showPresence", "Who is on a topic", _json(_ref("People"), "On all nodes together"),
                "NotFound", parameters=[topic],
                description="A person is a user with any number of clients, or a client that proved nothing.",
            )
        },
        "/api/clients": {
            "get": _operation(
                "listClients", "Clients, a page at a time",
                _json(_ref("Clients"), "By node, then in the order they came"),
                parameters=_filters(),
                description="A client that comes or goes meanwhile may be on no page; none is on two.",
            )
        },
        "/api/clients/{id}": {
            "get": _operation(
                "showClient", "One client", _json(_ref("Client"), "Where it is and what it hears"),
                "NotFound", parameters=[client_id],
            ),
            "delete": _operation(
                "disconnectClient", "Close its socket, on whichever node it is",
                _json(_ref("Disconnected"), "Its node has been told to close it, with code 3503"),
                "NotFound", parameters=[client_id],
            ),
        },
        "/api/clients/{id}/topics/{topic}": {
            "delete": _operation(
                "unsubscribeClient", "Take a topic from a client, which is told",
                _json(_object(unsubscribed=_list(_TOPIC)), "Its node has been told to"),
                "NotFound", parameters=[client_id, topic],
            )
        },
        "/api/users/{user}/clients": {
            "delete": _operation(
                "disconnectUser", "Close all sockets of a user, on all nodes",
                _json(_ref("Disconnected"), "All nodes have been told to, with code 3503; listed is who was known"),
                "NotFound", parameters=[_in_path("user", _NAME)],
            )
        },
        "/api/nodes": {
            "get": _operation(
                "listNodes", "The living nodes",
                _json(_object(nodes=_list(_ref("Node"))), "By id; a node is gone when its lease ends"),
            )
        },
        "/api/nodes/{node}/drain": {
            "post": _operation(
                "drainNode", "Have a node send its clients away, a few at a time, and end",
                _json(_object(draining=_list(_NODE_ID)), "It has been told to; its supervisor starts it again"),
                "NotFound", "Conflict", parameters=[_in_path("node", {"type": "string", "examples": ["n1"]})],
                description="`node` is its name or its id; by its id a node can be told itself while Redis is away.",
            )
        },
        "/api/rebalance": {
            "post": _operation(
                "rebalance", "Have nodes above the mean send their surplus to those below it",
                _json(_ref("Rebalance"), "They have been told to, and begin when `after` has passed"),
                "Conflict", "TooLarge", body=_rebalance_body(),
                description="Clients are told, closed with code 3011, and led to another node as they come back.",
            )
        },
    }  # fmt: skip


def _operation(
    name: str, summary: str, answer: Schema, *refusals: str, body: Schema | None = None, **more: Any
) -> Schema:
    """An operation that answers 200 with `answer`; unless `security` says otherwise, to bearers of the key."""
    if "security" not in more:
        refusals = (*refusals, "BadRequest", "Unauthorized", "Off", "Unavailable")
    responses = {"200": answer} | {
        _STATUS[refusal]: {"$ref": f"#/components/responses/{refusal}"} for refusal in refusals
    }
    if body is not None:
        more["requestBody"] = body
    return {"operationId": name, "summary": summary, **more, "responses": dict(sorted(responses.items()))}


def _publish_body() -> Schema:
    price = {"topic": "token:price:ABC", "data": {"price": 42}}
    examples = {
        "one": price,
        "several": {"messages": [price, {"topic": "contest", "data": {"leader": "ann"}, "action": "LEADER"}]},
        "to a user": {"topic": "portfolio", "data": {"balance": 7}, "to": {"user": "ann"}},
        "to all but one": {"topic": "contest-chat", "data": "hi", "except": "n1.9f2c31ab.7"},
    }
    several = _object(messages={**_list(_ref("Message")), "minItems": 1, "maxItems": MAX_MESSAGES})
    return {
        "required": True,
        "description": "Read as JSON whatever its content type; at most twice GATEWAY_MAX_MESSAGE_BYTES.",
        "content": {
            "application/json": {
                "schema": {"oneOf": [_ref("Message"), {**several, "additionalProperties": False}]},
                "examples": {name: {"value": value} for name, value in examples.items()},
            }
        },
    }


def _rebalance_body() -> Schema:
    seconds = {
        "type": "number", "minimum": 0, "maximum": balance.MAX_SECONDS, "default": balance.SECONDS,
        "description": "Time over which the closes are spread",
    }  # fmt: skip
    schema = {"type": "object", "properties": {"seconds": seconds}, "additionalProperties": False}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _filters() -> list[Schema]:
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
    return [
        _in_query("user", _NAME, "Only this user's"),
        _in_query("topic", _TOPIC, "Only those that hear this topic"),
        _in_query("node", {"type": "string"}, "Only those on this node, by its name or its id"),
        _in_query("limit", limit, "Clients on a page"),
        _in_query("cursor", _CLIENT_ID, "`next` of the page before"),
    ]


def _range() -> list[Schema]:
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_HISTORY_LIMIT, "default": DEFAULT_HISTORY_LIMIT}
    return [
        _in_query("limit", limit, "Messages in the answer"),
        _in_query("since", _COUNT, "Only those behind this offset"),
        _in_query("reverse", {"enum": ["0", "1"], "default": "0"}, "1: the newest first"),
    ]


# ---- what is said


def _schemas() -> Schema:
    message = _object(
        topic=_TOPIC,
        data={"description": "Any JSON value"},
        action={**_NAME, "type": ["string", "null"], "description": "Travels beside `data`, as the next two do"},
        subtype={**_NAME, "type": ["string", "null"]},
        priority={**_NAME, "type": ["string", "number", "null"]},
        to={
            "type": ["object", "null"],
            "description": "Only these clients, whatever they hear; on whichever node they are",
            "properties": {"user": _NAME, "role": {**_NAME, "examples": sorted(ROLES)}, "client": _CLIENT_ID},
            "minProperties": 1, "maxProperties": 1, "additionalProperties": False,
        },
        idempotencyKey={
            "type": ["string", "null"], "pattern": r"^[A-Za-z0-9_.:\-]{1,200}$",
            "description": "On topics with history: the same again within 5 minutes is the same message",
        },
        **{"except": {**_CLIENT_ID, "type": ["string", "null"], "description": "All hearers but this one"}},
    )  # fmt: skip
    return {
        "Message": {
            **message,
            "required": ["topic", "data"],
            "additionalProperties": False,
            "not": {
                "required": ["to", "except"],
                "properties": {"to": {"type": "object"}, "except": {"type": "string"}},
            },
        },
        "Published": _object(
            results=_list({**_object(topic=_TOPIC), "properties": {"topic": _TOPIC, "epoch": _EPOCH, "offset": _COUNT}})
        ),
        "History": _object(
            topic=_TOPIC, epoch=_EPOCH, offset={**_COUNT, "description": "Of the newest message there is"},
            messages={**_list({"type": "object"}), "description": "As clients were sent them"},
        ),
        "People": {
            **_object(topic=_TOPIC, count=_COUNT),
            "properties": {
                "topic": _TOPIC,
                "count": _COUNT,
                "members": {
                    **_list(_object(clientId=_CLIENT_ID, user={"type": ["string", "null"]})),
                    "description": "Everybody, by one client; absent if they are too many",
                },
            },
        },
        "Topic": _object(
            topic=_TOPIC,
            subscribers={**_COUNT, "description": "On all nodes together"},
            nodes={"type": "object", "additionalProperties": _COUNT, "description": "Subscribers by node id",
                   "examples": [{"n1.9f2c31ab": 3}]},
        ),
        "Client": _object(
            id=_CLIENT_ID,
            node=_NODE_ID,
            connectedAt=_TIME,
            ip={"type": "string", "examples": ["203.0.113.7"]},
            userAgent={"type": "string"},
            user={"type": ["string", "null"], "description": "null: nobody, as far as it has proved"},
            role={"enum": [*sorted(ROLES), None]},
            topics={**_list(_TOPIC), "description": "What it hears, by name"},
        ),
        "Clients": _object(
            clients=_list(_ref("Client")),
            next={"type": ["string", "null"], "description": "The next page's `cursor`; null: this was the last"},
        ),
        "Disconnected": _object(disconnected={**_list(_CLIENT_ID), "description": "Ids of the clients"}),
        "Node": _object(
            id=_NODE_ID,
            name={"type": "string", "examples": ["n1"]},
            address={"type": "string", "description": "Where it listens, as it was told itself"},
            path={"type": "string", "description": "Of its socket", "examples": ["/ws"]},
            version={"type": "string"},
            started=_TIME,
            clients=_COUNT,
            topics={**_COUNT, "description": "Topics that its clients hear"},
            ready={"type": "boolean", "description": "Whether it takes new clients"},
            draining={"type": "boolean", "description": "Whether it is about to leave"},
            moving={"type": "boolean", "description": "Whether it sends clients to other nodes"},
        ),
        "Rebalance": _object(
            moves=_list(_object(node=_NODE_ID, clients={**_COUNT, "description": "How many it is to send away"})),
            seconds={"type": "number", "description": "Time over which they go"},
            after={"type": "number", "description": "Seconds until they begin: the load balancer sends a node that "
                   "has just come up little, so to move there at once would be in vain"},
        ),
        "Error": _object(
            error=_object(
                code={"type": "string", "description": "For programs", "examples": ["bad_request"]},
                message={"type": "string", "description": "For people: what is wrong, and where"},
            )
        ),
    }  # fmt: skip


_STATUS: Final = {
    "BadRequest": "400", "Unauthorized": "401", "Off": "403", "NotFound": "404", "Conflict": "409",
    "TooLarge": "413", "Unavailable": "503",
}  # fmt: skip


def _responses() -> Schema:
    challenge = {"WWW-Authenticate": {"schema": {"const": "Bearer"}}}
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
    return {
        "BadRequest": _refusal("bad_request", "messages[3]: data is missing", "It cannot be understood"),
        "Unauthorized": {
            **_refusal("unauthorized", "Send the header Authorization: Bearer <GATEWAY_API_KEY>", "No key, or a wrong"),
            "headers": challenge,
        },
        "Off": _refusal("api_off", "The API is off: this node has no GATEWAY_API_KEY", "Nobody may"),
        "NotFound": _refusal("not_found", "No client 'n1.9f2c31ab.7' is connected", "There is no such thing"),
        "Conflict": _refusal("busy", "Clients are being moved away from n1.9f2c31ab; …", "Not as things are now"),
        "TooLarge": _refusal("too_large", "The body is larger than 2097152 bytes", "A message, or the body"),
        "Unavailable": {
            **_refusal(
                "unavailable", "Redis is not available: Connection refused",
                "Redis is away; ask again later. Of a publish `unconfirmed`: it is done, but too few replicas said so "
                "(GATEWAY_WAIT_REPLICAS); with its idempotencyKey it is safe to ask again",
            ),
            "headers": retry,
        },
    }  # fmt: skip


# ---- words of OpenAPI


def _refusal(code: str, message: str, description: str) -> Schema:
    return _json(_ref("Error"), description, example={"error": {"code": code, "message": message}})


def _json(schema: Schema, description: str, **more: Any) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema, **more}}}


def _object(**properties: Schema) -> Schema:
    """An object that has all of `properties`."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _in_path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _in_query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description}
