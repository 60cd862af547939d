"""A client without a WebSocket: it receives messages in HTTP responses and sends messages by POST.

It receives the same messages as a socket. Two more stand for the opening and the close of a socket. An HTTP endpoint
takes the queued messages with `take`: repeatedly for one endless response (Server-Sent Events), or once per response
(long polling).
"""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from collections.abc import Callable, Iterator
from typing import Final

from gateway.core import frames
from gateway.core.commands import Command
from gateway.core.errors import CloseReason
from gateway.core.events import StreamClosed, StreamOpened
from gateway.core.session import Session
from gateway.protocols.protocol import ClientProtocol
from gateway.transports.connection import CLOSE_SECONDS, ClientInfo, Connection, ConnectionOwner, ConnectionStage

KEY_BYTES: Final = 16
# A poll with a message waits this long for more messages, since each response costs a request.
GATHER_SECONDS: Final = 0.05

# An empty line is not a message, but it costs time, so it is counted as a fragment.
_EMPTY: Final = (frames.CONTINUATION, b"")
_COMMAND: Final = (-1, b"")  # stands for the command of `receive_command`


class StreamInUse(Exception):
    """Another request is taking messages from the stream."""


class HttpStreams:
    """The event streams of this node, by client id."""

    def __init__(self) -> None:
        self._streams: dict[str, HttpStream] = {}

    def add(self, stream: HttpStream) -> None:
        """Add an opened stream."""
        self._streams[stream.client_id] = stream

    def discard(self, stream: HttpStream) -> None:
        """Remove a closed stream."""
        self._streams.pop(stream.client_id, None)

    def find(self, name: bytes) -> HttpStream | None:
        """Find the stream with this name, which contains its secret key. None if there is none."""
        client_id, _, key = name.decode("ascii", "replace").rpartition(".")
        stream = self._streams.get(client_id)
        if stream is None or not hmac.compare_digest(key.encode(), stream.key.encode()):
            return None
        return stream

    def post_received(self, body: bytes) -> bool:
        """Process messages for a stream: its name, then one message per line. False: there is no such stream."""
        name, _, texts = body.partition(b"\n")
        stream = self.find(name)
        if stream is not None:
            stream.post_received(texts)
        return stream is not None


