"""Fencing tokens: what a singleton shows with each write, so that an older leader cannot write."""

from __future__ import annotations

from typing import Final, NamedTuple


class Fence(NamedTuple):
    """Proof of leadership that a singleton sends with each write."""

    service: str
    token: int
    until_ms: int  # end of its lease, in ms since 1970, by the clock of Redis


NO_FENCE: Final = Fence("", 0, 0)


class Fenced(Exception):
    """Redis rejected the write of a singleton: its lease has ended, or its successor has written already."""
