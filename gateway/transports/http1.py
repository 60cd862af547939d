"""uvicorn's HTTP protocol with a deadline for each request and a limit for its head.

Without them, a client that sends a request byte by byte, or endless headers, would occupy a connection and memory for
as long as it likes. HAProxy has such limits too; these are for clients that reach the node directly.

One read may bring thousands of pipelined requests or body chunks. The node parses `SLICE_BYTES` at a time, for at most
`TURN_SECONDS` in a turn of the event loop, and stops at a request that waits for the response before it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import weakref
from time import perf_counter
from typing import Any, Final, Literal, Protocol, cast

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.transports.fast_exchange import FastExchange, FastPath, Start
from gateway.transports.http1_output import TURN_SECONDS, Http1Output
from gateway.transports.repeated_request import RepeatedRequest

EXTENSION: Final = "gateway.request"  # the ASGI scope extension that holds the protocol object

REQUEST_SECONDS: Final = 20.0  # from the connect, or a request's first byte, to the request's last byte
SLICE_BYTES: Final = 2 << 10  # parsed at once: forty requests at most
HEAD_BYTES: Final = 64 << 10  # of the request line and headers, checked after each slice
# If a response was sent before its request was complete, the rest of the request is read and dropped, up to these
# limits: in total, and between two reads.
DRAIN_BYTES: Final = 32 << 20
DRAIN_SILENCE_SECONDS: Final = 2.0

# uvicorn logs a warning for each invalid request, which would let clients flood the log. Errors are still logged.
_log = logging.getLogger("gateway.request")
_log.setLevel(logging.ERROR)


_NOTHING: Final = memoryview(b"")

RequestLimit = Literal["request_seconds", "head_bytes"]


class AdmissionPolicy(Protocol):
    """The node's admission of connections. The lifespan of the application provides it as its state's ``admission``."""

    def refusal(self, connections: int) -> str | None:
        """Why no socket may be opened now; None: it may. `connections`: all connections, including this one."""

    def is_overloaded(self, connections: int) -> bool:
        """Whether the node must close a new connection without reading its request."""

    def request_aborted(self, limit: RequestLimit) -> None:
        """Count a request that was aborted because of `limit`."""


class Upgraded(Protocol):
    """The protocol that takes over after an upgrade request."""

    def upgrade(self, scope: HTTPScope, target: bytes) -> None:
        """Process the upgrade request: its HTTP scope, and its request target as received."""


class Http1Protocol(HttpToolsProtocol):
    """The protocol of one HTTP connection, created by uvicorn. An upgrade request replaces it by `WebSocket`."""

    _fast: tuple[FastExchange, Start] | None = None  # the request that is being received, if the fast path accepts it
    _started: tuple[int, Start] | None = None  # the length of the body that a fast path has taken last
    _repeated: RepeatedRequest | None = None  # its head, to recognise the next such requests
    _last_response = 0.0  # loop time of the response to the last of them
    _timer: asyncio.TimerHandle | None = None
    _draining: asyncio.TimerHandle | None = None
    _in_head = True
    _request_bytes = 0
    _unread = _NOTHING  # received and not parsed yet
    _parse_due = False  # parsing continues in the next turn of the event loop

    def connection_made(self, transport: Any) -> None:
        """Start the deadline of the first request, so that a client cannot hold an idle connection."""
        self.logger = _log
        self._output = Http1Output(transport, self.loop)
        super().connection_made(self._output)  # type: ignore[arg-type]  # it has all methods that uvicorn uses
        self._admission: AdmissionPolicy | None = self.app_state.get("admission")
        self._fast_path: FastPath | None = self.app_state.get("fast_path")
        if self._admission is not None and self._admission.is_overloaded(len(self.connections)):
            transport.abort()
            return
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._end()
        self._unread = _NOTHING
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes of one or several requests."""
        if self._repeated is not None and self._start_repeated(self._repeated, data):
            return
        if not self._unread and len(data) <= SLICE_BYTES:
            self._parse(data)
            return
        self._unread = memoryview(bytes(self._unread) + data)
        if not self._parse_due and not self.pipeline:
            self._parse_on()

    def _start_repeated(self, repeated: RepeatedRequest, data: bytes) -> bool:
        """Start a request with the head of an earlier one. False: it is another request, or must wait."""
        body = repeated.body_of(data)
        if body is None or not self._is_idle() or self.flow.write_paused:
            return False
        exchange = FastExchange(self.transport, self.server_state.default_headers, True, self._responded, body)
        if not repeated.start(exchange):
            return False
        self.cycle = exchange  # type: ignore[assignment]  # it has all attributes that uvicorn uses
        return True

    def _is_idle(self) -> bool:
        """Whether the last request has its response, and nothing of the next one was received."""
        return self._in_head and not self._request_bytes and not self._unread and self.cycle.response_complete

    def _responded(self) -> None:
        """A repeated request has its response. The running keep-alive timer is extended when it ends."""
        self._last_response = self.loop.time()
        if self._is_idle() and not self.pipeline:
            self.server_state.total_requests += 1
        else:
            self.on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, unless repeated requests have used it since the timer was started."""
        idle = self.loop.time() - self._last_response if self.cycle.response_complete else 0.0
        if idle < self.timeout_keep_alive:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive - idle, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def on_response_complete(self) -> None:
        """Continue with the next request after a response is sent."""
        super().on_response_complete()
        if not self._in_head:
            self._drain()
        if self._unread and not self._parse_due:
            self._parse_on()

    def _parse_on(self) -> None:
        """Parse until a request waits for another, the time of this turn is used up, or all data is parsed."""
        self._parse_due = False
        turn_ends = perf_counter() + TURN_SECONDS
        while self._unread and not self.pipeline and not self._parse_due:
            piece, self._unread = self._unread[:SLICE_BYTES], self._unread[SLICE_BYTES:]
            self._parse(bytes(piece))
            if self.transport.is_closing():
                self._unread = _NOTHING
            elif self._unread and perf_counter() > turn_ends:
                self._parse_due = True
                self.loop.call_soon(self._parse_on)
        self._output.pause_while(bool(self._unread))

    def _parse(self, data: bytes) -> None:
        is_begin = self._in_head and not self._request_bytes
        self._request_bytes += len(data)  # `on_message_complete` sets it back to 0
        super().data_received(data)
        if self._started is not None:
            started, self._started = self._started, None
            if is_begin and self.cycle.keep_alive:
                self._repeated = RepeatedRequest.of(data, *started) or self._repeated
        if self._in_head and self._request_bytes > HEAD_BYTES:
            self._abort_request("head_bytes", b"431 Request Header Fields Too Large")
        elif self._is_answered():
            self._drain()

    def on_message_begin(self) -> None:
        """Start the deadline at the first byte of a request."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        # A weak reference avoids a reference cycle, which each request would leave to the garbage collector.
        self.scope["extensions"] = {EXTENSION: weakref.proxy(self)}
        self._begin()

    def on_headers_complete(self) -> None:
        """The head of a request is complete."""
        self._in_head, self._output.awaits_body = False, True
        start = self._accept_fast()
        if start is None:
            self._start_asgi()
            return
        exchange = FastExchange(
            self.transport, self.server_state.default_headers, self.parser.should_keep_alive(),
            self.on_response_complete,
        )  # fmt: skip
        self._fast = exchange, start
        self.cycle = exchange  # type: ignore[assignment]  # it has all attributes that uvicorn uses

    def _accept_fast(self) -> Start | None:
        """What starts the request whose head is complete, if the fast path accepts it.

        A request that waits for the response before it, or a client that does not read its responses, is left to
        uvicorn, which stops reading from it.
        """
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, despite uvicorn's types
        if self._fast_path is None or (cycle is not None and not cycle.response_complete) or self.flow.write_paused:
            return None
        if self.parser.get_http_version() != "1.1" or self.parser.should_upgrade():
            return None
        return self._fast_path.accept(self.parser.get_method(), self.url, self.headers)

    def _start_asgi(self) -> None:
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            _end_with_connection(self.cycle)

    def on_message_complete(self) -> None:
        """The request is complete."""
        answered = self._is_answered()
        fast, self._fast = self._fast, None
        if fast is not None:
            exchange, start = fast
            if start(exchange):
                self._started = len(exchange.body), start
            else:
                self.cycle = None  # type: ignore[assignment]  # as before the first request
                self._start_asgi()
                self.on_body(bytes(exchange.body))
        self._in_head, self._request_bytes = True, 0  # for the next request
        self._output.awaits_body = False
        self._end()
        super().on_message_complete()
        if self._output.close_after_body:
            self._output.close()
        elif answered:
            # uvicorn started its keep-alive timeout after the response, and cancelled it at more data of this request.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        """Respond to an invalid request, and close without waiting for the rest of it."""
        self._output.awaits_body = False
        super().send_400_response(msg)

    def handle_websocket_upgrade(self) -> None:
        """Replace this protocol by a `WebSocket`, which has its own deadlines."""
        self._end()
        why = self.refusal()
        if why is not None:  # rejecting here costs a seventh of accepting the connection
            body = b'{"error":{"code":503,"message":"' + why.encode() + b'"}}'
            self._refuse(b"503 Service Unavailable", b"retry-after: 5\r\ncontent-type: application/json\r\n", body)
            return
        # uvicorn's implementation would serialize the request for another parser to read it again.
        self.connections.discard(self)
        self._unread = _NOTHING
        socket = self.ws_protocol_class(self.config, self.server_state, self.app_state)  # type: ignore[misc, call-arg]
        transport = self._output.detach()
        socket.connection_made(transport)
        transport.set_protocol(socket)
        cast(Upgraded, socket).upgrade(self.scope, self.url)
        self.parser = None  # type: ignore[assignment]  # breaks a reference cycle with this object

    # ---- for endless responses

    def refusal(self) -> str | None:
        """Why no client may connect now; None: it may."""
        return self._admission.refusal(len(self.connections)) if self._admission is not None else None

    def set_user_timeout(self, seconds: float) -> None:
        """Have the kernel close the connection when sent data is not acknowledged for `seconds`."""
        line: socket.socket | None = self.transport.get_extra_info("socket")
        if line is not None and line.family in (socket.AF_INET, socket.AF_INET6):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    def abort(self) -> None:
        """Close the connection at once and drop unsent data."""
        self.transport.abort()

    # ---- internals

    def _begin(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(
                REQUEST_SECONDS, self._abort_request, "request_seconds", b"408 Request Timeout"
            )

    def _end(self) -> None:
        self._stop_draining()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_answered(self) -> bool:
        """Whether the response to the current request is complete, although the request is not."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, despite uvicorn's types
        return not self._in_head and cycle is not None and cycle.response_complete

    def _drain(self) -> None:
        """Wait for the rest of a request whose response is complete."""
        self._stop_draining()
        if self._request_bytes > DRAIN_BYTES:
            self._end_now()
        else:
            self._draining = self.loop.call_later(DRAIN_SILENCE_SECONDS, self._end_now)

    def _stop_draining(self) -> None:
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None

    def _abort_request(self, limit: RequestLimit, status: bytes) -> None:
        if self._admission is not None and not self.transport.is_closing():
            self._admission.request_aborted(limit)
        if self._is_answered():
            self._end_now()
        else:
            self._refuse(status)

    def _end_now(self) -> None:
        self._end()
        self._output.awaits_body = False
        self._output.close()

    def _refuse(self, status: bytes, headers: bytes = b"", body: bytes = b"") -> None:
        self._end()
        self._output.awaits_body = False
        if not self.transport.is_closing():
            cycle: RequestResponseCycle | None = self.cycle  # None before the first request, despite uvicorn's types
            if cycle is None or cycle.response_complete:
                size = b"content-length: %d\r\n\r\n" % len(body)
                self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\n" + headers + size + body)
            self.transport.close()


def _end_with_connection(cycle: RequestResponseCycle) -> None:
    """End a response without a length by closing the connection: HTTP/1.0 has no chunks (RFC 9112, 7)."""
    send = cycle.send
    endless = False

    async def send_unchunked(message: Any) -> None:
        nonlocal endless
        if message["type"] == "http.response.start":
            endless = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if endless:
                cycle.keep_alive = cycle.chunked_encoding = False
        elif endless:
            cycle.expected_content_length = len(
                message.get("body", b"")
            )  # uvicorn compares this with the body's length
        await send(message)

    cycle.send = send_unchunked  # type: ignore[method-assign]
