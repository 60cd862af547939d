"""How often something may happen: token buckets of one number each.  (pure)

A rate is an average over `BURST_SECONDS`: that many seconds' worth may come at once, and what is not used is not saved
up beyond it. The state of a bucket is a moment: when all that was taken from it will have been earned. If that is
past there is something left, if it is to come it is overdrawn. So an unused bucket is a constant, a used one a float.

What was refused counts too, so whoever goes on is further and further in debt, until it is `ENOUGH`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

BURST_SECONDS: Final = 10.0
DEBT_SECONDS: Final = 10.0  # behind which it is enough
UNUSED: Final = -math.inf  # the state of a bucket that nobody has taken from
# A message counts once more for each such part: parsing costs by the byte.
MESSAGE_PART_BYTES: Final = 64 << 10

_LOST: Final = 1e-6  # seconds that floating point may have lost on the way


class Verdict(enum.Enum):
    """What becomes of what was just counted."""

    FINE = enum.auto()
    REFUSED = enum.auto()
    ENOUGH = enum.auto()


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_second` on average."""

    per_second: float

    def take(self, spent: float, now: float, count: float = 1.0) -> float:
        """The bucket's state once `count` more are taken; `now` in seconds of a clock that only goes on."""
        return max(spent, now - BURST_SECONDS) + count / self.per_second

    def left(self, spent: float, now: float) -> int:
        """How many whole ones may be taken."""
        return max(0, math.floor((now + _LOST - max(spent, now - BURST_SECONDS)) * self.per_second))


def verdict(spent: float, now: float) -> Verdict:
    """What becomes of what brought a bucket to the state `spent`."""
    debt = spent - now - _LOST
    if debt <= 0:
        return Verdict.FINE
    return Verdict.REFUSED if debt <= DEBT_SECONDS else Verdict.ENOUGH


@dataclass(frozen=True, slots=True)
class ClientRates:
    """What each client of a node may do in a second."""

    messages: Rate
    subscriptions: Rate
    log_lines: Rate


class Meter:
    """What one client has used of its rates."""

    __slots__ = ("_log_lines", "_messages", "_subscriptions")

    def __init__(self) -> None:
        self._messages = self._subscriptions = self._log_lines = UNUSED

    def message(self, rates: ClientRates, size: int, now: float) -> Verdict:
        """Count a message of `size` bytes."""
        self._messages = rates.messages.take(self._messages, now, 1 + size // MESSAGE_PART_BYTES)
        return verdict(self._messages, now)

    def subscribe(self, rates: ClientRates, topics: int, now: float) -> Verdict:
        """Count a SUBSCRIBE to so many topics."""
        self._subscriptions = rates.subscriptions.take(self._subscriptions, now, topics)
        return verdict(self._subscriptions, now)

    def log(self, rates: ClientRates, lines: int, now: float) -> int:
        """How many of so many log lines may be written; these are counted, the others are not."""
        granted = min(lines, rates.log_lines.left(self._log_lines, now))
        self._log_lines = rates.log_lines.take(self._log_lines, now, granted)
        return granted
