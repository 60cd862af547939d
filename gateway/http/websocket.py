"""The WebSocket endpoint, a separate ASGI application.

Three paths need no router, and Starlette's exception handling around a route would cost a tenth of a connect.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.http import handshake
from gateway.http.api import resource
from gateway.http.handshake import HandshakeRefused
from gateway.node.node import Node
from gateway.protocols import registry
from gateway.transports.connection import Connection

OPERATOR_PATH: Final = "/api/ws"  # only on the load balancer's internal port; AUTH also accepts API keys here
PATHS: Final = frozenset({"/ws", "/api/v69/ws", OPERATOR_PATH})


class WebSocketEndpoint:
    """Accepts or refuses WebSocket clients of `node`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one handshake. After the response the node owns the connection, and this coroutine ends."""
        node, path = self._node, scope["path"]
        connection: Connection = scope["extensions"]["gateway.connection"]
        try:
            if path not in PATHS:
                raise HandshakeRefused(404, f"there is no WebSocket at {path[:200]}; it is at /ws")
            client = await handshake.accept_handshake(HTTPConnection(scope), node)
        except HandshakeRefused as refusal:
            await refusal.response(node)(scope, receive, send)
            return
        protocol, subprotocol = registry.choose(scope["subprotocols"])
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
        except BaseException:
            node.admission.cancel(client.identity.user, client.ip)
            raise
        handshake.open_connection(
            client, connection, protocol, node, node.verify_operator if path == OPERATOR_PATH else None
        )


async def upgrade_required(request: Request) -> Response:
    """The response to a plain GET of a WebSocket path (RFC 9110, 15.5.22)."""
    message = f"{request.url.path} is a WebSocket: connect with a WebSocket client, which sends Upgrade: websocket"
    return resource.refusal(426, "upgrade_required", message, {"upgrade": "websocket", "connection": "upgrade"})


ROUTES: Final = [Route(path, upgrade_required) for path in sorted(PATHS)]
