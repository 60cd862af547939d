"""Keys, values and expiry times of the Redis in memory."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Callable
from typing import Any, Final

WRONG_TYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"


class RedisError(Exception):
    """An error reply: its code and text, as Redis words them."""


class Status(str):
    """A status reply."""

    __slots__ = ()


class SortedSet(dict[bytes, float]):
    """Members and scores; ordered by score, then by member."""

    def ordered(self) -> list[tuple[float, bytes]]:
        """All, in order."""
        return sorted((score, member) for member, score in self.items())


class Hash(dict[bytes, bytes]):
    """Fields and values."""


class Stream:
    """Entries in the order of their ids; the last id survives the entries."""

    def __init__(self) -> None:
        self.ids: list[tuple[int, int]] = []
        self.entries: list[list[bytes]] = []
        self.last = (0, 0)

    def span(self, first: bytes, last: bytes) -> tuple[int, int]:
        """Where the entries from `first` to `last` begin and end."""
        low = bisect.bisect_left(self.ids, stream_id(first, 0))
        return low, bisect.bisect_right(self.ids, stream_id(last, (1 << 64) - 1))


class Dataset:
    """Keys, values and expiry times; `now_ms` gives the time in ms since 1970."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.now_us = now_us
        self._values: dict[bytes, Any] = {}
        self._expires: dict[bytes, int] = {}  # ms since 1970

    def now_ms(self) -> int:
        """Time in ms since 1970."""
        return self.now_us() // 1000

    def state(self) -> tuple[dict[bytes, Any], dict[bytes, int]]:
        """A copy of everything, for `restore`."""
        return copy.deepcopy(self._values), dict(self._expires)

    def restore(self, state: tuple[dict[bytes, Any], dict[bytes, int]]) -> None:
        """Hold what `state` holds."""
        self._values, self._expires = copy.deepcopy(state[0]), dict(state[1])

    def keys(self) -> list[bytes]:
        """All that have not expired."""
        return [key for key in list(self._values) if self._living(key)]

    def get(self, key: bytes, kind: type) -> Any:
        """The value of `key`; None if there is none.

        Raises:
            RedisError: It is of another kind.
        """
        if not self._living(key):
            return None
        value = self._values[key]
        if not isinstance(value, kind):
            raise RedisError(WRONG_TYPE)
        return value

    def make(self, key: bytes, kind: type) -> Any:
        """The value of `key`, made empty if there is none."""
        value = self.get(key, kind)
        if value is None:
            value = self._values[key] = kind()
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Set a string; its TTL is gone."""
        self._values[key] = value
        self._expires.pop(key, None)

    def drop(self, key: bytes) -> int:
        """Delete a key; how many there were."""
        found = self._living(key)
        self._values.pop(key, None)
        self._expires.pop(key, None)
        return int(found)

    def prune(self, key: bytes) -> None:
        """Delete an empty hash or sorted set."""
        if not self._values.get(key, True):
            self.drop(key)

    def expire_at(self, key: bytes, ms: int) -> int:
        """Expire at a time; 0 if there is no such key."""
        if not self._living(key):
            return 0
        self._expires[key] = ms
        self._living(key)
        return 1

    def ttl_ms(self, key: bytes) -> int:
        """Milliseconds to live; -1: without end, -2: no such key."""
        if not self._living(key):
            return -2
        return self._expires[key] - self.now_ms() if key in self._expires else -1

    def kind(self, key: bytes) -> Status:
        """The type of a key."""
        names = {bytes: "string", Hash: "hash", SortedSet: "zset", Stream: "stream"}
        return Status(names[type(self._values[key])] if self._living(key) else "none")

    def _living(self, key: bytes) -> bool:
        if key not in self._values:
            return False
        ends = self._expires.get(key)
        if ends is not None and ends <= self.now_ms():
            del self._values[key], self._expires[key]
            return False
        return True


def stream_id(text: bytes, sequence: int) -> tuple[int, int]:
    """The id of a stream entry; `sequence` where `text` has none.

    Raises:
        RedisError: It is none.
    """
    if text in (b"-", b"+"):
        return (0, 0) if text == b"-" else ((1 << 64) - 1, (1 << 64) - 1)
    ms, dash, number = text.partition(b"-")
    try:
        return int(ms), int(number) if dash else sequence
    except ValueError:
        raise RedisError("ERR Invalid stream ID specified as stream command argument") from None
