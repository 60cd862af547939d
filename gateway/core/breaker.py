"""A circuit breaker: what fails again and again is left alone for a while, then tried once.

It opens at the fifth failure within 300 s. After 60 s one trial is let through (half-open): its success closes the
breaker, its failure opens it again for twice as long, 300 s at most. Three trials in a row may fail, or help for
less than 300 s; then the breaker rests for half an hour, or until `reset`, and begins anew. What a stranger may
repair at any moment - a back end - is better tried without end (`recoveries=None`; then no trial is later than 300 s),
and sooner: `open_seconds` scales the 60 s and the 300 s.

Time is an argument, in seconds of a clock that never goes back.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

FAILURES: Final = 5
WINDOW_SECONDS: Final = 300.0
OPEN_SECONDS: Final = 60.0
MAX_OPEN_SECONDS: Final = 300.0
RECOVERIES: Final = 3
REST_SECONDS: Final = 1800.0

State = Literal["closed", "open", "half-open"]


class Breaker:
    """One breaker for one thing that can fail.

    `recoveries`: trials before it rests; None: it never does. `open_seconds`: before the first trial.
    """

    def __init__(self, recoveries: int | None = RECOVERIES, open_seconds: float = OPEN_SECONDS) -> None:
        self.state: State = "closed"
        self._recoveries = recoveries
        self._open_seconds = open_seconds
        self._failures: deque[float] = deque(maxlen=FAILURES)  # when, while closed
        self._trials = 0  # since the breaker was last closed for a whole window
        self._due = 0.0  # open: when a trial is let through; half-open: when the trial counts as failed
        self._closed_at = 0.0

    def allows(self, now: float) -> bool:
        """Whether to try. When half-open, True is said once: whoever gets it owes `succeeded` or `failed`.

        A trial that says neither within a minute counts as failed.
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
        """A try went well. While open it is a late answer and changes nothing."""
        if self.state == "half-open":
            self.state, self._closed_at = "closed", now

    def failed(self, now: float) -> None:
        """A try failed. While open it is a late answer and changes nothing."""
        if self.state == "half-open":
            self._open(now)
        elif self.state == "closed":
            self._failures.append(now)
            if len(self._failures) == FAILURES and now - self._failures[0] <= WINDOW_SECONDS:
                if now - self._closed_at > WINDOW_SECONDS:
                    self._trials = 0
                self._open(now)

    def reset(self) -> None:
        """Closed, and nothing remembered: somebody has repaired it."""
        self.state, self._trials = "closed", 0
        self._failures.clear()

    def wait(self, now: float) -> float:
        """Seconds until `allows` may say True."""
        return 0.0 if self.state == "closed" else max(0.0, self._due - now)

    def _open(self, now: float) -> None:
        if self._recoveries is not None and self._trials >= self._recoveries:
            wait, self._trials = REST_SECONDS, 0
        else:
            # Capped before it is raised: without an end of trials the power would grow without one.
            scale = self._open_seconds / OPEN_SECONDS
            wait = min(self._open_seconds * 2 ** min(self._trials, 8), MAX_OPEN_SECONDS * scale)
        self.state, self._due = "open", now + wait
        self._failures.clear()
