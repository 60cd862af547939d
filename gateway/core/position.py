"""Positions in topics with history, and those in topics that have no message yet.  (pure)

A topic without messages has no key in Redis, hence no epoch of its own. Its epoch is then an *unborn* one. It names the
life of the Redis server, which changes when the server may have lost keys, and the hour. A client at such a position
can recover if Redis has lost nothing since: the topic was without messages then, so all that it has by now came later.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# So long such a position can be recovered from. It is below the shortest life of a topic's meta (history.META_MS), so a
# topic cannot get messages, be forgotten and get messages again within it.
UNBORN_HOURS: Final = 23

_UNBORN: Final = re.compile(r"u([0-9a-f]{12})t(\d{1,7})")


class Position(NamedTuple):
    """A place in a topic with history: the last message that a client or a node has.

    `mark` tells that message from any other that is given the same offset after Redis has lost data: the time of its
    publish by Redis' clock in microseconds since 1970, made to grow strictly (append.lua). 0: the topic had no message
    yet, or one without a mark. None: a client that sends no marks.
    """

    epoch: str
    offset: int
    mark: int | None = None


def unborn(life: str, hours: int) -> str:
    """The epoch of a topic that has no message yet.

    `life`: 12 hexadecimal digits, the same as long as the Redis server has lost nothing. `hours`: since 1970.
    """
    return f"u{life}t{hours}"


def is_unborn(epoch: str) -> bool:
    """Whether `epoch` is that of a topic without messages."""
    return _UNBORN.fullmatch(epoch) is not None


def same_beginning(one: str, other: str) -> bool:
    """Whether two unborn epochs of a topic mean the same moment of its history: before its first message."""
    first, second = _UNBORN.fullmatch(one), _UNBORN.fullmatch(other)
    if first is None or second is None or first[1] != second[1]:
        return False
    return abs(int(first[2]) - int(second[2])) <= UNBORN_HOURS


def later(epoch: str, hours: int) -> str:
    """The unborn `epoch` as it is at `hours` since 1970, if the topic still has no message."""
    match = _UNBORN.fullmatch(epoch)
    return epoch if match is None else unborn(match[1], hours)
