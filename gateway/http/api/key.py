"""The API key of a request, over HTTP."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from gateway.http.api.openapi import Schema, answer, array, operation, record
from gateway.http.api.resource import api_key, resource


async def show_key(request: Request) -> Any:
    """The name and the scopes of the request's key, or of an administrator's token."""
    key = api_key(request)
    return {"name": key.name, "scopes": list(key.scopes)}


PATHS: Final[Schema] = {
    "/api/key": {
        "get": operation(
            "showKey", "The name and the scopes of the key of this request",
            answer(
                record(
                    name={"type": "string", "examples": ["price-feed", "admin:ann"]},
                    scopes={
                        **array({"type": "string", "pattern": "^(read|admin|(publish|services)(:.+)?)$"}),
                        "description": "`publish:` or `services:` with a pattern: matching topics or services",
                    },
                ),
                "The key. An administrator's token has the name `admin:` plus the user, and all scopes",
            ),
        )
    },
}  # fmt: skip

SCHEMAS: Final[Schema] = {}

ROUTES: Final = [resource("/api/key", GET=("read", show_key))]
