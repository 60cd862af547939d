"""How many clients a node gives away, when each goes, and when it may be back.  (pure)

A client that ignores `reconnectMs` comes back a fixed time after its close (the first front end: 3 s), so spread
closes are spread reconnects. The others come back at once but for a little jitter; only where the closes were pressed
together does `reconnectMs` hold them back, so that they arrive at a rate the other nodes can take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

# A node that is so much above the mean is left alone: who is moved reconnects, and the counts are seconds old.
TOLERANCE: Final = 0.1
# HAProxy gives a node that has come up its share slowly (haproxy.cfg, `slowstart 20s`, and two checks before): whoever
# is moved earlier would mostly be sent back.
WARM_SECONDS: Final = 25.0
# Over how long moves are spread if nobody says otherwise, and at most.
SECONDS: Final = 60.0
MAX_SECONDS: Final = 3600.0
# What the rest of a cluster takes in without being felt: a core accepts some 1,500 a second.
RECONNECTS_A_SECOND: Final = 1000
MIN_RECONNECT_MS: Final = 50
JITTER_MS: Final = 450  # breaks up those that are closed in the same turn


class Move(NamedTuple):
    """What one node gives away: all but `keep` clients, which were `clients` when this was planned."""

    clients: int
    keep: int


def plan(clients: Mapping[str, int], tolerance: float = TOLERANCE) -> dict[str, Move]:
    """What each node should give away, by node id; a node that should give nothing is not in it.

    `clients` are the numbers of those nodes that take new ones. A node keeps the mean, rounded up.
    """
    if not clients:
        return {}
    mean = sum(clients.values()) / len(clients)
    most, keep = mean * (1 + tolerance), math.ceil(mean)
    return {node: Move(count - keep, keep) for node, count in clients.items() if count > most and count > keep}


def moments(count: int, seconds: float, chance: Callable[[], float]) -> Iterator[float]:
    """When each of `count` is due within `seconds`: one in each equal part of it, anywhere in that part.

    `chance` gives numbers from 0 to below 1.
    """
    for at in range(count):
        yield seconds * (at + chance()) / count


def reconnect_ms(count: int, seconds: float, chance: Callable[[], float]) -> int:
    """The personal `reconnectMs` of one of `count` clients that are closed within `seconds`."""
    pressed_ms = 1000 * (count / RECONNECTS_A_SECOND - seconds)
    return MIN_RECONNECT_MS + int(chance() * max(JITTER_MS, pressed_ms))
