"""A client as the node knows it, whatever it is connected by: a WebSocket, or HTTP answers where there can be none.

    HANDSHAKE --accept--> OPEN --close sent or received--> CLOSING --all is gone--> CLOSED
        any, on `abort` or a lost transport: CLOSED

What it says is handled in order: a message that waits for something `hold`s those behind it. No client's input takes
more than `TURN_SECONDS` of a turn of the loop: what has come beyond that is handled in the next turns, and until it is
done nothing more is read.
"""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from time import perf_counter
from typing import Final, NamedTuple, Protocol

from gateway.core.hub import Audiences
from gateway.core.rates import Meter
from gateway.core.session import Session
from gateway.transport.line import TURN_SECONDS

# Unsent bytes of one client above which its sender should wait, where it can.
HIGH_WATER_BYTES: Final = 64 << 10
CLOSE_SECONDS: Final = 5.0  # how long a client may take to hear that it is closed, before it is cut off


class Owner(Protocol):
    """The node, as far as a client needs it."""

    max_message_bytes: int
    client_buffer_bytes: int

    def deflate(self, data: bytes) -> bytes:
        """Prepared frames in the form that all have in common who agreed to compression."""

    def received(self, connection: Connection, opcode: int, payload: bytes) -> None:
        """A whole text or binary message has come; `connection` is not held."""

    def grew(self, connection: Connection, size: int) -> None:
        """`size` bytes more are held for it: it does not read as fast as it is sent to, or has sent half a message."""

    def counted(self, connection: Connection, size: int) -> bool:
        """A ping or pong of `size` bytes has come. False: that was one too many, and it is closed."""

    def counted_part(self, connection: Connection) -> None:
        """A fragment has come, or a read has ended within a frame. It may be closed: that was one too many."""

    def closed(self, connection: Connection, code: int) -> None:
        """It is no more; `code` says why. Called once for each that was opened."""


class Facts(NamedTuple):
    """What the registry tells of a client besides its session."""

    connected_ms: int
    ip: str
    user_agent: str


class Stage(enum.Enum):
    """Where in its life a client is."""

    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class _Work(enum.Enum):
    """What becomes of what has come."""

    IDLE = enum.auto()  # all is carried out, or the next message is held
    BUSY = enum.auto()  # it is carried out in this moment
    DUE = enum.auto()  # it goes on in the next turn


