"""The WebSockets' endpoint."""

from __future__ import annotations

from typing import Final

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from gateway.node import Node
from gateway.transport.connection import Connection
from gateway.web import entrance
from gateway.web.entrance import Refusal


async def socket(websocket: WebSocket) -> None:
    """Decide who comes in. After `accept` the connection is the node's, and this coroutine ends."""
    node: Node = websocket.app.state.node
    connection: Connection = websocket.scope["extensions"]["gateway.connection"]
    try:
        guest = await entrance.receive(websocket, node)
    except Refusal as refusal:
        await websocket.send_denial_response(refusal.answer(node))
        return
    offered = websocket.scope["subprotocols"]
    try:
        # A client that offered subprotocols and is given none fails the connection.
        await websocket.accept(subprotocol=offered[0] if offered else None)
    except BaseException:
        node.admission.forget(guest.identity.user, guest.ip)
        raise
    entrance.let_in(guest, connection, node, node.verify_operator if websocket.scope["path"] == OPERATORS else None)


OPERATORS: Final = "/api/ws"  # the load balancer's internal side has it alone: there AUTH takes keys of the API as well
ROUTES: Final = [WebSocketRoute(path, socket) for path in ("/ws", "/api/v69/ws", OPERATORS)]
