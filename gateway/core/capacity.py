"""Decides whether a node accepts one more connection, by the count of connections and the rate of new ones.  (pure)

The node decides before it reads anything from the connection, so that rejecting a storm of connections is cheap.
"""

from __future__ import annotations

from typing import Final, Literal

from gateway.core.rate_limits import UNUSED, RateLimit

CapacityLimit = Literal["connections", "connects"]

# Above its limit a node accepts one extra connection per 20, so that health checks and metrics scrapes still get an
# answer from a full node.
SPARE_FRACTION: Final = 20


class Capacity:
    """Accepts `per_second` sockets on average, while there are at most `most` connections of any kind."""

    def __init__(self, most: int, per_second: float) -> None:
        self._most = most
        self._hard_limit = most + max(10, most // SPARE_FRACTION)
        self._rate = RateLimit(per_second)
        self._spent = UNUSED

    def exceeded(self, connections: int, now: float) -> CapacityLimit | None:
        """The limit that the new connection exceeds; None: accept it. `connections` includes the new one."""
        if connections > self._most:
            return "connections"
        # Rejected connections do not count here (in a client's rate they do), since they come from different clients.
        if self._rate.left(self._spent, now) < 1:
            return "connects"
        self._spent = self._rate.take(self._spent, now)
        return None

    def is_overloaded(self, connections: int) -> bool:
        """Whether the node must close a new connection without reading its request."""
        return connections > self._hard_limit
