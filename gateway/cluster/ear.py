"""One connection to one server, and the channels that are heard on it.

The ear's owner (bus.py) says which channels are its; one reader and one writer alone touch the connection and bring
Redis to what is wanted. How a channel's state changes, channel.py tells.

Redis answers in order, but what it says by itself stands between the answers, and a channel that is put out reads like
one that was left. So a PING follows each UNSUBSCRIBE: what was left is out when that is answered, whatever came before.
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

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from gateway.cluster.answers import REDIS_ERRORS, Unavailable, explain, failure, heeding
from gateway.cluster.channel import Channel, State
from gateway.cluster.link import Link
from gateway.cluster.shards import slot_of
from gateway.logs import logger
from gateway.metrics import Metrics

COMMAND_CHANNELS: Final = 500  # channels in one SUBSCRIBE
RETRY_BASE_SECONDS: Final = 0.05
RETRY_CAP_SECONDS: Final = 1.0
CHECK: Final = b"check "  # begins a payload of the self-check

# What a server of a cluster says of a channel that is not, or not yet, to be heard there. MovedError is an AskError.
_ELSEWHERE: Final = (AskError, TryAgainError, ClusterDownError)
_JOINED: Final = (b"subscribe", b"ssubscribe")
_joins: Final = itertools.count(1)


class Owner(Protocol):
    """Whose ear it is."""

    def hand_on(self, channel: Channel, payload: bytes) -> None:
        """A message has come."""

    def confirmed(self, channel: Channel) -> None:
        """Redis has confirmed the channel: nobody needs to wait for it any more."""

    def disrupted(self) -> None:
        """The connection is gone."""

    def changed(self, channel: Channel) -> None:
        """The channel is OUT or IN, and may be wanted otherwise."""

    def refused(self, channels: Iterable[Channel]) -> None:
        """They are OUT, and not to be heard there now."""

    def lost(self, ear: Ear, reason: str, channels: list[str]) -> None:
        """It did not come back at once; on these channels nothing is heard."""

    def resumed(self, channels: list[str]) -> None:
        """All that the ear has is heard; on these channels messages may have been missed."""


@dataclass(frozen=True, slots=True)
class _Order:
    """A command under way."""

    joins: bool
    channels: dict[bytes, Channel]  # those whose confirmation has not come


class Ear:
    """Hears on `server`. `run` must run; the rest may be called at any time."""

    def __init__(self, link: Link, server: str, owner: Owner, metrics: Metrics) -> None:
        self.server = server
        self.check_channel = ""  # its owner gives it one that lies there
        self.reason: str | None = "not yet connected"  # why it hears nothing; None: it hears all it has
        self._link = link
        self._owner = owner
        self._metrics = metrics
        self._log = logger()
        self._channels: dict[bytes, Channel] = {}
        self._changed: dict[bytes, Channel] = {}  # to be brought to what is wanted
        self._orders: deque[_Order] = deque()
        self._wake = asyncio.Event()
        self._missed: set[bytes] = set()  # of its channels
        self._resumed: list[str] = []  # were missed, and are confirmed again
        self._kick: asyncio.Future[str] | None = None  # of the connection under way; a reason ends it
        self._connection: AbstractConnection | None = None  # that one
        self._settled = False  # all that is wanted was confirmed since the connection was made
        self._told_lost = False
        self.lost_at = -math.inf  # loop time at which it last lost a connection on which all was heard
        self._attempt = 0
        self._checks: dict[bytes, asyncio.Future[None]] = {}
        self._hears_itself = asyncio.Event()  # the check channel is IN

    # ---- what its owner says

    @property
    def hears(self) -> bool:
        """Whether it has a connection that is not given up."""
        return self._kick is not None and not self._kick.done()

    def take(self, channel: Channel) -> None:
        """Have a channel, which is OUT, from its last ear."""
        if channel.ear is not None and channel.ear is not self:
            channel.ear.drop(channel)
        channel.ear = self
        self._channels[channel.key] = channel
        if channel.missed:
            self._missed.add(channel.key)
        self.reconcile(channel)

    def drop(self, channel: Channel) -> None:
        """Have a channel, which is OUT, no more."""
        self._channels.pop(channel.key, None)
        self._changed.pop(channel.key, None)
        channel.ear = None
        self.excuse(channel)

    def reconcile(self, channel: Channel) -> None:
        """Note that a channel of its own may be in another state than wanted."""
        if channel.state in (State.OUT, State.IN):
            self._changed[channel.key] = channel
            self._wake.set()

    def excuse(self, channel: Channel) -> None:
        """It need not wait for a channel with the news that all is heard."""
        self._missed.discard(channel.key)
        self._settle()

    # ---- the self-check

    async def check(self) -> float:
        """Send a token through the check channel; seconds until it was heard.

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
                await self._link.publish(self.check_channel, CHECK + token)
                await heard
                seconds = loop.time() - started
                if connection is not None and await self._link.moved(self.server, connection):
                    raise Unavailable("Redis has another master now")
        except (TimeoutError, Unavailable) as error:
            reason = f"self-check failed: {explain(error)}"
            # A connection made meanwhile is not the one that failed.
            if judged is self._kick:
                self.give_up(reason)
            raise Unavailable(reason) from None
        finally:
            del self._checks[token]
        return seconds

    def give_up(self, reason: str) -> None:
        """End the connection, and make it anew."""
        if self._kick is not None and not self._kick.done():
            self.reason = self.reason or reason
            self._kick.set_result(reason)

    def on_check(self, _channel: str, payload: bytes) -> None:
        """A message on the check channel."""
        heard = self._checks.get(payload.removeprefix(CHECK)) if payload.startswith(CHECK) else None
        if heard is not None and not heard.done():
            heard.set_result(None)

    # ---- the connection

    async def run(self) -> None:
        """Keep a connection, for ever: what it loses is wanted again on the next, with full jitter between."""
        while True:
            try:
                await self._converse()
            except (Unavailable, *REDIS_ERRORS) as error:
                self.disconnected(str(error if isinstance(error, Unavailable) else failure(error)))
            self._link.doubt()
            cap = min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2**self._attempt)
            self._attempt = min(self._attempt + 1, 16)
            await asyncio.sleep(random.uniform(0, cap))

    async def _converse(self) -> None:
        connection = self._connection = await self._link.subscriber(self.server)
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
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, {}
            joins: list[Channel] = []
            leaves: list[Channel] = []
            for channel in changed.values():
                if channel.state is State.OUT and channel.callbacks:
                    channel.state = State.JOINING
                    joins.append(channel)
                elif channel.state is State.IN and not channel.callbacks:
                    channel.state = State.LEAVING
                    leaves.append(channel)
            packed: list[bytes] = []
            for command, some in self._commands("SUBSCRIBE", joins):
                self._orders.append(_Order(True, some))
                packed += connection.pack_command(command, *some)
            for command, some in self._commands("UNSUBSCRIBE", leaves):
                self._orders.append(_Order(False, some))
                packed += [*connection.pack_command(command, *some), *connection.pack_command("PING")]
            if packed:
                await heeding(connection.send_packed_command(packed, check_health=False))

    def _commands(self, word: str, channels: Iterable[Channel]) -> Iterator[tuple[str, dict[bytes, Channel]]]:
        """The commands for `channels`. On a cluster those of several slots cannot stand in one."""
        groups: dict[int, list[Channel]] = {}
        for channel in channels:
            sharded = self._link.publish_command(channel.name) == "SPUBLISH"
            groups.setdefault(slot_of(channel.key) if sharded else -1, []).append(channel)
        for slot, group in groups.items():
            for at in range(0, len(group), COMMAND_CHANNELS):
                some = {channel.key: channel for channel in group[at : at + COMMAND_CHANNELS]}
                yield word if slot < 0 else f"S{word}", some

    async def _read(self, connection: AbstractConnection) -> None:
        # While answers lie ready, `read_response` does not yield to the loop: all messages that have arrived
        # are handed on in one turn of it, which is what the hub joins into one write a client.
        while True:
            try:
                answer: Any = await connection.read_response(disable_decoding=True, timeout=math.inf)
            except _ELSEWHERE as error:
                self._on_refusal(error)
                continue
            if len(answer) != 3:  # to a PING
                self._on_left()
                continue
            kind, name, payload = answer
            channel = self._channels.get(name)
            if kind in (b"message", b"smessage"):
                if channel is not None:
                    self._owner.hand_on(channel, payload)
            elif kind in _JOINED:
                self._on_joined(name)
            elif kind == b"sunsubscribe" and channel is not None and channel.state is State.IN:
                self._on_put_out(channel)

    # ---- what Redis says

    def _on_joined(self, key: bytes) -> None:
        order = self._orders[0]
        channel = order.channels.pop(key)
        if not order.channels:
            self._orders.popleft()
        channel.state = State.IN
        channel.missed = False
        channel.since = next(_joins)
        self._owner.confirmed(channel)
        if key in self._missed:
            self._missed.discard(key)
            self._resumed.append(channel.name)
        if channel.name == self.check_channel:
            self._attempt = 0
            self._hears_itself.set()
        if not channel.callbacks:
            self._owner.changed(channel)
        self._settle()

    def _on_left(self) -> None:
        for channel in self._orders.popleft().channels.values():
            channel.state = State.OUT
            self._owner.changed(channel)

    def _on_refusal(self, error: Exception) -> None:
        order = self._orders[0]
        if not order.joins:
            return  # the slot is gone, and the channels with it; the PING behind it is answered
        self._orders.popleft()
        if isinstance(error, MovedError):
            self._link.moved_to(error, self.server)
        for channel in order.channels.values():
            channel.state = State.OUT
        self._owner.refused(order.channels.values())

    def _on_put_out(self, channel: Channel) -> None:
        channel.state = State.OUT
        if channel.name == self.check_channel:
            self._hears_itself.clear()
        if channel.callbacks:
            channel.missed = True
            self._missed.add(channel.key)
        self._owner.changed(channel)

    def _settle(self) -> None:
        """Say so, once, when everything that was heard before the loss is heard again."""
        if self._missed or not self._hears_itself.is_set() or (self._settled and not self._resumed):
            return
        resumed, self._resumed = self._resumed, []
        if not self._settled:
            self._settled = True
            self._told_lost = False
            self.reason = None
            self._log.info("bus connected", channels=len(self._channels), **self._where())
        self._owner.resumed(resumed)

    def disconnected(self, reason: str) -> None:
        """The connection is gone."""
        self.reason = reason
        self._owner.disrupted()
        self._hears_itself.clear()
        self._orders.clear()
        resumed, self._resumed = set(self._resumed), []  # but never told: it goes on being missed
        was_connected = False
        for channel in list(self._channels.values()):
            was_connected |= channel.state is not State.OUT
            if channel.callbacks and (channel.state is State.IN or channel.name in resumed):
                channel.missed = True
                self._missed.add(channel.key)
            channel.state = State.OUT
            if not channel.callbacks:
                self._owner.changed(channel)
        if was_connected:
            self._metrics.reconnects.inc()
            self._log.warning("bus connection lost", reason=reason, **self._where())
        was_settled, self._settled = self._settled, False
        if was_settled:
            self.lost_at = asyncio.get_running_loop().time()
        if not was_settled and not self._told_lost:
            self._told_lost = True
            self._owner.lost(self, reason, [self._channels[key].name for key in self._missed])

    def _where(self) -> dict[str, str]:
        return {"server": self.server} if self.server else {}
