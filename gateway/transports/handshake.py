"""The opening handshake of a WebSocket, the only part of a connection that uses ASGI.

The `ServerProtocol` of the websockets library checks the request (RFC 6455, 4.2), an ASGI endpoint accepts or rejects
the client, and this module writes the response. After the response the scope, the task and this object are released.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import unquote

from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, NegotiationError
from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import ExtensionParameter
from websockets.utils import accept_key

from gateway.logging import logger
from gateway.transports import compression

HANDSHAKE_SECONDS: Final = 10.0  # the endpoint's time to decide
_LOGGER: Final = logging.getLogger("websockets.server")  # the library's logger, looked up once to save time


class SharedDeflate(ServerPerMessageDeflateFactory):
    """Negotiates permessage-deflate without context takeover and with our window size (RFC 7692, 7.1)."""

    def __init__(self) -> None:
        super().__init__(server_no_context_takeover=True, client_no_context_takeover=True)

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        """Answer one offer of the client.

        Raises:
            NegotiationError: The client does not support our window size. Its next offer is tried then.
        """
        answer, extension = super().process_request_params(params, accepted_extensions)
        if extension.local_max_window_bits < compression.WINDOW_BITS:
            raise NegotiationError("unsupported server_max_window_bits")
        return answer, extension


# These are shared by all handshakes, because `process_request` does not change them.
_PLAIN: Final = ServerProtocol(logger=_LOGGER)
_COMPRESSING: Final = ServerProtocol(extensions=(SharedDeflate(),), logger=_LOGGER)
_CHECKED: Final = frozenset({
    b"connection", b"upgrade", b"origin", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions",
})  # fmt: skip
_CONNECTION: Final = frozenset({b"upgrade", b"keep-alive, upgrade"})
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2


class HandshakeCallbacks(Protocol):
    """The connection's callbacks for its handshake."""

    def handshake_accepted(self, *, deflates: bool) -> None:
        """Status 101 was sent, and frames follow. `deflates`: compression was negotiated."""

    def handshake_refused(self) -> None:
        """Another response was sent. Close the connection."""


