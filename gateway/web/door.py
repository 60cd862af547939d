"""What holds for every request before anyone looks at its path: which host it asks for, and what every answer says.

A page that a stranger's DNS leads here is of the same origin as we are, to the browser and to our own look at its
Origin. The Host header gives it away: it still carries the stranger's name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# For answers that are no page: nothing in them is to run, to be framed or to be guessed at.
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_RAW: Final = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Door:
    """Turns away requests for a host that is not ours, and gives every answer the headers that it does not set itself.

    `http`, `websocket`: what answers those who come in.
    `hosts`: the names served, each exact or ``*.name``; addresses and names without a dot are served besides, since
    no stranger's DNS has those.
    """

    def __init__(self, http: ASGIApp, websocket: ASGIApp, hosts: Sequence[str]) -> None:
        self._http = http
        self._websocket = websocket
        self._is_served = lru_cache(maxsize=256)(lambda host: is_served(host, hosts))  # all ask for the same few

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or handshake."""
        if scope["type"] == "lifespan":
            await self._http(scope, receive, send)
            return

        async def say(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                given = {name.lower() for name, _ in message.get("headers", ())}
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name, value) for name, value in _RAW if name not in given),
                ]
            await send(message)

        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(named) != 1:  # RFC 9112, 3.2
            await _refuse(scope, say, 400, "bad_request", "A request has one Host header")
        elif not self._is_served(named[0]):
            about = f"The host {named[0][:200]} is not served here; GATEWAY_HOSTS lists those that are"
            await _refuse(scope, say, 421, "wrong_host", about)
        else:
            await (self._websocket if scope["type"] == "websocket" else self._http)(scope, receive, say)


def is_served(host: str, names: Sequence[str]) -> bool:
    """Whether a Host header's value (``name``, ``name:port``, ``[address]:port``) may be asked for here."""
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
