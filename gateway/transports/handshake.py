"""The opening handshake of a WebSocket: the checks of RFC 6455, 4.2, and the response.

The `ServerProtocol` of the websockets library checks the request, a `HandshakePolicy` accepts or rejects the client,
and this module writes the response. ASGI has no part in it: its task and its messages would take longer than the rest.
After the response the scope and this object are released.
"""

from __future__ import annotations

import asyncio
import logging
import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import unquote

from uvicorn._types import HTTPScope
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
from gateway.transports.connection import Connection

HANDSHAKE_SECONDS: Final = 10.0  # the policy's time to decide
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
_TEXT: Final = ((b"content-type", b"text/plain; charset=utf-8"),)
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2


class HandshakePolicy(Protocol):
    """Decides which clients are accepted. The lifespan of the application provides it as its state's ``handshakes``."""

    def decide(self, scope: dict[str, Any], handshake: Handshake) -> None:
        """Call `handshake.accept` or `handshake.reject`, now or later. `scope`: the request as an ASGI WebSocket scope.

        It may raise: the client gets status 500.
        """


class Upgraded(Connection):
    """A connection that begins with a handshake."""

    __slots__ = ()

    @abstractmethod
    def handshake_accepted(self, *, deflates: bool) -> None:
        """Status 101 was sent, and frames follow. `deflates`: compression was negotiated."""

    @abstractmethod
    def handshake_refused(self) -> None:
        """Another response was sent. Close the connection."""


class Handshake:
    """The handshake of one upgrade request. It reports the result to `connection`."""

    def __init__(self, connection: Upgraded, policy: HandshakePolicy | None) -> None:
        self.connection: Final = connection
        self.is_over = False  # a response was sent, or the client has disconnected
        self._policy = policy
        self._transport: asyncio.Transport | None = None
        self._head: list[str] = []  # header lines of the 101 response
        self._deflates = False
        self._timer: asyncio.TimerHandle | None = None

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
        self._head = [
            "HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {key}",
        ]  # fmt: skip
        if extensions is not None:
            self._head.append(f"Sec-WebSocket-Extensions: {extensions}")
            self._deflates = True
        self._decide(_policy_scope(scope, target, offered))

    def accept(self, subprotocol: str | None) -> None:
        """Respond with 101 and `subprotocol`. Does nothing if the handshake is over."""
        if self.is_over:
            return
        if subprotocol is not None:
            self._head.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        self._answer("\r\n".join((*self._head, "\r\n")).encode("latin-1"), accepted=True)

    def reject(
        self, status: HTTPStatus, body: bytes | None = None, headers: Iterable[tuple[bytes, bytes]] = _TEXT
    ) -> None:
        """Respond with `status` instead of 101. Does nothing if the handshake is over."""
        if self.is_over:
            return
        content = f"{status.phrase}\n".encode() if body is None else body
        fields = Headers()
        for name, value in headers:
            if name.lower() not in (b"content-length", b"connection"):
                fields[name.decode("latin-1")] = value.decode("latin-1")
        fields["Content-Length"] = str(len(content))
        fields["Connection"] = "close"
        self._answer(Response(status, status.phrase, fields, content).serialize())

    def cancel(self) -> None:
        """End the handshake without a response, because the client has disconnected."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _decide(self, scope: dict[str, Any]) -> None:
        try:
            if self._policy is None:  # the application provides none
                self.reject(HTTPStatus.NOT_FOUND)
            else:
                self._policy.decide(scope, self)
        except Exception:
            logger().exception("handshake failed", path=scope["path"])
            self.reject(HTTPStatus.INTERNAL_SERVER_ERROR)
        if not self.is_over:
            self._timer = asyncio.get_running_loop().call_later(
                HANDSHAKE_SECONDS, self.reject, HTTPStatus.SERVICE_UNAVAILABLE
            )

    def _answer(self, answer: bytes, *, accepted: bool = False) -> None:
        assert self._transport is not None
        self.cancel()
        self._transport.write(answer)
        if accepted:
            self.connection.handshake_accepted(deflates=self._deflates)
        else:
            self.connection.handshake_refused()


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


def _policy_scope(scope: HTTPScope, target: bytes, offered: list[str]) -> dict[str, Any]:
    """The request for the policy, in the form that Starlette reads."""
    path, _, query = target.partition(b"?")
    return {
        "type": "websocket",
        "scheme": "wss" if scope["scheme"] == "https" else "ws",
        "client": scope["client"],
        "path": unquote(path.decode("ascii")),
        "query_string": query,
        "headers": scope["headers"],
        "subprotocols": offered,
    }
