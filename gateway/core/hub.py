"""Who is on this node, who listens to what, and the fan-out.  (pure)

An *audience* is a set of clients that one Redis channel addresses: ``topic:{name}``, ``user:{name}``,
``role:{name}``. The hub knows them only as keys.

What a delivery costs is the kernel's ``send``, so the hub's one trick is fewer and larger writes: a frame is
built once, and the frames that arrive before the loop comes round again are joined, once for all who hear the
same of them, into one write each. An idle hub joins nothing and adds no delay. Order is arrival order, for each
client and over all its audiences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Final, Protocol

# A joined write stays below this many bytes: beyond it, larger is not cheaper, and a slow client's
# verdict would come late.
JOIN_BYTES: Final = 16 << 10


class Audiences(set[str]):
    """The audiences that one client is in. It counts the topics among them, since a client may be in thousands."""

    __slots__ = ("personal", "topics")

    def __init__(self, audiences: Iterable[str] = ()) -> None:
        super().__init__()
        self.personal: tuple[str, ...] = ()  # those that the client is in because of its user and role
        self.topics = 0  # different topics that the client is subscribed to, or waits to be subscribed to
        for audience in audiences:
            self.add(audience)

    def add(self, audience: str) -> None:
        """Add one; once in, again changes nothing."""
        if audience not in self:
            self.topics += self._is_new_topic(audience)
            super().add(audience)
            if is_personal(audience):
                self.personal = (*self.personal, audience)

    def discard(self, audience: object) -> None:
        """Remove one, if it is in."""
        if isinstance(audience, str) and audience in self:
            super().discard(audience)
            self.topics -= self._is_new_topic(audience)
            if is_personal(audience):
                self.personal = tuple(other for other in self.personal if other != audience)

    def clear(self) -> None:
        """Remove all."""
        super().clear()
        self.topics, self.personal = 0, ()

    def has_topic(self, topic: str) -> bool:
        """Whether the client is subscribed to `topic`, or waits to be."""
        return of_topic(topic) in self or joining(topic) in self

    def _is_new_topic(self, audience: str) -> bool:
        """Whether `audience` is a topic's, and no other here is of the same topic."""
        if audience.startswith("topic:"):
            return joining(audience[6:]) not in self
        return audience.startswith("joining:") and of_topic(audience[8:]) not in self


class Subscriber(Protocol):
    """One client, as far as the fan-out needs it."""

    client_id: str
    audiences: Audiences  # the hub's, and nobody else writes it

    def send(self, data: bytes) -> bool:
        """Queue prepared frames; False if this client has not taken what it was sent before and must go."""


