"""Pub/sub: any number of callbacks a channel over one connection, and the truth about what was missed.

Callers record what they want to hear (`listen`, `ignore`); one reader and one writer alone touch the
connection and bring Redis to it. A channel changes state only upon Redis' own confirmation, and at most
one command a channel is under way, so no confirmation can be mistaken for another:

    OUT --SUBSCRIBE sent--> JOINING --confirmed--> IN --UNSUBSCRIBE sent--> LEAVING --confirmed--> OUT
                 any, when the connection is lost: OUT, and what was IN has missed messages
"""

from __future__ import annotations

import asyncio
import enum
import math
import random
import secrets
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from redis.asyncio.connection import AbstractConnection

from gateway.cluster.link import REDIS_ERRORS, Link, Unavailable, explain
from gateway.logs import logger
from gateway.metrics import Metrics

LINGER_SECONDS: Final = 1.0  # an empty channel is kept this long: page reloads come back to it
COMMAND_CHANNELS: Final = 500  # channels in one SUBSCRIBE
RETRY_BASE_SECONDS: Final = 0.05
RETRY_CAP_SECONDS: Final = 1.0

Callback = Callable[[str, bytes], None]  # channel, payload


class Listener(Protocol):
    """Who must know what the bus could not hear."""

    def bus_lost(self, reason: str) -> None:
        """The connection is gone and did not come back at once."""

    def bus_resumed(self, channels: list[str]) -> None:
        """It is back and confirmed; on these channels messages may have been missed."""


class _State(enum.Enum):
    OUT = enum.auto()
    JOINING = enum.auto()
    IN = enum.auto()
    LEAVING = enum.auto()


class _Waiter:
    """Calls `done` when the last of its channels is confirmed."""

    __slots__ = ("done", "missing")

    def __init__(self, done: Callable[[], None]) -> None:
        self.done = done
        self.missing = 0


