"""The opening handshake: the one part of a connection's life that speaks ASGI.

websockets' `ServerProtocol` judges the request (RFC 6455, 4.2), an endpoint decides who comes in, and
the answer is written here. Nothing of it outlives the answer: not the scope, not the task, not this object.
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

from gateway.core import deflate
from gateway.logs import logger

HANDSHAKE_SECONDS: Final = 10.0  # the endpoint's time to decide
_LOGGER: Final = logging.getLogger("websockets.server")  # as the library names it; looked up for each, it would cost


class SharedDeflate(ServerPerMessageDeflateFactory):
    """Agrees to permessage-deflate as it can be shared: without context, and within our window (RFC 7692, 7.1)."""

    def __init__(self) -> None:
        super().__init__(server_no_context_takeover=True, client_no_context_takeover=True)

    def process_request_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> tuple[list[ExtensionParameter], PerMessageDeflate]:
        """The answer to one offer.

        Raises:
            NegotiationError: The client cannot read a window as large as ours; its next offer may be better.
        """
        answer, extension = super().process_request_params(params, accepted_extensions)
        if extension.local_max_window_bits < deflate.WINDOW_BITS:
            raise NegotiationError("unsupported server_max_window_bits")
        return answer, extension


# The judges keep nothing of a request that the next could see: what they find is what `process_request` gives.
_PLAIN: Final = ServerProtocol(logger=_LOGGER)
_COMPRESSING: Final = ServerProtocol(extensions=(SharedDeflate(),), logger=_LOGGER)
_JUDGED: Final = frozenset({
    b"connection", b"upgrade", b"origin", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions",
})  # fmt: skip
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2


class Opener(Protocol):
    """The connection, as far as its handshake needs it."""

    def accepted(self, *, deflates: bool) -> None:
        """101 is written: frames from now on; `deflates`: both sides may compress messages."""

    def refused(self) -> None:
        """Another answer is written: nothing follows it."""


class Handshake:
    """Takes one upgrade request to its answer; `opener` is told which it was."""

    def __init__(self, opener: Opener, config: Config, server_state: ServerState) -> None:
        self._opener = opener
        self._config = config
        self._server = server_state
        self._transport: asyncio.Transport | None = None
        self._head: list[str] = []  # of the 101 that may be sent
        self._deflates = False
        self._refusal: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None  # under way from the endpoint
        self._connect_received = False
        self._answered = False
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(
            HANDSHAKE_SECONDS, self.refuse, HTTPStatus.SERVICE_UNAVAILABLE
        )

    def receive(self, asked: HTTPScope, target: bytes, transport: asyncio.Transport) -> None:
        """The request that asks for a WebSocket: its scope as HTTP has it, and its target as it was sent."""
        self._transport = transport
        if not target.isascii() or _has_body(asked):
            self.refuse(HTTPStatus.BAD_REQUEST)
            return
        offered = subprotocols(value for name, value in asked["headers"] if name == b"sec-websocket-protocol")
        if offered is None:
            self.refuse(HTTPStatus.BAD_REQUEST, b"Sec-WebSocket-Protocol lists what is not a token.\n")
            return
        request = Request(
            target.decode("ascii"),
            Headers((name.decode(), value.decode("latin-1")) for name, value in asked["headers"] if name in _JUDGED),
            asked["method"], f"HTTP/{asked['http_version']}",
        )  # fmt: skip
        judge = _COMPRESSING if asked["state"].get("compression") else _PLAIN
        try:
            key, extensions, _ = judge.process_request(request)
        except InvalidHandshake:
            self._answer(judge.accept(request).serialize())  # the same judgement, in words
            return
        self._head = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {key}"]
        if extensions is not None:
            self._head.append(f"Sec-WebSocket-Extensions: {extensions}")
            self._deflates = True
        self._task = asyncio.get_running_loop().create_task(self._decide(_scope(asked, target, offered, self._opener)))
        self._server.tasks.add(self._task)  # uvicorn waits for these when it stops
        self._task.add_done_callback(self._server.tasks.discard)

    def refuse(
        self, status: HTTPStatus, body: bytes | None = None, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """Answer with `status` instead of 101, if nothing was answered yet."""
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
        """The peer went away before it was answered."""
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
            self._opener.accepted(deflates=self._deflates)
        else:
            self._opener.refused()

    # ---- ASGI

    async def _decide(self, scope: dict[str, Any]) -> None:
        try:
            await self._config.loaded_app(scope, self._receive, self._send)
        except Exception:
            logger().exception("the endpoint failed in the handshake", path=scope["path"])
        # A no-op if the endpoint has answered.
        self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _receive(self) -> dict[str, Any]:
        if self._connect_received:
            raise RuntimeError("messages go to the connection's owner: the endpoint must return once it accepted")
        self._connect_received = True
        return {"type": "websocket.connect"}

    async def _send(self, message: Any) -> None:
        if self._answered:
            raise RuntimeError(f"{message['type']} after the handshake's answer: use the connection itself")
        match message["type"]:
            case "websocket.accept":
                if message.get("subprotocol"):
                    self._head.append(f"Sec-WebSocket-Protocol: {message['subprotocol']}")
                self._head += [f"{n.decode('latin-1')}: {v.decode('latin-1')}" for n, v in message.get("headers", ())]
                head = "\r\n".join(("HTTP/1.1 101 Switching Protocols", *self._head, "\r\n"))
                self._answer(head.encode("latin-1"), accepted=True)
            case "websocket.close":
                self.refuse(HTTPStatus.FORBIDDEN)
            case "websocket.http.response.start":
                self._refusal = message["status"], list(message.get("headers", [])), b""
            case "websocket.http.response.body" if self._refusal is not None:
                status, headers, body = self._refusal
                body += message.get("body", b"")
                self._refusal = status, headers, body
                if not message.get("more_body", False):
                    self.refuse(HTTPStatus(status), body, headers)
            case kind:
                raise RuntimeError(f"a handshake cannot be answered with {kind}")


def subprotocols(values: Iterable[bytes]) -> list[str] | None:
    """The subprotocols that these headers offer, each once, in their order; None: one of them is not a token.

    Empty elements of the list are ignored (RFC 9110, 5.6.1.2): an empty header, which some clients send, offers none.
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


def _has_body(asked: HTTPScope) -> bool:
    """Whether something follows the head that is no frame. RFC 9112, 6: these two say so."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in asked["headers"]
    )


def _scope(asked: HTTPScope, target: bytes, offered: list[str], opener: Opener) -> dict[str, Any]:
    """What the endpoint is asked, by ASGI."""
    path, _, query = target.partition(b"?")
    return {
        "type": "websocket",
        "asgi": {"version": asked["asgi"]["version"], "spec_version": "2.4"},
        "http_version": asked["http_version"],
        "scheme": "wss" if asked["scheme"] == "https" else "ws",
        "server": None,  # who asks names a host; see Door
        "client": asked["client"],
        "root_path": asked["root_path"],
        "path": asked["root_path"] + unquote(path.decode("ascii")),
        "raw_path": asked["root_path"].encode("ascii") + path,
        "query_string": query,
        "headers": asked["headers"],
        "subprotocols": offered,
        "state": asked["state"],
        "extensions": {"websocket.http.response": {}, "gateway.connection": opener},
    }
