"""A circuit breaker: after repeated failures it blocks calls for a while, then allows one trial.

The breaker opens at the fifth failure within 300 s. After 60 s it is half-open and allows one trial. If the trial
succeeds, the breaker closes. If it fails, the breaker opens again for twice as long, at most 300 s. After three
trials in a row that fail, or whose success lasts less than 300 s, the breaker stays open for half an hour or until
`reset`, and then starts again from the beginning. For a back end, which other people may repair at any time, use
`recoveries=None`: the breaker then never rests and no trial is more than 300 s away. `open_seconds` scales the 60 s
and the 300 s.

Time is an argument: seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

FAILURES: Final = 5
WINDOW_SECONDS: Final = 300.0
OPEN_SECONDS: Final = 60.0
MAX_OPEN_SECONDS: Final = 300.0
RECOVERIES: Final = 3
QUIET_SECONDS: Final = 1800.0

BreakerState = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """The circuit breaker of one service or peer.

    Args:
        recoveries: Trials before the breaker rests; None: it never rests.
        open_seconds: The time that it stays open before the first trial.
    """

    def __init__(self, recoveries: int | None = RECOVERIES, open_seconds: float = OPEN_SECONDS) -> None:
        self.state: BreakerState = "closed"
        self._recoveries = recoveries
        self._open_seconds = open_seconds
        self._failures: deque[float] = deque(maxlen=FAILURES)  # when, while closed
        self._trials = 0  # since the breaker was last closed for a whole window
        self._due = 0.0  # open: when a trial is allowed; half-open: when the trial counts as failed
        self._closed_at = 0.0

    def allows(self, now: float) -> bool:
        """Whether the caller may make the call. When half-open, this returns True once, for the trial.

        The caller of the trial must call `succeeded` or `failed`. Without either, the trial fails after a minute.
        """
        if self.state == "closed":
            return True
        if now < self._due:
            return False
        if self.state == "half-open":
            self._open(now)
            return False
        self.state, self._due = "half-open", now + OPEN_SECONDS
        self._trials += 1
        return True

    def succeeded(self, now: float) -> None:
        """Record a success. While open, this is the late result of an earlier call and changes nothing."""
        if self.state == "half-open":
            self.state, self._closed_at = "closed", now

    def failed(self, now: float) -> None:
        """Record a failure. While open, this is the late result of an earlier call and changes nothing."""
        if self.state == "half-open":
            self._open(now)
        elif self.state == "closed":
            self._failures.append(now)
            if len(self._failures) == FAILURES and now - self._failures[0] <= WINDOW_SECONDS:
                if now - self._closed_at > WINDOW_SECONDS:
                    self._trials = 0
                self._open(now)

    def reset(self) -> None:
        """Close the breaker and forget all failures, because an operator has repaired the cause."""
        self.state, self._trials = "closed", 0
        self._failures.clear()

    def wait(self, now: float) -> float:
        """Seconds until `allows` may return True."""
        return 0.0 if self.state == "closed" else max(0.0, self._due - now)

    def _open(self, now: float) -> None:
        if self._recoveries is not None and self._trials >= self._recoveries:
            wait, self._trials = QUIET_SECONDS, 0
        else:
            # The exponent has a maximum, because the number of trials may grow without limit.
            scale = self._open_seconds / OPEN_SECONDS
            wait = min(self._open_seconds * 2 ** min(self._trials, 8), MAX_OPEN_SECONDS * scale)
        self.state, self._due = "open", now + wait
        self._failures.clear()
