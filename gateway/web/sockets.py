"""The WebSocket endpoint, a separate ASGI application.

Three paths need no router, and Starlette's exception handling around a route would cost a tenth of a connect.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.node import Node
from gateway.protocols import registry
from gateway.transport.connection import Connection
from gateway.web import answers, entrance
from gateway.web.entrance import Refusal

OPERATORS: Final = "/api/ws"  # only on the load balancer's internal port; AUTH also accepts API keys here
PATHS: Final = frozenset({"/ws", "/api/v69/ws", OPERATORS})


class Sockets:
    """Accepts or refuses WebSocket clients of `node`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one handshake. After the response the node owns the connection, and this coroutine ends."""
        node, path = self._node, scope["path"]
        connection: Connection = scope["extensions"]["gateway.connection"]
        try:
            if path not in PATHS:
                raise Refusal(404, f"there is no WebSocket at {path[:200]}; it is at /ws")
            guest = await entrance.receive(HTTPConnection(scope), node)
        except Refusal as refusal:
            await refusal.answer(node)(scope, receive, send)
            return
        protocol, subprotocol = registry.choose(scope["subprotocols"])
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
        except BaseException:
            node.admission.forget(guest.identity.user, guest.ip)
            raise
        entrance.let_in(guest, connection, protocol, node, node.verify_operator if path == OPERATORS else None)


async def upgrade_required(request: Request) -> Response:
    """The response to a plain GET of a WebSocket path (RFC 9110, 15.5.22)."""
    message = f"{request.url.path} is a WebSocket: connect with a WebSocket client, which sends Upgrade: websocket"
    return answers.refusal(426, "upgrade_required", message, {"upgrade": "websocket", "connection": "upgrade"})


ROUTES: Final = [Route(path, upgrade_required) for path in sorted(PATHS)]