class Hub:
    """Members by audience.

    `wake` is called when something waits to be flushed; `evict` with a subscriber that refused a frame, by the
    `flush` that met it or comes next: never from within `join`, `leave` or `remove`, whose callers hold it.
    """

    def __init__(self, wake: Callable[[], None], evict: Callable[[Subscriber], None]) -> None:
        self._wake = wake
        self._evict = evict
        self._members: dict[str, set[Subscriber]] = {}
        self._runs: list[tuple[str, list[bytes]]] = []  # waiting frames; neighbours of one audience share a run
        self._refused: set[Subscriber] = set()  # to be evicted; they are handed nothing more
        self.memberships = 0
        self.topic_count = 0  # topics that have a member
        self.deliveries = 0  # frames handed to a subscriber, since the start
        self.sent_bytes = 0

    def __contains__(self, audience: str) -> bool:
        return audience in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def count(self, audience: str) -> int:
        """How many subscribers `audience` has here."""
        return len(self._members.get(audience, ()))

    def members(self, audience: str) -> Iterable[Subscriber]:
        """Its subscribers, as they are now."""
        return tuple(self._members.get(audience, ()))

    def topics(self) -> Iterator[str]:
        """The topics that had a member when it was called."""
        return (topic for topic in map(topic_of, tuple(self._members)) if topic is not None)

    def join(self, subscriber: Subscriber, audience: str) -> None:
        """Make `subscriber` a member; once a member, again changes nothing."""
        if audience in subscriber.audiences:
            return
        self._hand_out()  # what came before the join is not for the newcomer
        subscriber.audiences.add(audience)
        members = self._members.get(audience)
        if members is None:
            members = self._members[audience] = set()
            self.topic_count += topic_of(audience) is not None
        members.add(subscriber)
        self.memberships += 1

    def leave(self, subscriber: Subscriber, audience: str) -> bool:
        """End a membership. True if the audience has no member left."""
        if audience not in subscriber.audiences:
            return False
        self._hand_out()  # what came before the leave is still its own
        subscriber.audiences.discard(audience)
        return self._strike(subscriber, audience)

    def remove(self, subscriber: Subscriber) -> list[str]:
        """End all its memberships; the audiences that have no member left."""
        if subscriber.audiences:
            self._hand_out()  # what came before is still its own
        emptied = [audience for audience in subscriber.audiences if self._strike(subscriber, audience)]
        subscriber.audiences.clear()
        self._refused.discard(subscriber)
        return emptied

    def _strike(self, subscriber: Subscriber, audience: str) -> bool:
        members = self._members[audience]
        members.discard(subscriber)
        self.memberships -= 1
        if members:
            return False
        del self._members[audience]
        self.topic_count -= topic_of(audience) is not None
        return True

    def deliver(self, audience: str, frame: bytes, exclude: str | None = None, only: str | None = None) -> None:
        """Queue `frame` for all members but the client with the id `exclude`; or, if it is given, for `only`."""
        members = self._members.get(audience)
        if not members:
            return
        if exclude is not None or only is not None:
            self._hand_out()
            chosen = [m for m in members if m.client_id != exclude and (only is None or m.client_id == only)]
            self._send(chosen, [frame])
            self.flush()
            return
        if not self._runs:
            self._wake()
        if self._runs and self._runs[-1][0] == audience:
            self._runs[-1][1].append(frame)
        else:
            self._runs.append((audience, [frame]))

    def flush(self) -> None:
        """Hand everything that waits to its subscribers, and evict who refused."""
        self._hand_out()
        while self._refused:
            self._evict(self._refused.pop())

    def _hand_out(self) -> None:
        if not self._runs:
            return
        runs, self._runs = self._runs, []
        if self._are_apart([audience for audience, _ in runs]):
            for audience, frames in runs:
                self._send(self._members[audience], frames)
        else:
            for members, frames in self._shares(runs):
                self._send(members, frames)

    def _are_apart(self, audiences: list[str]) -> bool:
        """Whether nobody hears two of them, so that there is nothing to join."""
        if len(audiences) == 1:
            return True
        members = [self._members[audience] for audience in audiences]
        return len(set(audiences)) == len(audiences) and len(set().union(*members)) == sum(map(len, members))

    def _shares(self, runs: list[tuple[str, list[bytes]]]) -> Iterator[tuple[list[Subscriber], list[bytes]]]:
        """Those who hear the same of `runs`, and what that is."""
        places: defaultdict[str, list[int]] = defaultdict(list)
        for place, (audience, _) in enumerate(runs):
            places[audience].append(place)
        heard: defaultdict[Subscriber, list[str]] = defaultdict(list)
        for audience in places:
            for member in self._members[audience]:
                heard[member].append(audience)
        shares: defaultdict[tuple[str, ...], list[Subscriber]] = defaultdict(list)
        for member, audiences in heard.items():
            shares[tuple(audiences)].append(member)
        for key, members in shares.items():
            own = sorted(chain.from_iterable(places[audience] for audience in key))
            yield members, [frame for place in own for frame in runs[place][1]]

    def _send(self, members: Collection[Subscriber], frames: list[bytes]) -> None:
        if self._refused:
            members = [member for member in members if member not in self._refused]
        for data in _joined(frames):
            self.sent_bytes += len(data) * len(members)
            refused = [member for member in members if not member.send(data)]
            if refused:
                self._refused.update(refused)
                members = [member for member in members if member not in self._refused]
        self.deliveries += len(frames) * len(members)


def _joined(frames: list[bytes]) -> Iterator[bytes]:
    """`frames` in order, neighbours joined as long as the whole stays below `JOIN_BYTES`."""
    if len(frames) == 1:
        yield frames[0]
        return
    batch: list[bytes] = []
    size = 0
    for frame in frames:
        if batch and size + len(frame) > JOIN_BYTES:
            yield b"".join(batch)
            batch, size = [], 0
        batch.append(frame)
        size += len(frame)
    yield b"".join(batch)


def of_topic(topic: str) -> str:
    """The audience of all who subscribed to `topic`."""
    return f"topic:{topic}"


def of_user(user: str) -> str:
    """The audience of all clients of `user`."""
    return f"user:{user}"


def of_role(role: str) -> str:
    """The audience of all clients whose token gives them `role`."""
    return f"role:{role}"


def personal(user: str | None, role: str | None) -> list[str]:
    """The audiences that a client is in because of its user and role."""
    audiences = [of_user(user)] if user is not None else []
    return [*audiences, of_role(role)] if role is not None else audiences


def is_personal(audience: str) -> bool:
    """Whether a client is in it for being who it is."""
    return audience.startswith(("user:", "role:"))


def joining(topic: str) -> str:
    """Those who wait to be let into `topic`: what is said on it is not for them yet."""
    return f"joining:{topic}"


def topic_of(audience: str) -> str | None:
    """The topic whose audience this is; None if it is a user's, a role's, or of those who wait."""
    return audience[6:] if audience.startswith("topic:") else None


def topics_of(audiences: Iterable[str]) -> set[str]:
    """The topics that whoever is in `audiences` hears, or waits to hear."""
    return {topic for topic in map(topic_of, map(channel_of, audiences)) if topic is not None}


def channel_of(audience: str) -> str:
    """The audience whose channel serves this one: those who wait for a topic need the topic's."""
    return f"topic:{audience[8:]}" if audience.startswith("joining:") else audience
