"""Revoked tokens over HTTP: list, revoke."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from gateway.auth.revocations import TooManyRevocations
from gateway.auth.token_verifier import MAX_TOKEN_LENGTH
from gateway.core import names, revocations, timestamps
from gateway.core.revocations import Revocation
from gateway.http.api.openapi import NAME, TIME, Schema, answer, array, in_query, operation, record, ref
from gateway.http.api.resource import ApiError, audit, node_of, parse_limit, read_body, resource

MAX_BODY_BYTES: Final = 8 * MAX_TOKEN_LENGTH  # enough for the longest token id with each character escaped


async def revoke(request: Request) -> Any:
    """Revoke tokens on every node, and close their sockets. Body: ``{"jti"}`` or ``{"user"}``, optional ``expires``."""
    node = node_of(request)
    revocation_store, now = node.authenticator.revocation_store, node.authenticator.revocation_store.clock()
    body = await read_body(request, MAX_BODY_BYTES)
    if (
        not isinstance(body, dict)
        or body.keys() - {"jti", "user", "expires"}
        or len(body.keys() & {"jti", "user"}) != 1
    ):
        raise ApiError(400, "bad_request", 'Send {"jti": …} or {"user": …}, optionally with "expires"')
    audit(request, jti=body.get("jti"), user=body.get("user"))
    expires = body.get("expires", now + node.settings.revocation_seconds)
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        raise ApiError(400, "bad_request", "expires must be a number, seconds since 1970")
    if not now < expires <= now + revocations.MAX_SECONDS:
        raise ApiError(400, "bad_request", "expires must be in the future and within ten years, in seconds since 1970")
    # Nodes accept a token for the leeway after its expiry.
    until = expires + node.settings.jwt_leeway_seconds
    try:
        if isinstance(body.get("jti"), str):
            revocation = await revocation_store.revoke("token", revocations.name_of(body["jti"]), until)
        else:
            revocation = await revocation_store.revoke("user", body.get("user", ""), until)
    except ValueError:
        message = f"jti must be a non-empty string, user a string of 1 to {names.MAX_NAME_LENGTH} characters"
        raise ApiError(400, "bad_request", message) from None
    except TooManyRevocations as error:
        raise ApiError(409, "full", str(error)) from None
    return _shown(revocation)


async def list_revocations(request: Request) -> Any:
    """The current revocations."""
    node = node_of(request)
    await node.control_channel.check_revocations()
    found = sorted(node.authenticator.revocation_store.book, key=lambda one: (one.until, one.kind, one.name))
    limit = parse_limit(request.query_params.get("limit"))
    return {"revocations": [_shown(one) for one in found[:limit]], "count": len(found)}


def _shown(one: Revocation) -> dict[str, Any]:
    of_user = one.kind == "user"
    return {
        "jti": None if of_user else one.name,
        "user": one.name if of_user else None,
        "before": timestamps.iso_time(int(one.before * 1000)) if of_user else None,
        "until": timestamps.iso_time(int(one.until * 1000)),
    }


def _body() -> Schema:
    end = {"type": "number", "description": "When the tokens expire, in seconds since 1970"}
    token_id = {"type": "string", "minLength": 1, "description": "If longer than 200 characters, listed by its SHA-256"}
    one = {"properties": {"jti": token_id, "user": NAME, "expires": end}, "additionalProperties": False}
    schema = {"type": "object", **one, "oneOf": [{"required": ["jti"]}, {"required": ["user"]}]}
    examples = {"a token": {"value": {"jti": "4f1c"}}, "all of a user": {"value": {"user": "ann"}}}
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}


PATHS: Final[Schema] = {
    "/api/revocations": {
        "get": operation(
            "listRevocations", "The current revocations",
            answer(record(revocations=array(ref("Revocation")), count={"type": "integer"}), "Ordered by `until`"),
            parameters=[in_query("limit", {"type": "integer", "minimum": 1, "maximum": 10_000}, "The most listed")],
        ),
        "post": operation(
            "revoke", "Revoke a token, or all tokens issued to a user until now, on every node",
            answer(ref("Revocation"), "All nodes have been notified. They close the sockets of these tokens with 3500"),
            "Conflict", body=_body(),
            description="Without `expires` the revocation is kept for GATEWAY_REVOCATION_SECONDS. \"Now\" is the time "
            "of the Redis server.",
        ),
    },
}  # fmt: skip

SCHEMAS: Final[Schema] = {
    "Revocation": record(
        jti={"type": ["string", "null"], "description": "The token's id"},
        user={"type": ["string", "null"], "description": "The user whose tokens are revoked"},
        before={**TIME, "type": ["string", "null"], "description": "The user's tokens issued until then are revoked"},
        until={**TIME, "description": "The revocation is kept until then"},
    ),
}  # fmt: skip

ROUTES: Final = [resource("/api/revocations", "limit", GET=("read", list_revocations), POST=("admin", revoke))]
