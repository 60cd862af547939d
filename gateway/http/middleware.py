"""ASGI middleware for all requests: it checks the Host header, and adds security headers to every response.

The Host check prevents DNS rebinding. If an attacker's DNS name resolves to this node, the attacker's page is
same-origin for the browser and for the Origin check. But the Host header still carries the attacker's name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# For responses that are not pages: no scripts, no frames, no content sniffing. Pages set their own headers.
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_RAW: Final = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class SecurityMiddleware:
    """Rejects requests for foreign hosts, and adds security headers that a response does not set itself.

    Args:
        http: The application for HTTP requests.
        websocket: The application for WebSocket handshakes.
        hosts: The served host names, each exact or ``*.name``. IP addresses and names without a dot are always
            served, since an attacker's DNS cannot have those.
    """

    def __init__(self, http: ASGIApp, websocket: ASGIApp, hosts: Sequence[str]) -> None:
        self._http = http
        self._websocket = websocket
        self._is_served = host_check(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or handshake."""
        if scope["type"] == "lifespan":
            await self._http(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                given = {name.lower() for name, _ in message.get("headers", ())}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name, value) for name, value in _RAW if name not in given),
                ]
            await send(message)

        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(named) != 1:  # RFC 9112, 3.2
            await _refuse(scope, send_with_headers, 400, "bad_request", "A request must have exactly one Host header")
        elif not self._is_served(named[0]):
            about = f"The host {named[0][:200]} is not served here; add it to GATEWAY_HOSTS if it should be"
            await _refuse(scope, send_with_headers, 421, "wrong_host", about)
        else:
            await (self._websocket if scope["type"] == "websocket" else self._http)(scope, receive, send_with_headers)


def host_check(hosts: Sequence[str]) -> Callable[[str], bool]:
    """`is_allowed_host` for the served names `hosts`. It remembers answers: clients use only a few different hosts."""
    return lru_cache(maxsize=256)(lambda host: is_allowed_host(host, hosts))


def is_allowed_host(host: str, names: Sequence[str]) -> bool:
    """Whether the node serves the host in a Host header (``name``, ``name:port`` or ``[address]:port``)."""
    name, colon, port = host.lower().rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host.lower(), ""
    if port and not (port.isascii() and port.isdigit()):
        return False
    if name.startswith("[") and name.endswith("]"):
        return _is_address(name[1:-1])
    name = name.removesuffix(".")
    if not name or ":" in name:
        return False
    if "." not in name or name.endswith(".localhost") or _is_address(name):
        return True
    return any(name == one or (one.startswith("*.") and name.endswith(one[1:])) for one in names)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


async def _refuse(scope: Scope, send: Send, status: int, code: str, message: str) -> None:
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    body = orjson.dumps({"error": {"code": code, "message": message}})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
