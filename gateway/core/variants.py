"""The subscribers of a topic by the form in which they receive its messages.  (pure)

A subscriber with a filter or deltas is a member of its topic like any other: it counts, and receives presence. Only
messages differ. So the members of a topic that has such a subscriber form groups, each of which the hub delivers to by
itself: `plain:{topic}`, `delta:{topic}`, and `filter:{digest}:{topic}` for each distinct filter. Another topic has no
groups, and its messages cost no more than a look-up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, Generic

from gateway.core import message, tags
from gateway.core.deltas import Deltas, Member
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.events import Delivered, DeltaDelivered
from gateway.core.json_text import RequestId
from gateway.core.subscription_options import SubscriptionOptions
from gateway.core.tag_filter import TagFilter

# Nodes of the distinct filters of one topic on this node. Each message evaluates all of them, in 0.2 ms, at most 4 ms.
MAX_TOPIC_NODES: Final = 1000
# Bytes of filters as JSON text; in memory they are 25 times as large.
MAX_CLIENT_BYTES: Final = 16 << 10  # of one client, whose filter counts once for each topic
MAX_NODE_BYTES: Final = 4 << 20  # of the distinct filters of each topic of this node


class _Groups(Generic[Member]):
    """The groups of one topic."""

    __slots__ = ("delta", "filters", "group_of", "nodes", "plain")

    def __init__(self, topic: str) -> None:
        self.plain = f"plain:{topic}"
        self.delta = f"delta:{topic}"  # exists if it has a member
        self.group_of: dict[Member, str] = {}  # of the members that are not plain
        self.filters: dict[str, TagFilter] = {}  # by group
        self.nodes = 0  # of all filters


class Variants(Generic[Member]):
    """The groups of all topics that have a subscriber with options. The hub calls each method after it has flushed.

    `members`: the members of each audience, to which the groups are added.
    """

    def __init__(self, members: dict[str, set[Member]]) -> None:
        self._members = members
        self.topics: dict[str, _Groups[Member]] = {}  # by audience, until the audience is empty
        self.deltas: dict[str, Deltas[Member]] = {}  # by group
        self.varied: set[str] = set()  # both: the audiences whose messages do not reach all members as they are
        self._client_bytes: Counter[Member] = Counter()  # of filters, by member
        self._node_bytes = 0  # of filters

    def refusal(
        self, member: Member, audiences: Iterable[str], options: SubscriptionOptions, request_id: RequestId
    ) -> ProtocolError | None:
        """Why `member` cannot subscribe to these topics with `options`; None: it can."""
        wanted = options.tag_filter
        if wanted is None:
            return None
        size, of_client, of_node = len(wanted.canonical), self._client_bytes[member], self._node_bytes
        for audience in audiences:
            groups = self.topics.get(audience)
            of_client += size
            if groups is not None:
                old = groups.filters.get(groups.group_of.get(member, ""))
                of_client -= len(old.canonical) if old is not None else 0
                if _filter_group(audience, wanted) in groups.filters:
                    continue
                if groups.nodes + wanted.nodes > MAX_TOPIC_NODES:
                    text = f"The filters of {audience[6:]} on this node have {groups.nodes} nodes, of at most"
                    text += f" {MAX_TOPIC_NODES}; try again later, or use a filter that other clients use"
                    return ProtocolError(ErrorReason.UNAVAILABLE, text, request_id)
            of_node += size
        if of_client > MAX_CLIENT_BYTES:
            text = (
                f"The filters of a client have at most {MAX_CLIENT_BYTES} bytes, counted for each topic: shorten them"
            )
            return ProtocolError(ErrorReason.TOO_MANY_TOPICS, text, request_id)
        if of_node > MAX_NODE_BYTES:
            text = f"The filters of this node would have {of_node} bytes, of at most {MAX_NODE_BYTES}; try again later"
            return ProtocolError(ErrorReason.UNAVAILABLE, text, request_id)
        return None

    def groups(self, audience: str, event: Delivered) -> list[str]:
        """The groups of a topic in `topics` whose members receive a message."""
        groups = self.topics[audience]
        found = [groups.plain, groups.delta] if groups.delta in self.deltas else [groups.plain]
        if groups.filters:
            about = tags.of_extras(message.unpack(event.body)[2])
            found += [group for group, wanted in groups.filters.items() if wanted.matches(about)]
        return found

    def direct_forms(self, members: list[Member], event: Delivered) -> list[tuple[list[Member], Delivered]]:
        """A message that addresses `members` by user, role or id, in the form that each expects on its topic."""
        group = f"delta:{message.unpack(event.body)[1].decode()}"
        receivers = self._members[group] if group in self.deltas else ()
        chosen = [member for member in members if member in receivers]
        if not chosen:
            return [(members, event)]
        self.deltas[group].make_fresh(chosen)  # the next delta is not one to this message
        others = [member for member in members if member not in receivers]
        return [(chosen, DeltaDelivered(event, None)), *([(others, event)] if others else [])]

    def choose(self, member: Member, audience: str, options: SubscriptionOptions) -> None:
        """Move a member of a topic to the group of its options. `refusal` has found no reason against it."""
        groups = self.topics.get(audience)
        if groups is None:
            groups = self.topics[audience] = _Groups(audience[6:])
            self.varied.add(audience)
            self._members[groups.plain] = set(self._members[audience])
        self._remove(member, groups)
        group = groups.plain
        if options.tag_filter is not None:
            group = _filter_group(audience, options.tag_filter)
            if group not in groups.filters:
                groups.filters[group] = options.tag_filter
                groups.nodes += options.tag_filter.nodes
                self._node_bytes += len(options.tag_filter.canonical)
            self._client_bytes[member] += len(options.tag_filter.canonical)
        elif options.delta:
            group = groups.delta
            self.varied.add(group)
            self.deltas.setdefault(group, Deltas()).make_fresh([member])
        if group != groups.plain:
            groups.group_of[member] = group
        self._members.setdefault(group, set()).add(member)

    def join(self, member: Member, audience: str) -> None:
        """Add a new member of a topic in `topics`, without options."""
        self._members[self.topics[audience].plain].add(member)

    def leave(self, member: Member, audience: str) -> None:
        """Remove a member that has left a topic in `topics`."""
        groups = self.topics[audience]
        self._remove(member, groups)
        if not self._members[audience]:
            del self._members[groups.plain], self.topics[audience]
            self.varied.discard(audience)

    def _remove(self, member: Member, groups: _Groups[Member]) -> None:
        group = groups.group_of.pop(member, groups.plain)
        members = self._members[group]
        members.discard(member)
        if group == groups.delta:
            self.deltas[group].fresh.discard(member)
            if not members:
                del self._members[group], self.deltas[group]
                self.varied.discard(group)
        elif group != groups.plain:
            size = len(groups.filters[group].canonical)
            self._client_bytes[member] -= size
            if not self._client_bytes[member]:
                del self._client_bytes[member]
            if not members:
                del self._members[group]
                groups.nodes -= groups.filters.pop(group).nodes
                self._node_bytes -= size


def _filter_group(audience: str, wanted: TagFilter) -> str:
    return f"filter:{wanted.digest}:{audience[6:]}"
