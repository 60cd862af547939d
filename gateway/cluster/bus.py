"""Pub/sub on Redis: any number of callbacks per channel, and reports of messages that may have been missed.

Callers add and remove callbacks (`listen`, `ignore`). There is one subscriber (ear.py) per server: one for a single
Redis, one for each master of a cluster. The bus assigns each channel to the subscriber of the server that has its slot.
When the slot moves or the server fails, the bus reassigns the channel and reports that messages may have been missed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol

from gateway.cluster.answers import Unavailable, explain
from gateway.cluster.channel import Callback, Channel, ChannelHolder, State, Waiter
from gateway.cluster.ear import CHECK, RETRY_BASE_SECONDS, Ear
from gateway.cluster.link import Link
from gateway.logs import logger
from gateway.metrics import Metrics

LINGER_SECONDS: Final = 1.0  # an empty channel is kept this long: page reloads come back to it
# Losing one of several servers leaves a node ready for this long: longer than the servers need to agree that one of
# them has failed (cluster-node-timeout, 15 s by default).
PART_SECONDS: Final = 20.0
EXPIRE_CHANNELS: Final = 250  # in one turn of the loop
RELOAD_SECONDS: Final = 0.3  # while a server of a cluster is down, the longest pause before the slot map is read again


class Listener(Protocol):
    """Receives reports about channels that the bus lost and regained."""

    def bus_lost(self, reason: str, channels: list[str]) -> None:
        """A connection is lost and the first reconnect failed: nothing arrives on these channels."""

    def bus_missed(self, channels: list[str]) -> None:
        """These channels are confirmed again; messages on them may have been missed."""

    def bus_resumed(self) -> None:
        """All wanted channels are confirmed."""


class Bus:
    """The channels of a node. `run` must be running; the other methods may be called at any time."""

    CHECK: Final = CHECK

    def __init__(self, link: Link, own_channel: str, metrics: Metrics) -> None:
        self._link = link
        link.on_left = self._on_left
        self._own = own_channel
        self._listener: Listener | None = None
        self._metrics = metrics
        self._log = logger()
        self._channels: dict[str, Channel] = {}
        self._ears: dict[str, Ear] = {}  # by server
        self._tasks: dict[asyncio.Task[None], Ear | None] = {}  # running tasks, and the subscriber each belongs to
        self._checks: dict[Ear, asyncio.Task[float]] = {}  # tasks of the last self-check
        self._failure: asyncio.Future[None] | None = None  # the error that ended a task; None: `run` is not running
        self._version = -1  # version of the slot map that the assignment is based on
        self._changed = asyncio.Event()  # a subscriber lost its connection, or a channel has no subscriber
        self._complete = False  # all wanted channels are confirmed, and the listener was notified
        self._map_error: str | None = "not yet connected"  # why the slot map is unknown; None: it is known
        self._idle: dict[str, float] = {}  # channel without callbacks -> loop time to unsubscribe at; oldest first
        self._idle_timer: asyncio.TimerHandle | None = None
        self._apply_map()

    @property
    def reason(self) -> str | None:
        """Why another node may receive more than this one; None: no known reason."""
        if not self._ears:
            return self._map_error
        lost = self._lost()
        if len(lost) == len(self._ears):
            return "; ".join(_named(ear, ear.reason) for ear in lost if ear.reason is not None)
        return "; ".join(_named(ear, ear.reason) for ear in lost if ear.reason and not self._is_away(ear)) or None

    @property
    def partial(self) -> str | None:
        """The part of a Redis Cluster that no node can receive from; None: no known part."""
        lost = self._lost()
        if not self._ears or len(lost) == len(self._ears):
            return None
        parts = [f"{ear.server} is away ({ear.reason})" for ear in lost if self._is_away(ear)]
        if self._link.shards.uncovered:
            parts.append(f"{self._link.shards.uncovered} slots of the Redis Cluster have no server")
        return "; ".join(parts) or None

    @property
    def complete(self) -> bool:
        """Whether all wanted channels are confirmed."""
        return bool(self._ears) and not self._lost() and not self._link.shards.uncovered

    def _lost(self) -> list[Ear]:
        return [ear for ear in self._ears.values() if ear.reason is not None]

    def _is_away(self, ear: Ear) -> bool:
        """Whether other nodes have most likely lost this server too.

        True if some servers of the cluster cannot reach it, or have not had the time to find out.
        """
        if not self._link.sharded:
            return False
        undecided = asyncio.get_running_loop().time() < ear.lost_at + PART_SECONDS
        return undecided or ear.server in self._link.shards.suspected

    # ---- called by the users of the bus

    def listen(self, channels: Iterable[str], callback: Callback, done: Callable[[], None] | None) -> bool:
        """Call `callback` with each message of `channels`. Registering the same callback twice changes nothing.

        Returns True if Redis has confirmed all of them already; otherwise `done`, if given, is called once it has.
        """
        missing = False
        waiter = Waiter(done) if done is not None else None
        for name in channels:
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = Channel(name)
            if callback not in channel.callbacks:
                channel.callbacks = (*channel.callbacks, callback)
                self._idle.pop(name, None)
            if channel.state is not State.IN:
                missing = True
                if waiter is not None:
                    waiter.missing += 1
                    channel.waiters.setdefault(waiter.done, []).append(waiter)
                self._reconcile(channel)
        return not missing

    def ignore(self, channels: Iterable[str], callback: Callback) -> None:
        """Remove `callback`. A channel without callbacks is unsubscribed after `LINGER_SECONDS`."""
        loop = asyncio.get_running_loop()
        for name in channels:
            channel = self._channels.get(name)
            if channel is None or callback not in channel.callbacks:
                continue
            channel.callbacks = tuple(other for other in channel.callbacks if other != callback)
            if not channel.callbacks:
                self._idle[name] = loop.time() + LINGER_SECONDS
                if self._idle_timer is None:
                    self._idle_timer = loop.call_later(LINGER_SECONDS, self._expire)
                channel.missed = False
                if channel.ear is not None:
                    channel.ear.clear_missed(channel)

    def abandon(self, channels: Iterable[str], done: Callable[[], None]) -> None:
        """Forget a `done` that was given to `listen`, so that waiters do not accumulate in a long outage."""
        for name in channels:
            channel = self._channels.get(name)
            if channel is not None:
                channel.waiters.pop(done, None)

    def confirmed_since(self, name: str) -> int | None:
        """The number of the confirmation since which the channel is subscribed; None: it is not subscribed now.

        While the number stays the same, no message was missed.
        """
        channel = self._channels.get(name)
        if channel is None or channel.state is not State.IN or channel.ear is None or not channel.ear.connected:
            return None
        return channel.since

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        for left in range(EXPIRE_CHANNELS, -1, -1):
            if not self._idle:
                break
            name, deadline = next(iter(self._idle.items()))
            if deadline > loop.time() or not left:
                self._idle_timer = loop.call_at(deadline, self._expire)
                return
            del self._idle[name]
            self._reconcile(self._channels[name])  # a callback may add another of these channels again
        self._idle_timer = None

    def _reconcile(self, channel: Channel) -> None:
        """Bring a channel to the wanted state."""
        if channel.state is State.OUT and not channel.callbacks:
            self._forget(channel)
        elif channel.ear is not None:
            channel.ear.reconcile(channel)
        else:
            self._assign(channel)

    def _forget(self, channel: Channel) -> None:
        self._channels.pop(channel.name, None)
        self._idle.pop(channel.name, None)
        if channel.ear is not None:
            channel.ear.drop(channel)
        self.confirmed(channel)  # a waiter for several channels waits for the others only

    # ---- the self-check

    async def check(self) -> float:
        """Run the self-check of each subscriber; return the seconds that the slowest took.

        Raises:
            Unavailable: A subscriber receives nothing; it reconnects.
        """
        with suppress(Unavailable):  # the errors of the subscribers are more specific
            await self._link.learn(force=True)
        self._apply_map()
        spawn = asyncio.get_running_loop().create_task
        self._checks = {ear: spawn(ear.check()) for ear in self._ears.values()}
        found = await asyncio.gather(*self._checks.values(), return_exceptions=True)
        if not self._ears:
            raise Unavailable(f"self-check failed: {self._map_error}")
        slowest = 0.0
        for seconds in found:
            if isinstance(seconds, asyncio.CancelledError):
                continue  # its subscriber was removed
            if isinstance(seconds, BaseException):
                raise seconds
            slowest = max(slowest, seconds)
        return slowest

    def _on_left(self, reason: str) -> None:
        """Reconnect all subscribers: the server is not the master."""
        for ear in self._ears.values():
            ear.give_up(reason)

    # ---- life

    async def run(self, listener: Listener) -> None:
        """Run the subscribers until cancelled."""
        self._listener = listener
        self._failure = asyncio.get_running_loop().create_future()
        if self._link.sharded:
            self._start(self._reload_map(), None)
        for ear in self._ears.values():
            self._start(ear.run(), ear)
        try:
            await self._failure
        finally:
            self._failure = None
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None], ear: Ear | None) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = ear
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and self._failure is not None and not self._failure.done():
            error = task.exception()
            assert error is not None, "a task ended without an error"
            self._failure.set_exception(error)

    async def _reload_map(self) -> None:
        """On a cluster, reload the slot map while a wanted channel is not confirmed."""
        while True:
            try:
                await self._link.learn()
                self._map_error = None
            except Unavailable as error:
                if self._map_error is None or not self._ears:
                    self._report_lost(explain(error), [])
                self._map_error = explain(error)
            self._apply_map()
            if self.complete:
                self._changed.clear()
                await self._changed.wait()
            else:
                self._link.mark_stale()
                await asyncio.sleep(random.uniform(0, RELOAD_SECONDS))

    # ---- called by the subscribers

    def deliver(self, channel: Channel, payload: bytes) -> None:
        """Call each callback of the channel with one message."""
        for callback in channel.callbacks:
            try:
                callback(channel.name, payload)
            except Exception:  # an error in one callback does not affect the others
                self._log.exception("callback failed", channel=channel.name)

    def confirmed(self, channel: Channel) -> None:
        """Release the callers that wait for `channel`."""
        waiters, channel.waiters = channel.waiters, {}
        for waiter in itertools.chain.from_iterable(waiters.values()):
            waiter.missing -= 1
            if not waiter.missing:
                try:
                    waiter.done()
                except Exception:  # an error in one callback does not affect the others
                    self._log.exception("confirmation callback failed", channel=channel.name)

    def changed(self, channel: Channel) -> None:
        """Bring a channel, which is OUT or IN, to the wanted state."""
        if channel.callbacks and channel.state is State.OUT:
            self._assign(channel)
        elif not channel.callbacks and channel.name not in self._idle:
            self._reconcile(channel)

    def refused(self, channels: Iterable[Channel]) -> None:
        """Retry rejected channels, which are OUT, after a moment on the server that has them by then."""
        delay = random.uniform(0, RETRY_BASE_SECONDS)
        for channel in channels:
            asyncio.get_running_loop().call_later(delay, self.changed, channel)

    def disrupted(self) -> None:
        """Note that a subscriber lost its connection."""
        self._complete = False
        self._changed.set()
        self._metrics.redis_up.set(0)

    def lost(self, ear: Ear, reason: str, channels: list[str]) -> None:
        """Report a lost connection whose first reconnect failed."""
        self._report_lost(_named(ear, reason), channels)

    def resumed(self, channels: list[str]) -> None:
        """Report that all channels of a subscriber are confirmed."""
        if self._listener is not None and channels:
            self._listener.bus_missed(channels)
        if not self._complete and self.complete:
            self._complete = True
            self._metrics.redis_up.set(1)
            if self._listener is not None:
                self._listener.bus_resumed()

    def _report_lost(self, reason: str, channels: list[str]) -> None:
        if self._listener is not None:
            self._listener.bus_lost(reason, channels)

    # ---- assignment of channels to servers

    def _assign(self, channel: Channel) -> None:
        """Assign a channel, which is OUT, to the subscriber of the server that has its slot."""
        server, before = self._link.shards.server(channel.key), channel.ear
        ear = self._ears.get(server) if server is not None else None
        if before is not None and before is not ear and channel.name == before.check_channel:
            self.ignore([channel.name], before.on_check)  # a check through another server proves nothing about this one
            self._set_check_channel(before)
            return
        if ear is not None:
            ear.take(channel)
        else:
            if before is not None:
                before.drop(channel)
            self._changed.set()

    def _apply_map(self) -> None:
        """Apply a new slot map: one subscriber per server, and channels that are OUT move to their server."""
        shards = self._link.shards
        if shards.version == self._version:
            return
        self._version = shards.version
        for server in self._ears.keys() - set(shards.servers):
            self._remove(self._ears.pop(server))
        for server in shards.servers:
            if server not in self._ears:
                ear = self._ears[server] = Ear(self._link, server, self, self._metrics)
                self._complete = False
                self._set_check_channel(ear)
                if self._failure is not None:
                    self._start(ear.run(), ear)
        for channel in list(self._channels.values()):
            if channel.callbacks and channel.state is State.OUT:
                self._assign(channel)

    def _remove(self, ear: Ear) -> None:
        """Remove a subscriber whose server has no slots any more."""
        self.ignore([ear.check_channel], ear.on_check)
        if ear in self._checks:
            self._checks[ear].cancel()  # a heartbeat that waits for it would be late
        ear.disconnected("the server is not a master of the cluster any more")
        for channel in list(self._channels.values()):
            if channel.ear is ear:
                ear.drop(channel)
        for task, owner in self._tasks.items():
            if owner is ear:
                task.cancel()

    def _set_check_channel(self, ear: ChannelHolder) -> None:
        try:
            ear.check_channel = self._link.shards.name_at(ear.server, self._own)
        except LookupError:  # the server has no slot, so its subscriber is about to be removed
            self._changed.set()
            return
        self.listen([ear.check_channel], ear.on_check, lambda: None)


def _named(ear: Ear, reason: str) -> str:
    """The reason with the server's name; a single Redis needs no name."""
    return f"{ear.server}: {reason}" if ear.server else reason
