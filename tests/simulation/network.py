"""A network in memory, under virtual time: connections with delay that can be cut, frozen and refused.

`SimulatedLoop.create_connection` connects to the listeners of a `Network` instead of opening a socket, so any library
that opens its connections through the event loop runs on it unchanged.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.unit.virtual_time import VirtualLoop

Address = tuple[str, int]

MOST_CALLBACKS = 100_000  # that a history may run: a usual one runs about 2,000


class Transport(asyncio.Transport):
    """One end of a connection in memory. What it writes arrives at the peer in order, after the network's delay."""

    def __init__(self, network: Network, address: Address) -> None:
        super().__init__()
        self._network = network
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.BaseProtocol | None = None
        self.peer: Transport | None = None
        self._flight: deque[bytes | None] = deque()  # on its way here; None: the peer has closed
        self._arrived: deque[bytes | None] = deque()  # not yet read
        self._due = 0.0  # loop time at which the last write arrives
        self._reading = True
        self._closed = False
        self.frozen = False  # the process at this end does not run

    def attach(self, protocol: asyncio.BaseProtocol, peer: Transport) -> None:
        """Connect this end, which `protocol` reads, to `peer`."""
        self._protocol, self.peer = protocol, peer
        protocol.connection_made(self)

    # ---- asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` to the peer."""
        if not self._closed:
            self._send(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        """Send all of them."""
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Close both ends, once what was written has arrived."""
        if not self._closed:
            self._send(None)
            self._end(None)

    def abort(self) -> None:
        """Close both ends now."""
        self.lose()

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closed

    def get_write_buffer_size(self) -> int:
        """Nothing is ever held back: the network takes all."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There are none."""

    def is_reading(self) -> bool:
        """Whether it reads."""
        return self._reading

    def pause_reading(self) -> None:
        """Leave what arrives unread."""
        self._reading = False

    def resume_reading(self) -> None:
        """Read what has arrived, and what arrives from now on."""
        self._reading = True
        self._loop.call_soon(self._read)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that reads this end."""
        assert self._protocol is not None
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol read this end."""
        self._protocol = protocol

    # ---- what breaks

    def lose(self) -> None:
        """Reset the connection: both ends lose it at once, with all that is under way."""
        for end in (self, self.peer):
            if end is not None and not end._closed:
                end._arrived.clear()
                end._end(ConnectionResetError("connection lost"))

    def thaw(self) -> None:
        """The process at this end runs again, and reads what has arrived meanwhile."""
        self.frozen = False
        self._read()

    # ---- within

    def _send(self, data: bytes | None) -> None:
        peer = self.peer
        assert peer is not None
        self._due = max(self._due, self._loop.time() + self._network.delay())
        peer._flight.append(data)
        self._loop.call_at(self._due, peer._arrive)  # those of one instant may run in any order: the queue keeps it

    def _arrive(self) -> None:
        if not self._closed:
            self._arrived.append(self._flight.popleft())
            self._read()

    def _read(self) -> None:
        while self._arrived and self._reading and not self.frozen and not self._closed:
            data = self._arrived.popleft()
            if data is None:
                self._end(None)
            else:
                assert isinstance(self._protocol, asyncio.Protocol)
                self._protocol.data_received(data)

    def _end(self, error: Exception | None) -> None:
        self._closed = True
        self._network.forget(self._address, self)
        assert self._protocol is not None
        if error is None and isinstance(self._protocol, asyncio.Protocol):
            self._protocol.eof_received()
        self._loop.call_soon(self._protocol.connection_lost, error)


class Network:
    """Listeners by address. `delay` gives the seconds that the next write takes to arrive."""

    def __init__(self, delay: Callable[[], float]) -> None:
        self.delay = delay
        self._listeners: dict[Address, Callable[[], asyncio.Protocol]] = {}
        self._servers: dict[Address, list[Transport]] = {}  # the open server ends of each address
        self._held: dict[Address, asyncio.Event] = {}  # nothing arrives there until the event is set

    def listen(self, address: Address, protocol_factory: Callable[[], asyncio.Protocol]) -> None:
        """Accept connections to `address`."""
        self._listeners[address] = protocol_factory

    def refuse(self, address: Address) -> None:
        """Accept no more connections to `address`; those that are open stay."""
        self._listeners.pop(address, None)

    def cut(self, address: Address) -> None:
        """Reset all connections to `address`."""
        for end in self._servers.pop(address, []):
            end.lose()

    def freeze(self, address: Address, *, frozen: bool) -> None:
        """Stop or continue the process that listens on `address`. Connections to it stay open."""
        for end in list(self._servers.get(address, ())):
            if frozen:
                end.frozen = True
            else:
                end.thaw()

    def hold(self, address: Address, *, held: bool) -> None:
        """Stop or continue the way to `address`, in both directions, without a sign to anyone."""
        for end in list(self._servers.get(address, ())):
            for one in (end, end.peer):
                if one is not None:
                    if held:
                        one.frozen = True
                    else:
                        one.thaw()
        if held:
            self._held.setdefault(address, asyncio.Event())
        elif address in self._held:
            self._held.pop(address).set()

    def forget(self, address: Address, end: Transport) -> None:
        """A server end of `address` has closed."""
        ends = self._servers.get(address, [])
        if end in ends:
            ends.remove(end)

    async def connect(
        self, address: Address, protocol_factory: Callable[[], asyncio.BaseProtocol]
    ) -> tuple[Transport, asyncio.BaseProtocol]:
        """Connect to `address`.

        Raises:
            ConnectionRefusedError: Nothing listens there.
        """
        await asyncio.sleep(self.delay())
        if address in self._held:
            await self._held[address].wait()
        listener = self._listeners.get(address)
        if listener is None:
            raise ConnectionRefusedError(f"connection to {address[0]}:{address[1]} refused")
        client, server = Transport(self, address), Transport(self, address)
        self._servers.setdefault(address, []).append(server)
        server.attach(listener(), client)
        protocol = protocol_factory()
        client.attach(protocol, server)
        return client, protocol


class Endless(AssertionError):
    """A history that does not end."""


class SimulatedLoop(VirtualLoop):
    """Virtual time, and connections through `network`, which must be set before the first one is opened.

    It schedules as asyncio's loop does, for less: nothing outside is ever asked, and timers of one instant run in the
    order in which they were set.
    """

    network: Network
    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = itertools.count()
        self._left = MOST_CALLBACKS

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Have it run in the next turn."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Have it run at a time."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._count), timer))
        return timer

    def _run_once(self) -> None:
        """Run what is ready; if nothing is, the clock moves to the next timer.

        Raises:
            Endless: More has run than a history ever needs.
        """
        timers, ready = self._timers, self._ready
        if not ready and not self._stopping:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if timers:
                self._clock.now = max(self._clock.now, timers[0][0])
            else:
                self._clock.wait(None)
        now = self._clock.now
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled():
                ready.append(timer)
        self._left -= len(ready)
        if self._left < 0:
            self._left = MOST_CALLBACKS  # for the end of the tasks
            raise Endless(f"the history ran {MOST_CALLBACKS:,} callbacks, until second {now:.0f}, and does not end")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, **_options: Any
    ) -> tuple[Transport, asyncio.BaseProtocol]:
        """Connect through the network in memory."""
        return await self.network.connect((host, port), protocol_factory)
