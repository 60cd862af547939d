"""Numbers in JSON text that this process cannot hold unchanged.  (pure)

orjson reads an integer beyond 64 bits as a float: `100000000000000000001` becomes `1e20` without an error. So such a
text is refused before its value is used. Fractions and exponents are 64-bit floats by agreement (RFC 8259, section 6)
and stay as they are.
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
    """A text holds a number that would be changed; the message names it, and what to do instead."""


class InfiniteError(NumberError):
    """A number is larger than all floats, so the rest of the text was not read."""

    def __init__(self) -> None:
        super().__init__("a number is beyond the range of 64-bit floats (about 1.8e308); send it as a string")


def check(text: bytes) -> None:
    """Refuse `text`, which is JSON, if an integer in it has more than 64 bits.

    The cost is that of three passes in C: about 1 ms for each MiB, 15 ms at worst.

    Raises:
        NumberError: One has.
    """
    if _RUN not in text.translate(_DIGITS):
        return
    for found in _INTEGER.finditer(_without_strings(text)):
        digits = found[0]
        # Not `int` of any length: reading a number costs the square of its digits. JSON has no leading zeros.
        if len(digits) > 20 or not LEAST <= int(digits) <= MOST:
            raise NumberError(
                f"the integer {_shown(digits)} has more than 64 bits and would be rounded; send it as a string"
            )


def _shown(digits: bytes) -> str:
    """A number as an error shows it: of a long one the beginning."""
    text = digits.decode()
    return text if len(text) <= _SHOWN_DIGITS else f"{text[:_SHOWN_DIGITS]}... ({len(text)} characters)"


def _without_strings(text: bytes) -> bytes:
    if b"\\" in text:  # backslashes stand in strings only: without pairs of them, each one left escapes what follows
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b'"'.join(text.split(b'"')[::2])
