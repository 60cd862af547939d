"""The transport of an HTTP connection, as uvicorn uses it: what is written in one turn of the loop is one write.

uvicorn writes an answer's head, then its body. Each would be a call of the kernel, a packet, and a reader woken: an
eighth of what a small answer costs.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

# What one connection's input may take of a turn of the loop; what has come beyond that is handled in the next turns.
TURN_SECONDS: Final = 0.001


class Line:
    """What `transport` is, but for writing, reading no more, and ending."""

    __slots__ = ("_held", "_loop", "_paused", "_transport", "_written", "awaits_body", "ends")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []  # in this turn
        self._paused = False  # uvicorn reads no more for now
        self._held = False  # what was read is not parsed yet
        self.awaits_body = False  # the rest of a request is still to come; the protocol says so
        self.ends = False  # it was closed meanwhile, and is to be closed when all of the request is here

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def pause_reading(self) -> None:
        """Read no more until `resume_reading`."""
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless what was read is not parsed yet."""
        self._paused = False
        self._read_on()

    def hold(self, held: bool) -> None:
        """Read no more while what was read is not parsed: while `held`."""
        if held is self._held:
            return
        self._held = held
        if held:
            self._transport.pause_reading()
        else:
            self._read_on()

    def write(self, data: bytes) -> None:
        """Send this, behind what was written before."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        """Send what was written, then end; but read the rest of the request first.

        A transport that is closed with unread data resets the connection, and the peer, which still writes, never reads
        the answer (RFC 9112, 9.6).
        """
        self._flush()
        if self.awaits_body:
            self.ends = True
        else:
            self._transport.close()

    def abort(self) -> None:
        """End at once, whatever is unsent."""
        self._written.clear()
        self._transport.abort()

    def release(self) -> asyncio.Transport:
        """The transport itself, for whoever writes to it from now on, behind what was written here."""
        self._flush()
        if self._paused or self._held:
            self._paused = self._held = False
            self._read_on()
        return self._transport

    def _read_on(self) -> None:
        if not self._paused and not self._held and not self._transport.is_closing():
            self._transport.resume_reading()

    def _flush(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():
            self._transport.write(b"".join(written))
