"""A client where there can be no WebSocket: it hears by HTTP answers and speaks by POST.

What it is sent is what a socket is sent, text for text, between two messages that stand for a socket's own opening and
end: ``{"type":"OPEN","stream":…}`` and ``{"type":"CLOSE","code":…,"reason":…}``. Whoever serves it takes what has come:
once and again into one answer that has no end (Server-Sent Events), or into one answer at a time (long polling).
"""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from collections.abc import Callable, Iterator
from typing import Final

import orjson

from gateway.core import frames
from gateway.core.protocol import Close
from gateway.core.session import Session
from gateway.transport.connection import CLOSE_SECONDS, Connection, Facts, Owner, Stage

KEY_BYTES: Final = 16
# A poll that has something goes on listening for a moment: each answer costs a request.
GATHER_SECONDS: Final = 0.05

# A line with nothing in it is no message, but it costs time.
_EMPTY: Final = (frames.CONTINUATION, b"")


class Taken(Exception):
    """Somebody takes from the stream already."""


class EventStreams:
    """Those of this node, by client id."""

    def __init__(self) -> None:
        self._streams: dict[str, EventStream] = {}

    def add(self, stream: EventStream) -> None:
        """It was opened."""
        self._streams[stream.client_id] = stream

    def discard(self, stream: EventStream) -> None:
        """It is gone."""
        self._streams.pop(stream.client_id, None)

    def find(self, name: bytes) -> EventStream | None:
        """The stream of that name; only its client knows the key in it. None: there is none such."""
        client_id, _, key = name.decode("ascii", "replace").rpartition(".")
        stream = self._streams.get(client_id)
        if stream is None or not hmac.compare_digest(key.encode(), stream.key.encode()):
            return None
        return stream


class EventStream(Connection):
    """One such client; `cut` ends its HTTP connection, if there is one that lasts."""

    __slots__ = ("_close_timer", "_cut", "_home", "_said", "_size", "_taken", "_waiter", "_waiting", "key", "kind")

    def __init__(self, kind: str, home: EventStreams, cut: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.stage = Stage.OPEN
        self.kind = kind
        self.key = secrets.token_hex(KEY_BYTES)
        self._home = home
        self._cut = cut
        self._waiting: list[bytes] = []  # frames nobody has taken yet
        self._size = 0  # of those, in bytes
        self._said = 0  # bytes of what it has said and what waits
        self._taken = False
        self._waiter: asyncio.Future[None] | None = None
        self._close_timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """What its client shows to speak in it."""
        return f"{self.client_id}.{self.key}"

    # ---- what the owner does

    def open(self, owner: Owner, client_id: str, session: Session, facts: Facts) -> None:
        """From now on it is a client like all others, and can be found."""
        super().open(owner, client_id, session, facts)
        self._home.add(self)
        self._put(frames.build(frames.TEXT, orjson.dumps({"type": "OPEN", "stream": self.name})))

    def send(self, data: bytes) -> bool:
        """Keep prepared frames until they are taken."""
        if self.stage is not Stage.OPEN:
            return True
        assert self._owner is not None
        if self._size > self._owner.client_buffer_bytes:
            return False
        if self._waiting:
            self._owner.grew(self, len(data))
        self._put(data)
        return True

    def held_bytes(self) -> int:
        """What nobody has taken yet, and what it has said and what waits."""
        return self._size + self._said

    def unsent_bytes(self) -> int:
        """What nobody has taken yet."""
        return self._size

    def is_late(self, now: float) -> bool:  # noqa: ARG002  a socket's concern: requests have a deadline of their own
        """Never: it speaks in whole messages."""
        return False

    def ping(self) -> None:
        """Have whoever waits go away with nothing, and see whether he comes back."""
        self.pinged = True
        self._wake()

    def close(self, code: int, reason: str) -> None:
        """Let what has come be taken, and the reason behind it."""
        if self.stage is not Stage.OPEN:
            return
        self.stage = Stage.CLOSING
        self._drop()
        self._put(frames.build(frames.TEXT, orjson.dumps({"type": "CLOSE", "code": int(code), "reason": reason})))
        self._close_timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort, code)
        self._leave(code)

    def abort(self, code: int) -> None:
        """End it at once, and whatever answer is under way."""
        self.end(code)
        self._cut()

    # ---- what whoever serves it does

    def end(self, code: int = 1006) -> None:
        """It is over: its last message was taken, or there is nobody to take it."""
        if self.stage is Stage.CLOSED:
            return
        self.stage = Stage.CLOSED
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._waiting, self._size = [], 0
        self._drop()
        self._home.discard(self)
        self._wake()
        self._leave(code)

    async def take(self, gather_seconds: float = 0.0, quiet_seconds: float = math.inf) -> list[bytes] | None:
        """The frames that have come, once there are any; they may be joined. None: that was all, it is over.

        An empty list asks for a sign of life: to take again is one. After `quiet_seconds` without a frame there is one
        in any case. With `gather_seconds` it waits for more so long.

        Raises:
            Taken: It is being taken from.
        """
        if self._taken:
            raise Taken
        loop = asyncio.get_running_loop()
        self._taken, self.pinged, self.last_heard = True, False, loop.time()
        quiet: asyncio.TimerHandle | None = None
        try:
            if not self._waiting and self.stage is Stage.OPEN:
                self._waiter = loop.create_future()
                if quiet_seconds < math.inf:
                    quiet = loop.call_later(quiet_seconds, self._wake)
                await self._waiter
                if self._waiting and self.stage is Stage.OPEN:
                    await asyncio.sleep(gather_seconds)
        finally:
            self._taken, self._waiter = False, None
            if quiet is not None:
                quiet.cancel()
        if not self._waiting and self.stage is not Stage.OPEN:
            self.end()
            return None
        taken, self._waiting, self._size = self._waiting, [], 0
        self._drain()
        self.last_heard = loop.time()
        return taken

    def say(self, texts: bytes) -> None:
        """What its client says, a message a line. What waits for the one before it has a limit, as all else."""
        if self.stage is not Stage.OPEN:
            return
        assert self._owner is not None
        waits = self._source is not None
        self._said += len(texts)
        if waits and self._said > self._owner.max_message_bytes:
            self.close(Close.TOO_MANY_REQUESTS, "too much said at once")
            return
        self._receive(texts)

    # ---- within

    def _read(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at < len(data):
            end = data.find(b"\n", at)
            end = len(data) if end < 0 else end
            yield (frames.TEXT, data[at:end]) if end > at else _EMPTY
            at = end + 1

    def _waits(self, opcode: int) -> bool:
        return opcode == frames.TEXT

    def _carry_out(self, opcode: int, payload: bytes) -> None:
        assert self._owner is not None
        if opcode == frames.TEXT:
            self._owner.received(self, opcode, payload)
        else:
            self._owner.counted_part(self)

    def _pause(self, paused: bool) -> None:
        if not paused:
            self._said = 0

    def _put(self, data: bytes) -> None:
        self._waiting.append(data)
        self._size += len(data)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
