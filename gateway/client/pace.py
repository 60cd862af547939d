"""When to try again, and when a silent server is a dead one.  (pure)"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Final

MISSED_PONGS: Final = 3
REFRESH_SECONDS: Final = 60.0  # a token is replaced so long before its end, or in the last quarter of a short life


class Backoff:
    """Full jitter: each wait is anywhere between 0 and a bound that doubles, so that a crowd comes back spread out.

    `uniform(low, high)` gives a random number.
    """

    def __init__(self, base_seconds: float, cap_seconds: float, uniform: Callable[[float, float], float]) -> None:
        self._base = base_seconds
        self._cap = cap_seconds
        self._uniform = uniform
        self._attempt = 0

    def seconds(self, told_ms: int | None = None) -> float:
        """How long to wait now; `told_ms`: the server has said when to come."""
        bound = min(self._cap, self._base * 2 ** min(self._attempt, 32))
        self._attempt += 1
        return told_ms / 1000 if told_ms is not None else self._uniform(0, bound)

    def reset(self) -> None:
        """It went well."""
        self._attempt = 0


class Heartbeat:
    """Counts pings that nothing was heard after. Any message is a sign of life: a pong may stand behind many."""

    def __init__(self) -> None:
        self._unanswered = 0

    def ping(self) -> bool:
        """It is time for a ping. False: too many had no answer, the server is dead."""
        if self._unanswered >= MISSED_PONGS:
            return False
        self._unanswered += 1
        return True

    def heard(self) -> None:
        """The server said something."""
        self._unanswered = 0


class Reports:
    """Which failures are worth a line in the log: each new reason, and a lasting one every so often."""

    AGAIN_SECONDS: Final = 60.0

    def __init__(self) -> None:
        self._reason: str | None = None
        self._last = 0.0

    def due(self, reason: str, now: float) -> bool:
        """Whether to log this one; `now` in seconds."""
        if reason == self._reason and now - self._last < self.AGAIN_SECONDS:
            return False
        self._reason, self._last = reason, now
        return True

    def reset(self) -> None:
        """It went well: the next failure is news."""
        self._reason = None


def refresh_seconds(token: str, now: float) -> float | None:
    """When to replace a token, in seconds from `now` (since 1970); None: it says no end that is still to come."""
    try:
        claims = token.split(".")[1]
        left = float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]) - now
    except (ValueError, IndexError, KeyError, TypeError):
        return None  # no JWT: the server says when it ends
    return left - min(REFRESH_SECONDS, left / 4) if left > 0 else None
