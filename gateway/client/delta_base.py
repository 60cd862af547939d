"""The text to which the next delta of a topic applies.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.core import fossil_delta, json_text

MAX_TEXT_BYTES: Final = 1 << 20  # of a text that a delta describes


class DeltaBase:
    """The base of one topic. Without a delta in the stream it stays empty."""

    __slots__ = ("_text",)

    def __init__(self) -> None:
        self._text = b""

    def expanded(self, frame: Mapping[str, Any]) -> dict[str, Any]:
        """A DATA frame with its data as published. `frame` has the field `delta`.

        Raises:
            ValueError: The delta does not apply, or the text is not JSON.
        """
        raw = frame["data"].encode()
        base, self._text = self._text, b""
        text = fossil_delta.apply(base, raw, MAX_TEXT_BYTES) if frame["delta"] else raw
        data = json_text.loads(text)
        self._text = text
        return {**{name: value for name, value in frame.items() if name != "delta"}, "data": data}
