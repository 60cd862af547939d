"""One request that a fast path answers, and its response, without ASGI.

It has the attributes of uvicorn's `RequestResponseCycle` that uvicorn's protocol uses, and takes its place there. So
pipelining, keep-alive, a lost connection and the shutdown of the server work as for other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

Headers = Sequence[tuple[bytes, bytes]]  # names in lower case


class Start(Protocol):
    """Starts the work of the requests that have one head."""

    def __call__(self, exchange: FastExchange) -> bool:
        """Start the work of a complete request; a later `exchange.respond` ends it.

        False: nothing was done, and ASGI must answer. It raises nothing.
        """


class FastPath(Protocol):
    """Answers requests of one kind. The lifespan of the application provides it as its state's ``fast_path``."""

    def accept(self, method: bytes, target: bytes, headers: Headers) -> Start | None:
        """What starts the requests with this head; None: it is of another kind, or has something unusual."""


class _HeaderLines:
    """The server's headers of each response as lines. uvicorn replaces the list once a second."""

    def __init__(self) -> None:
        self._headers: Headers | None = None
        self._lines = b""

    def of(self, headers: Headers) -> bytes:
        """The lines of `headers`."""
        if headers is not self._headers:
            self._headers, self._lines = headers, b"".join([b"%s: %s\r\n" % header for header in headers])
        return self._lines


_default_lines: Final = _HeaderLines()


class _NoEvent:
    """The event that wakes up an application: there is none."""

    def set(self) -> None:
        """Do nothing."""


class FastExchange:
    """A request whose body is being received, then one whose response is awaited.

    Args:
        transport: Where the response is written.
        default_headers: The server's headers of each response. uvicorn replaces the Date in it once a second.
        keep_alive: Whether the connection stays open after the response.
        on_response: Called after the response.
        body: The body, if it is complete already.
    """

    __slots__ = ("_default_headers", "_on_response", "_transport", "body", "disconnected", "keep_alive", "more_body",
                 "response_complete")  # fmt: skip

    message_event: Final = _NoEvent()

    def __init__(
        self, transport: asyncio.Transport, default_headers: Headers, keep_alive: bool,
        on_response: Callable[[], None], body: bytes | None = None,
    ) -> None:  # fmt: skip
        self._transport = transport
        self._default_headers = default_headers
        self._on_response: Callable[[], None] | None = on_response
        self.keep_alive = keep_alive
        self.disconnected = False
        self.body: bytes | bytearray = bytearray() if body is None else body
        self.more_body = body is None
        self.response_complete = False

    def respond(self, status_line: bytes, headers: bytes, body: bytes) -> None:
        """Send the response. `headers`: complete lines, beside the server's default headers and ``connection``."""
        on_response, self._on_response = self._on_response, None  # breaks a reference cycle with the protocol
        assert on_response is not None, "a request has one response"
        if self.disconnected or self._transport.is_closing():
            return
        default = _default_lines.of(self._default_headers)
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._transport.write(b"".join((status_line, default, headers, end, body)))
        self.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        on_response()
