"""Backoff, heartbeat, log limits, and the time to replace a token.  (pure)"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Final

MISSED_PONGS: Final = 3
REFRESH_SECONDS: Final = 60.0  # a token is replaced this long before it expires, or in the last quarter of its time


class Backoff:
    """Exponential backoff with full jitter: each wait is random between 0 and a bound that doubles.

    So many clients that lost their connections together reconnect at different times. `uniform(low, high)` returns a
    random number.
    """

    def __init__(self, base_seconds: float, cap_seconds: float, uniform: Callable[[float, float], float]) -> None:
        self._base = base_seconds
        self._cap = cap_seconds
        self._uniform = uniform
        self._attempt = 0

    def seconds(self, reconnect_ms: int | None = None) -> float:
        """The next wait. `reconnect_ms`: the wait that the server asked for, if any."""
        bound = min(self._cap, self._base * 2 ** min(self._attempt, 32))
        self._attempt += 1
        return reconnect_ms / 1000 if reconnect_ms is not None else self._uniform(0, bound)

    def reset(self) -> None:
        """Start again with the shortest wait, after a success."""
        self._attempt = 0


class PingMonitor:
    """Counts pings without a message after them. Any message counts, since a pong may wait behind many others."""

    def __init__(self) -> None:
        self._unanswered = 0

    def ping_due(self) -> bool:
        """Count a ping. False if too many pings had no answer, so the server is dead."""
        if self._unanswered >= MISSED_PONGS:
            return False
        self._unanswered += 1
        return True

    def received(self) -> None:
        """Record that the server has sent a message."""
        self._unanswered = 0


class FailureLog:
    """Decides which failures to log: each new reason, and the same reason once a minute."""

    REPEAT_SECONDS: Final = 60.0

    def __init__(self) -> None:
        self._reason: str | None = None
        self._last = 0.0

    def due(self, reason: str, now: float) -> bool:
        """Whether to log this failure. `now`: seconds of a monotonic clock."""
        if reason == self._reason and now - self._last < self.REPEAT_SECONDS:
            return False
        self._reason, self._last = reason, now
        return True

    def reset(self) -> None:
        """Log the next failure in any case, after a success."""
        self._reason = None


def refresh_seconds(token: str, now: float) -> float | None:
    """Seconds from `now` (since 1970) until the token should be replaced; None if it has no expiry in the future."""
    try:
        claims = token.split(".")[1]
        left = float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]) - now
    except (ValueError, IndexError, KeyError, TypeError):
        return None  # not a JWT; the server announces its expiry
    return left - min(REFRESH_SECONDS, left / 4) if left > 0 else None
