"""The presence set of one topic, as one node sees it.  (pure)

Nodes exchange clients, and subscribers see people. A person is a user with any number of clients, or one anonymous
client. A person joins with the first client, and leaves when the last client has been gone for a grace period. So
reloading a page causes neither a leave nor a join.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Member(NamedTuple):
    """One client on a topic."""

    client_id: str
    user: str | None
    info: bytes | None = None  # the claim `info` of its token, as JSON text

    @property
    def person(self) -> str:
        """The key of the person: the user, or the client id of an anonymous client."""
        return f"user:{self.user}" if self.user is not None else self.client_id


@dataclass(frozen=True, slots=True)
class PresenceChanges:
    """The people that joined and left since the last report. One of its clients represents each person."""

    joined: list[Member] = field(default_factory=list)
    left: list[Member] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.joined or self.left)


@dataclass(frozen=True, slots=True)
class ClientChanges:
    """The clients that joined and left since the last report, without a grace period."""

    joined: list[Member] = field(default_factory=list)
    left: list[Member] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.joined or self.left)


class PresenceSet:
    """The people on one topic. Times are seconds of the event loop's clock."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._people: dict[str, dict[str, Member]] = {}  # person -> clients, empty during the grace period
        self._owners: dict[str, str] = {}  # client id -> person
        self._held: dict[str, tuple[float, Member]] = {}  # person -> end of the grace period, last client
        self._joined: dict[str, Member] = {}  # not reported yet
        self._left: dict[str, Member] = {}
        self._clients_joined: dict[str, Member] = {}  # by client id, not reported yet
        self._clients_left: dict[str, Member] = {}

    def __len__(self) -> int:
        return len(self._people)

    def members(self) -> list[Member]:
        """All people on the topic, each represented by one client. A person in its grace period is still included."""
        return [
            next(iter(clients.values())) if clients else self._held[person][1]
            for person, clients in self._people.items()
        ]

    def client_members(self) -> list[Member]:
        """All clients on the topic."""
        return [member for clients in self._people.values() for member in clients.values()]

    def including(self, members: Iterable[Member]) -> PresenceSet:
        """This set if it has all of these clients, else a copy that has them too."""
        missing = [member for member in members if member.client_id not in self._owners]
        if not missing:
            return self
        copy = PresenceSet(self._grace)
        copy._people = {person: dict(clients) for person, clients in self._people.items()}
        copy._owners, copy._held = dict(self._owners), dict(self._held)
        copy.prime(missing)
        return copy

    @property
    def held(self) -> bool:
        """Whether a person is in its grace period."""
        return bool(self._held)

    @property
    def clients(self) -> Collection[str]:
        """The ids of all clients on the topic."""
        return self._owners.keys()

    def join(self, member: Member) -> None:
        """Add a client. A known client changes only its info. A known client with another user moves to that person."""
        person = member.person
        known = self._owners.get(member.client_id)
        if known == person:
            self._people[person][member.client_id] = member
            return
        if known is not None:
            self.leave(member.client_id, -math.inf)  # no grace period: the client will not return as the old user
        self._owners[member.client_id] = person
        self._clients_joined[member.client_id] = member
        self._held.pop(person, None)
        if person in self._people:
            self._people[person][member.client_id] = member
            return
        self._people[person] = {member.client_id: member}
        if self._left.pop(person, None) is None:  # a leave and a join between two reports cancel each other
            self._joined[person] = member

    def leave(self, client_id: str, now: float, *, dead: bool = False) -> None:
        """Remove a client. `dead`: its node died a lease ago, so there is no grace period."""
        person = self._owners.pop(client_id, None)
        if person is None:
            return
        member = self._people[person].pop(client_id)
        if self._clients_joined.pop(client_id, None) is None:  # otherwise it was not reported
            self._clients_left[client_id] = member
        if not self._people[person]:
            self._held[person] = (now if dead else now + self._grace, member)

    def prime(self, members: Iterable[Member]) -> None:
        """Add the clients that were on the topic before this node subscribed. They are not reported as joins."""
        for member in members:
            self.join(member)
        self._joined.clear()
        self._clients_joined.clear()

    def reconcile(self, members: Iterable[Member], now: float) -> None:
        """Replace the clients by `members`, after changes may have been missed. Differences are reported."""
        current = {member.client_id: member for member in members}
        for client_id in self._owners.keys() - current.keys():
            self.leave(client_id, now)
        for member in current.values():
            self.join(member)

    def changes(self, now: float) -> PresenceChanges:
        """Return the changes to report at `now`, and start collecting new ones."""
        for person in [person for person, (due, _) in self._held.items() if due <= now]:
            _, member = self._held.pop(person)
            del self._people[person]
            if self._joined.pop(person, None) is None:
                self._left[person] = member
        changes = PresenceChanges(list(self._joined.values()), list(self._left.values()))
        self._joined.clear()
        self._left.clear()
        return changes

    def client_changes(self) -> ClientChanges:
        """Return the clients that joined or left, and start collecting new ones.

        A client whose user has changed has left and joined.
        """
        changes = ClientChanges(list(self._clients_joined.values()), list(self._clients_left.values()))
        self._clients_joined.clear()
        self._clients_left.clear()
        return changes
