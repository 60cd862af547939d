"""Who is on one topic, as one node sees it.  (pure)

Nodes tell each other of clients; people are shown. A person is a user with any number of clients, or a client that
proved nothing. Somebody has joined with the first client and has left when the last has been gone for a grace,
so a page that is loaded anew is nobody's coming or going.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Attendee(NamedTuple):
    """One client on a topic."""

    client_id: str
    user: str | None

    @property
    def person(self) -> str:
        """Whose client it is: the user, or itself."""
        return f"user:{self.user}" if self.user is not None else self.client_id


@dataclass(frozen=True, slots=True)
class News:
    """Who has come and who has gone since the last time; a person is shown by one of its clients."""

    joined: list[Attendee] = field(default_factory=list)
    left: list[Attendee] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.joined or self.left)


class Roster:
    """The people of one topic. Times are loop time, in seconds."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._people: dict[str, dict[str, Attendee]] = {}  # person -> clients, empty while the leave is held
        self._owners: dict[str, str] = {}  # client id -> person
        self._held: dict[str, tuple[float, Attendee]] = {}  # person -> when the leave is shown, last client
        self._joined: dict[str, Attendee] = {}  # to be shown
        self._left: dict[str, Attendee] = {}

    def __len__(self) -> int:
        return len(self._people)

    def people(self) -> list[Attendee]:
        """Everybody who is here, each by one client; who is held is still here."""
        return [
            next(iter(clients.values())) if clients else self._held[person][1]
            for person, clients in self._people.items()
        ]

    @property
    def held(self) -> bool:
        """Whether a leave waits for its time."""
        return bool(self._held)

    @property
    def clients(self) -> Collection[str]:
        """The ids of all clients that are here."""
        return self._owners.keys()

    def join(self, attendee: Attendee) -> None:
        """A client has come; known already, it changes nothing. With another user it is another person from now on."""
        person = attendee.person
        known = self._owners.get(attendee.client_id)
        if known == person:
            return
        if known is not None:
            self.leave(attendee.client_id, -math.inf)  # it will not come back as who it was: no grace is due
        self._owners[attendee.client_id] = person
        self._held.pop(person, None)
        if person in self._people:
            self._people[person][attendee.client_id] = attendee
            return
        self._people[person] = {attendee.client_id: attendee}
        if self._left.pop(person, None) is None:  # gone and back within one batch is neither
            self._joined[person] = attendee

    def leave(self, client_id: str, now: float, *, dead: bool = False) -> None:
        """A client has gone; `dead`: with its node, a lease ago, so no grace is due."""
        person = self._owners.pop(client_id, None)
        if person is None:
            return
        attendee = self._people[person].pop(client_id)
        if not self._people[person]:
            self._held[person] = (now if dead else now + self._grace, attendee)

    def prime(self, attendees: Iterable[Attendee]) -> None:
        """Take in who was here before we listened; they are no news."""
        for attendee in attendees:
            self.join(attendee)
        self._joined.clear()

    def reconcile(self, attendees: Iterable[Attendee], now: float) -> None:
        """Bring it to what is true after something was missed; what differs is news."""
        true = {attendee.client_id: attendee for attendee in attendees}
        for client_id in self._owners.keys() - true.keys():
            self.leave(client_id, now)
        for attendee in true.values():
            self.join(attendee)

    def news(self, now: float) -> News:
        """What is to be shown now."""
        for person in [person for person, (due, _) in self._held.items() if due <= now]:
            _, attendee = self._held.pop(person)
            del self._people[person]
            if self._joined.pop(person, None) is None:
                self._left[person] = attendee
        news = News(list(self._joined.values()), list(self._left.values()))
        self._joined.clear()
        self._left.clear()
        return news
