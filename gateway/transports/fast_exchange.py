"""One request that a fast path answers, and its response, without ASGI.

It has the attributes of uvicorn's `RequestResponseCycle` that uvicorn's protocol uses, and takes its place there. So
pipelining, keep-alive, a lost connection and the shutdown of the server work as for other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

Headers = Sequence[tuple[bytes, bytes]]  # names in lower case


class FastPath(Protocol):
    """Answers requests of one kind. The lifespan of the application provides it as its state's ``fast_path``."""

    def accepts(self, method: bytes, target: bytes, headers: Headers) -> bool:
        """Whether the head of a request is of this kind, and has nothing unusual."""

    def start(self, headers: Headers, exchange: FastExchange) -> bool:
        """Start the work of a complete request; `exchange.respond` ends it. False: nothing was done, ASGI must answer.

        It raises nothing.
        """


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
    """

    __slots__ = ("_default_headers", "_on_response", "_transport", "body", "disconnected", "keep_alive", "more_body",
                 "response_complete")  # fmt: skip

    message_event: Final = _NoEvent()

    def __init__(
        self, transport: asyncio.Transport, default_headers: Headers, keep_alive: bool, on_response: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._default_headers = default_headers
        self._on_response: Callable[[], None] | None = on_response
        self.keep_alive = keep_alive
        self.disconnected = False
        self.body = bytearray()
        self.more_body = True
        self.response_complete = False

    def respond(self, status_line: bytes, headers: bytes, body: bytes) -> None:
        """Send the response. `headers`: complete lines, beside the server's default headers and ``connection``."""
        on_response, self._on_response = self._on_response, None  # breaks a reference cycle with the protocol
        assert on_response is not None, "a request has one response"
        if self.disconnected or self._transport.is_closing():
            return
        default = b"".join([b"%s: %s\r\n" % header for header in self._default_headers])
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._transport.write(b"".join((status_line, default, headers, end, body)))
        self.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        on_response()
