"""How a client wants to receive the messages of a topic.  (pure)"""

from __future__ import annotations

from typing import Final, NamedTuple

from gateway.core import message, tags
from gateway.core.tag_filter import TagFilter

NODE_BYTES: Final = 64  # a node of a filter takes at most 4 us


class SubscriptionOptions(NamedTuple):
    """The options of one subscription."""

    tag_filter: TagFilter | None = None  # the client receives only messages that match it

    @property
    def read_cost(self) -> int:
        """The cost of `wants`, in bytes that take as long to send."""
        return 0 if self.tag_filter is None else NODE_BYTES * self.tag_filter.nodes

    def wants(self, body: bytes) -> bool:
        """Whether the client receives a message with this body."""
        return self.tag_filter is None or self.tag_filter.matches(tags.of_extras(message.unpack(body)[2]))


PLAIN: Final = SubscriptionOptions()
