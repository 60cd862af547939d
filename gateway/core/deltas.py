"""The subscribers of one topic that receive deltas: which message each of them has.  (pure)

A *settled* subscriber has received the previous message of the topic, so it can apply a delta to it. A *fresh* one has
not: it is new, or was left out of that message. It receives the next message whole, and is settled then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Generic, Protocol, TypeVar

from gateway.core import fossil_delta
from gateway.core.events import Delivered, DeltaDelivered


class _Member(Protocol):
    client_id: str


Member = TypeVar("Member", bound=_Member)


class Deltas(Generic[Member]):
    """The fresh subscribers of one topic, and the previous message. It exists while the topic has such a subscriber."""

    __slots__ = ("_previous", "fresh")

    def __init__(self) -> None:
        self.fresh: set[Member] = set()
        self._previous: Delivered | None = None  # None: there is none, or it is too large for deltas

    def next_form(self, event: Delivered) -> DeltaDelivered:
        """The form of the next message for settled subscribers."""
        form = DeltaDelivered(event, self._previous)
        self._previous = event if len(event.body) <= fossil_delta.MAX_BYTES else None
        return form

    def split(
        self, members: Collection[Member], event: Delivered, exclude: str | None, only: str | None
    ) -> list[tuple[list[Member], DeltaDelivered]]:
        """The next message in a form for each of `members` that receives it. `exclude`, `only`: ids of clients."""
        whole = DeltaDelivered(event, None)
        if only is not None:  # the others do not receive this message, so theirs is still the previous one
            chosen = [member for member in members if member.client_id == only]
            self.make_fresh(chosen)
            return [(chosen, whole)]
        fresh = [member for member in members if member in self.fresh and member.client_id != exclude]
        settled = [member for member in members if member not in self.fresh and member.client_id != exclude]
        self.fresh = {member for member in members if member.client_id == exclude}
        return [(settled, self.next_form(event)), (fresh, whole)]

    def make_fresh(self, members: Iterable[Member]) -> None:
        """Send these members the next message whole."""
        self.fresh.update(members)
