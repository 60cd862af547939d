"""The subscribers of a topic by the form in which they receive its messages.  (pure)

A subscriber with a filter is a member of its topic like any other: it counts, and receives presence. Only messages
differ. So the members of a topic that has such a subscriber form groups, each of which the hub delivers to by itself:
`plain:{topic}`, and `filter:{digest}:{topic}` for each distinct filter. Another topic has no groups, and its messages
cost no more than a look-up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from gateway.core import message, tags
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.events import Delivered
from gateway.core.json_text import RequestId
from gateway.core.subscription_options import SubscriptionOptions
from gateway.core.tag_filter import TagFilter

# Nodes of the distinct filters of one topic on this node. Each message evaluates all of them, in 0.2 ms, at most 4 ms.
MAX_TOPIC_NODES: Final = 1000
MAX_CLIENT_FILTERS: Final = 100  # topics to which one client is subscribed with a filter

Member = TypeVar("Member")


class _Groups(Generic[Member]):
    """The groups of one topic."""

    __slots__ = ("filters", "group_of", "nodes", "plain")

    def __init__(self, plain: str) -> None:
        self.plain = plain
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
        self._filters: Counter[Member] = Counter()  # topics with a filter, by member

    def refusal(
        self, member: Member, audiences: Iterable[str], options: SubscriptionOptions, request_id: RequestId
    ) -> ProtocolError | None:
        """Why `member` cannot subscribe to these topics with `options`; None: it can."""
        wanted = options.tag_filter
        if wanted is None:
            return None
        new = 0
        for audience in audiences:
            groups = self.topics.get(audience)
            new += groups is None or groups.group_of.get(member) not in groups.filters
            group = _filter_group(audience, wanted)
            if groups is not None and group not in groups.filters and groups.nodes + wanted.nodes > MAX_TOPIC_NODES:
                text = f"The filters of {audience.partition(':')[2]} on this node have {groups.nodes} nodes, of at most"
                text += f" {MAX_TOPIC_NODES}; try again later, or use a filter that other clients use"
                return ProtocolError(ErrorReason.UNAVAILABLE, text, request_id)
        if self._filters[member] + new > MAX_CLIENT_FILTERS:
            text = f"A client can have filters on at most {MAX_CLIENT_FILTERS} topics: subscribe without a filter"
            return ProtocolError(ErrorReason.TOO_MANY_TOPICS, text, request_id)
        return None

    def groups(self, audience: str, event: Delivered) -> list[str]:
        """The groups of a topic in `topics` whose members receive a message."""
        groups = self.topics[audience]
        found = [groups.plain]
        if groups.filters:
            about = tags.of_extras(message.unpack(event.body)[2])
            found += [group for group, wanted in groups.filters.items() if wanted.matches(about)]
        return found

    def choose(self, member: Member, audience: str, options: SubscriptionOptions) -> None:
        """Move a member of a topic to the group of its options. `refusal` has found no reason against it."""
        groups = self.topics.get(audience)
        if groups is None:
            plain = f"plain:{audience[6:]}"
            groups = self.topics[audience] = _Groups(plain)
            self._members[plain] = set(self._members[audience])
        self._remove(member, groups)
        group = groups.plain
        if options.tag_filter is not None:
            group = _filter_group(audience, options.tag_filter)
            if group not in groups.filters:
                groups.filters[group] = options.tag_filter
                groups.nodes += options.tag_filter.nodes
            groups.group_of[member] = group
            self._filters[member] += 1
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

    def _remove(self, member: Member, groups: _Groups[Member]) -> None:
        group = groups.group_of.pop(member, groups.plain)
        self._members[group].discard(member)
        if group in groups.filters:
            self._filters[member] -= 1
            if not self._filters[member]:
                del self._filters[member]
            if not self._members[group]:
                del self._members[group]
                groups.nodes -= groups.filters.pop(group).nodes


def _filter_group(audience: str, wanted: TagFilter) -> str:
    return f"filter:{wanted.digest}:{audience[6:]}"
