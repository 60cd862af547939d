"""A transport wrapper for HTTP connections that joins the writes of one turn of the event loop into one.

uvicorn writes the head and the body of a response separately. The second write would cost a system call, a packet and a
wake-up of the client: an eighth of the cost of a small response.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

# The time per turn of the event loop for the input of one connection. The rest is processed in the next turns.
TURN_SECONDS: Final = 0.001


class Http1Output:
    """Wraps `transport`, and changes how it writes, pauses reading, and closes."""

    __slots__ = ("_held", "_loop", "_paused", "_transport", "_written", "awaits_body", "close_after_body")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []  # in this turn
        self._paused = False  # uvicorn has paused reading
        self._held = False  # `Http1Protocol` has paused reading, because it has unparsed data
        self.awaits_body = False  # the request is not complete yet; `Http1Protocol` sets this
        self.close_after_body = False  # `close` was called, and waits until the request is complete

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        """Pause reading until `resume_reading`."""
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading, unless `pause_while` has paused it."""
        self._paused = False
        self._resume()

    def pause_while(self, held: bool) -> None:
        """Pause reading while `held`: received data is not parsed yet."""
        if held is self._held:
            return
        self._held = held
        if held:
            self._transport.pause_reading()
        else:
            self._resume()

    def write(self, data: bytes) -> None:
        """Queue `data`. It is sent at the end of this turn of the event loop."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        """Send the queued data, read the rest of the request, then close.

        Closing a socket with unread data resets the connection. The client, which is still sending, would then lose the
        response (RFC 9112, 9.6).
        """
        self._flush()
        if self.awaits_body:
            self.close_after_body = True
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close at once and drop unsent data."""
        self._written.clear()
        self._transport.abort()

    def detach(self) -> asyncio.Transport:
        """Send the queued data and return the wrapped transport, for a protocol that replaces HTTP."""
        self._flush()
        if self._paused or self._held:
            self._paused = self._held = False
            self._resume()
        return self._transport

    def _resume(self) -> None:
        if not self._paused and not self._held and not self._transport.is_closing():
            self._transport.resume_reading()

    def _flush(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():
            self._transport.write(b"".join(written))