class Connection(ABC):
    """One client's. What `Socket` and `EventStream` have in common; becomes a hub's `Subscriber` by `open`."""

    __slots__ = (
        "_behind", "_drained", "_held", "_next", "_owner", "_source", "_work", "audiences", "client_id", "counted_user",
        "facts", "last_heard", "meter", "pinged", "session", "stage",
    )  # fmt: skip

    kind: str  # what it is connected by, as the registry tells it: websocket, sse, poll

    # What the owner keeps here; set by `open`.
    client_id: str
    session: Session
    facts: Facts
    audiences: Audiences
    meter: Meter
    counted_user: str | None  # whose slot it holds

    def __init__(self) -> None:
        self.stage = Stage.HANDSHAKE
        self.last_heard = 0.0  # loop time
        self.pinged = False
        self._owner: Owner | None = None
        self._held = ""  # why messages wait: what the one before is busy with
        self._work = _Work.IDLE
        self._source: Iterator[tuple[int, bytes]] | None = None  # what has come and is not carried out; None: all is
        self._next: tuple[int, bytes] | None = None  # taken from it, and held
        self._behind: deque[bytes] | None = None  # what has come since
        self._drained: asyncio.Future[None] | None = None  # of those who wait in `drained`

    def open(self, owner: Owner, client_id: str, session: Session, facts: Facts) -> None:
        """From now on messages go to `owner`. It must have been let in just before."""
        assert self.stage is Stage.OPEN
        self._owner = owner
        self.client_id = client_id
        self.session = session
        self.facts = facts
        self.audiences = Audiences()
        self.meter = Meter()
        self.counted_user = session.identity.user
        self.last_heard = asyncio.get_running_loop().time()

    # ---- each in its own way

    @abstractmethod
    def send(self, data: bytes) -> bool:
        """Queue prepared frames. False, and nothing queued, if the client has not taken its budget's worth."""

    @abstractmethod
    def held_bytes(self) -> int:
        """What is held for it: not yet sent, and of a message not wholly received."""

    @abstractmethod
    def is_late(self, now: float) -> bool:
        """Whether a message is under way for longer than it may take; `now` in loop time."""

    @abstractmethod
    def ping(self) -> None:
        """Ask it for a sign of life."""

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Tell it that it is closed, and why; it is cut off if it does not hear that in time."""

    @abstractmethod
    def abort(self, code: int) -> None:
        """End it at once, whatever is unsent: a client that does not read would never hear that it is closed."""

    @abstractmethod
    def unsent_bytes(self) -> int:
        """What it was sent and has not taken from this process."""

    async def drained(self) -> None:
        """Wait, one turn of the loop at least, until it has taken most of what it was sent, or is gone."""
        await asyncio.sleep(0)
        while self.stage is Stage.OPEN and self.unsent_bytes() > HIGH_WATER_BYTES:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            if self._owner is not None:
                self._owner.grew(self, self.unsent_bytes())  # else it would be counted only when more is sent
            await asyncio.wait([self._drained])

    def _drain(self) -> None:
        """It has taken something, or is gone."""
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set_result(None)

    # ---- what it says

    def is_silent(self, seconds: float, now: float) -> bool:
        """Whether nothing came of it for so long, though it was listened to; `now` in loop time."""
        return self._source is None and self.last_heard < now - seconds

    def hold(self, why: str) -> None:
        """Keep further messages waiting until `release(why)`: this one is not done."""
        self._held = why

    def release(self, why: str) -> None:
        """Go on with the messages that waited for `why`, until one holds again."""
        if self._held != why:
            return
        self._held = ""
        if self._source is not None and self._work is _Work.IDLE:
            self._proceed()

    def _receive(self, data: bytes) -> None:
        """Carry out what `data` says, behind what has come before."""
        if self._source is None:
            self._source = self._read(data)
            self._proceed()
        elif self._behind is None:
            self._behind = deque((data,))
        else:
            self._behind.append(data)

    def _proceed(self) -> None:
        """Carry out what has come, until a message must wait, the turn is over, or all is done."""
        self._work, work = _Work.BUSY, _Work.IDLE
        self.last_heard = asyncio.get_running_loop().time()
        turn_ends = perf_counter() + TURN_SECONDS
        try:
            while self._source is not None and self.stage is Stage.OPEN:
                item, self._next = self._next or next(self._source, None), None
                if item is None:
                    self._source = self._read(self._behind.popleft()) if self._behind else None
                elif self._held and self._waits(item[0]):
                    self._next = item
                    break
                else:
                    self._carry_out(*item)
                    if perf_counter() > turn_ends:
                        work = _Work.DUE
                        asyncio.get_running_loop().call_soon(self._proceed)
                        break
        finally:
            self._work = work
        self._pause(self._source is not None)

    def _drop(self) -> None:
        """Forget what has come and is not carried out: it is about to end."""
        self._source = self._next = self._behind = None

    @abstractmethod
    def _read(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload of each message in `data`."""

    @abstractmethod
    def _waits(self, opcode: int) -> bool:
        """Whether such a message waits while those before it are held."""

    @abstractmethod
    def _carry_out(self, opcode: int, payload: bytes) -> None:
        """Carry out a message."""

    @abstractmethod
    def _pause(self, paused: bool) -> None:
        """Have no more come while this is `paused`: what is here comes first."""

    def _leave(self, code: int) -> None:
        """Tell the owner, once."""
        self._drain()
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.closed(self, code)
