"""The last messages of a topic in a node's memory: bounded in number and in bytes.  (pure)"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, Generic, Protocol, TypeVar, overload

HISTORY_BYTES: Final = 16 << 20  # of a topic, where its rule does not say
ENTRY_BYTES: Final = 64  # counted for a message beside its text, as in append.lua


class Sized(Protocol):
    """What has a text."""

    @property
    def text(self) -> bytes:
        """Its bytes are counted."""


E = TypeVar("E", bound=Sized)


class Recent(Sequence[E], Generic[E]):
    """At most `number` messages with at most `size` bytes; the oldest go first, the newest always stays."""

    __slots__ = ("_bytes", "_entries", "_number", "_size")

    def __init__(self, number: int, size: int) -> None:
        self._entries: deque[E] = deque()
        self._number = number
        self._size = size
        self._bytes = 0

    def append(self, entry: E) -> None:
        """Add the newest."""
        self._entries.append(entry)
        self._bytes += len(entry.text) + ENTRY_BYTES
        while len(self._entries) > self._number or (self._bytes > self._size and len(self._entries) > 1):
            self._bytes -= len(self._entries.popleft().text) + ENTRY_BYTES

    def clear(self) -> None:
        """Drop all."""
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