class Handshake:
    """The handshake of one upgrade request. It reports the result to `callbacks`."""

    def __init__(self, callbacks: HandshakeCallbacks, config: Config, server_state: ServerState) -> None:
        self._callbacks = callbacks
        self._config = config
        self._server = server_state
        self._transport: asyncio.Transport | None = None
        self._head: list[str] = []  # header lines of the 101 response
        self._deflates = False
        self._refusal: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None  # a response that the endpoint sends
        self._connect_received = False
        self._answered = False
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(
            HANDSHAKE_SECONDS, self.reject, HTTPStatus.SERVICE_UNAVAILABLE
        )

    def start(self, scope: HTTPScope, target: bytes, transport: asyncio.Transport) -> None:
        """Process the upgrade request: its HTTP scope, and its request target as received."""
        self._transport = transport
        if not target.isascii() or _has_body(scope):
            self.reject(HTTPStatus.BAD_REQUEST)
            return
        offered = subprotocols(value for name, value in scope["headers"] if name == b"sec-websocket-protocol")
        if offered is None:
            self.reject(HTTPStatus.BAD_REQUEST, b"Sec-WebSocket-Protocol must list tokens (RFC 9110, 5.6.2).\n")
            return
        protocol = _COMPRESSING if scope["state"].get("compression") else _PLAIN
        checked = [(name, value) for name, value in scope["headers"] if name in _CHECKED]
        key, extensions = accept_usual(scope, checked, protocol), None
        if key is None:
            request = Request(
                target.decode("ascii"), Headers((name.decode(), value.decode("latin-1")) for name, value in checked),
                scope["method"], f"HTTP/{scope['http_version']}",
            )  # fmt: skip
            try:
                key, extensions, _ = protocol.process_request(request)
            except InvalidHandshake:
                self._answer(protocol.accept(request).serialize())  # writes the error response for the same check
                return
        self._head = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {key}"]
        if extensions is not None:
            self._head.append(f"Sec-WebSocket-Extensions: {extensions}")
            self._deflates = True
        self._task = asyncio.get_running_loop().create_task(
            self._decide(_endpoint_scope(scope, target, offered, self._callbacks))
        )
        self._server.tasks.add(self._task)  # uvicorn waits for these when it stops
        self._task.add_done_callback(self._server.tasks.discard)

    def reject(
        self, status: HTTPStatus, body: bytes | None = None, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """Respond with `status` instead of 101. Does nothing if a response was sent."""
        if self._answered:
            return
        content = f"{status.phrase}\n".encode() if body is None else body
        fields = Headers()
        for name, value in headers or [(b"content-type", b"text/plain; charset=utf-8")]:
            if name.lower() not in (b"content-length", b"connection"):
                fields[name.decode("latin-1")] = value.decode("latin-1")
        fields["Content-Length"] = str(len(content))
        fields["Connection"] = "close"
        self._answer(Response(status, status.phrase, fields, content).serialize())

    def cancel(self) -> None:
        """Cancel the handshake, because the client has disconnected."""
        self._answered = True
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _answer(self, answer: bytes, *, accepted: bool = False) -> None:
        assert self._transport is not None
        self._answered = True
        self._timer.cancel()
        self._transport.write(answer)
        if accepted:
            self._callbacks.handshake_accepted(deflates=self._deflates)
        else:
            self._callbacks.handshake_refused()

    # ---- ASGI

    async def _decide(self, scope: dict[str, Any]) -> None:
        try:
            await self._config.loaded_app(scope, self._receive, self._send)
        except Exception:
            logger().exception("handshake endpoint failed", path=scope["path"])
        # Does nothing if the endpoint has responded.
        self.reject(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _receive(self) -> dict[str, Any]:
        if self._connect_received:
            raise RuntimeError("the endpoint cannot receive messages, its owner does: return after accepting")
        self._connect_received = True
        return {"type": "websocket.connect"}

    async def _send(self, message: Any) -> None:
        if self._answered:
            raise RuntimeError(f"{message['type']} after the handshake has ended: use the connection instead")
        match message["type"]:
            case "websocket.accept":
                if message.get("subprotocol"):
                    self._head.append(f"Sec-WebSocket-Protocol: {message['subprotocol']}")
                self._head += [f"{n.decode('latin-1')}: {v.decode('latin-1')}" for n, v in message.get("headers", ())]
                head = "\r\n".join(("HTTP/1.1 101 Switching Protocols", *self._head, "\r\n"))
                self._answer(head.encode("latin-1"), accepted=True)
            case "websocket.close":
                self.reject(HTTPStatus.FORBIDDEN)
            case "websocket.http.response.start":
                self._refusal = message["status"], list(message.get("headers", [])), b""
            case "websocket.http.response.body" if self._refusal is not None:
                status, headers, body = self._refusal
                body += message.get("body", b"")
                self._refusal = status, headers, body
                if not message.get("more_body", False):
                    self.reject(HTTPStatus(status), body, headers)
            case kind:
                raise RuntimeError(f"a handshake cannot send {kind}: send websocket.accept or websocket.close")


def accept_usual(scope: HTTPScope, checked: list[tuple[bytes, bytes]], protocol: ServerProtocol) -> str | None:
    """Sec-WebSocket-Accept for a request whose `checked` headers have the form that browsers send; None for any other.

    `protocol` parses the others, which takes a tenth of the time of a whole connect.
    """
    found = dict(checked)
    key = found.get(b"sec-websocket-key", b"")
    if (
        len(found) == len(checked)
        and scope["method"] == "GET"
        and scope["http_version"] == "1.1"
        and found.get(b"upgrade", b"").lower() == b"websocket"
        and found.get(b"connection", b"").lower() in _CONNECTION
        and found.get(b"sec-websocket-version") == b"13"
        and _KEY.fullmatch(key)
        and (protocol is _PLAIN or b"sec-websocket-extensions" not in found)
    ):
        return accept_key(key.decode())
    return None


def subprotocols(values: Iterable[bytes]) -> list[str] | None:
    """The distinct subprotocols in these header values, in order; None if one is not a token.

    Empty list elements are ignored (RFC 9110, 5.6.1.2), since some clients send an empty header.
    """
    offered: dict[str, None] = {}
    for value in values:
        for element in value.decode("latin-1").split(","):
            name = element.strip(" \t")
            if name and not _TOKEN.fullmatch(name):
                return None
            if name:
                offered[name] = None
    return list(offered)


def _has_body(scope: HTTPScope) -> bool:
    """Whether the request has a body, by its headers (RFC 9112, 6)."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _endpoint_scope(
    scope: HTTPScope, target: bytes, offered: list[str], callbacks: HandshakeCallbacks
) -> dict[str, Any]:
    """The ASGI scope for the endpoint."""
    path, _, query = target.partition(b"?")
    return {
        "type": "websocket",
        "asgi": {"version": scope["asgi"]["version"], "spec_version": "2.4"},
        "http_version": scope["http_version"],
        "scheme": "wss" if scope["scheme"] == "https" else "ws",
        "server": None,  # unused; the Host header names the host, see SecurityMiddleware
        "client": scope["client"],
        "root_path": scope["root_path"],
        "path": scope["root_path"] + unquote(path.decode("ascii")),
        "raw_path": scope["root_path"].encode("ascii") + path,
        "query_string": query,
        "headers": scope["headers"],
        "subprotocols": offered,
        "state": scope["state"],
        "extensions": {"websocket.http.response": {}, "gateway.connection": callbacks},
    }
