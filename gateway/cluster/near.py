"""What a node remembers of the cache: texts it has read, until word comes that they changed.  (pure)

It holds what was read while the node could hear of changes, and forgets it all when it may have missed one. A read is
announced before it is sent (`reading`): what changes until it is back is not remembered, or an old answer that was
long under way would replace the news.

Times are arguments, in seconds of a clock that never goes back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

MAX_SECONDS: Final = 5.0  # whatever goes wrong, no older than that
OVERHEAD_BYTES: Final = 200  # an entry beside its key and text
SHARE: Final = 16  # a text larger than this part of the whole is not remembered


class _Entry(NamedTuple):
    text: bytes
    until: float  # forgotten then
    ends: float  # the cache forgets it then


class Reading:
    """A read of one key that is under way."""

    __slots__ = ("count", "valid")

    def __init__(self) -> None:
        self.count = 0  # who reads it at this moment
        self.valid = True  # nothing has changed since the first of them began


class Near:
    """At most `max_bytes` of texts, the least used given up first."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._hearing: int | None = None
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._readings: dict[str, Reading] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def heard(self, hearing: int | None) -> None:
        """On which connection news of changes is heard; None: on none. Another than before: some may be missed."""
        if hearing != self._hearing:
            self._hearing = hearing
            self.forget_all("")

    def get(self, key: str, now: float, margin: float = 0.0) -> bytes | None:
        """The text of `key`, if it is remembered and the cache keeps it for more than `margin` seconds."""
        entry = self._entries.get(key)
        if entry is None or entry.ends - now <= margin:
            return None
        if entry.until <= now:
            self._forget(key)
            return None
        self._entries.move_to_end(key)
        return entry.text

    def reading(self, key: str) -> Reading:
        """A read of `key` is about to be sent; `read` must follow, whatever comes of it."""
        reading = self._readings.setdefault(key, Reading())
        reading.count += 1
        return reading

    def read(self, key: str, reading: Reading, text: bytes | None, seconds: float, now: float) -> None:
        """It is back with `text`, which the cache keeps for so many `seconds` more; or without (None)."""
        reading.count -= 1
        if not reading.count and self._readings.get(key) is reading:
            del self._readings[key]
        if text is None or seconds <= 0 or not reading.valid or self._hearing is None:
            return
        size = self._size(key, text)
        if size > self._max_bytes // SHARE:
            return
        self._forget(key)
        self._entries[key] = _Entry(text, now + min(seconds, MAX_SECONDS), now + seconds)
        self.bytes += size
        while self.bytes > self._max_bytes:
            self._forget(next(iter(self._entries)))

    def forget(self, keys: Iterable[str]) -> None:
        """These have changed."""
        for key in keys:
            self._forget(key)
            reading = self._readings.pop(key, None)
            if reading is not None:
                reading.valid = False

    def forget_all(self, prefix: str) -> None:
        """All whose names begin so have changed."""
        self.forget([key for names in (self._entries, self._readings) for key in names if key.startswith(prefix)])

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= self._size(key, entry.text)

    @staticmethod
    def _size(key: str, text: bytes) -> int:
        return len(key) + len(text) + OVERHEAD_BYTES
