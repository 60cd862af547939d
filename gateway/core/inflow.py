"""Whether a node takes one socket more: how many it has, and how fast they come.  (pure)

The verdict comes before anything is known of who asks, and is cheap: a storm that is refused must cost less than one
that is let in.
"""

from __future__ import annotations

from typing import Final, Literal

from gateway.core.rates import UNUSED, Rate

Limit = Literal["connections", "connects"]

# Beyond the connections that a node may have, one more for each so many is listened to: whoever asks whether it is
# ready, or what it measures, must get an answer from a full node too.
SPARE_PART: Final = 20


class Inflow:
    """Lets in `per_second` sockets on average while there are at most `most` connections of any kind."""

    def __init__(self, most: int, per_second: float) -> None:
        self._most = most
        self._crammed = most + max(10, most // SPARE_PART)
        self._rate = Rate(per_second)
        self._spent = UNUSED

    def refuses(self, connections: int, now: float) -> Limit | None:
        """The limit that one socket more would pass; None: it is let in. `connections`: with the one that asks."""
        if connections > self._most:
            return "connections"
        # Unlike a client's, what is refused does not count: they are different people.
        if self._rate.left(self._spent, now) < 1:
            return "connects"
        self._spent = self._rate.take(self._spent, now)
        return None

    def is_crammed(self, connections: int) -> bool:
        """Whether one more, whatever it wants, cannot even be listened to."""
        return connections > self._crammed
