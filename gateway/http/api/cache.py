"""The shared cache over HTTP."""

from __future__ import annotations

import math
from typing import Any, Final

from starlette.requests import Request

from gateway.cache.cache import (
    MAX_KEY_LENGTH,
    MAX_TTL_SECONDS,
    MISS,
    TTL_SECONDS,
    ValueTooLarge,
    check_key,
    check_prefix,
)
from gateway.cache.store import MAX_VALUE_BYTES
from gateway.http.api.openapi import COUNT, Schema, answer, in_path, in_query, operation, record
from gateway.http.api.resource import SMALL_BYTES, ApiError, node_of, read_body, resource


async def show_value(request: Request) -> Any:
    """One value and its remaining time to live."""
    key, cache = _key(request), node_of(request).cache
    value = await cache.get(key, strict=True)
    seconds = None if value is MISS else await cache.ttl(key, strict=True)
    if seconds is None:
        raise ApiError(404, "not_found", f"The cache has no value of {key[:60]!r}")
    return {"key": key, "value": value, "ttlSeconds": seconds if math.isfinite(seconds) else None}


async def put_value(request: Request) -> Any:
    """Store a value: ``{"value", "ttlSeconds"}``."""
    key = _key(request)
    body = await read_body(request, MAX_VALUE_BYTES + SMALL_BYTES)
    if not isinstance(body, dict) or "value" not in body or body.keys() - {"value", "ttlSeconds"}:
        raise ApiError(400, "bad_request", f'Send {{"value": …}}, and "ttlSeconds" if it is not {TTL_SECONDS:g}')
    seconds = body.get("ttlSeconds", TTL_SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ApiError(400, "bad_request", "ttlSeconds must be a number")
    try:
        await node_of(request).cache.set(key, body["value"], seconds, strict=True)
    except ValueTooLarge as error:
        raise ApiError(413, "too_large", str(error)) from None
    except ValueError as error:
        raise ApiError(400, "bad_request", f"ttlSeconds: {error}") from None
    return {"key": key}


async def delete_value(request: Request) -> Any:
    """Delete one value."""
    return {"deleted": await node_of(request).cache.delete(_key(request), strict=True)}


async def clear(request: Request) -> Any:
    """Delete all values whose keys begin with the prefix."""
    prefix = request.query_params.get("prefix")
    if prefix is None:
        raise ApiError(400, "bad_request", "prefix is missing; an empty one clears the whole cache")
    try:
        check_prefix(prefix)
    except ValueError as error:
        raise ApiError(400, "bad_request", f"prefix: {error}") from None
    return {"cleared": await node_of(request).cache.clear(prefix, strict=True)}


def _key(request: Request) -> str:
    try:
        return check_key(request.path_params["key"])
    except ValueError as error:
        raise ApiError(400, "bad_request", str(error)) from None


_NAME: Final[Schema] = {
    "type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH, "examples": ["contest:5"],
    "description": "No spaces, no braces",
}  # fmt: skip
_SECONDS: Final[Schema] = {
    "type": "number", "minimum": 0.001, "maximum": MAX_TTL_SECONDS, "default": TTL_SECONDS,
    "description": "The longest time to live; the actual one may be up to a tenth shorter",
}  # fmt: skip
_KEY: Final = in_path("key", _NAME)

PATHS: Final[Schema] = {
    "/api/cache": {
        "delete": operation(
            "clearCache", "Delete all values whose keys begin with `prefix`",
            answer(record(cleared=COUNT), "The number of deleted values"),
            parameters=[{**in_query("prefix", {"type": "string"}, "Empty: the whole cache"), "required": True}],
            description="Redis deletes in steps and serves other requests in between. After a 503 some values may be "
            "left.",
        )
    },
    "/api/cache/{key}": {
        "get": operation(
            "showCached", "One value of the shared cache",
            answer(
                record(key=_NAME, value={"description": "Any JSON value"},
                       ttlSeconds={"type": ["number", "null"], "description": "Remaining; null: it never expires"}),
                "The value",
            ),
            "NotFound", parameters=[_KEY],
        ),
        "put": operation(
            "putCached", "Store a value", answer(record(key=_NAME), "Redis has stored it and notified all nodes"),
            parameters=[_KEY],
            body={
                "required": True,
                "description": f"The value may have at most {MAX_VALUE_BYTES} bytes.",
                "content": {"application/json": {
                    "schema": {
                        "type": "object", "required": ["value"], "additionalProperties": False,
                        "properties": {"value": {"description": "Any JSON value"}, "ttlSeconds": _SECONDS},
                    },
                    "examples": {"for a minute": {"value": {"value": {"leader": "ann"}, "ttlSeconds": 60}}},
                }},
            },
        ),
        "delete": operation(
            "deleteCached", "Delete a value, on all nodes",
            answer(record(deleted={"type": "boolean"}), "false if there was none"), parameters=[_KEY],
        ),
    },
}  # fmt: skip

SCHEMAS: Final[Schema] = {}

ROUTES: Final = [
    resource("/api/cache", "prefix", DELETE=("admin", clear)),
    resource(
        "/api/cache/{key:name}",
        GET=("read", show_value), PUT=("admin", put_value), DELETE=("admin", delete_value),
    ),
]  # fmt: skip
