"""Plans a rebalance: how many clients a node moves, when it closes each, and when each may reconnect.  (pure)

A client that ignores `reconnectMs` reconnects a fixed time after its close (the first front end: 3 s). The closes are
spread over time, so its reconnects are spread too. Other clients reconnect after `reconnectMs`, a short random time.
If the closes come faster than the other nodes can accept reconnects, `reconnectMs` grows to spread the reconnects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

# A node at most this far above the mean moves no clients: each move costs a reconnect, and the counts are seconds old.
TOLERANCE: Final = 0.1
# HAProxy raises the share of a new node slowly (haproxy.cfg: two checks, then `slowstart 20s`). A client that is moved
# earlier would mostly reconnect to the old node.
SLOW_START_SECONDS: Final = 25.0
# The time over which moves are spread: the default and the maximum.
SECONDS: Final = 60.0
MAX_SECONDS: Final = 3600.0
# Reconnects that the other nodes accept without a noticeable delay. One core accepts about 1,500 a second.
RECONNECTS_PER_SECOND: Final = 1000
MIN_RECONNECT_MS: Final = 50
JITTER_MS: Final = 450  # spreads the clients that are closed in the same turn of the event loop


class ClientMove(NamedTuple):
    """The move of one node: it keeps `keep` clients and moves the others, `clients` of them when this was planned."""

    clients: int
    keep: int


def plan(clients: Mapping[str, int], tolerance: float = TOLERANCE) -> dict[str, ClientMove]:
    """Plan the move of each node that has too many clients, by node id. A node keeps the mean, rounded up.

    `clients` holds the client count of each node that accepts new clients.
    """
    if not clients:
        return {}
    mean = sum(clients.values()) / len(clients)
    most, keep = mean * (1 + tolerance), math.ceil(mean)
    return {node: ClientMove(count - keep, keep) for node, count in clients.items() if count > most and count > keep}


def close_times(count: int, seconds: float, chance: Callable[[], float]) -> Iterator[float]:
    """The times (seconds from now) of `count` closes: one at a random time in each of `count` equal parts of `seconds`.

    `chance` returns a random number from 0 to below 1.
    """
    for at in range(count):
        yield seconds * (at + chance()) / count


def reconnect_ms(count: int, seconds: float, chance: Callable[[], float]) -> int:
    """A random `reconnectMs` for one of `count` clients that the node closes within `seconds`."""
    excess_ms = 1000 * (count / RECONNECTS_PER_SECOND - seconds)
    return MIN_RECONNECT_MS + int(chance() * max(JITTER_MS, excess_ms))
