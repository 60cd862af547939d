"""A channel that somebody here hears, or wants to.  (pure)

A channel changes state only upon Redis' own confirmation, and at most one command a
channel is under way, so no confirmation can be mistaken for another:

    OUT --SUBSCRIBE sent--> JOINING --confirmed--> IN --UNSUBSCRIBE sent--> LEAVING --confirmed--> OUT
                 any, when the connection is lost: OUT, and what was IN has missed messages
            JOINING, on a cluster: refused, since the slot is not here (any more): OUT
                 IN, on a cluster: put out, since the slot goes elsewhere: OUT, and it has missed messages
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

Callback = Callable[[str, bytes], None]  # channel, payload


class State(enum.Enum):
    """Of a channel."""

    OUT = enum.auto()
    JOINING = enum.auto()
    IN = enum.auto()
    LEAVING = enum.auto()


class Hearer(Protocol):
    """Who hears it: an `Ear`, at the server that has its slot."""

    server: str
    check_channel: str  # on which it sends itself a sign

    @property
    def hears(self) -> bool:
        """Whether it has a connection that is not given up."""

    def reconcile(self, channel: Channel) -> None:
        """Bring the channel to what is wanted of it."""

    def excuse(self, channel: Channel) -> None:
        """Nobody is owed what was missed on it."""

    def drop(self, channel: Channel) -> None:
        """Have it no more."""

    def on_check(self, channel: str, payload: bytes) -> None:
        """What is heard on its check channel."""


class Waiter:
    """Calls `done` when the last of its channels is confirmed."""

    __slots__ = ("done", "missing")

    def __init__(self, done: Callable[[], None]) -> None:
        self.done = done
        self.missing = 0


class Channel:
    """What somebody here hears, or wants to."""

    __slots__ = ("callbacks", "ear", "key", "missed", "name", "since", "state", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = name.encode()
        self.state = State.OUT
        self.ear: Hearer | None = None  # None: nobody is known to have its slot
        self.missed = False  # it was IN, and is not confirmed again: messages may have been missed
        self.since = 0  # the number of its last confirmation, of all there were
        self.callbacks: tuple[Callback, ...] = ()
        self.waiters: dict[Callable[[], None], list[Waiter]] = {}  # by their `done`
