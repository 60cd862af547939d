"""JSON texts that Python can hold, and values that JSON can hold.  (pure)"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any, Final, TypeAlias

import orjson

from gateway.core import json_numbers

Json: TypeAlias = Any  # what orjson can read and write
RequestId: TypeAlias = str | int | None

MAX_NESTING: Final = 254  # levels of a JSON value, the most that orjson writes


def loads(text: bytes, beneath: int = 0) -> Json:
    """Parse `text` as JSON. orjson can write the returned value again, even inside `beneath` levels of other values.

    Raises:
        numbers.NumberError: `text` holds an integer beyond 64 bits, or a number beyond the range of floats.
        ValueError: `text` is not JSON, or with `beneath` more levels it is nested deeper than `MAX_NESTING`.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "infinity" in error.msg:
            raise json_numbers.InfiniteError from None
        raise
    # orjson reads four times as deep as it writes. A text with few brackets cannot be deep, so most texts skip this.
    if text.count(b"[") + text.count(b"{") > MAX_NESTING - beneath:
        wrapped = value
        for _ in range(beneath):
            wrapped = [wrapped]
        try:
            orjson.dumps(wrapped)
        except TypeError:
            raise ValueError(f"nested deeper than {MAX_NESTING - beneath}") from None
    json_numbers.check(text)
    return value


def dumps(value: Json) -> bytes:
    """Encode a Python value as JSON.

    Raises:
        ValueError: JSON cannot hold the value unchanged. It has an integer beyond 64 bits, NaN, an infinity, a lone
            surrogate, a key that is not a string, an object of another type, or more than `MAX_NESTING` levels.
    """
    try:
        text = orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"the value cannot be written as JSON: {error}") from None
    # orjson writes NaN and infinities as null.
    if b"null" in text and _has_nan_or_infinity(value):
        raise ValueError(
            "the value cannot be written as JSON: NaN and infinities are no JSON numbers; send null or text"
        )
    return text


def _has_nan_or_infinity(value: Json) -> bool:
    """Whether `value`, which orjson can write, contains NaN or an infinity."""
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(map(_has_nan_or_infinity, value.values()))
        case list() | tuple():
            return any(map(_has_nan_or_infinity, value))
        case enum.Enum():
            return _has_nan_or_infinity(value.value)
    if dataclasses.is_dataclass(value):
        return any(_has_nan_or_infinity(getattr(value, each.name)) for each in dataclasses.fields(value))
    return False