class HttpStream(Connection):
    """One client without a WebSocket.

    Args:
        kind: ``sse`` or ``poll``.
        streams: Where the stream registers itself.
        cut: Aborts the HTTP connection of an endless response.
        binary: The client sends binary messages, each in a request of its own, instead of lines.
    """

    __slots__ = (
        "_binary", "_close_timer", "_command", "_cut", "_input_bytes", "_size", "_streams", "_taken", "_waiter",
        "_waiting", "key", "kind",
    )  # fmt: skip

    def __init__(
        self, kind: str, streams: HttpStreams, cut: Callable[[], None] = lambda: None, *, binary: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.stage = ConnectionStage.OPEN
        self.kind = kind
        self.key = secrets.token_hex(KEY_BYTES)
        self._streams = streams
        self._cut = cut
        self._binary = binary
        self._waiting: list[bytes] = []  # frames that are not taken yet
        self._size = 0  # their bytes
        self._input_bytes = 0  # received and not processed yet
        self._taken = False
        self._waiter: asyncio.Future[None] | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._command: Command | None = None  # see `receive_command`

    @property
    def name(self) -> str:
        """The name by which the client's POST requests identify the stream."""
        return f"{self.client_id}.{self.key}"

    # ---- for the owner

    def open(
        self, owner: ConnectionOwner, client_id: str, session: Session, info: ClientInfo, protocol: ClientProtocol
    ) -> None:
        """Deliver messages to `owner` from now on, and register the stream by its name."""
        super().open(owner, client_id, session, info, protocol)
        self._streams.add(self)
        self._put(self.conversation.encode(StreamOpened(self.name), info.connected_ms))

    def send(self, data: bytes) -> bool:
        """Queue encoded frames until they are taken. False if the unsent bytes exceed the client's budget."""
        if self.stage is not ConnectionStage.OPEN:
            return True
        assert self._owner is not None
        if self._size > self._owner.client_buffer_bytes:
            return False
        if self._waiting:
            self._owner.buffer_grew(self, len(data))
        self._put(data)
        return True

    def held_bytes(self) -> int:
        """The buffered bytes: not taken yet, kept for a reply, and received but not processed."""
        return self._size + self.conversation.held_bytes + self._input_bytes

    def unsent_bytes(self) -> int:
        """The bytes that are not taken yet."""
        return self._size

    def is_late(self, now: float) -> bool:  # noqa: ARG002  HTTP requests have their own deadline
        """Always False: a stream receives only complete messages."""
        return False

    def ping(self) -> None:
        """End the waiting request with an empty result. The client's next request is its sign of life."""
        self.pinged = True
        self._wake()

    def close(self, code: int, reason: str) -> None:
        """Queue a CLOSE message behind the waiting messages."""
        if self.stage is not ConnectionStage.OPEN:
            return
        self.stage = ConnectionStage.CLOSING
        self._drop_input()
        self._put(self.conversation.encode(StreamClosed(int(code), reason), 0))
        self._close_timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort, code)
        self._report_closed(code)

    def abort(self, code: int) -> None:
        """Close at once, and abort a response in progress."""
        self.finish(code)
        self._cut()

    # ---- for the HTTP endpoint

    def finish(self, code: int = 1006) -> None:
        """Close the stream, because its last message was taken or its client is gone."""
        if self.stage is ConnectionStage.CLOSED:
            return
        self.stage = ConnectionStage.CLOSED
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._waiting, self._size = [], 0
        self._drop_input()
        self._streams.discard(self)
        self._wake()
        self._report_closed(code)

    async def take_frames(self, gather_seconds: float = 0.0, quiet_seconds: float = math.inf) -> list[bytes] | None:
        """Wait for frames and return them; several frames may be joined. None: the stream has ended.

        An empty list asks for a sign of life: the caller should call `take_frames` again.

        Args:
            gather_seconds: After the first frame, wait this long for more.
            quiet_seconds: Return an empty list after this time without a frame.

        Raises:
            StreamInUse: Another request is taking frames.
        """
        if self._taken:
            raise StreamInUse
        loop = asyncio.get_running_loop()
        self._taken, self.pinged, self.last_received = True, False, loop.time()
        quiet: asyncio.TimerHandle | None = None
        try:
            if not self._waiting and self.stage is ConnectionStage.OPEN:
                self._waiter = loop.create_future()
                if quiet_seconds < math.inf:
                    quiet = loop.call_later(quiet_seconds, self._wake)
                await self._waiter
                if self._waiting and self.stage is ConnectionStage.OPEN:
                    await asyncio.sleep(gather_seconds)
        finally:
            self._taken, self._waiter = False, None
            if quiet is not None:
                quiet.cancel()
        if not self._waiting and self.stage is not ConnectionStage.OPEN:
            self.finish()
            return None
        taken, self._waiting, self._size = self._waiting, [], 0
        self._drain()
        self.last_received = loop.time()
        return taken

    def post_received(self, texts: bytes) -> None:
        """Process messages of the client. Closes the stream if too many unprocessed bytes wait."""
        if self.stage is not ConnectionStage.OPEN:
            return
        assert self._owner is not None
        waits = self._source is not None
        self._input_bytes += len(texts)
        if waits and self._input_bytes > self._owner.max_message_bytes:
            self.disconnect(CloseReason.TOO_MANY_REQUESTS, f"more than {self._owner.max_message_bytes} bytes waiting")
            return
        self._receive(texts)

    def receive_command(self, command: Command) -> None:
        """Process a command that stands for the client's first message."""
        assert self._source is None
        self._command = command
        self._source = iter((_COMMAND,))
        self._proceed()

    # ---- internals

    def _read(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        if self._binary:
            yield frames.BINARY, data
            return
        at = 0
        while at < len(data):
            end = data.find(b"\n", at)
            end = len(data) if end < 0 else end
            yield (frames.TEXT, data[at:end]) if end > at else _EMPTY
            at = end + 1

    def _must_wait(self, opcode: int) -> bool:
        return opcode != frames.CONTINUATION

    def _handle(self, opcode: int, payload: bytes) -> None:
        assert self._owner is not None
        if frames.TEXT <= opcode <= frames.PART:
            self._owner.message_received(self, opcode, payload)
        elif opcode == _COMMAND[0]:
            command, self._command = self._command, None
            assert command is not None
            self._owner.command_received(self, command)
        else:
            self._owner.fragment_received(self)

    def _pause(self, paused: bool) -> None:
        if not paused:
            self._input_bytes = 0

    def _put(self, data: bytes) -> None:
        if not data:
            return
        self._waiting.append(data)
        self._size += len(data)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
