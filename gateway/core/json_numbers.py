"""Rejects numbers in JSON text that orjson would change.  (pure)

orjson reads an integer beyond 64 bits as a float: `100000000000000000001` becomes `1e20` without an error. `check`
rejects such a text. Numbers with a fraction or an exponent are 64-bit floats (RFC 8259, section 6) and are accepted.
"""

from __future__ import annotations

import re
from typing import Final

LEAST: Final = -(1 << 63)
MOST: Final = (1 << 64) - 1

# The shortest integer beyond 64 bits, -9223372036854775809, has 19 digits.
_RUN: Final = b"1" * 19
_DIGITS: Final = bytes(0x31 if 0x30 <= byte <= 0x39 else 0x30 for byte in range(256))  # a digit -> 1, all else -> 0
_INTEGER: Final = re.compile(rb"(?<![0-9.eE])(?<![eE][+\-])-?+[0-9]{19,}+(?![.eE])")
_SHOWN_DIGITS: Final = 24


class NumberError(ValueError):
    """A JSON text holds a number that orjson would change. The message names the number and the remedy."""


class InfiniteError(NumberError):
    """A number exceeds the range of floats. The rest of the text was not read."""

    def __init__(self) -> None:
        super().__init__("a number is beyond the range of 64-bit floats (about 1.8e308); send it as a string")


def check(text: bytes) -> None:
    """Check that each integer in `text`, valid JSON, fits into 64 bits.

    It makes at most three passes in C: about 1 ms for each MiB, 15 ms at worst.

    Raises:
        NumberError: An integer does not fit.
    """
    if _RUN not in text.translate(_DIGITS):
        return
    for found in _INTEGER.finditer(_without_strings(text)):
        digits = found[0]
        # Check the length first: `int` takes quadratic time in the digits. JSON has no leading zeros.
        if len(digits) > 20 or not LEAST <= int(digits) <= MOST:
            raise NumberError(
                f"the integer {_shown(digits)} has more than 64 bits and would be rounded; send it as a string"
            )


def _shown(digits: bytes) -> str:
    """A number for an error message. A long one is cut."""
    text = digits.decode()
    return text if len(text) <= _SHOWN_DIGITS else f"{text[:_SHOWN_DIGITS]}... ({len(text)} characters)"


def _without_strings(text: bytes) -> bytes:
    if b"\\" in text:  # backslashes occur only in strings; after removing pairs, each escapes a character
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b'"'.join(text.split(b'"')[::2])
