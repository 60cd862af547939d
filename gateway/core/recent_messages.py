"""The most recent messages of a topic in a node's memory, limited in number and in bytes.  (pure)"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar, overload

HISTORY_BYTES: Final = 16 << 20  # the default limit of a topic
ENTRY_BYTES: Final = 64  # the overhead counted for each message, as in append_history.lua


class HasText(Protocol):
    """An entry with a body."""

    @property
    def body(self) -> bytes:
        """The body, whose bytes count toward the limit."""


E = TypeVar("E", bound=HasText)


class RecentMessages(Sequence[E], Generic[E]):
    """At most `number` messages with at most `size` bytes. The oldest are dropped first; the newest always stays."""

    __slots__ = ("_bytes", "_entries", "_number", "_size")

    def __init__(self, number: int, size: int) -> None:
        self._entries: deque[E] = deque()
        self._number = number
        self._size = size
        self._bytes = 0

    def append(self, entry: E) -> None:
        """Add the newest message."""
        self._entries.append(entry)
        self._bytes += len(entry.body) + ENTRY_BYTES
        while len(self._entries) > self._number or (self._bytes > self._size and len(self._entries) > 1):
            self._bytes -= len(self._entries.popleft().body) + ENTRY_BYTES

    def clear(self) -> None:
        """Drop all messages."""
        self._entries.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[E]:
        return iter(self._entries)

    @overload
    def __getitem__(self, at: int) -> E: ...

    @overload
    def __getitem__(self, at: slice) -> list[E]: ...

    def __getitem__(self, at: int | slice) -> E | list[E]:
        return list(self._entries)[at] if isinstance(at, slice) else self._entries[at]
