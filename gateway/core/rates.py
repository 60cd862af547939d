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
# So many parts of messages count as a message: fragments, and reads that end within a frame.
PARTS_A_MESSAGE: Final = 16

_LOST: Final = 1e-6  # seconds that floating point may have lost on the way


class Outcome(enum.Enum):
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


def verdict(spent: float, now: float) -> Outcome:
    """What becomes of what brought a bucket to the state `spent`."""
    debt = spent - now - _LOST
    if debt <= 0:
        return Outcome.FINE
    return Outcome.REFUSED if debt <= DEBT_SECONDS else Outcome.ENOUGH


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

    def message(self, rates: ClientRates, size: int, now: float) -> Outcome:
        """Count a message of `size` bytes."""
        self._messages = rates.messages.take(self._messages, now, 1 + size // MESSAGE_PART_BYTES)
        return verdict(self._messages, now)

    def part(self, rates: ClientRates, now: float) -> Outcome:
        """Count a part of a message, which is counted itself when it is whole."""
        return self.more(rates, 1 / PARTS_A_MESSAGE, now)

    def more(self, rates: ClientRates, messages: float, now: float) -> Outcome:
        """Count so many messages more, for what one costs."""
        self._messages = rates.messages.take(self._messages, now, messages)
        return verdict(self._messages, now)

    def subscribe(self, rates: ClientRates, topics: int, now: float) -> Outcome:
        """Count so many topics subscribed to, each by its price."""
        self._subscriptions = rates.subscriptions.take(self._subscriptions, now, topics)
        return verdict(self._subscriptions, now)

    def log(self, rates: ClientRates, lines: int, now: float) -> int:
        """How many of so many log lines may be written; these are counted, the others are not."""
        granted = min(lines, rates.log_lines.left(self._log_lines, now))
        self._log_lines = rates.log_lines.take(self._log_lines, now, granted)
        return granted


class Purse:
    """What one node has fetched from a bucket that the whole cluster shares, and how much it fetches next.

    It asks for as many as it spent in its last window, and one at first: rare use is counted exactly, and steady use
    costs a few round trips a second. What a window leaves over is lost: at most one part in `MAX_SHARE` of a second's.
    """

    WINDOW_SECONDS: Final = 1.0
    PAUSE_SECONDS: Final = 0.1  # after an empty answer: whoever goes on must not cost a round trip each time
    MAX_SHARE: Final = 5  # at most a fifth of a second's worth at once

    __slots__ = ("_held", "_paused_until", "_rate", "_spent", "_spent_before", "_window_ends")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._held = self._spent = self._spent_before = 0
        self._window_ends = self._paused_until = UNUSED

    def spend(self, now: float) -> bool:
        """Spend one of those that are here. False: there is none."""
        self._turn(now)
        if not self._held:
            return False
        self._held -= 1
        self._spent += 1
        return True

    def wanted(self, now: float) -> int:
        """How many to fetch; 0: none, it was in vain a moment ago."""
        if now < self._paused_until:
            return 0
        most = max(1, int(self._rate.per_second) // self.MAX_SHARE)
        return min(max(1, self._spent, self._spent_before), most)

    def fetched(self, granted: int, now: float) -> None:
        """So many were fetched."""
        self._turn(now)
        self._held += granted
        if not granted:
            self._paused_until = now + self.PAUSE_SECONDS

    def idle(self, now: float) -> bool:
        """Whether it holds nothing worth remembering."""
        return now > self._window_ends + self.WINDOW_SECONDS

    def _turn(self, now: float) -> None:
        if now < self._window_ends:
            return
        self._spent_before = 0 if self.idle(now) else self._spent
        self._spent = self._held = 0
        self._window_ends = now + self.WINDOW_SECONDS
