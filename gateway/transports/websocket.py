"""One WebSocket, from the handshake to its close: uvicorn's WebSocket protocol class.

During the handshake the application's policy accepts or rejects the client (http/websocket.py). After it no coroutine
and no scope remain. Only this object does: it passes complete messages to its `ConnectionOwner` and writes encoded
frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final, cast

from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.utils import is_ssl
from uvicorn.server import ServerState

from gateway.core import frames
from gateway.core.errors import CloseReason
from gateway.core.frames import FrameError, FrameParser
from gateway.transports.compression import inflate
from gateway.transports.connection import CLOSE_SECONDS, HIGH_WATER_BYTES, ConnectionStage
from gateway.transports.handshake import Handshake, Upgraded

CLOSING_BYTES: Final = 1 << 20  # the most bytes read while waiting for the client's close frame
CLOSING_FRAME_BYTES: Final = 1 << 10  # counted for each frame among them, besides its own bytes
MESSAGE_SECONDS: Final = 60.0  # from a message's first byte to its last: 1 MiB at 17 KiB a second


# Module constants, because each delivery uses them and an enum attribute costs a tenth of a microsecond.
_OPEN: Final = ConnectionStage.OPEN
_write: Final = os.write


class WebSocket(Upgraded, asyncio.Protocol):
    """The WebSocket of one client, created for each upgrade request."""

    __slots__ = (
        "_begun", "_close_code", "_close_timer", "_deflates", "_descriptor", "_handshake", "_parser", "_queued",
        "_reading_paused", "_room", "_server", "_writing_paused", "transport",
    )  # fmt: skip

    kind = "websocket"

    def __init__(
        self, _config: Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.transport: asyncio.Transport | None = None
        self._server = server_state
        self._handshake: Handshake | None = Handshake(self, app_state.get("handshakes"))
        self._parser = FrameParser()
        self._deflates = False  # permessage-deflate was negotiated
        self._begun = 0.0  # loop time of the first byte of an unfinished message; 0: there is none
        self._reading_paused = False  # received data is not processed yet
        self._room = CLOSING_BYTES  # bytes that are still read after we have sent a close
        self._descriptor = -1  # the transport's file descriptor; -1: writes must go through the transport
        self._queued = True  # the transport may hold unsent data, which must be sent first
        self._writing_paused = False  # the transport holds more than HIGH_WATER_BYTES
        self._close_code = 1006
        self._close_timer: asyncio.TimerHandle | None = None

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the transport of the upgrade request."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports only lack the base class
        # Above this the transport calls `pause_writing`, and from then on `send` checks the client's budget.
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        plain = None if is_ssl(self.transport) else self.transport.get_extra_info("socket")
        self._descriptor = -1 if plain is None else plain.fileno()
        self._server.connections.add(self)  # type: ignore[arg-type]  # uvicorn's union names its own classes

    def upgrade(self, scope: HTTPScope, target: bytes) -> None:
        """Start the handshake for an upgrade request: its HTTP scope, and its request target as received."""
        assert self._handshake is not None and self.transport is not None
        self._handshake.start(scope, target, self.transport)

    def data_received(self, data: bytes) -> None:
        """Process received frames."""
        if self.stage is ConnectionStage.OPEN:
            self._receive(data)
        elif self.stage is ConnectionStage.HANDSHAKE:
            # RFC 6455, 4.1: a client must not send data before the server's response.
            assert self._handshake is not None
            self._handshake.reject(HTTPStatus.BAD_REQUEST)
        elif self.stage is ConnectionStage.CLOSING:
            self._await_close(data)

    def eof_received(self) -> bool:
        """Close the transport when the client has closed its side."""
        return False

    def pause_writing(self) -> None:
        """The transport holds more than the high-water mark."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The transport holds less than its low-water mark."""
        self._writing_paused = False
        self._drain()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """The transport is gone."""
        self._finish(self._close_code)
        self.transport = None

    def shutdown(self) -> None:
        """Close a client that is still connected when uvicorn stops, after the drain of the node."""
        if self.stage is ConnectionStage.OPEN:
            self.disconnect(CloseReason.RESTART, "restart")
        elif self._handshake is not None:
            self._handshake.reject(HTTPStatus.SERVICE_UNAVAILABLE)

    # ---- for the owner

    def send(self, data: bytes) -> bool:
        """Write encoded frames. False if the unsent bytes exceed the client's budget."""
        if self.stage is not _OPEN:
            return True  # a closing client receives nothing more, and must not be evicted
        assert self.transport is not None
        if self._deflates:
            assert self._owner is not None
            data = self._owner.compress(data)
        if self._queued:
            unsent = self.transport.get_write_buffer_size()
            if self._writing_paused:
                assert self._owner is not None
                if unsent > self._owner.client_buffer_bytes:
                    return False
                self._owner.buffer_grew(self, len(data))
            self._queued = unsent > 0
        if not self._queued:
            # Write to the kernel directly: the transport's own write costs a tenth of a delivery, by cache misses.
            # The descriptor is valid until the transport has called `connection_lost`.
            try:
                sent = _write(self._descriptor, data)
            except OSError:  # the socket buffer is full or the connection broken; the transport handles both
                sent = 0
            if sent == len(data):
                return True
            data = data[sent:]
            self._queued = True
        self.transport.write(data)
        return True

    def held_bytes(self) -> int:
        """The buffered bytes: not yet sent, kept for a reply, and received of an unfinished message."""
        return self.unsent_bytes() + self.conversation.held_bytes + self._parser.held_bytes

    def unsent_bytes(self) -> int:
        """The unsent bytes in the transport."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def is_late(self, now: float) -> bool:
        """Whether an unfinished message began more than `MESSAGE_SECONDS` ago. `now`: loop time."""
        return self._source is None and 0 < self._begun < now - MESSAGE_SECONDS

    def ping(self) -> None:
        """Send a ping in the form of the client's protocol."""
        self.pinged = True
        self.send(self.conversation.ping())

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake. After `CLOSE_SECONDS` the transport is aborted."""
        if self.stage is not ConnectionStage.OPEN or self.transport is None:
            return
        self._close_code = code
        self.transport.write(frames.build_close(code, reason))
        self.stage = ConnectionStage.CLOSING
        self._drop_input()
        self._pause(False)
        self._close_timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort, code)
        self._report_closed(code)

    def abort(self, code: int) -> None:
        """Close at once and drop unsent data, because a client that does not read never receives a close frame."""
        self._close_code = code
        if self.transport is not None:
            self.transport.abort()
        self._finish(code)

    # ---- internals

    def _proceed(self) -> None:
        try:
            super()._proceed()
        except FrameError as error:
            self.close(error.code, error.reason)

    def _read(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        owner = self._owner
        assert owner is not None
        for frame in self._parser.receive(data, owner.max_message_bytes):
            if frames.CONTINUATION < frame[0] < frames.CLOSE:
                self._begun = 0.0
            yield frame
        if self._parser.unfinished:
            owner.buffer_grew(self, len(data))
            self._begun = self._begun or self.last_received
            yield frames.CONTINUATION, b""  # counted, since a frame in many reads costs as much as many frames

    def _must_wait(self, opcode: int) -> bool:
        # A close frame waits too, so that all messages before it are processed.
        return frames.CONTINUATION < opcode <= frames.CLOSE

    def _pause(self, paused: bool) -> None:
        if paused is not self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _handle(self, opcode: int, payload: bytes) -> None:
        assert self._owner is not None and self.transport is not None
        self.pinged = False
        if opcode == frames.CONTINUATION:
            self._owner.fragment_received(self)
        elif opcode <= frames.PART:
            self._owner.message_received(self, opcode, payload)
        elif opcode < frames.CLOSE:  # inflated only now, so that a waiting message stays small
            message = inflate(payload, self._owner.max_message_bytes)
            self._owner.message_received(self, opcode ^ frames.DEFLATED, message)
        elif opcode == frames.PONG:
            self._owner.control_frame_received(self, len(payload))
        elif opcode == frames.PING:
            if self._owner.control_frame_received(self, len(payload)) and not self.send(
                frames.build(frames.PONG, payload)
            ):
                self.abort(self.protocol.close_codes[CloseReason.SLOW_CONSUMER])
        elif opcode == frames.CLOSE:
            code, _ = frames.read_close(payload)
            # Echo the code (RFC 6455, 5.5.1). 1005 means that the frame has no code and is never sent.
            self.transport.write(frames.build_close(code, "") if code != 1005 else frames.build(frames.CLOSE, b""))
            self._close_code = code
            self.stage = ConnectionStage.CLOSING
            self.transport.close()
            self._close_timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort, code)
            self._report_closed(code)

    def _await_close(self, data: bytes) -> None:
        """After we have sent a close frame, read until the client's close frame and ignore everything else."""
        # Invalid data is ignored. Closing the transport while the client sends would reset the connection, and the
        # client might lose our close frame.
        self._room -= len(data)
        with contextlib.suppress(FrameError):
            for opcode, _ in self._parser.receive(data, CLOSING_BYTES):
                if opcode == frames.CLOSE and self.transport is not None:
                    self.transport.close()
                    return
                self._room -= CLOSING_FRAME_BYTES
                if self._room <= 0:
                    break
        if self._room <= 0:
            self._pause(True)  # the client ignores our close; the close timer aborts it soon

    def _finish(self, code: int) -> None:
        if self.stage is ConnectionStage.CLOSED:
            return
        self.stage = ConnectionStage.CLOSED
        self._server.connections.discard(self)
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None
        self._drop_input()
        self._report_closed(code)

    # ---- for the handshake

    def handshake_accepted(self, *, deflates: bool) -> None:
        """Status 101 was sent, and frames follow. `deflates`: compression was negotiated."""
        self._handshake = None
        if deflates:
            self._deflates = True
            self._parser = FrameParser(deflate=True)
        self.stage = ConnectionStage.OPEN

    def handshake_refused(self) -> None:
        """Another response was sent: close the connection."""
        self.stage = ConnectionStage.CLOSING
        assert self.transport is not None
        self.transport.close()
