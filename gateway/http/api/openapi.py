"""Helpers for the OpenAPI 3.1 descriptions of the resources, and their common schemas and responses."""

from __future__ import annotations

from typing import Any, Final

from gateway.core import topic_rules
from gateway.core.names import MAX_NAME_LENGTH

Schema = dict[str, Any]

NAME: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH}
TOPIC: Final[Schema] = {
    "type": "string", "pattern": f"^{topic_rules.NAME_CHARACTERS}+$", "minLength": 1,
    "maxLength": topic_rules.MAX_TOPIC_LENGTH, "examples": ["token:price:ABC"],
}  # fmt: skip
CLIENT_ID: Final[Schema] = {
    **NAME, "pattern": r"^[A-Za-z0-9_.\-]+$", "description": "The id of its node, and a number",
    "examples": ["n1.9f2c31ab.7"],
}  # fmt: skip
NODE_ID: Final[Schema] = {
    "type": "string", "description": "The node's name, and a random part for each start",
    "examples": ["n1.9f2c31ab"],
}  # fmt: skip
TIME: Final[Schema] = {"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00.000Z"]}
MARK: Final[Schema] = {"type": "integer", "minimum": 0, "description": "Distinguishes messages with the same offset"}
EPOCH: Final[Schema] = {"type": "string", "description": "Offsets count within an epoch", "examples": ["4516a920"]}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}


_STATUS: Final = {
    "BadRequest": "400", "Unauthorized": "401", "Off": "403", "NotFound": "404", "Conflict": "409",
    "NoSuchName": "404", "TooLarge": "413", "Encoded": "415", "Unavailable": "503",
}  # fmt: skip


def operation(
    name: str, summary: str, success: Schema, *refusals: str, body: Schema | None = None, **more: Any
) -> Schema:
    """An operation with a 200 response `success` and the error responses `refusals`. It needs a key, unless `more` has
    `security`."""
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
    """A response whose JSON matches `schema`."""
    return {"description": description, "content": {"application/json": {"schema": schema, **more}}}


def record(**properties: Schema) -> Schema:
    """The schema of an object that has all of `properties`."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def array(items: Schema) -> Schema:
    """The schema of a list of `items`."""
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """A reference to the schema `name` in the SCHEMAS of a resource."""
    return {"$ref": f"#/components/schemas/{name}"}


def in_path(name: str, schema: Schema) -> Schema:
    """A path parameter."""
    return {"name": name, "in": "path", "required": True, "schema": schema}


def in_query(name: str, schema: Schema, description: str) -> Schema:
    """An optional query parameter."""
    return {"name": name, "in": "query", "schema": schema, "description": description}


# ---- common schemas and responses

ERROR: Final[Schema] = record(
    error=record(
        code={"type": "string", "description": "For programs", "examples": ["bad_request"]},
        message={"type": "string", "description": "For people: what is wrong and where"},
    )
)

RESPONSES: Final[Schema] = {
    "BadRequest": _refusal("bad_request", "messages[3]: data is missing", "The request is invalid"),
    "Unauthorized": {
        **_refusal("unauthorized", "Send the header Authorization: Bearer <GATEWAY_API_KEY>", "No key, or a wrong key"),
        "headers": {"WWW-Authenticate": {"schema": {"const": "Bearer"}}},
    },
    "Off": _refusal(
        "forbidden", "The key price-feed does not have the scope admin",
        "The key may not do this; or `api_off`: this node has no keys",
    ),
    "NotFound": _refusal("not_found", "No client 'n1.9f2c31ab.7' is connected", "Not found"),
    "NoSuchName": _refusal(
        "not_found", "'no topic' is not a topic: …",
        "The name is invalid. A valid name that is not in use gets a 200",
    ),
    "Encoded": _refusal(
        "unsupported_encoding", "The body is encoded (Content-Encoding: gzip): send it without an encoding",
        "The body has a Content-Encoding",
    ),
    "Conflict": _refusal("busy", "A rebalance is moving clients from n1.9f2c31ab; …", "The current state forbids it"),
    "TooLarge": _refusal(
        "too_large", "The body is larger than the limit of 2097152 bytes", "A message or the body is too large"
    ),
    "Unavailable": {
        **_refusal(
            "unavailable", "Redis is not available: Connection refused",
            "Redis is not available; retry later. `unconfirmed`: Redis has accepted a publish, but too few replicas "
            "have confirmed it (GATEWAY_WAIT_REPLICAS); it is safe to retry with the same idempotencyKey",
        ),
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}},
    },
}  # fmt: skip
