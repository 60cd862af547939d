"""The hub: the subscribers of each audience on this node, and the fan-out to them.  (pure)

An *audience* is a set of clients that one Redis channel addresses: ``topic:{name}``, ``user:{name}``,
``role:{name}``. The hub uses audiences only as keys.

Most of the cost of a delivery is the kernel's ``send``, so the hub makes few and large writes. A frame is built once.
The frames that arrive within one turn of the event loop are joined into one write, and subscribers that receive the
same frames share the joined buffer. When no other frame waits, the hub joins nothing and adds no delay. Each client
receives its frames in the order of arrival, over all its audiences.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Final, Protocol

from gateway.core.events import Broadcast, Delivered, Encoder
from gateway.core.subscription_options import PLAIN, SubscriptionOptions
from gateway.core.variants import Variants

# A joined write stays below this many bytes. Larger writes are not cheaper, and delay the detection of slow clients.
JOIN_BYTES: Final = 16 << 10


class Audiences(set[str]):
    """The audiences that one client is in. It keeps a count of the topics, since a client may have thousands."""

    __slots__ = ("personal", "topics")

    def __init__(self, audiences: Iterable[str] = ()) -> None:
        super().__init__()
        self.personal: tuple[str, ...] = ()  # the audiences of the client's user and role
        self.topics = 0  # distinct topics that the client is subscribed to, or waits to be subscribed to
        for audience in audiences:
            self.add(audience)

    def add(self, audience: str) -> None:
        """Add `audience`. Adding it twice changes nothing."""
        if audience not in self:
            self.topics += self._is_new_topic(audience)
            super().add(audience)
            if is_personal(audience):
                self.personal = (*self.personal, audience)

    def discard(self, audience: object) -> None:
        """Remove `audience`, if present."""
        if isinstance(audience, str) and audience in self:
            super().discard(audience)
            self.topics -= self._is_new_topic(audience)
            if is_personal(audience):
                self.personal = tuple(other for other in self.personal if other != audience)

    def clear(self) -> None:
        """Remove all audiences."""
        super().clear()
        self.topics, self.personal = 0, ()

    def has_topic(self, topic: str) -> bool:
        """Whether the client is subscribed to `topic`, or waits to be."""
        return topic_audience(topic) in self or joining_topic(topic) in self

    def _is_new_topic(self, audience: str) -> bool:
        """Whether `audience` belongs to a topic of which no other audience is present."""
        if audience.startswith("topic:"):
            return joining_topic(audience[6:]) not in self
        return audience.startswith("joining:") and topic_audience(audience[8:]) not in self


class Recipient(Protocol):
    """One client, as the fan-out sees it."""

    client_id: str
    audiences: Audiences  # only the hub changes it

    @property
    def protocol(self) -> Encoder:
        """Encodes the events that the client receives."""

    def send(self, data: bytes) -> bool:
        """Queue encoded frames. False if the client is too slow and must be closed."""


def _ignore(_recipient: Recipient | None = None) -> None:
    """Do nothing."""


class Hub:
    """The subscribers of each audience, and the frames that wait for them.

    Args: each may also be set later, before the first delivery.
        wake: Called when the first frame waits, so that the caller schedules `flush`.
        evict: Called with each subscriber whose `send` returned False. Only `flush` calls it, never `join`, `leave`
            or `remove`, because their callers still use the subscriber.
    """

    def __init__(
        self, wake: Callable[[], None] = _ignore, evict: Callable[[Recipient], None] = _ignore
    ) -> None:  # fmt: skip
        self.wake = wake
        self.evict = evict
        self._members: dict[str, set[Recipient]] = {}
        self.variants = Variants(self._members)
        self._varied = self.variants.varied
        self._runs: list[tuple[str, list[Broadcast]]] = []  # waiting; consecutive events of one audience share a run
        self._refused: set[Recipient] = set()  # to be evicted; they receive nothing more
        self._protocols: Counter[Encoder] = Counter()  # of the subscribers that have an audience
        self.memberships = 0
        self.topic_count = 0  # topics that have a member
        self.deliveries = 0  # frames sent to subscribers since the start
        self.sent_bytes = 0

    def __contains__(self, audience: str) -> bool:
        return audience in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def count(self, audience: str) -> int:
        """The number of subscribers of `audience` on this node."""
        return len(self._members.get(audience, ()))

    def count_topic(self, topic: str) -> int:
        """Number of subscribers of the topic."""
        return self.count(topic_audience(topic))

    def members(self, audience: str) -> Iterable[Recipient]:
        """A copy of the current subscribers of `audience`."""
        return tuple(self._members.get(audience, ()))

    def topics(self) -> Iterator[str]:
        """The topics that have a member, as of the call."""
        return (topic for topic in map(topic_of, tuple(self._members)) if topic is not None)

    def join(self, recipient: Recipient, audience: str) -> None:
        """Make `recipient` a member of `audience`. Joining twice changes nothing."""
        if audience in recipient.audiences:
            return
        self._flush_waiting()  # the new member must not receive events from before the join
        if not recipient.audiences:
            self._protocols[recipient.protocol] += 1
        recipient.audiences.add(audience)
        members = self._members.get(audience)
        if members is None:
            members = self._members[audience] = set()
            self.topic_count += topic_of(audience) is not None
        members.add(recipient)
        if audience in self._varied:
            self.variants.join(recipient, audience)
        self.memberships += 1

    def tailor(self, recipient: Recipient, audience: str, options: SubscriptionOptions) -> None:
        """Deliver the messages of a topic to its member `recipient` as `options` say, from now on."""
        if options != PLAIN or audience in self._varied:
            self._flush_waiting()
            self.variants.choose(recipient, audience, options)

    def leave(self, recipient: Recipient, audience: str) -> bool:
        """Remove `recipient` from `audience`. True if the audience has no member left."""
        if audience not in recipient.audiences:
            return False
        self._flush_waiting()  # the member still receives the events from before the leave
        recipient.audiences.discard(audience)
        if not recipient.audiences:
            self._forget_protocol(recipient)
        return self._remove_member(recipient, audience)

    def remove(self, recipient: Recipient) -> list[str]:
        """Remove `recipient` from all its audiences. Returns the audiences that have no member left."""
        if recipient.audiences:
            self._flush_waiting()  # it still receives the events from before the removal
            self._forget_protocol(recipient)
        emptied = [audience for audience in recipient.audiences if self._remove_member(recipient, audience)]
        recipient.audiences.clear()
        self._refused.discard(recipient)
        return emptied

    def _forget_protocol(self, recipient: Recipient) -> None:
        self._protocols[recipient.protocol] -= 1
        if not self._protocols[recipient.protocol]:
            del self._protocols[recipient.protocol]

    def _remove_member(self, recipient: Recipient, audience: str) -> bool:
        members = self._members[audience]
        members.discard(recipient)
        if audience in self._varied:
            self.variants.leave(recipient, audience)
        self.memberships -= 1
        if members:
            return False
        del self._members[audience]
        self.topic_count -= topic_of(audience) is not None
        return True

    def deliver(self, audience: str, event: Broadcast, exclude: str | None = None, only: str | None = None) -> None:
        """Queue `event` for all members of `audience`.

        `exclude` is the id of a client that does not receive it; `only` is the id of the one client that does.
        """
        members = self._members.get(audience)
        if not members:
            return
        if audience in self._varied and type(event) is Delivered:
            self._deliver_varied(audience, event, exclude, only)
            return
        if exclude is not None or only is not None:
            self._flush_waiting()
            chosen = [m for m in members if m.client_id != exclude and (only is None or m.client_id == only)]
            self._send(chosen, [event])
            self.flush()
            return
        if not self._runs:
            self.wake()
        if self._runs and self._runs[-1][0] == audience:
            self._runs[-1][1].append(event)
        else:
            self._runs.append((audience, [event]))

    def _deliver_varied(self, audience: str, event: Delivered, exclude: str | None, only: str | None) -> None:
        """Queue a message for the members of an audience in `Variants.varied`."""
        deltas = self.variants.deltas.get(audience)
        if deltas is None:
            for group in self.variants.groups(audience, event):
                self.deliver(group, event, exclude, only)
        elif exclude is None and only is None and not deltas.fresh:
            self.deliver(audience, deltas.next_form(event))
        else:
            self._flush_waiting()
            for chosen, form in deltas.split(self._members[audience], event, exclude, only):
                self._send(chosen, [form])
            self.flush()

    def deliver_directly(self, audience: str, event: Delivered, exclude: str | None = None) -> None:
        """Queue a message for the members of the audience of a user or role.

        Those who receive deltas on its topic receive it in that form.
        """
        if not self.variants.deltas:
            self.deliver(audience, event, exclude)
            return
        self._flush_waiting()
        members = [member for member in self._members.get(audience, ()) if member.client_id != exclude]
        for chosen, form in self.variants.direct_forms(members, event):
            self._send(chosen, [form])
        self.flush()

    def groups(self, audience: str, event: Broadcast) -> Iterable[str]:
        """The audiences, each a part of `audience` or itself, whose members receive `event`."""
        if audience in self._varied and type(event) is Delivered:
            return self.variants.groups(audience, event)
        return (audience,)

    def flush(self) -> None:
        """Send all waiting frames, then evict the subscribers whose `send` returned False."""
        self._flush_waiting()
        while self._refused:
            self.evict(self._refused.pop())

    def _flush_waiting(self) -> None:
        if not self._runs:
            return
        runs, self._runs = self._runs, []
        if len(runs) == 1:
            [(audience, events)] = runs
            self._send(self._members[audience], events)
        elif self._are_disjoint([audience for audience, _ in runs]):
            for audience, events in runs:
                self._send(self._members[audience], events)
        else:
            for members, events in self._groups(runs):
                self._send(members, events)

    def _are_disjoint(self, audiences: list[str]) -> bool:
        """Whether no subscriber is in two of `audiences`, so that there is nothing to join."""
        members = [self._members[audience] for audience in audiences]
        return len(set(audiences)) == len(audiences) and len(set().union(*members)) == sum(map(len, members))

    def _groups(self, runs: list[tuple[str, list[Broadcast]]]) -> Iterator[tuple[list[Recipient], list[Broadcast]]]:
        """Group the subscribers that receive the same events. Yields each group with its events, in order."""
        run_numbers: defaultdict[str, list[int]] = defaultdict(list)
        for number, (audience, _) in enumerate(runs):
            run_numbers[audience].append(number)
        audiences_of: defaultdict[Recipient, list[str]] = defaultdict(list)
        for audience in run_numbers:
            for member in self._members[audience]:
                audiences_of[member].append(audience)
        groups: defaultdict[tuple[str, ...], list[Recipient]] = defaultdict(list)
        for member, audiences in audiences_of.items():
            groups[tuple(audiences)].append(member)
        for key, members in groups.items():
            numbers = sorted(chain.from_iterable(run_numbers[audience] for audience in key))
            yield members, [event for number in numbers for event in runs[number][1]]

    def _send(self, members: Collection[Recipient], events: list[Broadcast]) -> None:
        if len(self._protocols) == 1:
            [protocol] = self._protocols
            self._send_frames(members, [event.frame(protocol) for event in events])
            return
        for protocol in tuple(self._protocols):
            some = [member for member in members if member.protocol is protocol]
            if some:
                self._send_frames(some, [event.frame(protocol) for event in events])

    def _send_frames(self, members: Collection[Recipient], frames: list[bytes]) -> None:
        if b"" in frames:  # a protocol without a form for an event
            frames = [frame for frame in frames if frame]
            if not frames:
                return
        if self._refused:
            members = [member for member in members if member not in self._refused]
        for data in frames if len(frames) == 1 else _joined(frames):
            self.sent_bytes += len(data) * len(members)
            refused = [member for member in members if not member.send(data)]
            if refused:
                self._refused.update(refused)
                members = [member for member in members if member not in self._refused]
        self.deliveries += len(frames) * len(members)


def _joined(frames: list[bytes]) -> Iterator[bytes]:
    """Join consecutive `frames` into buffers of at most `JOIN_BYTES` bytes. A larger frame stays alone."""
    batch: list[bytes] = []
    size = 0
    for frame in frames:
        if batch and size + len(frame) > JOIN_BYTES:
            yield b"".join(batch)
            batch, size = [], 0
        batch.append(frame)
        size += len(frame)
    yield b"".join(batch)


def topic_audience(topic: str) -> str:
    """The audience of all subscribers of `topic`."""
    return f"topic:{topic}"


def user_audience(user: str) -> str:
    """The audience of all clients of `user`."""
    return f"user:{user}"


def role_audience(role: str) -> str:
    """The audience of all clients whose token gives them `role`."""
    return f"role:{role}"


def personal_audiences(user: str | None, role: str | None) -> list[str]:
    """The audiences of a client's user and role."""
    audiences = [user_audience(user)] if user is not None else []
    return [*audiences, role_audience(role)] if role is not None else audiences


def is_personal(audience: str) -> bool:
    """Whether `audience` belongs to a user or a role."""
    return audience.startswith(("user:", "role:"))


def joining_topic(topic: str) -> str:
    """The audience of the clients whose SUBSCRIBE to `topic` is not confirmed yet. They do not receive its messages."""
    return f"joining:{topic}"


def join_leave_audience(topic: str) -> str:
    """The audience of the subscribers of `topic` that are sent each client that joins or leaves."""
    return f"clients:{topic}"


def topic_of(audience: str) -> str | None:
    """The topic of a topic audience. None for the audience of a user, of a role, or of waiting clients."""
    return audience[6:] if audience.startswith("topic:") else None


def topics_of(audiences: Iterable[str]) -> set[str]:
    """The topics among `audiences` to which a client is subscribed, or waits to be."""
    return {topic for topic in map(topic_of, map(channel_of, audiences)) if topic is not None}


def channel_of(audience: str) -> str:
    """The audience whose Redis channel serves `audience`: all audiences of a topic need the topic's channel."""
    kind, _, topic = audience.partition(":")
    return f"topic:{topic}" if kind in ("joining", "clients") else audience
