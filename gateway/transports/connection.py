"""A client's connection: the parts that are common to WebSockets and HTTP streams.

    HANDSHAKE --accepted--> OPEN --close sent or received--> CLOSING --transport closed--> CLOSED
        from any state, on `abort` or a lost transport: CLOSED

Messages are handled in order: a message that waits for a result `hold`s the messages behind it. The input of one client
takes at most `TURN_SECONDS` of a turn of the event loop. The rest is handled in the next turns, and until then the node
reads nothing more from this client.
"""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from time import perf_counter
from typing import Final, NamedTuple, Protocol

from gateway.core import frames
from gateway.core.commands import Command
from gateway.core.errors import CloseReason
from gateway.core.hub import Audiences
from gateway.core.rate_limits import ClientUsage
from gateway.core.session import Session
from gateway.protocols.protocol import ClientProtocol, Conversation
from gateway.transports.http1_output import TURN_SECONDS

# The unsent bytes of one client above which senders that can wait should wait (`drained`).
HIGH_WATER_BYTES: Final = 64 << 10
CLOSE_SECONDS: Final = 5.0  # from the close message to the abort of a client that does not close its side


class ConnectionOwner(Protocol):
    """The node's callbacks for a connection."""

    max_message_bytes: int
    client_buffer_bytes: int

    def compress(self, data: bytes) -> bytes:
        """Compress encoded frames, once for all clients that use compression."""

    def message_received(self, connection: Connection, opcode: int, payload: bytes) -> None:
        """Handle a complete text or binary message, or a part of one (`insert`). `connection` is not held."""

    def command_received(self, connection: Connection, command: Command) -> None:
        """Handle a command that is part of the request which opened the connection."""

    def buffer_grew(self, connection: Connection, size: int) -> None:
        """Count `size` more buffered bytes: unsent data, or a part of an unfinished message."""

    def control_frame_received(self, connection: Connection, size: int) -> bool:
        """Count a ping or pong of `size` bytes. False if the rate limit is exceeded and the connection is closed."""

    def fragment_received(self, connection: Connection) -> None:
        """Count a fragment, or a read that ended within a frame. Closes the connection above the rate limit."""

    def connection_closed(self, connection: Connection, code: int) -> None:
        """The connection has closed with `code`. Called once for each opened connection."""


class ClientInfo(NamedTuple):
    """Facts about a client that the registry stores besides its identity."""

    connected_ms: int
    ip: str
    user_agent: str


class ConnectionStage(enum.Enum):
    """The state of a connection."""

    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class _InputState(enum.Enum):
    """The state of the processing of received data."""

    IDLE = enum.auto()  # everything is processed, or the next message is held
    BUSY = enum.auto()  # a message is being processed
    DUE = enum.auto()  # processing continues in the next turn of the event loop


