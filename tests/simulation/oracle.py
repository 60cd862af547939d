"""What each client must receive, given what Redis accepted: the promises of README.md as checks.  (pure)

A `Feed` is a topic's messages in the order in which Redis published them. A `Watch` is one client's view of one topic
over all its connections. A broken promise raises `Broken`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class Broken(AssertionError):
    """A promise was broken; the message says which, to whom and where."""


@dataclass(slots=True)
class Feed:
    """The messages of one topic, by number, in the order of Redis."""

    topic: str
    numbered: bool  # it has history: nothing may be lost unsaid across reconnects
    conflated: bool = False  # only order and the last value are promised
    places: dict[int, int] = field(default_factory=dict)  # message -> index
    excluded: dict[int, str] = field(default_factory=dict)  # index -> client that must not receive it
    # Indexes that a node with other topic rules published past the stream: what an outage loses of them may go unsaid
    # until the other nodes know of its rules.
    outside: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def newest(self) -> int | None:
        """The last message; None if there is none, or some client must not receive it."""
        last = len(self.places) - 1
        return next(reversed(self.places), None) if last not in self.excluded else None

    @property
    def has_newer(self) -> bool:
        """Whether there was a message that no node could read: their numbers are negative."""
        return any(message < 0 for message in self.places)

    def add(self, message: int, exclude: str | None, *, numbered: bool) -> None:
        """Redis has published a message, for everyone but `exclude`; `numbered`: it is in the topic's stream."""
        if message in self.places:
            raise Broken(f"{self.topic}: message {message} was published twice")
        if exclude is not None:
            self.excluded[len(self.places)] = exclude
        if self.numbered and not numbered:
            self.outside.add(len(self.places))
        self.places[message] = len(self.places)


class Watch:
    """What one client has received of one topic."""

    def __init__(self, client: str, feed: Feed) -> None:
        self.client = client
        self.feed = feed
        self.last = -1  # index of the newest message received
        self.acknowledged = False
        self._next: int | None = None  # index that must come next; None: any up to `_bound`
        self._bound: int | None = None  # index of the first message that must not be missed; None: nothing is promised
        self._early: list[int] = []  # indexes received since SUBSCRIBE was sent
        self.ids: set[str] = set()  # the client's ids on all its connections
        self.id = ""  # on this one

    # ---- what happens

    def connected(self, client_id: str) -> None:
        """The client has a connection, under this id."""
        self.id = client_id
        self.ids.add(client_id)

    def subscribing(self) -> None:
        """The client sends SUBSCRIBE on a new connection, or again on the same."""
        if not self.acknowledged:
            self._early = []

    def subscribed(self, recovered: bool | None) -> None:
        """The acknowledgement has come; `recovered` as it says, None if it says nothing."""
        again, self.acknowledged = self.acknowledged, True
        early, self._early = self._early, []
        if again and recovered is not False:
            return
        if recovered and self.feed.numbered:
            self._resume()
            for index in early:
                self._follow(index)
            return
        if early:
            self._fail(f"received message {early[0]} before the acknowledgement of a subscription that did not recover")
        self._loosen()

    def ended(self) -> None:
        """The connection is gone: nothing is promised until the next acknowledgement."""
        self.acknowledged = False
        self._early = []
        if not self.feed.numbered:
            self._loosen()
            self._bound = None

    def forgotten(self) -> None:
        """The client has unsubscribed and keeps no position."""
        self.ended()
        self._next, self._bound = None, None

    def gap(self) -> None:
        """The client receives a gap: it may have missed messages."""
        self._loosen()

    def received(self, message: int) -> None:
        """A live or recovered message has come."""
        index = self.feed.places.get(message)
        if index is None:
            self._fail(f"received message {message}, which Redis never published")
        elif self.feed.excluded.get(index) == self.id:
            self._fail(f"received message {message}, from which it was excluded")
        elif not self.acknowledged:
            self._early.append(index)
        else:
            self._follow(index)

    @property
    def has_all(self) -> bool:
        """Whether it has received the last message."""
        return self.last == len(self.feed) - 1 >= 0

    def complete(self) -> None:
        """All is calm, and the client is subscribed: it must have received everything there is."""
        if not self.acknowledged:
            self._fail("is not subscribed, though all is calm")
        missing = self._missing(len(self.feed))
        if missing is not None:
            self._fail(f"misses message {missing} of {len(self.feed)}, and received no gap")

    # ---- within

    def _resume(self) -> None:
        if self._next is None and self._bound is None:
            self._next = self.last + 1 if self.last >= 0 else None
            self._bound = 0 if self.last < 0 else None

    def _loosen(self) -> None:
        self._next, self._bound = None, len(self.feed)

    def _follow(self, index: int) -> None:
        if index <= self.last:
            self._fail(f"received message {index} after message {self.last}")
        missing = self._missing(index)
        if missing is not None and not self.feed.conflated:
            self._fail(f"received message {index}, but not message {missing}, and received no gap")
        self.last = index
        self._next, self._bound = index + 1, None

    def _missing(self, index: int) -> int | None:
        """The first message before `index` that had to come first."""
        if self._next is not None:
            first = self._next
        elif self._bound is not None:
            first = self._bound
        else:
            return None
        if self.feed.conflated:
            first = max(first, index - 1)
        return next((at for at in range(first, index) if self._owed(at)), None)

    def _owed(self, index: int) -> bool:
        return index not in self.feed.outside and self.feed.excluded.get(index) not in self.ids

    def _fail(self, what: str) -> None:
        raise Broken(f"{self.client} on {self.feed.topic}: {what}")
