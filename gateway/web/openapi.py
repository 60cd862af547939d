"""The words in which the resources describe themselves (OpenAPI 3.1), and what all of them share."""

from __future__ import annotations

from typing import Any, Final

from gateway.core import topics
from gateway.core.protocol import MAX_NAME_LENGTH

Schema = dict[str, Any]

NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH}
TOPIC: Final[Schema] = {
    "type": "string", "pattern": r"^[A-Za-z0-9_:.\-/]+$", "minLength": 1, "maxLength": topics.MAX_TOPIC_LENGTH,
    "examples": ["token:price:ABC"],
}  # fmt: skip
CLIENT_ID: Final[Schema] = {
    **NAME, "pattern": r"^[A-Za-z0-9_.\-]+$", "description": "Its node's id, and a number",
    "examples": ["n1.9f2c31ab.7"],
}  # fmt: skip
NODE_ID: Final[Schema] = {
    "type": "string", "description": "Its name, and a word that is new at each start", "examples": ["n1.9f2c31ab"],
}  # fmt: skip
TIME: Final[Schema] = {"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00.000Z"]}
MARK: Final[Schema] = {"type": "integer", "minimum": 0, "description": "Tells the message from others at its offset"}
EPOCH: Final[Schema] = {"type": "string", "description": "Offsets count within it", "examples": ["4516a920"]}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}


_STATUS: Final = {
    "BadRequest": "400", "Unauthorized": "401", "Off": "403", "NotFound": "404", "Conflict": "409",
    "NoSuchName": "404", "TooLarge": "413", "Encoded": "415", "Unavailable": "503",
}  # fmt: skip


def operation(
    name: str, summary: str, success: Schema, *refusals: str, body: Schema | None = None, **more: Any
) -> Schema:
    """An operation that answers 200 with `success`; unless `security` says otherwise, to bearers of the key."""
    if "security" not in more:
        refusals = (*refusals, "BadRequest", "Unauthorized", "Off", "Unavailable")
    if body is not None:
        refusals = (*refusals, "TooLarge", "Encoded")
    responses = {"200": success} | {
        _STATUS[refusal]: {"$ref": f"#/components/responses/{refusal}"} for refusal in refusals
    }
    if body is not None:
        more["requestBody"] = body
    return {"operationId": name, "summary": summary, **more, "responses": dict(sorted(responses.items()))}


def _refusal(code: str, message: str, description: str) -> Schema:
    return answer(ref("Error"), description, example={"error": {"code": code, "message": message}})


def answer(schema: Schema, description: str, **more: Any) -> Schema:
    """An answer whose JSON fits `schema`."""
    return {"description": description, "content": {"application/json": {"schema": schema, **more}}}


def record(**properties: Schema) -> Schema:
    """An object that has all of `properties`."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def array(items: Schema) -> Schema:
    """A list of `items`."""
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """The schema that a resource has in its SCHEMAS under `name`."""
    return {"$ref": f"#/components/schemas/{name}"}


def in_path(name: str, schema: Schema) -> Schema:
    """A part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": schema}


def in_query(name: str, schema: Schema, description: str) -> Schema:
    """A parameter that may stand in the query."""
    return {"name": name, "in": "query", "schema": schema, "description": description}


# ---- what all share

ERROR: Final[Schema] = record(
    error=record(
        code={"type": "string", "description": "For programs", "examples": ["bad_request"]},
        message={"type": "string", "description": "For people: what is wrong, and where"},
    )
)

RESPONSES: Final[Schema] = {
    "BadRequest": _refusal("bad_request", "messages[3]: data is missing", "It cannot be understood"),
    "Unauthorized": {
        **_refusal("unauthorized", "Send the header Authorization: Bearer <GATEWAY_API_KEY>", "No key, or a wrong"),
        "headers": {"WWW-Authenticate": {"schema": {"const": "Bearer"}}},
    },
    "Off": _refusal(
        "forbidden", "The key price-feed has not the scope admin", "Not with this key; or `api_off`: there are none"
    ),
    "NotFound": _refusal("not_found", "No client 'n1.9f2c31ab.7' is connected", "There is no such thing"),
    "NoSuchName": _refusal(
        "not_found", "There can be no such topic as 'no topic': …",
        "There can be no such name; one that nothing has yet answers 200",
    ),
    "Encoded": _refusal(
        "unsupported_encoding", "The body is encoded (Content-Encoding: gzip): send it without an encoding",
        "The body has a Content-Encoding",
    ),
    "Conflict": _refusal("busy", "Clients are being moved away from n1.9f2c31ab; …", "Not as things are now"),
    "TooLarge": _refusal("too_large", "The body is larger than it may be: 2097152 bytes", "A message, or the body"),
    "Unavailable": {
        **_refusal(
            "unavailable", "Redis is not available: Connection refused",
            "Redis is away; ask again later. Of a publish `unconfirmed`: it is done, but too few replicas said so "
            "(GATEWAY_WAIT_REPLICAS); with its idempotencyKey it is safe to ask again",
        ),
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}},
    },
}  # fmt: skip
