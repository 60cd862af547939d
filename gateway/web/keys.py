"""The key that a request comes with: what it is good for."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from gateway.web.answers import key_of, resource
from gateway.web.openapi import Schema, answer, array, operation, record


async def show_key(request: Request) -> Any:
    """The name and the scopes of the key that asks, or of what an administrator's token stands for."""
    key = key_of(request)
    return {"name": key.name, "scopes": list(key.scopes)}


PATHS: Final[Schema] = {
    "/api/key": {
        "get": operation(
            "showKey", "The key that asks: its name, and what it is good for",
            answer(
                record(
                    name={"type": "string", "examples": ["price-feed", "admin:ann"]},
                    scopes={
                        **array({"type": "string", "pattern": "^(read|admin|(publish|services)(:.+)?)$"}),
                        "description": "`publish:` or `services:` and a pattern: topics or services that match",
                    },
                ),
                "An administrator's token is named `admin:` and the user, and good for everything",
            ),
        )
    },
}  # fmt: skip

SCHEMAS: Final[Schema] = {}

ROUTES: Final = [resource("/api/key", GET=("read", show_key))]
