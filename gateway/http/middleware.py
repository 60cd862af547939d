"""ASGI middleware for all HTTP requests: it checks the Host header, adds security headers to every response, logs ids.

The Host check prevents DNS rebinding. If an attacker's DNS name resolves to this node, the attacker's page is
same-origin for the browser and for the Origin check. But the Host header still carries the attacker's name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import logging

# For responses that are not pages: no scripts, no frames, no content sniffing. Pages set their own headers.
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
MAX_REQUEST_ID: Final = 100  # characters of the request id that the log shows; HAProxy has 36
RAW_HEADERS: Final = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class HostRefusal(NamedTuple):
    """Why a request is rejected for its Host header, as the response states it."""

    status: int
    code: str
    message: str


class HostCheck:
    """Checks the Host header of requests.

    Args:
        hosts: The served host names, each exact or ``*.name``. IP addresses and names without a dot are always
            served, since an attacker's DNS cannot have those.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self._is_served = host_check(hosts)

    def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> HostRefusal | None:
        """Why a request with these headers is rejected, or None. The names are in lower case."""
        named = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(named) != 1:  # RFC 9112, 3.2
            return HostRefusal(400, "bad_request", "A request must have exactly one Host header")
        if not self._is_served(named[0]):
            about = f"The host {named[0][:200]} is not served here; add it to GATEWAY_HOSTS if it should be"
            return HostRefusal(421, "wrong_host", about)
        return None


class SecurityMiddleware:
    """Rejects requests for foreign hosts, and adds security headers that a response does not set itself."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._host_check = HostCheck(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message.get("headers", ())}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name, value) for name, value in RAW_HEADERS if name not in given),
                ]
            await send(message)

        for name, value in scope["headers"]:
            if name == b"x-request-id":
                logging.bind_request(value.decode("latin-1")[:MAX_REQUEST_ID])
        refusal = self._host_check.refusal(scope["headers"])
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
        else:
            await _refuse(send_with_headers, refusal)


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


async def _refuse(send: Send, refusal: HostRefusal) -> None:
    body = orjson.dumps({"error": {"code": refusal.code, "message": refusal.message}})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
