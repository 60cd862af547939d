"""A pub/sub channel of this node and the state of its subscription in Redis.  (pure)

A channel changes state only when Redis confirms it, and at most one command per channel is in flight, so a
confirmation always belongs to that command:

    OUT --SUBSCRIBE sent--> JOINING --confirmed--> IN --UNSUBSCRIBE sent--> LEAVING --confirmed--> OUT
    any state, when the connection is lost: OUT; a channel that was IN may have missed messages
    JOINING, on a cluster, when the server rejects it because it does not have the slot: OUT
    IN, on a cluster, when the server unsubscribes it because the slot moves: OUT, and it may have missed messages
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

Callback = Callable[[str, bytes], None]  # channel, payload


class ChannelState(enum.Enum):
    """State of a channel's subscription."""

    UNSUBSCRIBED = enum.auto()
    SUBSCRIBING = enum.auto()
    SUBSCRIBED = enum.auto()
    UNSUBSCRIBING = enum.auto()


class ChannelSubscriber(Protocol):
    """The subscriber (`Subscriber`) that a channel is assigned to: the connection to the server that has its slot."""

    server: str
    check_channel: str  # the self-check publishes and receives its token here

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection that is not being closed."""

    def reconcile(self, channel: Channel) -> None:
        """Subscribe or unsubscribe the channel, depending on whether it has callbacks."""

    def forget_missed(self, channel: Channel) -> None:
        """Stop counting the channel as missed: it has no callbacks that need a report."""

    def remove(self, channel: Channel) -> None:
        """Remove the channel from this subscriber."""

    def check_received(self, channel: str, payload: bytes) -> None:
        """Handle a message on the check channel."""


class Waiter:
    """Calls `callback` when the last of its channels is confirmed."""

    __slots__ = ("callback", "missing")

    def __init__(self, done: Callable[[], None]) -> None:
        self.callback = done
        self.missing = 0


class Channel:
    """One channel: its callbacks, its state and the subscriber it is assigned to."""

    __slots__ = ("callbacks", "key", "missed", "name", "since", "state", "subscriber", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = name.encode()
        self.state = ChannelState.UNSUBSCRIBED
        self.subscriber: ChannelSubscriber | None = None  # None: no known server has its slot
        self.missed = False  # it was IN and is not confirmed again yet: messages may have been missed
        self.since = 0  # sequence number of its last confirmation, unique in this process
        self.callbacks: tuple[Callback, ...] = ()
        self.waiters: dict[Callable[[], None], list[Waiter]] = {}  # by their `done`
