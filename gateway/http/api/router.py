"""The HTTP API for back ends and operators: all its routes, and its OpenAPI document.

Every node answers for the whole cluster. Tests compare the document with the routes, and each response of a running
node with its schemas.
"""

from __future__ import annotations

import copy
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import __version__
from gateway.http.api import cache, clients, key, nodes, publish, revocations, services, topics
from gateway.http.api.openapi import ERROR, RESPONSES, Schema, answer, operation
from gateway.http.api.resource import json
from gateway.protocols.native import asyncapi

_ABOUT: Final = """\
For back ends that publish, and for the operators of the cluster. Every node answers for the whole cluster. \
The load balancer serves the API on its internal port only.

Names in paths are percent-encoded: the topic `a/b` is at `/api/topics/a%2Fb`. \
Unknown or repeated query parameters are rejected. Every GET also allows HEAD."""

_RESOURCES: Final = (publish, topics, clients, revocations, nodes, services, cache, key)


def document() -> Schema:
    """A new copy of the OpenAPI document, which the caller may change."""
    description = answer({"type": "object"}, "An OpenAPI 3.1 document")
    sockets = answer({"type": "object"}, "An AsyncAPI 3 document")
    about = "The messages on a socket"
    paths = {
        "/api/openapi.json": {"get": operation("openapi", "This description", description, security=[])},
        "/api/asyncapi.json": {"get": operation("asyncapi", about, sockets, security=[])},
    }
    schemas = {"Error": ERROR}
    for part in _RESOURCES:
        paths |= part.PATHS
        schemas |= part.SCHEMAS
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "WebSocket gateway cluster", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"apiKey": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "GATEWAY_API_KEY, one of GATEWAY_API_KEYS, or an administrator's token (JWT)",
                }
            },
            "schemas": schemas,
            "responses": RESPONSES,
        },
    }
    return copy.deepcopy(whole)


async def openapi(_request: Request) -> Response:
    """The OpenAPI document of this API. It needs no key, since it contains no secret."""
    return json(document())


async def messages(_request: Request) -> Response:
    """The AsyncAPI document of the messages on a socket. It needs no key either."""
    return json(asyncapi.document(__version__))


ROUTES: Final = [
    *(route for part in _RESOURCES for route in part.ROUTES),
    Route("/api/openapi.json", openapi),
    Route("/api/asyncapi.json", messages),
]
