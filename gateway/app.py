"""The composition root: settings in, a Starlette application with its node out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from gateway.admission import SAYS
from gateway.core import topics
from gateway.core.identity import ANONYMOUS, AuthError, Identity
from gateway.core.protocol import Close
from gateway.core.topics import RulesError, TopicRules
from gateway.node import Node
from gateway.settings import Settings
from gateway.transport.connection import Connection
from gateway.transport.request import Inflow
from gateway.web import answers, api, health, pages
from gateway.web.door import Door

SOCKET_PATHS = ("/ws", "/api/v69/ws")
SESSION_COOKIE = "session"
RETRY_SECONDS = 5  # what a refused client is told to wait


def create_app(settings: Settings) -> Starlette:
    """The application of one node; the node is `app.state.node`, and lives while the lifespan does."""
    node = Node(settings, load_rules(settings.topics))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Inflow]]:
        async with node.life():
            yield {"inflow": node.admission}

    routes = [
        *(WebSocketRoute(path, socket) for path in SOCKET_PATHS),
        *health.ROUTES,
        *api.ROUTES,
        *pages.ROUTES,
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=answers.EXCEPTION_HANDLERS)
    app.state.node = node
    # Outermost, so that also what Starlette's own error handling answers passes it.
    app.middleware_stack = Door(app.build_middleware_stack(), settings.hosts)
    return app


def load_rules(file: str) -> TopicRules:
    """The topic rules in `file`, or the package's own if it is empty.

    Raises:
        RulesError: It cannot be read, or says something that cannot be.
    """
    if not file:
        return topics.parse(resources.files("gateway").joinpath("topics.toml").read_text(), "topics.toml")
    try:
        return topics.parse(Path(file).read_text(), file)
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"GATEWAY_TOPICS: {file} cannot be read: {error}") from None


async def socket(websocket: WebSocket) -> None:
    """Decide who comes in. After `accept` the connection is the node's, and this coroutine ends."""
    node: Node = websocket.app.state.node
    connection: Connection = websocket.scope["extensions"]["gateway.connection"]
    refusal = _refusal(websocket, node)
    if refusal is not None:
        await _refuse(websocket, node, *refusal)
        return
    identity = await _identity(websocket, node)
    ip = websocket.client.host if websocket.client else ""
    full = await node.admission.enter(identity.user, ip)
    if full is not None:
        await _refuse(websocket, node, 429, SAYS[full])
        return
    offered = websocket.scope["subprotocols"]
    try:
        # A client that offered subprotocols and is given none fails the connection.
        await websocket.accept(subprotocol=offered[0] if offered else None)
    except BaseException:
        node.admission.forget(identity.user, ip)
        raise
    node.clients.admit(connection, identity, ip, websocket.headers.get("user-agent", ""))
    node.departures.admitted(connection)
    if not node.trust.holds(identity):  # since it was verified
        connection.close(Close.BAD_TOKEN, "token revoked")


async def _refuse(websocket: WebSocket, node: Node, status: int, message: str) -> None:
    node.metrics.refusals.labels(str(status)).inc()
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
    await websocket.send_denial_response(
        JSONResponse({"error": {"code": status, "message": message}}, status_code=status, headers=headers)
    )


def _refusal(websocket: WebSocket, node: Node) -> tuple[int, str] | None:
    asked = websocket.query_params if websocket.scope["query_string"] else {}  # most ask for nothing
    avoided = asked.get("avoid") == node.settings.node
    if node.departures.refuses(websocket.headers.get("x-request-id"), avoided):
        return 503, "this node takes no new clients; connect again"
    host = websocket.headers.get("host")
    # No Origin: not a browser, so nobody's cookies are being abused.
    for origin in websocket.headers.getlist("origin"):
        if origin not in node.settings.origins and not _is_page_of(origin, host):
            return 403, f"origin {origin[:200]} may not connect; GATEWAY_ORIGINS lists those that may"
    if any(name in asked for name in ("token", "authToken", "access_token")):
        return 400, "a token in the URL ends in logs; send AUTH or the session cookie"
    return None


def _is_page_of(origin: str, host: str | None) -> bool:
    try:
        return bool(host) and urlsplit(origin).netloc == host
    except ValueError:
        return False


async def _identity(websocket: WebSocket, node: Node) -> Identity:
    """Who the session cookie proves; a bad cookie means anonymous, never a refused socket."""
    cookie = websocket.cookies.get(SESSION_COOKIE)
    if not cookie:
        return ANONYMOUS
    try:
        return await node.trust.identify(cookie)
    except AuthError:
        return ANONYMOUS
