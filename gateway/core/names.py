"""Names that clients choose, and values of theirs in error messages.  (pure)"""

from __future__ import annotations

from typing import Any, Final

MAX_NAME_LENGTH: Final = 200  # characters of an action, a subtype, a request id, a user or a client id


def is_name(value: Any) -> bool:
    """Whether `value` is a string that may be a name (of an action, a subtype, a user, …)."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_LENGTH


def quoted(value: Any) -> str:
    """`value` as text for an error message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
