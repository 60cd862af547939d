"""Decoders of values read from Redis. An invalid value is skipped, counted and logged; it never raises to the caller.

Other programs, older versions and failed hardware write to the same Redis, so every value in it is input. The functions
below decode one value and raise `ValueError`. `RowDecoder` runs a decoder and turns its errors into a skipped row:
the metric `gateway_malformed_total{kind}`, and one log line for each kind every ten minutes.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal, TypeVar

import orjson

from gateway.core.message import check
from gateway.core.names import MAX_NAME_LENGTH
from gateway.logging import logger
from gateway.metrics import Metrics

# Kinds of rows. They are the values of a metric's label, so their number is bounded.
RowKind = Literal[
    "node", "client", "topic", "presence", "revocation", "slots", "service", "leader", "cache", "rules", "history",
    "snapshot", "quota", "message",
]  # fmt: skip

MAX_TEXT_BYTES: Final = 4 * MAX_NAME_LENGTH  # of a name in UTF-8
MAX_INTEGER: Final = (1 << 53) - 1  # the largest that JavaScript and the sorted sets of Redis represent exactly
REPEAT_SECONDS: Final = 600.0
SHOWN_CHARACTERS: Final = 120  # of a value or a key, in a log line

_NODE_ID: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}\.[0-9a-z]{1,16}")
_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}\.[0-9a-z]{1,16}\.[0-9]{1,18}")

T = TypeVar("T")
R = TypeVar("R")


class RowDecoder:
    """Decodes the rows of one process, and counts and logs the rows that it skips."""

    def __init__(self, metrics: Metrics, now: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._now = now
        self._logged: dict[RowKind, float] = {}  # when the last line was written; one entry for each kind

    def skip(self, kind: RowKind, key: str | bytes, reason: object, number: int = 1) -> None:
        """Count `number` rows of `key` as skipped; log it, unless this kind was logged in the last ten minutes."""
        self._metrics.malformed.labels(kind).inc(number)
        now = self._now()
        if now - self._logged.get(kind, -math.inf) >= REPEAT_SECONDS:
            self._logged[kind] = now
            logger().warning(
                "malformed value in Redis skipped", kind=kind, key=shown(key), reason=str(reason)[:SHOWN_CHARACTERS]
            )

    def decode(self, kind: RowKind, key: str | bytes, decode: Callable[[], T]) -> T | None:
        """The result of `decode`; None, counted and logged, if it raises an error that malformed input causes."""
        try:
            return decode()
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            self.skip(kind, key, f"{type(error).__name__}: {error}")
            return None

    def decode_each(
        self, kind: RowKind, key: str | bytes, values: Iterable[R], decode: Callable[[R], T]
    ) -> Iterator[T]:
        """The results of `decode` for `values`, without the values that it raises for."""
        for value in values:
            try:
                yield decode(value)
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                self.skip(kind, key, f"{type(error).__name__}: {error}")


# ---- one value


def text(value: Any, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """`value`, bytes of Redis, as text.

    Raises:
        ValueError: It is not UTF-8 text of 1 to `most_bytes` bytes.
    """
    if not isinstance(value, bytes) or not 0 < len(value) <= most_bytes:
        raise ValueError(f"{shown(value)} is not text of 1 to {most_bytes} bytes")
    return value.decode()


def integer(value: Any, least: int = 0, most: int = MAX_INTEGER) -> int:
    """`value`, an answer of Redis, as a whole number.

    Raises:
        ValueError: It is not a whole number from `least` to `most`.
    """
    if isinstance(value, bytes) and len(value) <= 20:
        value = int(value)
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{shown(value)} is not a whole number from {least} to {most}")
    return value


def seconds(value: Any) -> float:
    """`value`, a score of Redis, as a time in seconds since 1970.

    Raises:
        ValueError: It is not a time between 1970 and the year 33,000.
    """
    if isinstance(value, bytes) and len(value) <= 40:
        value = float(value)
    if not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ValueError(f"{shown(value)} is not a time in seconds since 1970")
    return float(value)


def json_object(value: Any, most_bytes: int) -> dict[str, Any]:
    """`value`, bytes of Redis, as a JSON object.

    Raises:
        ValueError: It is not a JSON object of at most `most_bytes` bytes.
    """
    if not isinstance(value, bytes) or len(value) > most_bytes:
        raise ValueError(f"{shown(value)} is not a JSON object of at most {most_bytes} bytes")
    found = orjson.loads(value)
    if not isinstance(found, dict):
        raise ValueError(f"{shown(value)} is not a JSON object")  # noqa: TRY004  the type of input, not of an argument
    return found


def node_id(value: Any) -> str:
    """`value`, bytes of Redis, as the id of a node, ``name.boot``.

    Raises:
        ValueError: It cannot be one.
    """
    found = text(value)
    if not _NODE_ID.fullmatch(found):
        raise ValueError(f"{shown(value)} is not a node id")
    return found


def client_id(value: Any) -> str:
    """`value`, bytes of Redis, as the id of a client, ``name.boot.counter``.

    Raises:
        ValueError: It cannot be one.
    """
    found = text(value)
    if not _CLIENT_ID.fullmatch(found):
        raise ValueError(f"{shown(value)} is not a client id")
    return found


def message(value: Any) -> bytes:
    """`value`, bytes of Redis, as the body of a message (`core/message.py`).

    Raises:
        ValueError: It is not one.
    """
    if not isinstance(value, bytes):
        raise ValueError(f"{shown(value)} is no message")  # noqa: TRY004  the type of input, not of an argument
    return check(value)


def pairs(flat: Any) -> list[tuple[Any, Any]]:
    """The pairs of an array of Redis that lists field, value, field, value, ...

    Raises:
        ValueError: It is not an array, or has an odd number of elements.
    """
    if not isinstance(flat, list | tuple):
        raise ValueError(f"{shown(flat)} is not an array")  # noqa: TRY004
    return list(zip(flat[::2], flat[1::2], strict=True))


def shown(value: Any) -> str:
    """`value` for a log line: shortened and printable."""
    if isinstance(value, bytes | str):
        start = value[:SHOWN_CHARACTERS]
        return f"{start!r}" if len(value) <= SHOWN_CHARACTERS else f"{start!r}… ({len(value)} long)"
    return repr(value)[:SHOWN_CHARACTERS] if isinstance(value, int | float | None) else type(value).__name__
