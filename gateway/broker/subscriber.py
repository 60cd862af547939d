"""A subscriber: one pub/sub connection to one Redis server, and the channels subscribed on it.

The owner (pubsub.py) assigns channels to the subscriber. Only one task writes to the connection; it sends SUBSCRIBE and
UNSUBSCRIBE until Redis matches the wanted set. channel.py describes the states of a channel.

Redis answers commands in order, but pushed messages stand between the answers, and a pushed unsubscribe (the slot
moved) looks like the answer to an UNSUBSCRIBE. So the node sends a PING after each UNSUBSCRIBE: when the PING is
answered, the channels of that UNSUBSCRIBE are out.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from gateway.broker.channel import Channel, ChannelState
from gateway.broker.client import RedisClient
from gateway.broker.errors import REDIS_ERRORS, Unavailable, explain, to_unavailable
from gateway.broker.redis_connection import RedisConnection, packed
from gateway.broker.slot_map import slot_of
from gateway.logging import logger
from gateway.metrics import Metrics

COMMAND_CHANNELS: Final = 500  # channels in one SUBSCRIBE
RETRY_BASE_SECONDS: Final = 0.05
RETRY_CAP_SECONDS: Final = 1.0
CHECK: Final = b"check "  # prefix of a self-check payload

# Errors by which a cluster server rejects a channel whose slot it does not have now. MovedError is an AskError.
_MOVED_ERRORS: Final = (AskError, TryAgainError, ClusterDownError)
_MESSAGE: Final = (b"message", b"smessage")
_SUBSCRIBE_REPLIES: Final = (b"subscribe", b"ssubscribe")
_confirmations: Final = itertools.count(1)


class SubscriberCallbacks(Protocol):
    """Callbacks of a subscriber."""

    def message_received(self, channel: Channel, payload: bytes) -> None:
        """Deliver one message of the channel to its callbacks."""

    def channel_confirmed(self, channel: Channel) -> None:
        """Redis confirmed the channel: release the callers that wait for it."""

    def connection_lost(self) -> None:
        """The subscriber lost its connection."""

    def channel_changed(self, channel: Channel) -> None:
        """The channel reached OUT or IN; the wanted state may differ by now."""

    def channels_refused(self, channels: Iterable[Channel]) -> None:
        """The server rejected these channels; they are OUT."""

    def subscriber_lost(self, subscriber: Subscriber, reason: str, channels: list[str]) -> None:
        """The first reconnect failed; the node receives nothing on these channels."""

    def subscriber_resumed(self, channels: list[str]) -> None:
        """All channels of the subscriber are confirmed; messages on these may have been missed."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A SUBSCRIBE or UNSUBSCRIBE that is in flight."""

    joins: bool
    channels: dict[bytes, Channel]  # those that Redis has not confirmed yet


