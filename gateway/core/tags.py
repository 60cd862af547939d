"""Tags of a message: a small map of strings by which subscribers filter.  (pure)"""

from __future__ import annotations

from typing import Final, TypeAlias

import orjson

from gateway.core.json_text import Json
from gateway.core.message import SENDER
from gateway.core.names import MAX_NAME_LENGTH, is_name, quoted

MAX_TAGS: Final = 16

Tags: TypeAlias = dict[str, str]


def check(value: Json) -> Tags:
    """Validate the tags of a message and return a copy.

    Raises:
        ValueError: `value` is not a map of at most `MAX_TAGS` names to strings, or a string is too long.
    """
    if not isinstance(value, dict):
        raise ValueError(f"tags must be an object of strings, not {quoted(value)}")  # noqa: TRY004  the type of input
    if len(value) > MAX_TAGS:
        raise ValueError(f"{len(value)} tags exceed the limit of {MAX_TAGS}: put the rest into the data")
    for name, tag in value.items():
        if not is_name(name):
            raise ValueError(f"the name of a tag must be 1 to {MAX_NAME_LENGTH} characters, not {quoted(name)}")
        if not (isinstance(tag, str) and len(tag) <= MAX_NAME_LENGTH):
            raise ValueError(
                f"the tag {quoted(name)} must be a string of at most {MAX_NAME_LENGTH} characters, not {quoted(tag)}"
            )
    return dict(value)


def of_extras(extras: bytes) -> Tags:
    """The tags of a message for a protocol that has no other extras: action, subtype and priority are tags too.

    Extras that are not JSON, which another program may have written, are none.
    """
    if extras == b"{}":
        return {}
    try:
        found = orjson.loads(extras)
    except ValueError:
        return {}
    own = found.pop("tags", None)
    found.pop(SENDER, None)
    if isinstance(own, dict):
        found = {**own, **found}
    return {name: str(value) for name, value in found.items()}
