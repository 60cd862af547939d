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
    """Tokens of one user that a node has fetched ahead from a bucket that the whole cluster shares.

    A node asks for as many as were spent in the last window, at most `most`, and at least for those that it needs now.
    So rare use is counted exactly, and steady use costs a few round trips a second. A purse holds at most `most`; they
    are lost when it has been idle for a window.
    """

    WINDOW_SECONDS: Final = 1.0
    PAUSE_SECONDS: Final = 0.1  # after a refusal, so that a client that goes on does not cost a round trip each time

    __slots__ = ("_asking", "_held", "_most", "_paused_until", "_refused", "_spent", "_spent_before", "_window_ends")

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = self._spent = self._spent_before = self._asking = self._refused = 0
        self._window_ends = self._paused_until = UNUSED

    def spend(self, now: float, count: int = 1) -> bool:
        """Spend `count` tokens. False, and none is spent, if fewer are here."""
        self._turn(now)
        if self._held < count:
            return False
        self._held -= count
        self._spent += count
        return True

    def ask(self, now: float, count: int = 1) -> int:
        """How many tokens to fetch for a use of `count`: `fetched` must follow. 0: as many were refused a moment ago.

        One fetch at a time is ahead of its use: otherwise each of many clients would fetch for all of them.
        """
        if now < self._paused_until and count >= self._refused:
            return 0
        ahead = 0 if self._asking else min(max(self._spent, self._spent_before), self._most)
        self._asking += 1
        return max(count, ahead)

    def fetched(self, granted: int, now: float, count: int = 1) -> None:
        """The fetch for a use of `count` is over, and gave so many."""
        self._turn(now)
        self._asking -= 1
        self._held += granted
        if granted < count:
            self._refused, self._paused_until = count, now + self.PAUSE_SECONDS

    def idle(self, now: float) -> bool:
        """Whether it holds nothing worth remembering."""
        return now > self._window_ends + self.WINDOW_SECONDS and not self._asking

    def _turn(self, now: float) -> None:
        if now < self._window_ends:
            return
        if self.idle(now):
            self._held = self._spent = 0
        self._spent_before, self._spent = self._spent, 0
        self._window_ends = now + self.WINDOW_SECONDS
