"""How a client wants to receive the messages of a topic.  (pure)"""

from __future__ import annotations

from typing import Final, NamedTuple

from gateway.core import message, tags
from gateway.core.json_text import Json
from gateway.core.tag_filter import TagFilter

DELTA_FORMAT: Final = "fossil"  # as clients name it
NODE_BYTES: Final = 64  # a node of a filter takes at most 4 us


class SubscriptionOptions(NamedTuple):
    """The options of one subscription."""

    tag_filter: TagFilter | None = None  # the client receives only messages that match it
    delta: bool = False  # the client receives messages as deltas; not together with a filter

    @property
    def read_cost(self) -> int:
        """The cost of `wants`, in bytes that take as long to send."""
        return 0 if self.tag_filter is None else NODE_BYTES * self.tag_filter.nodes

    def wants(self, body: bytes) -> bool:
        """Whether the client receives a message with this body."""
        return self.tag_filter is None or self.tag_filter.matches(tags.of_extras(message.unpack(body)[2]))


PLAIN: Final = SubscriptionOptions()


def parse(tree: Json, *, delta: bool) -> SubscriptionOptions:
    """The options with the filter `tree`, as a client gives it; None: without a filter.

    Raises:
        ValueError: `tree` is not a filter, or stands beside `delta`. A node would compute a delta for each filter.
    """
    if tree is None:
        return SubscriptionOptions(delta=True) if delta else PLAIN
    if delta:
        raise ValueError("a subscription has a filter or deltas, not both: leave one of them out")
    return SubscriptionOptions(TagFilter(tree))
