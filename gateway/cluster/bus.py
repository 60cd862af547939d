"""Pub/sub: any number of callbacks a channel, and the truth about what was missed.

Callers record what they want to hear (`listen`, `ignore`). An ear (ear.py) listens at each server that has channels:
one at a single Redis, one at each master of a cluster. The bus gives each channel to the ear of the server that has its
slot, and when the slot goes elsewhere, or the server dies, to another; what was missed meanwhile is told.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol

from gateway.cluster.answers import Unavailable, explain
from gateway.cluster.channel import Callback, Channel, Hearer, State, Waiter
from gateway.cluster.ear import CHECK, RETRY_BASE_SECONDS, Ear
from gateway.cluster.link import Link
from gateway.logs import logger
from gateway.metrics import Metrics

LINGER_SECONDS: Final = 1.0  # an empty channel is kept this long: page reloads come back to it
# For so long the loss of one of several servers makes no node unready: longer than servers take to agree that one of
# them has failed (cluster-node-timeout, 15 s by default).
PART_SECONDS: Final = 20.0
EXPIRE_CHANNELS: Final = 250  # in one turn of the loop
LOOK_SECONDS: Final = 0.3  # while a server of a cluster is away, how often it is looked whether another has its slots


class Listener(Protocol):
    """Who must know what the bus could not hear."""

    def bus_lost(self, reason: str, channels: list[str]) -> None:
        """A connection is gone and did not come back at once: these channels are not heard."""

    def bus_missed(self, channels: list[str]) -> None:
        """On these channels messages may have been missed; they are heard again."""

    def bus_resumed(self) -> None:
        """All that is wanted is heard."""


class Bus:
    """What a node hears. `run` must run; everything else may be called at any time."""

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
        self._tasks: dict[asyncio.Task[None], Ear | None] = {}  # what runs, and for which of them
        self._checks: dict[Ear, asyncio.Task[float]] = {}  # of the last self-check
        self._failure: asyncio.Future[None] | None = None  # what a task of ours died of; None: none runs
        self._version = -1  # of the map that they were chosen by
        self._changed = asyncio.Event()  # the ears, or some channel has none
        self._whole = False  # all that is wanted is heard, and that was told
        self._unknown: str | None = "not yet connected"  # why it is not known who has what; None: it is
        self._idle: dict[str, float] = {}  # without callbacks -> loop time to leave at; oldest first
        self._idle_timer: asyncio.TimerHandle | None = None
        self._follow()

    @property
    def reason(self) -> str | None:
        """Why another node may hear more than this one; None: there is no such reason."""
        if not self._ears:
            return self._unknown
        lost = self._lost()
        if len(lost) == len(self._ears):
            return "; ".join(_named(ear, ear.reason) for ear in lost if ear.reason is not None)
        return "; ".join(_named(ear, ear.reason) for ear in lost if ear.reason and not self._is_away(ear)) or None

    @property
    def partial(self) -> str | None:
        """The part of a Redis Cluster that no node hears, as far as is known; None: there is none."""
        lost = self._lost()
        if not self._ears or len(lost) == len(self._ears):
            return None
        parts = [f"{ear.server} is away ({ear.reason})" for ear in lost if self._is_away(ear)]
        if self._link.shards.uncovered:
            parts.append(f"{self._link.shards.uncovered} slots of the Redis Cluster have no server")
        return "; ".join(parts) or None

    @property
    def whole(self) -> bool:
        """Whether all is heard that is wanted."""
        return bool(self._ears) and not self._lost() and not self._link.shards.uncovered

    def _lost(self) -> list[Ear]:
        return [ear for ear in self._ears.values() if ear.reason is not None]

    def _is_away(self, ear: Ear) -> bool:
        """Whether other nodes have most likely lost the ear's server, too: some servers of the cluster do not reach it,
        or they have not had the time to find out.
        """
        if not self._link.sharded:
            return False
        doubtful = asyncio.get_running_loop().time() < ear.lost_at + PART_SECONDS
        return doubtful or ear.server in self._link.shards.suspected

    # ---- what callers want

    def listen(self, channels: Iterable[str], callback: Callback, done: Callable[[], None] | None) -> bool:
        """Have `callback` called with each message of `channels`; once registered, again changes nothing.

        True if Redis has confirmed all of them already; else `done`, if given, is called when it has.
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
        """Call `callback` no more. A channel left without any is unsubscribed after `LINGER_SECONDS`."""
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
                    channel.ear.excuse(channel)

    def abandon(self, channels: Iterable[str], done: Callable[[], None]) -> None:
        """Do not call `done`, which was given to `listen`: in a long outage, no more waits than there are callers."""
        for name in channels:
            channel = self._channels.get(name)
            if channel is not None:
                channel.waiters.pop(done, None)

    def hearing(self, name: str) -> int | None:
        """The confirmation, by its number, since which all of a channel is heard; None: it is not heard now.

        While the number stays, nothing was missed.
        """
        channel = self._channels.get(name)
        if channel is None or channel.state is not State.IN or channel.ear is None or not channel.ear.hears:
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
            self._reconcile(self._channels[name])  # who is let go by it may want another of these again
        self._idle_timer = None

    def _reconcile(self, channel: Channel) -> None:
        """A channel may be in another state than wanted."""
        if channel.state is State.OUT and not channel.callbacks:
            self._forget(channel)
        elif channel.ear is not None:
            channel.ear.reconcile(channel)
        else:
            self._place(channel)

    def _forget(self, channel: Channel) -> None:
        self._channels.pop(channel.name, None)
        self._idle.pop(channel.name, None)
        if channel.ear is not None:
            channel.ear.drop(channel)
        self.confirmed(channel)  # who waited for several channels waits for the others only

    # ---- the self-check

    async def check(self) -> float:
        """Have each ear check itself; seconds that the slowest took.

        Raises:
            Unavailable: One hears nothing; its connection is given up and made anew.
        """
        with suppress(Unavailable):  # what the ears say is more to the point
            await self._link.learn(anew=True)
        self._follow()
        spawn = asyncio.get_running_loop().create_task
        self._checks = {ear: spawn(ear.check()) for ear in self._ears.values()}
        found = await asyncio.gather(*self._checks.values(), return_exceptions=True)
        if not self._ears:
            raise Unavailable(f"self-check failed: {self._unknown}")
        slowest = 0.0
        for seconds in found:
            if isinstance(seconds, asyncio.CancelledError):
                continue  # its ear was dismissed
            if isinstance(seconds, BaseException):
                raise seconds
            slowest = max(slowest, seconds)
        return slowest

    def _on_left(self, reason: str) -> None:
        """The server is not the master: its subscribers leave it too."""
        for ear in self._ears.values():
            ear.give_up(reason)

    # ---- life

    async def run(self, listener: Listener) -> None:
        """Keep the ears, for ever."""
        self._listener = listener
        self._failure = asyncio.get_running_loop().create_future()
        if self._link.sharded:
            self._start(self._look(), None)
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
            assert error is not None, "none ends by itself"
            self._failure.set_exception(error)

    async def _look(self) -> None:
        """On a cluster: while something is not heard, see where it is, for ever."""
        while True:
            try:
                await self._link.learn()
                self._unknown = None
            except Unavailable as error:
                if self._unknown is None or not self._ears:
                    self._tell_lost(explain(error), [])
                self._unknown = explain(error)
            self._follow()
            if self.whole:
                self._changed.clear()
                await self._changed.wait()
            else:
                self._link.doubt()
                await asyncio.sleep(random.uniform(0, LOOK_SECONDS))

    # ---- what the ears say

    def hand_on(self, channel: Channel, payload: bytes) -> None:
        """A message has come."""
        for callback in channel.callbacks:
            try:
                callback(channel.name, payload)
            except Exception:  # one listener's fault is not the others'
                self._log.exception("callback failed", channel=channel.name)

    def confirmed(self, channel: Channel) -> None:
        """Nobody needs to wait for `channel` any more."""
        waiters, channel.waiters = channel.waiters, {}
        for waiter in itertools.chain.from_iterable(waiters.values()):
            waiter.missing -= 1
            if not waiter.missing:
                try:
                    waiter.done()
                except Exception:  # one waiter's fault is not the others'
                    self._log.exception("confirmation callback failed", channel=channel.name)

    def changed(self, channel: Channel) -> None:
        """The channel is OUT or IN, and may be wanted otherwise."""
        if channel.callbacks and channel.state is State.OUT:
            self._place(channel)
        elif not channel.callbacks and channel.name not in self._idle:
            self._reconcile(channel)

    def refused(self, channels: Iterable[Channel]) -> None:
        """They are OUT, and not to be heard where they were wanted: tried again in a moment, where they are by then."""
        delay = random.uniform(0, RETRY_BASE_SECONDS)
        for channel in channels:
            asyncio.get_running_loop().call_later(delay, self.changed, channel)

    def disrupted(self) -> None:
        """An ear has lost its connection."""
        self._whole = False
        self._changed.set()
        self._metrics.redis_up.set(0)

    def lost(self, ear: Ear, reason: str, channels: list[str]) -> None:
        """An ear hears nothing, and its first try to mend that was in vain."""
        self._tell_lost(_named(ear, reason), channels)

    def resumed(self, channels: list[str]) -> None:
        """An ear hears all that it has."""
        if self._listener is not None and channels:
            self._listener.bus_missed(channels)
        if not self._whole and self.whole:
            self._whole = True
            self._metrics.redis_up.set(1)
            if self._listener is not None:
                self._listener.bus_resumed()

    def _tell_lost(self, reason: str, channels: list[str]) -> None:
        if self._listener is not None:
            self._listener.bus_lost(reason, channels)

    # ---- who has what

    def _place(self, channel: Channel) -> None:
        """Give a channel, which is OUT, to the ear of the server that has it."""
        server, before = self._link.shards.server(channel.key), channel.ear
        ear = self._ears.get(server) if server is not None else None
        if before is not None and before is not ear and channel.name == before.check_channel:
            self.ignore([channel.name], before.on_check)  # what is heard elsewhere would say nothing of that ear
            self._give_check(before)
            return
        if ear is not None:
            ear.take(channel)
        else:
            if before is not None:
                before.drop(channel)
            self._changed.set()

    def _follow(self) -> None:
        """Have an ear at each server there is, and what is not heard at the one that has it now."""
        shards = self._link.shards
        if shards.version == self._version:
            return
        self._version = shards.version
        for server in self._ears.keys() - set(shards.servers):
            self._dismiss(self._ears.pop(server))
        for server in shards.servers:
            if server not in self._ears:
                ear = self._ears[server] = Ear(self._link, server, self, self._metrics)
                self._whole = False
                self._give_check(ear)
                if self._failure is not None:
                    self._start(ear.run(), ear)
        for channel in list(self._channels.values()):
            if channel.callbacks and channel.state is State.OUT:
                self._place(channel)

    def _dismiss(self, ear: Ear) -> None:
        """Its server has no slots any more."""
        self.ignore([ear.check_channel], ear.on_check)
        if ear in self._checks:
            self._checks[ear].cancel()  # a beat that waits for it would come late
        ear.disconnected("it is no master of the cluster any more")
        for channel in list(self._channels.values()):
            if channel.ear is ear:
                ear.drop(channel)
        for task, its in self._tasks.items():
            if its is ear:
                task.cancel()

    def _give_check(self, ear: Hearer) -> None:
        try:
            ear.check_channel = self._link.shards.name_at(ear.server, self._own)
        except LookupError:  # and so it is about to be dismissed
            self._changed.set()
            return
        self.listen([ear.check_channel], ear.on_check, lambda: None)


def _named(ear: Ear, reason: str) -> str:
    """Why an ear hears nothing, and which: a single Redis needs no name."""
    return f"{ear.server}: {reason}" if ear.server else reason
