"""Who comes in, by whichever way: what holds for a handshake and for the request that opens an event stream."""

from __future__ import annotations

from typing import Final, NamedTuple

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from gateway.admission import SAYS
from gateway.core.identity import ANONYMOUS, AuthError, Identity
from gateway.core.protocol import Close
from gateway.core.session import Verify
from gateway.node import Node
from gateway.transport.connection import Connection

SESSION_COOKIE: Final = "session"
_SCHEMES: Final = {"wss": "https", "https": "https"}  # of the page that connects by it; else http
RETRY_SECONDS: Final = 5  # what a refused client is told to wait


class Guest(NamedTuple):
    """Somebody who may come in, and for whom a place is kept: to be let in, or given up."""

    identity: Identity
    ip: str
    user_agent: str


class Refusal(Exception):
    """It does not come in: status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def answer(self, node: Node) -> JSONResponse:
        """What it is told; counted."""
        node.metrics.refusals.labels(str(self.status)).inc()
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else None
        about = {"error": {"code": self.status, "message": self.message}}
        return JSONResponse(about, status_code=self.status, headers=headers)


async def receive(asking: HTTPConnection, node: Node) -> Guest:
    """See who asks to come in, and keep a place for it.

    Raises:
        Refusal: It may not.
    """
    asked = asking.query_params if asking.scope["query_string"] else {}  # most ask for nothing
    if node.departures.refuses(asking.headers.get("x-request-id"), asked.get("avoid") == node.settings.node):
        raise Refusal(503, "this node takes no new clients; connect again")
    check_origin(asking, node)
    if any(name in asked for name in ("token", "authToken", "access_token")):
        raise Refusal(400, "a token in the URL would be written to logs; send AUTH or the session cookie instead")
    identity = await _identity(asking, node)
    ip = asking.client.host if asking.client else ""
    full = await node.admission.enter(identity.user, ip)
    if full is not None:
        raise Refusal(429, SAYS[full])
    return Guest(identity, ip, asking.headers.get("user-agent", ""))


def let_in(guest: Guest, connection: Connection, node: Node, verify: Verify | None = None) -> None:
    """From now on it is a client of the node. `verify`: what proves who it is, if not what does everywhere."""
    node.clients.admit(connection, guest.identity, guest.ip, guest.user_agent, verify)
    node.departures.admitted(connection)
    if not node.trust.is_valid(guest.identity):  # revoked since its verification
        connection.close(Close.BAD_TOKEN, "token revoked")


def check_origin(asking: HTTPConnection, node: Node) -> None:
    """See that no page of another site uses its reader's cookies here: each Origin is listed, or the node's own.

    Its own has the scheme by which the client came: of the connection, or what a trusted proxy says of it.

    Raises:
        Refusal: One does, 403.
    """
    origins, host = asking.headers.getlist("origin"), asking.headers.get("host")
    # No Origin: not a browser, or our own page. The picture of a stranger's page has none either, but says where it is.
    if not origins and asking.headers.get("sec-fetch-site") == "cross-site":
        raise Refusal(403, "a page of another site may not embed this stream")
    own = f"{_SCHEMES.get(asking.scope['scheme'], 'http')}://{host}"
    for origin in origins:
        if origin not in node.settings.origins and origin != own:
            raise Refusal(
                403,
                f"origin {origin[:200]} may not connect to {own[:200]}; GATEWAY_ORIGINS lists the others that may, and "
                "GATEWAY_TRUSTED_PROXIES the proxies that say X-Forwarded-Proto",
            )


async def _identity(asking: HTTPConnection, node: Node) -> Identity:
    """Who the session cookie proves; a bad cookie means anonymous, never a refused client."""
    cookie = asking.cookies.get(SESSION_COOKIE)
    if not cookie:
        return ANONYMOUS
    try:
        return await node.trust.identify(cookie)
    except AuthError:
        return ANONYMOUS