class _Channel:
    __slots__ = ("callbacks", "name", "state", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = _State.OUT
        self.callbacks: tuple[Callback, ...] = ()
        self.waiters: list[_Waiter] = []


class Bus:
    """The node's ear. `run` must run; everything else may be called at any time."""

    CHECK: Final = b"check "  # begins a payload of the self-check on the node's own channel

    def __init__(self, link: Link, own_channel: str, metrics: Metrics) -> None:
        self._link = link
        self._own = own_channel
        self._listener: Listener | None = None
        self._metrics = metrics
        self._log = logger()
        self._channels: dict[bytes, _Channel] = {}
        self._changed: dict[bytes, _Channel] = {}  # to be brought to what is wanted
        self._wake = asyncio.Event()
        self._idle: dict[bytes, float] = {}  # without callbacks -> loop time to leave at; oldest first
        self._idle_timer: asyncio.TimerHandle | None = None
        self._missed: set[bytes] = set()  # were IN when the connection was lost, and are not confirmed again
        self._resumed: list[str] = []  # were, and are
        self._kick: asyncio.Future[str] | None = None  # of the connection under way; a reason ends it
        self._connection: AbstractConnection | None = None  # that one
        self._settled = False  # all that is wanted was confirmed since the connection was made
        self._told_lost = False
        self._attempt = 0
        self._connections = 0
        self._checks: dict[bytes, asyncio.Future[None]] = {}
        self._hears_itself = asyncio.Event()  # the own channel is IN
        self.reason: str | None = "not yet connected"  # why it hears nothing; None: it hears all
        self.listen([own_channel], self._on_own, lambda: None)

    # ---- what callers want

    def listen(self, channels: Iterable[str], callback: Callback, done: Callable[[], None]) -> bool:
        """Have `callback` called with each message of `channels`; once registered, again changes nothing.

        True if Redis has confirmed all of them already; else `done` is called when it has.
        """
        waiter = _Waiter(done)
        for name in channels:
            key = name.encode()
            channel = self._channels.get(key)
            if channel is None:
                channel = self._channels[key] = _Channel(name)
            if callback not in channel.callbacks:
                channel.callbacks = (*channel.callbacks, callback)
                self._idle.pop(key, None)
            if channel.state is not _State.IN:
                waiter.missing += 1
                channel.waiters.append(waiter)
                self._reconcile(key, channel)
        return not waiter.missing

    def ignore(self, channels: Iterable[str], callback: Callback) -> None:
        """Call `callback` no more. A channel left without any is unsubscribed after `LINGER_SECONDS`."""
        loop = asyncio.get_running_loop()
        for name in channels:
            key = name.encode()
            channel = self._channels.get(key)
            if channel is None or callback not in channel.callbacks:
                continue
            channel.callbacks = tuple(other for other in channel.callbacks if other != callback)
            if not channel.callbacks:
                self._missed.discard(key)
                self._idle[key] = loop.time() + LINGER_SECONDS
                if self._idle_timer is None:
                    self._idle_timer = loop.call_later(LINGER_SECONDS, self._expire)
        self._settle()

    def hearing(self, channel: str) -> int | None:
        """The connection, by its number, on which all of `channel` is heard now; None: it is not.

        While the number stays, nothing was missed.
        """
        known = self._channels.get(channel.encode())
        if known is None or known.state is not _State.IN or self._kick is None or self._kick.done():
            return None
        return self._connections

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle:
            key, deadline = next(iter(self._idle.items()))
            if deadline > loop.time():
                self._idle_timer = loop.call_at(deadline, self._expire)
                return
            del self._idle[key]
            self._reconcile(key, self._channels[key])  # who is let go by it may want another of these again
        self._idle_timer = None

    def _reconcile(self, key: bytes, channel: _Channel) -> None:
        """Note that `channel` may be in another state than wanted."""
        if channel.state is _State.OUT and not channel.callbacks:
            self._forget(key, channel)
        elif channel.state in (_State.OUT, _State.IN):
            self._changed[key] = channel
            self._wake.set()

    def _forget(self, key: bytes, channel: _Channel) -> None:
        self._channels.pop(key, None)
        self._changed.pop(key, None)
        self._idle.pop(key, None)
        self._confirm(channel)  # who waited for several channels waits for the others only

    def _confirm(self, channel: _Channel) -> None:
        """Nobody needs to wait for `channel` any more."""
        waiters, channel.waiters = channel.waiters, []
        for waiter in waiters:
            waiter.missing -= 1
            if not waiter.missing:
                try:
                    waiter.done()
                except Exception:  # one waiter's fault is not the others'
                    self._log.exception("confirmation callback failed", channel=channel.name)

    # ---- the self-check

    async def check(self) -> float:
        """Send a token through the own channel; seconds until it was heard.

        A Redis that is frozen, a subscription that died unnoticed, and a master that is one no more, raise nothing by
        themselves.

        Raises:
            Unavailable: It did not come back in time, or from a server that is not the master any more; the
                connection is then given up and made anew.
        """
        loop = asyncio.get_running_loop()
        judged, connection = self._kick, self._connection
        token = secrets.token_hex(8).encode()
        heard: asyncio.Future[None] = loop.create_future()
        self._checks[token] = heard
        started = loop.time()
        try:
            async with asyncio.timeout(self._link.timeout_seconds):
                await self._hears_itself.wait()  # a token sent before would be lost
                await self._link.publish(self._own, self.CHECK + token)
                await heard
                seconds = loop.time() - started
                if connection is not None and await self._link.moved(connection):
                    raise Unavailable("the Sentinels name another master")
        except (TimeoutError, Unavailable) as error:
            reason = f"self-check failed: {explain(error)}"
            # A connection made meanwhile is not the one that failed.
            if judged is not None and judged is self._kick and not judged.done():
                self.reason = self.reason or reason
                judged.set_result(reason)
            raise Unavailable(reason) from None
        finally:
            del self._checks[token]
        return seconds

    def _on_own(self, _channel: str, payload: bytes) -> None:
        heard = self._checks.get(payload.removeprefix(self.CHECK)) if payload.startswith(self.CHECK) else None
        if heard is not None and not heard.done():
            heard.set_result(None)

    # ---- the connection

    async def run(self, listener: Listener) -> None:
        """Keep a connection, for ever: what it loses is wanted again on the next, with full jitter between."""
        self._listener = listener
        while True:
            try:
                await self._converse()
            except (Unavailable, *REDIS_ERRORS) as error:
                self._disconnected(explain(error))
            cap = min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2**self._attempt)
            self._attempt = min(self._attempt + 1, 16)
            await asyncio.sleep(random.uniform(0, cap))

    async def _converse(self) -> None:
        connection = self._connection = await self._link.subscriber()
        self._connections += 1
        self._kick = asyncio.get_running_loop().create_future()
        self._changed = {key: channel for key, channel in self._channels.items() if channel.callbacks}
        self._wake.set()
        # No TaskGroup: in Python 3.11 one that meets an error and a cancellation at once loses the cancellation.
        work = (self._read(connection), self._write(connection), self._until_kicked(self._kick))
        tasks = [asyncio.get_running_loop().create_task(one) for one in work]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()  # none ends but by an error
        finally:
            self._kick = self._connection = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await connection.disconnect(nowait=True)

    @staticmethod
    async def _until_kicked(kick: asyncio.Future[str]) -> None:
        raise Unavailable(await kick)

    async def _write(self, connection: AbstractConnection) -> None:
        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():  # redis-py's write may lose a cancellation, as `Link.ask` says
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            joins: list[bytes] = []
            leaves: list[bytes] = []
            for key, channel in changed.items():
                if channel.state is _State.OUT and channel.callbacks:
                    channel.state = _State.JOINING
                    joins.append(key)
                elif channel.state is _State.IN and not channel.callbacks:
                    channel.state = _State.LEAVING
                    leaves.append(key)
            for command, keys in (("SUBSCRIBE", joins), ("UNSUBSCRIBE", leaves)):
                for at in range(0, len(keys), COMMAND_CHANNELS):
                    packed = connection.pack_command(command, *keys[at : at + COMMAND_CHANNELS])
                    await connection.send_packed_command(packed, check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        # While answers lie ready, `read_response` does not yield to the loop: all messages that have arrived
        # are handed on in one turn of it, which is what the hub joins into one write a client.
        while True:
            kind, name, payload = await connection.read_response(disable_decoding=True, timeout=math.inf)
            channel = self._channels.get(name)
            if kind == b"message":
                if channel is not None:
                    self._hand_on(channel, payload)
            elif kind == b"subscribe":
                if channel is not None:
                    self._joined(name, channel)
            elif kind == b"unsubscribe" and channel is not None:
                channel.state = _State.OUT
                self._reconcile(name, channel)

    def _hand_on(self, channel: _Channel, payload: bytes) -> None:
        for callback in channel.callbacks:
            try:
                callback(channel.name, payload)
            except Exception:  # one listener's fault is not the others'
                self._log.exception("callback failed", channel=channel.name)

    def _joined(self, key: bytes, channel: _Channel) -> None:
        channel.state = _State.IN
        self._confirm(channel)
        if key in self._missed:
            self._missed.discard(key)
            self._resumed.append(channel.name)
        if channel.name == self._own:
            self._attempt = 0
            self._hears_itself.set()
        if not channel.callbacks and key not in self._idle:
            self._reconcile(key, channel)
        self._settle()

    def _settle(self) -> None:
        """Say so, once, when everything that was heard before the loss is heard again."""
        if self._settled or self._missed or self._channels[self._own.encode()].state is not _State.IN:
            return
        resumed, self._resumed = self._resumed, []
        self.reason = None
        self._settled = True
        self._told_lost = False
        self._metrics.redis_up.set(1)
        self._log.info("bus connected", channels=len(self._channels))
        if self._listener is not None:
            self._listener.bus_resumed(resumed)

    def _disconnected(self, reason: str) -> None:
        self.reason = reason
        self._hears_itself.clear()
        self._metrics.redis_up.set(0)
        resumed, self._resumed = set(self._resumed), []  # but never told: it goes on being missed
        was_connected = False
        for key, channel in list(self._channels.items()):
            was_connected |= channel.state is not _State.OUT
            if channel.callbacks and (channel.state is _State.IN or channel.name in resumed):
                self._missed.add(key)
            channel.state = _State.OUT
            if not channel.callbacks and key not in self._idle:
                self._forget(key, channel)
        if was_connected:
            self._metrics.reconnects.inc()
            self._log.warning("bus connection lost", reason=reason)
        was_settled, self._settled = self._settled, False
        if not was_settled and not self._told_lost and self._listener is not None:
            self._told_lost = True
            self._listener.bus_lost(reason)
