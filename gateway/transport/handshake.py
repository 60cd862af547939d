"""The opening handshake: the one part of a connection's life that speaks ASGI.

websockets' `ServerProtocol` judges the request (RFC 6455, 4.2), Starlette's endpoint decides who comes in, and
the answer is written here. Nothing of it outlives the answer: not the scope, not the task, not this object.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import unquote

from uvicorn.config import Config
from uvicorn.protocols.utils import get_remote_addr, is_ssl
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.exceptions import NegotiationError
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


_EXTENSIONS: Final = (SharedDeflate(),)


class Opener(Protocol):
    """The connection, as far as its handshake needs it."""

    def accepted(self, *, deflates: bool) -> None:
        """101 is written: frames from now on; `deflates`: both sides may compress messages."""

    def refused(self) -> None:
        """Another answer is written: nothing follows it."""


class Handshake:
    """Takes one upgrade request to its answer; `opener` is told which it was."""

    def __init__(self, opener: Opener, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        self._opener = opener
        self._config = config
        self._server = server_state
        self._app_state = app_state
        self._protocol = ServerProtocol(
            extensions=_EXTENSIONS if app_state.get("compression") else None, logger=_LOGGER
        )
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None  # the 101 that may be sent
        self._refusal: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None  # under way from the endpoint
        self._connect_received = False
        self._answered = False
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(
            HANDSHAKE_SECONDS, self.refuse, HTTPStatus.SERVICE_UNAVAILABLE
        )

    def receive(self, data: bytes, transport: asyncio.Transport) -> None:
        """The upgrade request, as uvicorn has put it together again."""
        self._transport = transport
        if self._task is not None:
            # RFC 6455, 4.1: a client sends nothing before the server's answer.
            self.refuse(HTTPStatus.BAD_REQUEST)
            return
        self._protocol.receive_data(data)
        request = next(iter(self._protocol.events_received()), None)
        if not isinstance(request, Request):
            self.refuse(HTTPStatus.BAD_REQUEST)
            return
        response = self._protocol.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._answer(response)
            return
        self._response = response
        self._task = asyncio.get_running_loop().create_task(self._decide(request))
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
        self._answer(Response(status, status.phrase, fields, content))

    def cancel(self) -> None:
        """The peer went away before it was answered."""
        self._answered = True
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _answer(self, response: Response) -> None:
        assert self._transport is not None
        self._answered = True
        self._timer.cancel()
        # Not by way of the library's protocol, which has ended itself over a request that it could not read.
        self._transport.write(response.serialize())
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            self._opener.accepted(deflates=bool(self._protocol.extensions))
        else:
            self._opener.refused()

    # ---- ASGI

    def _scope(self, request: Request) -> dict[str, Any]:
        assert self._transport is not None
        path, _, query = request.path.partition("?")
        offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        return {
            "type": "websocket",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if is_ssl(self._transport) else "ws",
            "server": None,  # who asks names a host; see Door
            "client": get_remote_addr(self._transport),
            "root_path": self._config.root_path,
            "path": self._config.root_path + unquote(path),
            "raw_path": (self._config.root_path + path).encode("ascii"),
            "query_string": query.encode("ascii"),
            "headers": [(n.lower().encode("ascii"), v.encode("latin-1")) for n, v in request.headers.raw_items()],
            "subprotocols": [token.strip() for token in offered.split(",") if token.strip()],
            "state": self._app_state.copy(),
            "extensions": {"websocket.http.response": {}, "gateway.connection": self._opener},
        }

    async def _decide(self, request: Request) -> None:
        try:
            await self._config.loaded_app(self._scope(request), self._receive, self._send)
        except Exception:
            logger().exception("the endpoint failed in the handshake", path=request.path)
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
                assert self._response is not None
                if message.get("subprotocol"):
                    self._response.headers["Sec-WebSocket-Protocol"] = message["subprotocol"]
                for name, value in message.get("headers", []):
                    self._response.headers[name.decode("latin-1")] = value.decode("latin-1")
                self._answer(self._response)
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
