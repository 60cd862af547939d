"""Which WebSocket clients the node accepts: the policy of all handshakes.

It decides within the transport, without ASGI. A client waits only if its user or address has a limit of connections,
which Redis counts, or if its token names a key that the key server must be asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gateway import logging
from gateway.cluster.connection_limits import Answer
from gateway.connections.admission import REASONS
from gateway.core import frames
from gateway.core.identity import Identity
from gateway.core.session_rules import Verify
from gateway.http import handshake
from gateway.http.api import resource
from gateway.http.handshake import AcceptedClient, HandshakeRefused
from gateway.http.middleware import MAX_REQUEST_ID, RAW_HEADERS, HostCheck
from gateway.node.node import Node
from gateway.protocols import registry
from gateway.protocols.centrifugo.conversation import CentrifugoConversation
from gateway.protocols.protocol import ClientProtocol
from gateway.transports.connection import ConnectionStage
from gateway.transports.handshake import Handshake

OPERATOR_PATH: Final = "/api/ws"  # only on the load balancer's internal port; AUTH also accepts API keys here
PATHS: Final = frozenset({"/ws", "/api/v69/ws", OPERATOR_PATH})
CENTRIFUGO_PATHS: Final = frozenset({"/connection/websocket", registry.UNIDIRECTIONAL_PATH})


class WebSocketPolicy:
    """Accepts or rejects WebSocket clients of `node`. See `HandshakePolicy`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._host_check = HostCheck(node.settings.hosts)
        self._proxy_headers = ProxyHeadersMiddleware(_do_nothing, list(node.settings.trusted_proxies))
        self._tasks: set[asyncio.Task[None]] = set()

    def decide(self, scope: dict[str, Any], handshake: Handshake) -> None:
        """As `HandshakePolicy.decide`."""
        self._read_proxy_headers(scope)
        client = NewClient(self._node, HTTPConnection(scope), handshake)
        try:
            identity = self._check(client.request)
        except HandshakeRefused as refusal:
            client.refuse(refusal)
            return
        if identity is not None:
            client.identified(identity)
        else:
            task = asyncio.get_running_loop().create_task(client.identify())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _check(self, request: HTTPConnection) -> Identity | None:
        """All checks of a handshake but the limits of connections, in order. None: the key server must be asked.

        Raises:
            HandshakeRefused: The client is refused.
        """
        refusal = self._host_check.refusal(request.scope["headers"])
        if refusal is not None:
            raise HandshakeRefused(refusal.status, refusal.message, refusal.code)
        path = request.scope["path"]
        if path not in PATHS and not (path in CENTRIFUGO_PATHS and self._node.settings.centrifugo):
            raise HandshakeRefused(404, f"there is no WebSocket at {path[:200]}; it is at /ws")
        handshake.check_request(request, self._node)
        return handshake.identify_now(request, self._node)

    def _read_proxy_headers(self, scope: dict[str, Any]) -> None:
        """Replace the proxy's address and scheme by the client's, as uvicorn does for other requests."""
        with suppress(StopIteration):  # the middleware waits for nothing
            self._proxy_headers(scope, None, None).send(None)  # type: ignore[arg-type]


class NewClient:
    """A client whose request passed the checks, until its connection is open or refused."""

    def __init__(self, node: Node, request: HTTPConnection, handshake: Handshake) -> None:
        self.request: Final = request
        self._node = node
        self._handshake = handshake
        self._client: AcceptedClient | None = None

    async def identify(self) -> None:
        """Ask the key server who the client is, and go on unless the client has disconnected meanwhile."""
        try:
            identity = await handshake.identify(self.request, self._node)
        except Exception:
            logging.logger().exception("handshake failed", path=self.request.scope["path"])
            self._handshake.reject(HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            if not self._handshake.is_over:
                self.identified(identity)

    def identified(self, identity: Identity) -> None:
        """Count the connection of `identity`, and go on when the limits admit it."""
        ip = handshake.address_of(self.request)
        self._client = AcceptedClient(identity, ip, self.request.headers.get("user-agent", ""))
        answer = self._node.admission.request_slot(identity.user, ip)
        if answer is None:
            self._accept(self._client)
        else:
            answer.add_done_callback(self._counted)

    def _counted(self, answer: Answer) -> None:
        client = self._client
        assert client is not None
        full = answer.result()
        if full is not None:
            self._node.admission.rejected(full)
            self.refuse(HandshakeRefused(429, REASONS[full]))
        elif self._handshake.is_over:  # the client has disconnected, or waited too long
            self._node.admission.cancel(client.identity.user, client.ip)
        else:
            self._accept(client)

    def _accept(self, client: AcceptedClient) -> None:
        path, offered = self.request.scope["path"], self.request.scope["subprotocols"]
        if path in CENTRIFUGO_PATHS:
            self._accept_centrifugo(client, path, offered)
            return
        protocol, subprotocol = registry.choose(offered)
        self._handshake.accept(subprotocol)
        self._open(client, protocol, self._node.verify_operator if path == OPERATOR_PATH else None)

    def _open(self, client: AcceptedClient, protocol: ClientProtocol, verify: Verify | None = None) -> None:
        request_id = self.request.headers.get("x-request-id", "")[:MAX_REQUEST_ID]
        with logging.request_bound(request_id) if request_id else nullcontext():
            handshake.open_connection(client, self._handshake.connection, protocol, self._node, verify)

    def _accept_centrifugo(self, client: AcceptedClient, path: str, offered: Sequence[str]) -> None:
        """Accept a client of Centrifugo's protocol, whose query may have options and its first message."""
        query, connection = self.request.query_params, self._handshake.connection
        protocol, subprotocol = registry.choose_centrifugo(path, offered, query)
        self._handshake.accept(subprotocol)
        self._open(client, protocol)
        if isinstance(connection.conversation, CentrifugoConversation):
            wanted = query.get("cf_ws_frame_ping_pong") == "true"
            connection.conversation.frame_pings = wanted or path == registry.UNIDIRECTIONAL_PATH
        first = query.get("cf_connect")
        if first and connection.stage is ConnectionStage.OPEN:  # not if its token was revoked meanwhile
            self._node.connections.message_received(connection, frames.TEXT, first.encode())

    def refuse(self, refusal: HandshakeRefused) -> None:
        """Answer with the refusal instead of 101."""
        response = refusal.response(self._node)
        headers = [*response.raw_headers, *RAW_HEADERS]
        self._handshake.reject(HTTPStatus(response.status_code), bytes(response.body), headers)


async def _do_nothing(*_: Any) -> None:
    """The application behind the middleware that reads the headers of proxies."""


async def upgrade_required(request: Request) -> Response:
    """The response to a plain GET of a WebSocket path (RFC 9110, 15.5.22)."""
    message = f"{request.url.path} is a WebSocket: connect with a WebSocket client, which sends Upgrade: websocket"
    return resource.refusal(426, "upgrade_required", message, {"upgrade": "websocket", "connection": "upgrade"})


ROUTES: Final = [Route(path, upgrade_required) for path in sorted(PATHS)]
