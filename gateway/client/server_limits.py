"""The server's limits for message size and subscription rate, and how the client respects them.  (pure)"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

BURST_SECONDS: Final = 10.0  # the server's rates are averages over this time
# The largest SUBSCRIBE. The server accepts more, but replies to a small one in time and counts it as one message.
SUBSCRIBE_BYTES: Final = 60_000
SUBSCRIBE_TOPICS: Final = 500
_HEAD_BYTES: Final = 100  # of a SUBSCRIBE, besides the topics and their positions


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The server's limits for one client, from its `welcome`."""

    message_bytes: int = 1 << 20
    subscriptions_per_second: float = 1500.0


def parse_limits(limits: Mapping[str, Any]) -> ServerLimits:
    """The limits in a `welcome`. The default applies for a limit that is missing or not a positive number."""
    size, rate = limits.get("messageBytes"), limits.get("subscriptionsPerSecond")
    return ServerLimits(
        size if isinstance(size, int) and size > 0 else ServerLimits().message_bytes,
        rate if isinstance(rate, int | float) and rate > 0 else ServerLimits().subscriptions_per_second,
    )


def batches(
    topics: Iterable[str], recover: Callable[[str], Mapping[str, Any] | None], most_bytes: int,
    most_topics: int = SUBSCRIBE_TOPICS,
) -> Iterator[list[str]]:  # fmt: skip
    """Split topics into batches, each for one SUBSCRIBE or UNSUBSCRIBE of at most `most_bytes`.

    `recover` gives the position that is sent with a topic, or None. A topic that is too large alone has its own batch.
    """
    batch: list[str] = []
    size = _HEAD_BYTES
    for topic in topics:
        place = recover(topic)
        name = len(orjson.dumps(topic)) + 1
        more = name if place is None else 2 * name + len(orjson.dumps(place)) + 1
        if batch and (size + more > most_bytes or len(batch) >= most_topics):
            yield batch
            batch, size = [], _HEAD_BYTES
        batch.append(topic)
        size += more
    if batch:
        yield batch


class SendRate:
    """Limits the client to 90% of one of the server's rates. `now`: seconds of a monotonic clock."""

    def __init__(self, per_second: float) -> None:
        self._rate = 0.9 * per_second
        self._spent = -math.inf  # the time at which all tokens taken so far are refilled
        self.most = max(1, math.floor(self._rate * BURST_SECONDS))  # the largest burst

    def delay(self, count: int, now: float) -> float:
        """How long to wait before `count` may be sent."""
        return min(max(self._after(count, now) - now, 0.0), BURST_SECONDS)

    def take(self, count: int, now: float) -> None:
        """Count `count` sent subscriptions."""
        self._spent = self._after(count, now)

    def refused(self, now: float) -> None:
        """Record that the server has refused subscriptions: no tokens are left at `now`."""
        self._spent = max(self._spent, now)

    def _after(self, count: int, now: float) -> float:
        return max(self._spent, now - BURST_SECONDS) + count / self._rate
