"""Limits the bytes that a node buffers for all its clients together.  (pure)

Each client has its own byte budget, but thousands of clients within their budgets could still exhaust the memory.
Summing all buffers at each message would cost more than the messages. So clients report only growth, and only while
their buffer is not empty. When the reported growth may have reached the limit, the node sums the buffers and closes the
clients with the largest ones. The total exceeds the limit by at most an eighth.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

RELEASED_FRACTION: Final = 8
SMALL_BYTES: Final = 16 << 10  # smaller buffers are ignored until they grow again


class BufferedClient(Protocol):
    """A client with buffers."""

    def held_bytes(self) -> int:
        """The bytes in its buffers: not yet sent, and received of unfinished messages."""


H = TypeVar("H", bound=BufferedClient)


class BufferLimit(Generic[H]):
    """The clients with non-empty buffers. It calls `wake` when the caller should call `excess`."""

    def __init__(self, most_bytes: int, wake: Callable[[], object]) -> None:
        self._most = most_bytes
        self._wake = wake
        self._holders: set[H] = set()
        self._grown = 0  # since the last count
        self._allowed = most_bytes  # growth until the next count
        self._woken = False

    def grow(self, holder: H, size: int) -> None:
        """Record that the buffers of `holder` have grown by `size` bytes."""
        self._holders.add(holder)
        self._grown += size
        if self._grown > self._allowed and not self._woken:
            self._woken = True
            self._wake()

    def remove(self, holder: H) -> None:
        """Forget a client that is closed."""
        self._holders.discard(holder)

    def count(self) -> int:
        """The total bytes in the buffers of all known clients."""
        return sum(holder.held_bytes() for holder in self._holders)

    def excess(self) -> list[H]:
        """Sum the buffers. Returns the clients to close, largest first, so that the others stay within the limit."""
        self._woken = False
        sizes = {holder: size for holder in self._holders if (size := holder.held_bytes()) >= SMALL_BYTES}
        self._holders = set(sizes)
        total = sum(sizes.values())
        closing: list[H] = []
        if total > self._most:
            # A heap instead of a sort, since few of many clients must be closed.
            heap = [(-size, at, holder) for at, (holder, size) in enumerate(sizes.items())]
            heapq.heapify(heap)
            while total > self._most:
                size, _, holder = heapq.heappop(heap)
                total += size
                closing.append(holder)
        self._grown = 0
        self._allowed = max(self._most - total, self._most // RELEASED_FRACTION)
        return closing
