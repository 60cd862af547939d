"""One socket, from the handshake to its end: uvicorn's WebSocket protocol class.

At the handshake an endpoint decides who comes in (`web.sockets`). Once it has accepted and returned, no coroutine and
no scope remain: this object alone lives on, hands whole messages to its `Owner` and writes prepared frames.
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
from gateway.core.deflate import inflate
from gateway.core.frames import FrameError, FrameParser
from gateway.core.protocol import Close
from gateway.transport.connection import CLOSE_SECONDS, HIGH_WATER_BYTES, Connection, Stage
from gateway.transport.handshake import Handshake

CLOSING_BYTES: Final = 1 << 20  # read at most while we wait for the peer's close
CLOSING_FRAME_BYTES: Final = 1 << 10  # what a frame counts for among them, beside its own
MESSAGE_SECONDS: Final = 60.0  # from a message's first octet to its last: 1 MiB at 17 KiB a second


# Looked at for each delivery, and an attribute of an enum costs a tenth of a microsecond.
_OPEN: Final = Stage.OPEN
_write: Final = os.write


class Socket(Connection, asyncio.Protocol):
    """Built by uvicorn for each upgrade request."""

    __slots__ = (
        "_begun", "_close_code", "_close_timer", "_deaf", "_deflates", "_descriptor", "_handshake", "_parser",
        "_paused", "_queued", "_room", "_server", "transport",
    )  # fmt: skip

    kind = "websocket"

    def __init__(
        self, config: Config, server_state: ServerState, _app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.transport: asyncio.Transport | None = None
        self._server = server_state
        self._handshake: Handshake | None = Handshake(self, config, server_state)
        self._parser = FrameParser()
        self._deflates = False  # permessage-deflate was agreed
        self._begun = 0.0  # loop time of the first octet of a message that is not whole yet; 0: there is none
        self._deaf = False  # nothing is read: what has come is not carried out yet
        self._room = CLOSING_BYTES  # that are still read once we have sent a close
        self._descriptor = -1  # the transport's; -1: nothing may be written to it but by the transport
        self._queued = True  # the transport may hold something unsent, which goes first
        self._paused = False  # the transport holds more than HIGH_WATER_BYTES
        self._close_code = 1006
        self._close_timer: asyncio.TimerHandle | None = None

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """uvicorn hands over the transport of the upgrade request."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        # Above this the transport tells us, and each further write looks at the budget.
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        plain = None if is_ssl(self.transport) else self.transport.get_extra_info("socket")
        self._descriptor = -1 if plain is None else plain.fileno()
        self._server.connections.add(self)  # type: ignore[arg-type]  # uvicorn's union names its own classes

    def upgrade(self, asked: HTTPScope, target: bytes) -> None:
        """The request that asks for a WebSocket, as uvicorn has read it."""
        assert self._handshake is not None and self.transport is not None
        self._handshake.receive(asked, target, self.transport)

    def data_received(self, data: bytes) -> None:
        """Frames, once the handshake is over."""
        if self.stage is Stage.OPEN:
            self._receive(data)
        elif self.stage is Stage.HANDSHAKE:
            # RFC 6455, 4.1: a client sends nothing before the server's answer.
            assert self._handshake is not None
            self._handshake.refuse(HTTPStatus.BAD_REQUEST)
        elif self.stage is Stage.CLOSING:
            self._await_close(data)

    def eof_received(self) -> bool:
        """The peer is done sending: so are we."""
        return False

    def pause_writing(self) -> None:
        """The transport holds more than the high-water mark."""
        self._paused = True

    def resume_writing(self) -> None:
        """It has been taken."""
        self._paused = False
        self._drain()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """The transport is gone."""
        self._finish(self._close_code)
        self.transport = None

    def shutdown(self) -> None:
        """uvicorn stops. The node has drained by now; whoever is left is told to come back elsewhere."""
        if self.stage is Stage.OPEN:
            self.close(Close.RESTART, "restart")
        elif self._handshake is not None:
            self._handshake.refuse(HTTPStatus.SERVICE_UNAVAILABLE)

    # ---- what the owner does

    def send(self, data: bytes) -> bool:
        """Write prepared frames."""
        if self.stage is not _OPEN:
            return True  # whoever is leaving hears no more, and is not to be thrown out either
        assert self.transport is not None
        if self._deflates:
            assert self._owner is not None
            data = self._owner.deflate(data)
        if self._queued:
            unsent = self.transport.get_write_buffer_size()
            if self._paused:
                assert self._owner is not None
                if unsent > self._owner.client_buffer_bytes:
                    return False
                self._owner.grew(self, len(data))
            self._queued = unsent > 0
        if not self._queued:
            # Straight to the kernel: the way through the transport takes a tenth of a delivery, since all that it
            # keeps lies elsewhere in memory. The descriptor is its own until it has called `connection_lost`.
            try:
                sent = _write(self._descriptor, data)
            except OSError:  # full, or broken: the transport waits, or ends itself
                sent = 0
            if sent == len(data):
                return True
            data = data[sent:]
            self._queued = True
        self.transport.write(data)
        return True

    def held_bytes(self) -> int:
        """What is held for it: not yet sent, and of a message not wholly received."""
        return self.unsent_bytes() + self._parser.held_bytes

    def unsent_bytes(self) -> int:
        """What the transport holds."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def is_late(self, now: float) -> bool:
        """Whether a message is under way for longer than it may take; `now` in loop time."""
        return self._source is None and 0 < self._begun < now - MESSAGE_SECONDS

    def ping(self) -> None:
        """Ask the peer's protocol layer for a sign of life."""
        self.pinged = True
        self.send(frames.build(frames.PING, b""))

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; the transport is aborted if the peer does not end it in time."""
        if self.stage is not Stage.OPEN or self.transport is None:
            return
        self._close_code = code
        self.transport.write(frames.build_close(code, reason))
        self.stage = Stage.CLOSING
        self._drop()
        self._pause(False)
        self._close_timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort, code)
        self._leave(code)

    def abort(self, code: int) -> None:
        """End it at once, whatever is unsent: a client that does not read would never take a close frame."""
        self._close_code = code
        if self.transport is not None:
            self.transport.abort()
        self._finish(code)

    # ---- within

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
            owner.grew(self, len(data))
            self._begun = self._begun or self.last_heard
            yield frames.CONTINUATION, b""  # a frame that comes in many reads costs as much as many frames

    def _waits(self, opcode: int) -> bool:
        # In order: what was said before a farewell is still carried out.
        return frames.CONTINUATION < opcode <= frames.CLOSE

    def _pause(self, paused: bool) -> None:
        if paused is not self._deaf and self.transport is not None and not self.transport.is_closing():
            self._deaf = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def _carry_out(self, opcode: int, payload: bytes) -> None:
        assert self._owner is not None and self.transport is not None
        self.pinged = False
        if opcode == frames.CONTINUATION:
            self._owner.counted_part(self)
        elif opcode <= frames.BINARY:
            self._owner.received(self, opcode, payload)
        elif opcode < frames.CLOSE:  # inflated only now: while it waited it was as small as it came
            message = inflate(payload, self._owner.max_message_bytes)
            self._owner.received(self, opcode ^ frames.DEFLATED, message)
        elif opcode == frames.PONG:
            self._owner.counted(self, len(payload))
        elif opcode == frames.PING:
            if self._owner.counted(self, len(payload)) and not self.send(frames.build(frames.PONG, payload)):
                self.abort(Close.SLOW_CONSUMER)
        elif opcode == frames.CLOSE:
            code, _ = frames.read_close(payload)
            # Echo, as 5.5.1 asks; 1005 is what we read, never what is sent.
            self.transport.write(frames.build_close(code, "") if code != 1005 else frames.build(frames.CLOSE, b""))
            self._close_code = code
            self.stage = Stage.CLOSING
            self.transport.close()
            self._close_timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort, code)
            self._leave(code)

    def _await_close(self, data: bytes) -> None:
        """We have sent a close: only the peer's own still matters."""
        # What is no frame is thrown away: to end the transport amid what the peer sends would reset it, and take our
        # close frame away from a peer that has not read it yet.
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
            self._pause(True)  # it goes on as if it had not been told: its time ends soon

    def _finish(self, code: int) -> None:
        if self.stage is Stage.CLOSED:
            return
        self.stage = Stage.CLOSED
        self._server.connections.discard(self)
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None
        self._drop()
        self._leave(code)

    # ---- what the handshake says

    def accepted(self, *, deflates: bool) -> None:
        """101 is written: frames from now on; `deflates`: both sides may compress messages."""
        self._handshake = None
        if deflates:
            self._deflates = True
            self._parser = FrameParser(deflate=True)
        self.stage = Stage.OPEN

    def refused(self) -> None:
        """Another answer is written: nothing follows it."""
        self.stage = Stage.CLOSING
        assert self.transport is not None
        self.transport.close()