class Connection(ABC):
    """The connection of one client, the base of `WebSocket` and `HttpStream`. After `open` it is a hub `Recipient`."""

    __slots__ = (
        "_drained",
        "_held",
        "_next",
        "_owner",
        "_queue",
        "_source",
        "_work",
        "audiences",
        "client_id",
        "conversation",
        "counted_user",
        "info",
        "last_received",
        "pinged",
        "protocol",
        "session",
        "stage",
        "usage",
    )  # fmt: skip

    kind: str  # the transport, as the registry shows it: websocket, sse, poll

    # Data of the owner, set by `open`.
    client_id: str
    session: Session
    info: ClientInfo
    audiences: Audiences
    usage: ClientUsage
    counted_user: str | None  # the user whose connection limit counts this connection
    protocol: ClientProtocol
    conversation: Conversation

    def __init__(self) -> None:
        self.stage = ConnectionStage.HANDSHAKE
        self.last_received = 0.0  # loop time
        self.pinged = False
        self._owner: ConnectionOwner | None = None
        self._held = ""  # the key of the current hold; empty: messages are not held
        self._work = _InputState.IDLE
        self._source: Iterator[tuple[int, bytes]] | None = None  # messages of the current data; None: all processed
        self._next: tuple[int, bytes] | None = None  # the message that is held
        self._queue: deque[bytes] | None = None  # data received after the current data
        self._drained: asyncio.Future[None] | None = None  # shared by the callers of `drained`

    def open(
        self, owner: ConnectionOwner, client_id: str, session: Session, info: ClientInfo, protocol: ClientProtocol
    ) -> None:
        """Deliver messages to `owner` from now on. The handshake must be complete; the client speaks `protocol`."""
        assert self.stage is ConnectionStage.OPEN
        self._owner = owner
        self.client_id = client_id
        self.session = session
        self.info = info
        self.audiences = Audiences()
        self.usage = ClientUsage()
        self.counted_user = session.identity.user
        self.protocol = protocol
        self.conversation = protocol.conversation(client_id, session)
        self.last_received = asyncio.get_running_loop().time()

    # ---- implemented by each transport

    @abstractmethod
    def send(self, data: bytes) -> bool:
        """Queue encoded frames. False, and nothing is queued, if the unsent bytes exceed the client's budget."""

    @abstractmethod
    def held_bytes(self) -> int:
        """The buffered bytes: not yet sent, kept for a reply, and received of an unfinished message."""

    @abstractmethod
    def is_late(self, now: float) -> bool:
        """Whether an unfinished message has exceeded its deadline. `now`: loop time."""

    @abstractmethod
    def ping(self) -> None:
        """Ask the client for a sign of life."""

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Send a close with `code` and `reason`. After `CLOSE_SECONDS` the connection is aborted."""

    @abstractmethod
    def abort(self, code: int) -> None:
        """Close at once and drop unsent data, because a client that does not read never receives a close."""

    @abstractmethod
    def unsent_bytes(self) -> int:
        """The bytes in this process that are not sent yet."""

    def disconnect(self, reason: CloseReason, text: str) -> None:
        """Close the connection for `reason`, with the code that the client's protocol has for it."""
        self.close(self.protocol.close_codes[reason], text)

    def buffer_grew(self, size: int) -> None:
        """Report to the owner that `size` more bytes are buffered."""
        if self._owner is not None:
            self._owner.buffer_grew(self, size)

    async def drained(self) -> None:
        """Wait until at most `HIGH_WATER_BYTES` are unsent or the client is gone, at least one turn of the loop."""
        await asyncio.sleep(0)
        while self.stage is ConnectionStage.OPEN and self.unsent_bytes() > HIGH_WATER_BYTES:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            if self._owner is not None:
                self._owner.buffer_grew(self, self.unsent_bytes())  # report it now, since nothing is sent meanwhile
            await asyncio.wait([self._drained])

    def _drain(self) -> None:
        """Wake the callers of `drained`: the client has received data, or is gone."""
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set_result(None)

    # ---- input

    def is_silent(self, seconds: float, now: float) -> bool:
        """Whether nothing was received for `seconds`, although the node was reading. `now`: loop time."""
        return self._source is None and self.last_received < now - seconds

    def hold(self, key: str) -> None:
        """Hold further messages until `release(key)`, because the current message is not finished."""
        self._held = key

    def release(self, key: str) -> None:
        """Process the messages held under `key`, until one holds again. Does nothing if another key holds."""
        if self._held != key:
            return
        self._held = ""
        if self._source is not None and self._work is _InputState.IDLE:
            self._proceed()

    def insert(self, messages: Iterable[bytes]) -> None:
        """Process `messages`, the rest of the message that is being handled, before all other input."""
        if self._source is not None:
            self._source = chain(((frames.PART, message) for message in messages), self._source)

    def _receive(self, data: bytes) -> None:
        """Process received `data` after all earlier data."""
        if self._source is None:
            self._source = self._read(data)
            self._proceed()
        elif self._queue is None:
            self._queue = deque((data,))
        else:
            self._queue.append(data)

    def _proceed(self) -> None:
        """Process received messages until one is held, the time of this turn is used up, or all are processed."""
        self._work, work = _InputState.BUSY, _InputState.IDLE
        self.last_received = asyncio.get_running_loop().time()
        turn_ends = perf_counter() + TURN_SECONDS
        try:
            while self._source is not None and self.stage is ConnectionStage.OPEN:
                item, self._next = self._next or next(self._source, None), None
                if item is None:
                    self._source = self._read(self._queue.popleft()) if self._queue else None
                elif self._held and self._must_wait(item[0]):
                    self._next = item
                    break
                else:
                    self._handle(*item)
                    if perf_counter() > turn_ends:
                        work = _InputState.DUE
                        asyncio.get_running_loop().call_soon(self._proceed)
                        break
        finally:
            self._work = work
        self._pause(self._source is not None)

    def _drop_input(self) -> None:
        """Drop the unprocessed input, because the connection is closing."""
        self._source = self._next = self._queue = None

    @abstractmethod
    def _read(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Parse `data` into opcode and payload of each message."""

    @abstractmethod
    def _must_wait(self, opcode: int) -> bool:
        """Whether messages with this opcode wait during a hold."""

    @abstractmethod
    def _handle(self, opcode: int, payload: bytes) -> None:
        """Process one message."""

    @abstractmethod
    def _pause(self, paused: bool) -> None:
        """Pause or resume reading from the client."""

    def _report_closed(self, code: int) -> None:
        """Call the owner's `closed`, once."""
        self._drain()
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.connection_closed(self, code)
