"""One HTTP connection: uvicorn's own, with what it lacks: a deadline for each request and a limit for its head.

Without them whoever sends a request drop by drop, or headers without end, holds a connection and memory for as long
as he likes. HAProxy has limits of its own; these are for those who reach a node by another way.

A read may bring thousands of pipelined requests, or chunks of a body. They are parsed `SLICE_BYTES` at a time, for at
most `TURN_SECONDS` of a turn of the loop, and not beyond a request that waits for the one before it.
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

from gateway.transport.line import TURN_SECONDS, Line

EXTENSION: Final = "gateway.request"  # the scope's name for it

REQUEST_SECONDS: Final = 20.0  # from a connection's beginning, or a request's first octet, to the request's last
SLICE_BYTES: Final = 2 << 10  # parsed at once: forty requests at most
HEAD_BYTES: Final = 64 << 10  # of a request's line and headers; what one read brings is looked at as a whole
# The rest of a request that was answered early is read and dropped: so much of it at most, and while it keeps coming.
DRAIN_BYTES: Final = 32 << 20
DRAIN_SILENCE_SECONDS: Final = 2.0

# uvicorn warns of each request that is none: whoever sends those would write our log. Failures are still told.
_log = logging.getLogger("gateway.request")
_log.setLevel(logging.ERROR)


_NOTHING: Final = memoryview(b"")

Limit = Literal["request_seconds", "head_bytes"]


class Inflow(Protocol):
    """The node, as far as it says who may connect; the application's lifespan gives it as its state's ``inflow``."""

    def refuses(self, connections: int) -> str | None:
        """Why no socket may be opened now; `connections`: all there are, of any kind, with the one that asks."""

    def is_exhausted(self, connections: int) -> bool:
        """Whether there are so many that nothing can be done for the newest, not even to listen to it."""

    def cut_off(self, limit: Limit) -> None:
        """A request was ended for this limit."""


class Upgraded(Protocol):
    """What a connection is once it has asked to be a WebSocket."""

    def upgrade(self, asked: HTTPScope, target: bytes) -> None:
        """The request that asks, whole: its scope, and its target as it stands in its first line."""


class RequestProtocol(HttpToolsProtocol):
    """Built by uvicorn for each connection; hands over to `Socket` where it becomes a WebSocket."""

    _timer: asyncio.TimerHandle | None = None
    _draining: asyncio.TimerHandle | None = None
    _in_head = True
    _request_bytes = 0
    _unread = _NOTHING  # has come, and is not parsed yet
    _due = False  # it is parsed on in the next turn

    def connection_made(self, transport: Any) -> None:
        """A peer may not just hold a connection: it asks for something, soon."""
        self.logger = _log
        self._line = Line(transport, self.loop)
        super().connection_made(self._line)  # type: ignore[arg-type]  # it is all that uvicorn asks for
        self._inflow: Inflow | None = self.app_state.get("inflow")
        if self._inflow is not None and self._inflow.is_exhausted(len(self.connections)):
            transport.abort()
            return
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self._end()
        self._unread = _NOTHING
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Octets of a request, or of several."""
        if not self._unread and len(data) <= SLICE_BYTES:
            self._parse(data)
            return
        self._unread = memoryview(bytes(self._unread) + data)
        if not self._due and not self.pipeline:
            self._parse_on()

    def on_response_complete(self) -> None:
        """Its answer is sent: what has come behind it is next."""
        super().on_response_complete()
        if not self._in_head:
            self._drain()
        if self._unread and not self._due:
            self._parse_on()

    def _parse_on(self) -> None:
        """Parse what has come, until a request waits for another, the turn is over, or all is parsed."""
        self._due = False
        turn_ends = perf_counter() + TURN_SECONDS
        while self._unread and not self.pipeline and not self._due:
            piece, self._unread = self._unread[:SLICE_BYTES], self._unread[SLICE_BYTES:]
            self._parse(bytes(piece))
            if self.transport.is_closing():
                self._unread = _NOTHING
            elif self._unread and perf_counter() > turn_ends:
                self._due = True
                self.loop.call_soon(self._parse_on)
        self._line.hold(bool(self._unread))

    def _parse(self, data: bytes) -> None:
        self._request_bytes += len(data)  # 0 again when the request is whole
        super().data_received(data)
        if self._in_head and self._request_bytes > HEAD_BYTES:
            self._cut_off("head_bytes", b"431 Request Header Fields Too Large")
        elif self._is_answered():
            self._drain()

    def on_message_begin(self) -> None:
        """The first octet of a request."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        # Weak: what a scope holds and is held by would be left to the collector, at each request.
        self.scope["extensions"] = {EXTENSION: weakref.proxy(self)}
        self._begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_head, self._line.awaits_body = False, True
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            _end_with_connection(self.cycle)

    def on_message_complete(self) -> None:
        """All of it is here."""
        answered = self._is_answered()
        self._in_head, self._request_bytes = True, 0  # of the next one, if there is one
        self._line.awaits_body = False
        self._end()
        super().on_message_complete()
        if self._line.ends:
            self._line.close()
        elif (
            answered
        ):  # uvicorn waits for the next request from the answer on, but forgets it as more of this one comes
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        """What came is no request, so there is no rest of it to wait for."""
        self._line.awaits_body = False
        super().send_400_response(msg)

    def handle_websocket_upgrade(self) -> None:
        """From now on it is a `Socket`, with deadlines of its own."""
        self._end()
        why = self.refuses()
        if why is not None:  # here, where it costs a seventh of what it would cost to let it in
            body = b'{"error":{"code":503,"message":"' + why.encode() + b'"}}'
            self._refuse(b"503 Service Unavailable", b"retry-after: 5\r\ncontent-type: application/json\r\n", body)
            return
        # uvicorn's own way writes the request out again, for another parser to read.
        self.connections.discard(self)
        self._unread = _NOTHING
        socket = self.ws_protocol_class(self.config, self.server_state, self.app_state)  # type: ignore[misc, call-arg]
        transport = self._line.release()
        socket.connection_made(transport)
        transport.set_protocol(socket)
        cast(Upgraded, socket).upgrade(self.scope, self.url)
        self.parser = None  # type: ignore[assignment]  # it holds this object, and would have to be searched for

    # ---- for an answer that lasts

    def refuses(self) -> str | None:
        """Why no client may be connected by it now; None: it may."""
        return self._inflow.refuses(len(self.connections)) if self._inflow is not None else None

    def watch(self, seconds: float) -> None:
        """Have the kernel end the connection when what was sent is not confirmed for so long: nobody is there."""
        line: socket.socket | None = self.transport.get_extra_info("socket")
        if line is not None and line.family in (socket.AF_INET, socket.AF_INET6):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))

    def abort(self) -> None:
        """End the connection at once, whatever is unsent."""
        self.transport.abort()

    # ---- within

    def _begin(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(
                REQUEST_SECONDS, self._cut_off, "request_seconds", b"408 Request Timeout"
            )

    def _end(self) -> None:
        self._stop_draining()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_answered(self) -> bool:
        """Whether the request whose body is under way has its whole answer already."""
        answering: RequestResponseCycle | None = self.cycle  # None at first, whatever uvicorn's types say
        return not self._in_head and answering is not None and answering.response_complete

    def _drain(self) -> None:
        """Wait for more of a request that has its answer."""
        self._stop_draining()
        if self._request_bytes > DRAIN_BYTES:
            self._end_now()
        else:
            self._draining = self.loop.call_later(DRAIN_SILENCE_SECONDS, self._end_now)

    def _stop_draining(self) -> None:
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None

    def _cut_off(self, limit: Limit, status: bytes) -> None:
        if self._inflow is not None and not self.transport.is_closing():
            self._inflow.cut_off(limit)
        if self._is_answered():
            self._end_now()
        else:
            self._refuse(status)

    def _end_now(self) -> None:
        self._end()
        self._line.awaits_body = False
        self._line.close()

    def _refuse(self, status: bytes, headers: bytes = b"", body: bytes = b"") -> None:
        self._end()
        self._line.awaits_body = False
        if not self.transport.is_closing():
            answering: RequestResponseCycle | None = self.cycle  # None at first, whatever uvicorn's types say
            if answering is None or answering.response_complete:
                size = b"content-length: %d\r\n\r\n" % len(body)
                self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\n" + headers + size + body)
            self.transport.close()


def _end_with_connection(cycle: RequestResponseCycle) -> None:
    """Have an answer without a length end with its connection, not in chunks: HTTP/1.0 has none (RFC 9112, 7)."""
    send = cycle.send
    endless = False

    async def say(message: Any) -> None:
        nonlocal endless
        if message["type"] == "http.response.start":
            endless = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if endless:
                cycle.keep_alive = cycle.chunked_encoding = False
        elif endless:
            cycle.expected_content_length = len(message.get("body", b""))  # of this piece: uvicorn compares the two
        await send(message)

    cycle.send = say  # type: ignore[method-assign]
