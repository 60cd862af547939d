"""What a node holds for all its clients together, and who must go when that is too much.  (pure)

Each client has a budget of its own; thousands within theirs could still take all the memory there is. To add up all
buffers at each message would cost more than the messages. So only what grows is reported, and only by clients whose
buffer is not empty in a moment; their buffers are looked at when enough has come that the ceiling may be reached. What
clients have taken meanwhile shows then. The ceiling is exceeded by at most an eighth.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

EIGHTH: Final = 8
SMALL_BYTES: Final = 16 << 10  # who holds less is not worth looking at again until it grows


class Holder(Protocol):
    """A client, as far as its buffers matter."""

    def held_bytes(self) -> int:
        """What is held for it now: not yet sent, and half received."""


H = TypeVar("H", bound=Holder)


class Backlog(Generic[H]):
    """The clients for which something is held. `wake` is called when it is time for `relieve`."""

    def __init__(self, most_bytes: int, wake: Callable[[], object]) -> None:
        self._most = most_bytes
        self._wake = wake
        self._holders: set[H] = set()
        self._grown = 0  # since the last count
        self._allowed = most_bytes  # growth until the next one
        self._woken = False

    def grew(self, holder: H, size: int) -> None:
        """`size` bytes more are held for `holder`."""
        self._holders.add(holder)
        self._grown += size
        if self._grown > self._allowed and not self._woken:
            self._woken = True
            self._wake()

    def forget(self, holder: H) -> None:
        """It is gone, and what was held for it."""
        self._holders.discard(holder)

    def count(self) -> int:
        """The bytes that are held, by who is known to hold some."""
        return sum(holder.held_bytes() for holder in self._holders)

    def relieve(self) -> list[H]:
        """Count anew. Who is to go, the largest first, so that the others are within the ceiling."""
        self._woken = False
        sizes = {holder: size for holder in self._holders if (size := holder.held_bytes()) >= SMALL_BYTES}
        self._holders = set(sizes)
        total = sum(sizes.values())
        going: list[H] = []
        if total > self._most:
            # Not sorted: few of many are to go.
            heap = [(-size, at, holder) for at, (holder, size) in enumerate(sizes.items())]
            heapq.heapify(heap)
            while total > self._most:
                size, _, holder = heapq.heappop(heap)
                total += size
                going.append(holder)
        self._grown = 0
        self._allowed = max(self._most - total, self._most // EIGHTH)
        return going
