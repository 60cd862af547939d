"""Topic names, and who may hear and say what.  (pure)"""

from __future__ import annotations

import enum
import re
from typing import Final

MAX_TOPIC_LENGTH: Final = 200

# Exact, case-sensitive names. No braces and no spaces: a topic stands inside Redis keys and hash tags.
_NAME = re.compile(r"[A-Za-z0-9_:.\-/]{1,200}")

SYSTEM: Final = "system"

_USER_TOPICS: Final = frozenset({"portfolio", "user", "wallet", "skyduel"})
_ADMIN_TOPICS: Final = frozenset({"admin"})


class Need(enum.Enum):
    """What a client must be for an act on a topic; ordered by nothing, compared by identity."""

    ANYONE = "anyone"
    USER = "user"
    ADMIN = "admin"
    NOBODY = "nobody"


def is_topic(name: object) -> bool:
    """Whether `name` is a string that can be a topic."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def to_subscribe(topic: str) -> Need:
    """What it takes to hear `topic`."""
    if topic in _ADMIN_TOPICS:
        return Need.ADMIN
    return Need.USER if topic in _USER_TOPICS else Need.ANYONE


def to_publish(topic: str) -> Need:
    """What it takes, as a client, to say something on `topic`.

    ``system`` is the gateway's own voice: a client that could publish there could forge the answers
    that other clients wait for.
    """
    if topic == SYSTEM:
        return Need.NOBODY
    return Need.ADMIN if topic in _ADMIN_TOPICS else Need.USER
