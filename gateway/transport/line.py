"""The transport of an HTTP connection, as uvicorn writes to it: what is written in one turn of the loop is one write.

uvicorn writes an answer's head, then its body. Each would be a call of the kernel, a packet, and a reader woken: an
eighth of what a small answer costs.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Line:
    """What `transport` is, but for writing, and for ending."""

    __slots__ = ("_loop", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []  # in this turn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send this, behind what was written before."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        """Send what was written, then end."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """End at once, whatever is unsent."""
        self._written.clear()
        self._transport.abort()

    def release(self) -> asyncio.Transport:
        """The transport itself, for whoever writes to it from now on, behind what was written here."""
        self._flush()
        return self._transport

    def _flush(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():
            self._transport.write(b"".join(written))
