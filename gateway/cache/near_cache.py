"""The near cache: texts that a node has read from the cache, kept until a change notice arrives.  (pure)

It keeps texts only while the node receives change notices, and drops all of them when it may have missed one. The
caller announces a read before it sends it (`reading`): if the key changes before the answer arrives, the text is not
kept, because the answer may be older than the change.

Times are arguments, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

MAX_SECONDS: Final = 5.0  # oldest age of a text, in case a notice is lost unnoticed
OVERHEAD_BYTES: Final = 200  # assumed overhead of an entry beyond its key and text
SHARE: Final = 16  # a text larger than 1/SHARE of the limit is not kept


class _CachedText(NamedTuple):
    text: bytes
    until: float  # time at which this copy is dropped
    ends: float  # time at which the value expires in Redis


class PendingRead:
    """The reads of one key that are in progress."""

    __slots__ = ("count", "valid")

    def __init__(self) -> None:
        self.count = 0  # reads in progress
        self.valid = True  # the key has not changed since the first of them began


class NearCache:
    """At most `max_bytes` of texts; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._subscription: int | None = None
        self._entries: OrderedDict[str, _CachedText] = OrderedDict()
        self._readings: dict[str, PendingRead] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def set_subscription(self, number: int | None) -> None:
        """Set the subscription that delivers change notices (`PubSub.confirmed_since`); None: there is none.

        If it differs from the previous one, notices may have been missed: drop all texts.
        """
        if number != self._subscription:
            self._subscription = number
            self.forget_all("")

    def get(self, key: str, now: float, margin: float = 0.0) -> bytes | None:
        """The text of `key`, if it is here and does not expire in Redis within `margin` seconds."""
        entry = self._entries.get(key)
        if entry is None or entry.ends - now <= margin:
            return None
        if entry.until <= now:
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry.text

    def begin_read(self, key: str) -> PendingRead:
        """Announce a read of `key`. The caller must call `end_read` afterwards, even if the read fails."""
        reading = self._readings.setdefault(key, PendingRead())
        reading.count += 1
        return reading

    def end_read(self, key: str, reading: PendingRead, text: bytes | None, seconds: float, now: float) -> None:
        """Finish a read with `text`, which expires in `seconds`; None: no value, or the read failed."""
        reading.count -= 1
        if not reading.count and self._readings.get(key) is reading:
            del self._readings[key]
        if text is None or seconds <= 0 or not reading.valid or self._subscription is None:
            return
        size = self._size(key, text)
        if size > self._max_bytes // SHARE:
            return
        self._forget(key)
        self._entries[key] = _CachedText(text, now + min(seconds, MAX_SECONDS), now + seconds)
        self.bytes += size
        while self.bytes > self._max_bytes:
            self._forget(next(iter(self._entries)))

    def forget(self, keys: Iterable[str]) -> None:
        """Drop these keys, which have changed."""
        for key in keys:
            self._forget(key)
            reading = self._readings.pop(key, None)
            if reading is not None:
                reading.valid = False

    def forget_all(self, prefix: str) -> None:
        """Drop all keys that begin with `prefix`, which have changed."""
        self.forget([key for names in (self._entries, self._readings) for key in names if key.startswith(prefix)])

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= self._size(key, entry.text)

    @staticmethod
    def _size(key: str, text: bytes) -> int:
        return len(key) + len(text) + OVERHEAD_BYTES
