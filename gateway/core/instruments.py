"""Counters, gauges and histograms that are updated for each message: an update is one addition.  (pure)

They are not safe for several threads: only the event loop's thread updates and reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


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


class Gauge:
    """A number that is set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def set(self, value: float) -> None:
        """Set the number."""
        self.value = value


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


Instrument: TypeAlias = Counter | Counters | Gauge | Histogram


class Described(NamedTuple):
    """An instrument with its name, its help text and the name of its label, or "" if it has none."""

    name: str
    about: str
    label: str
    instrument: Instrument


class Instruments(list[Described]):
    """The instruments of one process, in the order in which they are shown."""

    def counter(self, name: str, about: str) -> Counter:
        """Add a counter without a label."""
        counter = Counter()
        self.append(Described(name, about, "", counter))
        return counter

    def counters(self, name: str, about: str, label: str) -> Counters:
        """Add counters with one label."""
        counters = Counters()
        self.append(Described(name, about, label, counters))
        return counters

    def gauge(self, name: str, about: str) -> Gauge:
        """Add a gauge."""
        gauge = Gauge()
        self.append(Described(name, about, "", gauge))
        return gauge

    def histogram(self, name: str, about: str) -> Histogram:
        """Add a histogram of seconds."""
        histogram = Histogram(SECONDS)
        self.append(Described(name, about, "", histogram))
        return histogram
