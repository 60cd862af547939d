"""Positions in topics with history, including topics that have no message yet.  (pure)

A topic without messages has no key in Redis and so no epoch of its own. The node then uses an *unborn* epoch. It
consists of the life of the Redis server, which changes when the server may have lost keys, and of the hour. A client
with such a position can recover if Redis has lost nothing since: the topic had no messages then, so the client has
missed exactly the messages that the topic has now.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# For how long a client can recover from such a position. It is shorter than the TTL of a topic's meta key
# (history.META_MS), so within it a topic cannot get messages, expire, and get messages again.
UNBORN_HOURS: Final = 23

ANY_EPOCH: Final = "*"  # of a client that knows only an offset

_UNBORN: Final = re.compile(r"u([0-9a-f]{12})t(\d{1,7})")


class Position(NamedTuple):
    """A position in a topic with history: the last message that a client or a node has received.

    `mark` distinguishes messages with the same offset: after Redis has lost data, a new message may get the offset of
    a lost one. The mark is the time of the publish by Redis' clock, in microseconds since 1970, strictly increasing
    (append_history.lua). 0: the topic has no message yet, or its message has no mark. None: the client sends no marks.
    """

    epoch: str
    offset: int
    mark: int | None = None


def unborn(life: str, hours: int) -> str:
    """The unborn epoch: that of a topic without messages.

    `life` is 12 hexadecimal digits that change when the Redis server may have lost keys. `hours` counts from 1970.
    """
    return f"u{life}t{hours}"


def is_unborn(epoch: str) -> bool:
    """Whether `epoch` is an unborn epoch."""
    return _UNBORN.fullmatch(epoch) is not None


def same_unborn(one: str, other: str) -> bool:
    """Whether two unborn epochs of a topic both mean the position before the same first message."""
    first, second = _UNBORN.fullmatch(one), _UNBORN.fullmatch(other)
    if first is None or second is None or first[1] != second[1]:
        return False
    return abs(int(first[2]) - int(second[2])) <= UNBORN_HOURS


def unborn_at(epoch: str, hours: int) -> str:
    """The unborn `epoch` with its time moved to `hours` since 1970. Any other epoch is returned unchanged."""
    match = _UNBORN.fullmatch(epoch)
    return epoch if match is None else unborn(match[1], hours)
