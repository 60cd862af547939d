"""Times in milliseconds and as text.  (pure)"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=16)  # many messages are sent in the same millisecond
def iso_time(milliseconds: int) -> str:
    """Format a time (ms since 1970, UTC) as ISO 8601 with milliseconds: ``2026-01-31T12:00:00.000Z``."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_iso_second(seconds)}.{rest:03}Z"


@lru_cache(maxsize=16)
def _iso_second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat().removesuffix("+00:00")


class Clock:
    """Milliseconds of the clock `now`, which gives seconds since 1970."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def ms(self) -> int:
        """The time in ms since 1970."""
        return int(self._now() * 1000)
