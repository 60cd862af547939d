"""The admission checks for new clients, shared by WebSocket handshakes and requests that open an event stream."""

from __future__ import annotations

from typing import Final, NamedTuple

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from gateway.connections.admission import REASONS
from gateway.core.errors import CloseReason
from gateway.core.identity import ANONYMOUS, AuthError, Identity, UnknownKey
from gateway.core.session_rules import Verify
from gateway.node.node import Node
from gateway.protocols.protocol import ClientProtocol
from gateway.transports.connection import Connection

SESSION_COOKIE: Final = "session"
_SCHEMES: Final = {"wss": "https", "https": "https"}  # connection scheme -> page scheme; otherwise http
RETRY_SECONDS: Final = 5  # the Retry-After of a refusal


class AcceptedClient(NamedTuple):
    """A client that passed the checks and holds a slot: call `open_connection`, or release the slot."""

    identity: Identity
    ip: str
    user_agent: str


class HandshakeRefused(Exception):
    """The node refuses a client, with this HTTP status and message."""

    def __init__(self, status: int, message: str, code: str | int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or status

    def response(self, node: Node) -> JSONResponse:
        """The response for the client. Also counts the refusal."""
        node.metrics.refusals.labels(str(self.status)).inc()
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else None
        about = {"error": {"code": self.code, "message": self.message}}
        return JSONResponse(about, status_code=self.status, headers=headers)


async def accept_handshake(request: HTTPConnection, node: Node) -> AcceptedClient:
    """Check a request of a new client, and reserve a slot for it.

    Raises:
        HandshakeRefused: The client is refused.
    """
    check_request(request, node)
    identity = await identify(request, node)
    ip = address_of(request)
    full = await node.admission.acquire(identity.user, ip)
    if full is not None:
        raise HandshakeRefused(429, REASONS[full])
    return AcceptedClient(identity, ip, request.headers.get("user-agent", ""))


def check_request(request: HTTPConnection, node: Node) -> None:
    """Check what needs no wait: whether the node takes clients, the page's origin, and the URL.

    Raises:
        HandshakeRefused: The client is refused.
    """
    query = request.query_params if request.scope["query_string"] else {}  # skips parsing in the usual case
    if node.drain.rejects_handshakes or node.rebalance.refuses_handshake(
        request.headers.get("x-request-id"), query.get("avoid") == node.settings.node
    ):
        raise HandshakeRefused(503, "this node does not accept new clients; connect again")
    check_origin(request, node)
    if any(name in query for name in ("token", "authToken", "access_token")):
        raise HandshakeRefused(
            400, "a token in the URL would be written to logs; send AUTH or the session cookie instead"
        )


def address_of(request: HTTPConnection) -> str:
    """The client's IP address, empty if it is unknown."""
    return request.client.host if request.client else ""


def open_connection(
    client: AcceptedClient, connection: Connection, protocol: ClientProtocol, node: Node, verify: Verify | None = None
) -> None:
    """Make `connection` a client of the node. `verify` replaces the default verification of its tokens."""
    node.connections.accept(connection, protocol, client.identity, client.ip, client.user_agent, verify)
    node.drain.client_accepted(connection)
    if not node.authenticator.is_valid(client.identity):  # revoked since its verification
        connection.disconnect(CloseReason.BAD_TOKEN, "token revoked")


def check_origin(request: HTTPConnection, node: Node) -> None:
    """Check that no page of another site uses the user's cookies here.

    Each Origin header must be in GATEWAY_ORIGINS, or be the node's own origin. The node's own origin has the scheme of
    the connection, or the one that a trusted proxy reports.

    Raises:
        HandshakeRefused: An origin is not allowed (403).
    """
    origins, host = request.headers.getlist("origin"), request.headers.get("host")
    # A request without Origin comes from our own page, from another program, or from an <img> of another site. Browsers
    # mark the last one with Sec-Fetch-Site.
    if not origins and request.headers.get("sec-fetch-site") == "cross-site":
        raise HandshakeRefused(403, "a page of another site may not embed this stream")
    own = f"{_SCHEMES.get(request.scope['scheme'], 'http')}://{host}"
    for origin in origins:
        if origin not in node.settings.origins and origin != own:
            raise HandshakeRefused(
                403,
                f"origin {origin[:200]} may not connect to {own[:200]}; add it to GATEWAY_ORIGINS, or the proxy that "
                "sends X-Forwarded-Proto to GATEWAY_TRUSTED_PROXIES",
            )


def identify_now(request: HTTPConnection, node: Node) -> Identity | None:
    """The identity in the session cookie; None: only `identify` can tell, which asks the key server.

    With an invalid cookie the client is anonymous, but not refused.
    """
    cookie = request.cookies.get(SESSION_COOKIE)
    if not cookie:
        return ANONYMOUS
    try:
        return node.authenticator.verifier.verify(cookie)
    except UnknownKey:
        return None
    except AuthError:
        return ANONYMOUS


async def identify(request: HTTPConnection, node: Node) -> Identity:
    """The identity in the session cookie. With an invalid cookie the client is anonymous, but not refused."""
    cookie = request.cookies.get(SESSION_COOKIE)
    if not cookie:
        return ANONYMOUS
    try:
        return await node.authenticator.identify(cookie)
    except AuthError:
        return ANONYMOUS
