"""Pub/sub on Redis: any number of callbacks per channel, and reports of messages that may have been missed.

Callers add and remove callbacks (`subscribe`, `unsubscribe`). There is one subscriber (subscriber.py) per server: one
for a single Redis, one for each master of a cluster. `PubSub` assigns each channel to the subscriber of the server that
has its slot. When the slot moves or the server fails, it reassigns the channel and reports that messages may have been
missed.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final, Protocol

from gateway.broker.channel import Callback, Channel, ChannelState, ChannelSubscriber, Waiter
from gateway.broker.client import RedisClient
from gateway.broker.errors import Unavailable, explain
from gateway.broker.pubsub_health import PubSubHealth, describe_loss
from gateway.broker.subscriber import CHECK, RETRY_BASE_SECONDS, Subscriber
from gateway.logging import logger
from gateway.metrics import Metrics

LINGER_SECONDS: Final = 1.0  # an empty channel is kept this long: page reloads come back to it
EXPIRE_CHANNELS: Final = 250  # in one turn of the loop
RELOAD_SECONDS: Final = 0.3  # while a server of a cluster is down, the longest pause before the slot map is read again


class PubSubListener(Protocol):
    """Receives reports about channels that were lost and regained."""

    def pubsub_lost(self, reason: str, channels: list[str]) -> None:
        """A connection is lost and the first reconnect failed: nothing arrives on these channels."""

    def pubsub_missed(self, channels: list[str]) -> None:
        """These channels are confirmed again; messages on them may have been missed."""

    def pubsub_restored(self) -> None:
        """All wanted channels are confirmed."""


class PubSub:
    """The channels of a node. `run` must be running; the other methods may be called at any time."""

    CHECK: Final = CHECK

    def __init__(self, redis: RedisClient, own_channel: str, metrics: Metrics) -> None:
        self._redis = redis
        redis.on_left = self._master_left
        self._own = own_channel
        self._listener: PubSubListener | None = None
        self._metrics = metrics
        self._log = logger()
        self._channels: dict[str, Channel] = {}
        self._subscribers: dict[str, Subscriber] = {}  # by server
        self.health = PubSubHealth(redis, self._subscribers)
        # Running tasks, and the subscriber each belongs to
        self._tasks: dict[asyncio.Task[None], Subscriber | None] = {}
        self._checks: dict[Subscriber, asyncio.Task[float]] = {}  # tasks of the last self-check
        self._failure: asyncio.Future[None] | None = None  # the error that ended a task; None: `run` is not running
        self._version = -1  # version of the slot map that the assignment is based on
        self._changed = asyncio.Event()  # a subscriber lost its connection, or a channel has no subscriber
        self._complete = False  # all wanted channels are confirmed, and the listener was notified
        self._idle: dict[str, float] = {}  # channel without callbacks -> loop time to unsubscribe at; oldest first
        self._idle_timer: asyncio.TimerHandle | None = None
        self._apply_topology()

    # ---- called by the users of pub/sub

    def subscribe(self, channels: Iterable[str], callback: Callback, done: Callable[[], None] | None) -> bool:
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
            if channel.state is not ChannelState.SUBSCRIBED:
                missing = True
                if waiter is not None:
                    waiter.missing += 1
                    channel.waiters.setdefault(waiter.callback, []).append(waiter)
                self._reconcile(channel)
        return not missing

    def unsubscribe(self, channels: Iterable[str], callback: Callback) -> None:
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
                if channel.subscriber is not None:
                    channel.subscriber.forget_missed(channel)

    def cancel_wait(self, channels: Iterable[str], done: Callable[[], None]) -> None:
        """Forget a `done` that was given to `subscribe`, so that waiters do not accumulate in a long outage."""
        for name in channels:
            channel = self._channels.get(name)
            if channel is not None:
                channel.waiters.pop(done, None)

    def confirmed_since(self, name: str) -> int | None:
        """The number of the confirmation since which the channel is subscribed; None: it is not subscribed now.

        While the number stays the same, no message was missed.
        """
        channel = self._channels.get(name)
        if (
            channel is None
            or channel.state is not ChannelState.SUBSCRIBED
            or channel.subscriber is None
            or not channel.subscriber.is_connected
        ):
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
        if channel.state is ChannelState.UNSUBSCRIBED and not channel.callbacks:
            self._forget(channel)
        elif channel.subscriber is not None:
            channel.subscriber.reconcile(channel)
        else:
            self._assign(channel)

    def _forget(self, channel: Channel) -> None:
        self._channels.pop(channel.name, None)
        self._idle.pop(channel.name, None)
        if channel.subscriber is not None:
            channel.subscriber.remove(channel)
        self.channel_confirmed(channel)  # a waiter for several channels waits for the others only

    # ---- the self-check

    async def check(self) -> float:
        """Run the self-check of each subscriber; return the seconds that the slowest took.

        Raises:
            Unavailable: A subscriber receives nothing; it reconnects.
        """
        with suppress(Unavailable):  # the errors of the subscribers are more specific
            await self._redis.refresh_topology(force=True)
        self._apply_topology()
        spawn = asyncio.get_running_loop().create_task
        self._checks = {subscriber: spawn(subscriber.check()) for subscriber in self._subscribers.values()}
        found = await asyncio.gather(*self._checks.values(), return_exceptions=True)
        if not self._subscribers:
            raise Unavailable(f"self-check failed: {self.health.map_error}")
        slowest = 0.0
        for seconds in found:
            if isinstance(seconds, asyncio.CancelledError):
                continue  # its subscriber was removed
            if isinstance(seconds, BaseException):
                raise seconds
            slowest = max(slowest, seconds)
        return slowest

    def _master_left(self, reason: str) -> None:
        """Reconnect all subscribers: the server is not the master."""
        for subscriber in self._subscribers.values():
            subscriber.reconnect(reason)

    # ---- life

    async def run(self, listener: PubSubListener) -> None:
        """Run the subscribers until cancelled."""
        self._listener = listener
        self._failure = asyncio.get_running_loop().create_future()
        if self._redis.sharded:
            self._start_subscriber(self._reload_topology(), None)
        for subscriber in self._subscribers.values():
            self._start_subscriber(subscriber.run(), subscriber)
        try:
            await self._failure
        finally:
            self._failure = None
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start_subscriber(self, work: Coroutine[Any, Any, None], subscriber: Subscriber | None) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = subscriber
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and self._failure is not None and not self._failure.done():
            error = task.exception()
            assert error is not None, "a task ended without an error"
            self._failure.set_exception(error)

    async def _reload_topology(self) -> None:
        """On a cluster, reload the slot map while a wanted channel is not confirmed."""
        while True:
            try:
                await self._redis.refresh_topology()
                self.health.map_error = None
            except Unavailable as error:
                if self.health.map_error is None or not self._subscribers:
                    self._report_lost(explain(error), [])
                self.health.map_error = explain(error)
            self._apply_topology()
            if self.health.is_complete:
                self._changed.clear()
                await self._changed.wait()
            else:
                self._redis.mark_stale()
                await asyncio.sleep(random.uniform(0, RELOAD_SECONDS))

    # ---- called by the subscribers

    def message_received(self, channel: Channel, payload: bytes) -> None:
        """Call each callback of the channel with one message."""
        for callback in channel.callbacks:
            try:
                callback(channel.name, payload)
            except Exception:  # an error in one callback does not affect the others
                self._log.exception("callback failed", channel=channel.name)

    def channel_confirmed(self, channel: Channel) -> None:
        """Release the callers that wait for `channel`."""
        waiters, channel.waiters = channel.waiters, {}
        for waiter in itertools.chain.from_iterable(waiters.values()):
            waiter.missing -= 1
            if not waiter.missing:
                try:
                    waiter.callback()
                except Exception:  # an error in one callback does not affect the others
                    self._log.exception("confirmation callback failed", channel=channel.name)

    def channel_changed(self, channel: Channel) -> None:
        """Bring a channel, which is OUT or IN, to the wanted state."""
        if channel.callbacks and channel.state is ChannelState.UNSUBSCRIBED:
            self._assign(channel)
        elif not channel.callbacks and channel.name not in self._idle:
            self._reconcile(channel)

    def channels_refused(self, channels: Iterable[Channel]) -> None:
        """Retry rejected channels, which are OUT, after a moment on the server that has them by then."""
        delay = random.uniform(0, RETRY_BASE_SECONDS)
        for channel in channels:
            asyncio.get_running_loop().call_later(delay, self.channel_changed, channel)

    def connection_lost(self) -> None:
        """Note that a subscriber lost its connection."""
        self._complete = False
        self._changed.set()
        self._metrics.redis_up.set(0)

    def subscriber_lost(self, subscriber: Subscriber, reason: str, channels: list[str]) -> None:
        """Report a lost connection whose first reconnect failed."""
        self._report_lost(describe_loss(subscriber, reason), channels)

    def subscriber_resumed(self, channels: list[str]) -> None:
        """Report that all channels of a subscriber are confirmed."""
        if self._listener is not None and channels:
            self._listener.pubsub_missed(channels)
        if not self._complete and self.health.is_complete:
            self._complete = True
            self._metrics.redis_up.set(1)
            if self._listener is not None:
                self._listener.pubsub_restored()

    def _report_lost(self, reason: str, channels: list[str]) -> None:
        if self._listener is not None:
            self._listener.pubsub_lost(reason, channels)

    # ---- assignment of channels to servers

    def _assign(self, channel: Channel) -> None:
        """Assign a channel, which is OUT, to the subscriber of the server that has its slot."""
        server, before = self._redis.slot_map.server(channel.key), channel.subscriber
        subscriber = self._subscribers.get(server) if server is not None else None
        if before is not None and before is not subscriber and channel.name == before.check_channel:
            # A check through another server proves nothing about this one
            self.unsubscribe([channel.name], before.check_received)
            self._set_check_channel(before)
            return
        if subscriber is not None:
            subscriber.add(channel)
        else:
            if before is not None:
                before.remove(channel)
            self._changed.set()

    def _apply_topology(self) -> None:
        """Apply a new slot map: one subscriber per server, and channels that are OUT move to their server."""
        slot_map = self._redis.slot_map
        if slot_map.version == self._version:
            return
        self._version = slot_map.version
        for server in self._subscribers.keys() - set(slot_map.servers):
            self._remove(self._subscribers.pop(server))
        for server in slot_map.servers:
            if server not in self._subscribers:
                subscriber = self._subscribers[server] = Subscriber(self._redis, server, self, self._metrics)
                self._complete = False
                self._set_check_channel(subscriber)
                if self._failure is not None:
                    self._start_subscriber(subscriber.run(), subscriber)
        for channel in list(self._channels.values()):
            if channel.callbacks and channel.state is ChannelState.UNSUBSCRIBED:
                self._assign(channel)

    def _remove(self, subscriber: Subscriber) -> None:
        """Remove a subscriber whose server has no slots any more."""
        self.unsubscribe([subscriber.check_channel], subscriber.check_received)
        if subscriber in self._checks:
            self._checks[subscriber].cancel()  # a heartbeat that waits for it would be late
        subscriber.connection_ended("the server is not a master of the cluster any more")
        for channel in list(self._channels.values()):
            if channel.subscriber is subscriber:
                subscriber.remove(channel)
        for task, owner in self._tasks.items():
            if owner is subscriber:
                task.cancel()

    def _set_check_channel(self, subscriber: ChannelSubscriber) -> None:
        try:
            subscriber.check_channel = self._redis.slot_map.name_at(subscriber.server, self._own)
        except LookupError:  # the server has no slot, so its subscriber is about to be removed
            self._changed.set()
            return
        self.subscribe([subscriber.check_channel], subscriber.check_received, lambda: None)
