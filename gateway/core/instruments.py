"""Counters and histograms that are updated for each message: an update is one addition.  (pure)

They are not safe for several threads: only the event loop's thread updates and reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        """Add `amount`."""
        self.value += amount


class Counters(dict[str, Counter]):
    """Counters by the value of their one label; the values must be few."""

    __slots__ = ()

    def labels(self, value: str) -> Counter:
        """The counter with this value of the label."""
        counter = self.get(value)
        if counter is None:
            counter = self[value] = Counter()
        return counter


class Histogram:
    """How many of the observed values were at most each of the ascending `bounds`, and their sum."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = (*bounds, float("inf"))
        self.sum = 0.0
        self._counts = [0] * len(self.bounds)  # of the values between two bounds

    def observe(self, value: float) -> None:
        """Count `value`, which is a number."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def totals(self) -> list[int]:
        """For each of the `bounds`, how many values were at most that."""
        return list(accumulate(self._counts))