class Subscriber:
    """Subscribes to channels on `server`. `run` must be running; the other methods may be called at any time."""

    def __init__(self, redis: RedisClient, server: str, callbacks: SubscriberCallbacks, metrics: Metrics) -> None:
        self.server = server
        self.check_channel = ""  # the owner sets a channel whose slot is on this server
        self.reason: str | None = "not yet connected"  # why it receives nothing; None: all its channels are confirmed
        self._redis = redis
        self._callbacks = callbacks
        self._metrics = metrics
        self._log = logger()
        self._channels: dict[bytes, Channel] = {}
        self._changed: dict[bytes, Channel] = {}  # to be subscribed or unsubscribed by the writer
        self._in_flight: deque[_InFlight] = deque()
        self._wake = asyncio.Event()
        self._missed: set[bytes] = set()  # keys of its channels that may have missed messages
        self._resumed: list[str] = []  # channels that may have missed messages and are confirmed again
        self._connection: RedisConnection | None = None  # the current one
        self._settled = False  # all wanted channels were confirmed on this connection
        self._reported_lost = False
        self.lost_at = -math.inf  # loop time when it last lost a connection with all channels confirmed
        self._attempt = 0
        self._checks: dict[bytes, asyncio.Future[None]] = {}
        self._check_joined = asyncio.Event()  # the check channel is IN

    # ---- called by the owner

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection that is not being closed."""
        return self._connection is not None and not self._connection.lost.done()

    def add(self, channel: Channel) -> None:
        """Take over a channel, which is OUT, from its previous subscriber."""
        if channel.subscriber is not None and channel.subscriber is not self:
            channel.subscriber.remove(channel)
        channel.subscriber = self
        self._channels[channel.key] = channel
        if channel.missed:
            self._missed.add(channel.key)
        self.reconcile(channel)

    def remove(self, channel: Channel) -> None:
        """Remove a channel, which is OUT."""
        self._channels.pop(channel.key, None)
        self._changed.pop(channel.key, None)
        channel.subscriber = None
        self.forget_missed(channel)

    def reconcile(self, channel: Channel) -> None:
        """Schedule a channel whose state may differ from the wanted one."""
        if channel.state in (ChannelState.UNSUBSCRIBED, ChannelState.SUBSCRIBED):
            self._changed[channel.key] = channel
            self._wake.set()

    def forget_missed(self, channel: Channel) -> None:
        """Stop counting this channel as missed."""
        self._missed.discard(channel.key)
        self._report_resumed()

    # ---- the self-check

    async def check(self) -> float:
        """Publish a token on the check channel and wait until it arrives; return the seconds it took.

        Without this check, a frozen Redis, a dead subscription or a demoted master would raise no error.

        Raises:
            Unavailable: The token did not arrive in time, or the server is no longer the master. The subscriber then
                closes the connection and reconnects.
        """
        loop = asyncio.get_running_loop()
        connection = self._connection
        token = secrets.token_hex(8).encode()
        arrived: asyncio.Future[None] = loop.create_future()
        self._checks[token] = arrived
        started = loop.time()
        try:
            async with asyncio.timeout(self._redis.timeout_seconds):
                await self._check_joined.wait()  # a token sent earlier would be lost
                await self._redis.publish(self.check_channel, CHECK + token)
                await arrived
                seconds = loop.time() - started
                if connection is not None and await self._redis.is_moved(self.server, connection.opened):
                    raise Unavailable("Redis has another master now")
        except (TimeoutError, Unavailable) as error:
            reason = f"self-check failed: {explain(error)}"
            # If the subscriber reconnected meanwhile, the new connection did not fail.
            if connection is self._connection:
                self.reconnect(reason)
            raise Unavailable(reason) from None
        finally:
            del self._checks[token]
        return seconds

    def reconnect(self, reason: str) -> None:
        """Close the connection and reconnect."""
        if self._connection is not None and self.is_connected:
            self.reason = self.reason or reason
            self._connection.fail(Unavailable(reason))

    def check_received(self, _channel: str, payload: bytes) -> None:
        """Handle a message on the check channel."""
        arrived = self._checks.get(payload.removeprefix(CHECK)) if payload.startswith(CHECK) else None
        if arrived is not None and not arrived.done():
            arrived.set_result(None)

    # ---- the connection

    async def run(self) -> None:
        """Stay connected until cancelled. Reconnects use full jitter, and each resubscribes all wanted channels."""
        while True:
            try:
                await self._run_connection()
            except (Unavailable, *REDIS_ERRORS) as error:
                self.connection_ended(str(error if isinstance(error, Unavailable) else to_unavailable(error)))
            self._redis.mark_stale()
            cap = min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2**self._attempt)
            self._attempt = min(self._attempt + 1, 16)
            await asyncio.sleep(random.uniform(0, cap))

    async def _run_connection(self) -> None:
        connection = self._connection = RedisConnection(
            await self._redis.connect_subscriber(self.server), self._receive
        )
        self._changed = {key: channel for key, channel in self._channels.items() if channel.callbacks}
        self._wake.set()
        # No TaskGroup: in Python 3.11 one that meets an error and a cancellation at once loses the cancellation.
        writing = asyncio.get_running_loop().create_task(self._write(connection))
        try:
            ended, _ = await asyncio.wait((connection.lost, writing), return_when=asyncio.FIRST_COMPLETED)
            for one in ended:
                one.result()  # both end only with an error
        finally:
            self._connection = None
            connection.close()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, connection: RedisConnection) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            joins: list[Channel] = []
            leaves: list[Channel] = []
            for channel in changed.values():
                if channel.state is ChannelState.UNSUBSCRIBED and channel.callbacks:
                    channel.state = ChannelState.SUBSCRIBING
                    joins.append(channel)
                elif channel.state is ChannelState.SUBSCRIBED and not channel.callbacks:
                    channel.state = ChannelState.UNSUBSCRIBING
                    leaves.append(channel)
            sent: list[bytes] = []
            for command, batch in self._commands("SUBSCRIBE", joins):
                self._in_flight.append(_InFlight(True, batch))
                sent.append(packed(command, *batch))
            for command, batch in self._commands("UNSUBSCRIBE", leaves):
                self._in_flight.append(_InFlight(False, batch))
                sent += [packed(command, *batch), packed("PING")]
            if sent:
                connection.write(b"".join(sent))
                async with asyncio.timeout(self._redis.timeout_seconds):
                    await connection.drain()

    def _commands(self, word: str, channels: Iterable[Channel]) -> Iterator[tuple[str, dict[bytes, Channel]]]:
        """Yield the commands for `channels`. On a cluster, one command holds channels of one slot only."""
        groups: dict[int, list[Channel]] = {}
        for channel in channels:
            sharded = self._redis.publish_command(channel.name) == "SPUBLISH"
            groups.setdefault(slot_of(channel.key) if sharded else -1, []).append(channel)
        for slot, group in groups.items():
            for at in range(0, len(group), COMMAND_CHANNELS):
                batch = {channel.key: channel for channel in group[at : at + COMMAND_CHANNELS]}
                yield word if slot < 0 else f"S{word}", batch

    def _receive(self, replies: list[Any]) -> None:
        # All messages that one read brought are delivered in one turn, so the hub joins them into one write per client.
        for reply in replies:
            if isinstance(reply, Exception):
                if not isinstance(reply, _MOVED_ERRORS):
                    raise reply
                self._command_refused(reply)
                continue
            if len(reply) != 3:  # to a PING
                self._on_unsubscribed()
                continue
            kind, name, payload = reply
            channel = self._channels.get(name)
            if kind in _MESSAGE:
                if channel is not None:
                    self._callbacks.message_received(channel, payload)
            elif kind in _SUBSCRIBE_REPLIES:
                self._subscribed(name)
            elif kind == b"sunsubscribe" and channel is not None and channel.state is ChannelState.SUBSCRIBED:
                self._on_forced_out(channel)

    # ---- answers of Redis

    def _subscribed(self, key: bytes) -> None:
        command = self._in_flight[0]
        channel = command.channels.pop(key)
        if not command.channels:
            self._in_flight.popleft()
        channel.state = ChannelState.SUBSCRIBED
        channel.missed = False
        channel.since = next(_confirmations)
        self._callbacks.channel_confirmed(channel)
        if key in self._missed:
            self._missed.discard(key)
            self._resumed.append(channel.name)
        if channel.name == self.check_channel:
            self._attempt = 0
            self._check_joined.set()
        if not channel.callbacks:
            self._callbacks.channel_changed(channel)
        self._report_resumed()

    def _on_unsubscribed(self) -> None:
        for channel in self._in_flight.popleft().channels.values():
            channel.state = ChannelState.UNSUBSCRIBED
            self._callbacks.channel_changed(channel)

    def _command_refused(self, error: Exception) -> None:
        command = self._in_flight[0]
        if not command.joins:
            return  # the slot moved and took the channels along; the PING that follows is still answered
        self._in_flight.popleft()
        if isinstance(error, MovedError):
            self._redis.moved_to(error, self.server)
        for channel in command.channels.values():
            channel.state = ChannelState.UNSUBSCRIBED
        self._callbacks.channels_refused(command.channels.values())

    def _on_forced_out(self, channel: Channel) -> None:
        channel.state = ChannelState.UNSUBSCRIBED
        if channel.name == self.check_channel:
            self._check_joined.clear()
        if channel.callbacks:
            channel.missed = True
            self._missed.add(channel.key)
        self._callbacks.channel_changed(channel)

    def _report_resumed(self) -> None:
        """Report once when all channels that were lost are confirmed again."""
        if self._missed or not self._check_joined.is_set() or (self._settled and not self._resumed):
            return
        resumed, self._resumed = self._resumed, []
        if not self._settled:
            self._settled = True
            self._reported_lost = False
            self.reason = None
            self._log.info("bus connected", channels=len(self._channels), **self._where())
        self._callbacks.subscriber_resumed(resumed)

    def connection_ended(self, reason: str) -> None:
        """Reset all channels: the connection is lost."""
        self.reason = reason
        self._callbacks.connection_lost()
        self._check_joined.clear()
        self._in_flight.clear()
        resumed, self._resumed = set(self._resumed), []  # not reported yet, so these still count as missed
        was_connected = False
        for channel in list(self._channels.values()):
            was_connected |= channel.state is not ChannelState.UNSUBSCRIBED
            if channel.callbacks and (channel.state is ChannelState.SUBSCRIBED or channel.name in resumed):
                channel.missed = True
                self._missed.add(channel.key)
            channel.state = ChannelState.UNSUBSCRIBED
            if not channel.callbacks:
                self._callbacks.channel_changed(channel)
        if was_connected:
            self._metrics.reconnects.inc()
            self._log.warning("bus connection lost", reason=reason, **self._where())
        was_settled, self._settled = self._settled, False
        if was_settled:
            self.lost_at = asyncio.get_running_loop().time()
        if not was_settled and not self._reported_lost:
            self._reported_lost = True
            self._callbacks.subscriber_lost(self, reason, [self._channels[key].name for key in self._missed])

    def _where(self) -> dict[str, str]:
        return {"server": self.server} if self.server else {}
