"""Rate limits: token buckets that store one number each.  (pure)

A rate allows bursts of `BURST_SECONDS` seconds' worth of tokens. A bucket stores one time: when the tokens taken so far
will have been refilled. If that time is in the past, tokens are left. If it is in the future, the bucket is overdrawn.
So an unused bucket is a shared constant, and a used one is a float.

Refused messages take tokens too. A client that continues to send gets deeper into debt until the verdict is
`DISCONNECT`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

BURST_SECONDS: Final = 10.0
DEBT_SECONDS: Final = 10.0  # a larger debt is `DISCONNECT`
UNUSED: Final = -math.inf  # the state of an unused bucket
# A message takes one more token for each full part of this size, since parsing cost grows with the bytes.
MESSAGE_PART_BYTES: Final = 64 << 10
# This many parts count as one message. A part is a fragment, or a read that ends within a frame.
PARTS_PER_MESSAGE: Final = 16

_ROUNDING: Final = 1e-6  # seconds of tolerance for floating-point rounding


class RateOutcome(enum.Enum):
    """The verdict on the message that was just counted."""

    ALLOWED = enum.auto()  # within the rate
    REFUSED = enum.auto()  # over the rate: answer with an error
    DISCONNECT = enum.auto()  # far over the rate: close the connection


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A rate limit of `per_second` tokens on average."""

    per_second: float

    def take(self, spent: float, now: float, count: float = 1.0) -> float:
        """The state of the bucket `spent` after `count` tokens are taken. `now`: seconds of a monotonic clock."""
        return max(spent, now - BURST_SECONDS) + count / self.per_second

    def left(self, spent: float, now: float) -> int:
        """The number of whole tokens left."""
        return max(0, math.floor((now + _ROUNDING - max(spent, now - BURST_SECONDS)) * self.per_second))


def rate_outcome(spent: float, now: float) -> RateOutcome:
    """The verdict on the message that brought a bucket to the state `spent`."""
    debt = spent - now - _ROUNDING
    if debt <= 0:
        return RateOutcome.ALLOWED
    return RateOutcome.REFUSED if debt <= DEBT_SECONDS else RateOutcome.DISCONNECT


@dataclass(frozen=True, slots=True)
class ClientRates:
    """The rate limits of each client."""

    messages: RateLimit
    subscriptions: RateLimit
    log_lines: RateLimit


class ClientUsage:
    """The token buckets of one client."""

    __slots__ = ("_log_lines", "_messages", "_subscriptions")

    def __init__(self) -> None:
        self._messages = self._subscriptions = self._log_lines = UNUSED

    def count_message(self, rates: ClientRates, size: int, now: float) -> RateOutcome:
        """Count a message of `size` bytes."""
        self._messages = rates.messages.take(self._messages, now, 1 + size // MESSAGE_PART_BYTES)
        return rate_outcome(self._messages, now)

    def count_part(self, rates: ClientRates, now: float) -> RateOutcome:
        """Count a part of a message. `count_message` counts the whole message when it is complete."""
        return self.count_extra(rates, 1 / PARTS_PER_MESSAGE, now)

    def count_extra(self, rates: ClientRates, messages: float, now: float) -> RateOutcome:
        """Count `messages` extra messages for an expensive one."""
        self._messages = rates.messages.take(self._messages, now, messages)
        return rate_outcome(self._messages, now)

    def count_topics(self, rates: ClientRates, topics: int, now: float) -> RateOutcome:
        """Count the subscriptions of one message: `topics` is the sum of the prices of its topics."""
        self._subscriptions = rates.subscriptions.take(self._subscriptions, now, topics)
        return rate_outcome(self._subscriptions, now)

    def count_log_lines(self, rates: ClientRates, lines: int, now: float) -> int:
        """The number of `lines` that the node may write. Only these are counted."""
        granted = min(lines, rates.log_lines.left(self._log_lines, now))
        self._log_lines = rates.log_lines.take(self._log_lines, now, granted)
        return granted


class TokenBucket:
    """The tokens of one user that a node has fetched ahead from a bucket in Redis that all nodes share.

    A node fetches as many tokens as it spent in the last window: at most `most`, and at least those that it needs now.
    So rare use is counted exactly, and steady use costs a few round trips a second. A bucket holds at most `most`
    tokens. They are lost when the bucket is idle for a window.
    """

    WINDOW_SECONDS: Final = 1.0
    PAUSE_SECONDS: Final = 0.1  # after Redis granted too few tokens, so that a flood does not cost a round trip each

    __slots__ = ("_asking", "_held", "_most", "_paused_until", "_refused", "_spent", "_spent_before", "_window_ends")

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = self._spent = self._spent_before = self._asking = self._refused = 0
        self._window_ends = self._paused_until = UNUSED

    def spend(self, now: float, count: int = 1) -> bool:
        """Spend `count` tokens. False, and none is spent, if fewer are left."""
        self._turn(now)
        if self._held < count:
            return False
        self._held -= count
        self._spent += count
        return True

    def ask(self, now: float, count: int = 1) -> int:
        """The number of tokens to fetch for a use of `count`; 0 if Redis refused as many within `PAUSE_SECONDS`.

        The caller must call `fetched` afterwards. Only one fetch at a time asks for tokens ahead of their use, since
        otherwise each of many clients would fetch for all of them.
        """
        if now < self._paused_until and count >= self._refused:
            return 0
        ahead = 0 if self._asking else min(max(self._spent, self._spent_before), self._most)
        self._asking += 1
        return max(count, ahead)

    def fetched(self, granted: int, now: float, count: int = 1) -> None:
        """Record that the fetch for a use of `count` has ended, and that Redis granted so many tokens."""
        self._turn(now)
        self._asking -= 1
        self._held += granted
        if granted < count:
            self._refused, self._paused_until = count, now + self.PAUSE_SECONDS

    def idle(self, now: float) -> bool:
        """Whether it was unused for so long that it may be dropped."""
        return now > self._window_ends + self.WINDOW_SECONDS and not self._asking

    def _turn(self, now: float) -> None:
        if now < self._window_ends:
            return
        if self.idle(now):
            self._held = self._spent = 0
        self._spent_before, self._spent = self._spent, 0
        self._window_ends = now + self.WINDOW_SECONDS
