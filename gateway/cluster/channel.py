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


class State(enum.Enum):
    """State of a channel's subscription."""

    OUT = enum.auto()
    JOINING = enum.auto()
    IN = enum.auto()
    LEAVING = enum.auto()


class ChannelHolder(Protocol):
    """The subscriber (`Ear`) that a channel is assigned to: the connection to the server that has its slot."""

    server: str
    check_channel: str  # the self-check publishes and receives its token here

    @property
    def connected(self) -> bool:
        """Whether it has a connection that is not being closed."""

    def reconcile(self, channel: Channel) -> None:
        """Subscribe or unsubscribe the channel, depending on whether it has callbacks."""

    def clear_missed(self, channel: Channel) -> None:
        """Stop counting the channel as missed: it has no callbacks that need a report."""

    def drop(self, channel: Channel) -> None:
        """Remove the channel from this subscriber."""

    def on_check(self, channel: str, payload: bytes) -> None:
        """Handle a message on the check channel."""


class Waiter:
    """Calls `done` when the last of its channels is confirmed."""

    __slots__ = ("done", "missing")

    def __init__(self, done: Callable[[], None]) -> None:
        self.done = done
        self.missing = 0


class Channel:
    """One channel: its callbacks, its state and the subscriber it is assigned to."""

    __slots__ = ("callbacks", "ear", "key", "missed", "name", "since", "state", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = name.encode()
        self.state = State.OUT
        self.ear: ChannelHolder | None = None  # None: no known server has its slot
        self.missed = False  # it was IN and is not confirmed again yet: messages may have been missed
        self.since = 0  # sequence number of its last confirmation, unique in this process
        self.callbacks: tuple[Callback, ...] = ()
        self.waiters: dict[Callable[[], None], list[Waiter]] = {}  # by their `done`
