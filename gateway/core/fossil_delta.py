"""Deltas in Fossil's format: a text as the difference from an older one.  (pure)

A delta is one line with the size of the new text, then commands, then a checksum:

    <size>\\n            bytes of the new text
    <count>@<offset>,   copy `count` bytes of the old text from `offset`
    <count>:<bytes>     insert these `count` bytes
    <checksum>;         of the new text: the sum of its big-endian 32-bit words, the last one padded with zeros

Numbers are written in base 64. The format: https://fossil-scm.org/home/doc/trunk/www/delta_format.wiki

An encoder is free in its choice of commands. Fossil's uses a rolling hash, which would cost Python a microsecond for
each byte. This one looks up 16 bytes at a time in a dictionary, and compares slices, which costs a tenth of that.
A delta between two texts in UTF-8 is itself valid UTF-8, because no inserted part begins or ends within a character. So
a protocol of texts can carry it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final

MAX_BYTES: Final = 64 << 10  # of the old or the new text; beyond it there is no delta
MAX_STEPS: Final = 8 << 10  # for one delta, about 4 ms; what is not compared by then is inserted
COPY_STEPS: Final = 32  # a copy costs as much as so many look-ups
BLOCK: Final = 16  # bytes of the old text that one look-up can find

_DIGITS: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
_VALUES: Final = {digit: value for value, digit in enumerate(_DIGITS)}
_COMMAND: Final = re.compile(rb"([0-9A-Z_a-z~]{1,6})([@:;])")
_SIZE: Final = re.compile(rb"([0-9A-Z_a-z~]{1,6})\n")
_COPY_FROM: Final = re.compile(rb"([0-9A-Z_a-z~]{1,6}),")
_WORD: Final = 0xFFFF_FFFF
_MIN_ENDS: Final = 8  # bytes of a common start or end that are worth a command


class InvalidDelta(ValueError):
    """The delta is damaged, or belongs to another text."""


def create(old: bytes, new: bytes) -> bytes | None:
    """The delta from `old` to `new`. None if it would not be smaller than `new`, or a text exceeds `MAX_BYTES`."""
    if max(len(old), len(new)) > MAX_BYTES:
        return None
    parts = [_number(len(new)), b"\n"]
    written = 0  # bytes of `new` that the parts describe
    for start, end, offset in _copies(old, new):
        if start > written:
            parts += (_number(start - written), b":", new[written:start])
        parts += (_number(end - start), b"@", _number(offset), b",")
        written = end
    if written < len(new):
        parts += (_number(len(new) - written), b":", new[written:])
    parts += (_number(_checksum(new)), b";")
    delta = b"".join(parts)
    return delta if len(delta) < len(new) else None


def apply(old: bytes, delta: bytes, max_bytes: int) -> bytes:
    """The text that `create` described as `delta` from `old`. It has at most `max_bytes`.

    Raises:
        InvalidDelta: `delta` is not a delta, belongs to another text, or describes a larger one.
    """
    first = _SIZE.match(delta)
    if first is None:
        raise InvalidDelta("a delta begins with the size of the text and a line end")
    size = _value(first[1])
    if size > max_bytes:
        raise InvalidDelta(f"a delta of {size} bytes exceeds the limit of {max_bytes}")
    parts: list[bytes] = []
    total = 0
    at = first.end()
    while (command := _COMMAND.match(delta, at)) is not None:
        count, at = _value(command[1]), command.end()
        if command[2] == b";":
            text = b"".join(parts)
            if total != size or count != _checksum(text) or at != len(delta):
                raise InvalidDelta("the delta belongs to another text: its size or checksum differs")
            return text
        if command[2] == b":":
            part = delta[at : at + count]
            at += count
        else:
            offset = _COPY_FROM.match(delta, at)
            if offset is None:
                raise InvalidDelta(f"a copy without an offset at byte {at} of the delta")
            begin, at = _value(offset[1]), offset.end()
            part = old[begin : begin + count]
        total += count
        if len(part) != count or total > size:
            raise InvalidDelta(f"the command before byte {at} of the delta exceeds a text or the stated size")
        parts.append(part)
    raise InvalidDelta(f"no command at byte {at} of the delta")


def _copies(old: bytes, new: bytes) -> list[tuple[int, int, int]]:
    """The parts of `new` that are in `old`, in order: start and end in `new`, and offset in `old`.

    Messages of one topic mostly differ in the middle, so the common start and end are found first.
    """
    same = min(len(old), len(new))
    head = _whole_end(new, 0, _common(old, 0, new, 0, same))
    head = head if head >= _MIN_ENDS else 0
    tail = _common_end(old, len(old), new, len(new), same - head)
    tail_start = _whole_start(new, len(new) - tail, len(new))
    if len(new) - tail_start < _MIN_ENDS:
        tail_start = len(new)
    found = [(0, head, 0)] if head else []
    found += _middle_copies(old, new, head, tail_start)
    if tail_start < len(new):
        found.append((tail_start, len(new), len(old) - (len(new) - tail_start)))
    return found


def _middle_copies(old: bytes, new: bytes, written: int, stop: int) -> list[tuple[int, int, int]]:
    """The parts of `new` from `written` to `stop` that are in `old`, found by blocks of the old text."""
    if stop - written < BLOCK:
        return []
    blocks = {old[at : at + BLOCK]: at for at in range(len(old) - BLOCK, -1, -BLOCK)}  # the first of equal blocks
    found: list[tuple[int, int, int]] = []
    at = written
    shift = 0  # between equal parts of the texts, as found last: what follows often has the same
    steps = 0
    while at + BLOCK <= stop and steps < MAX_STEPS:
        steps += 1
        offset = blocks.get(new[at : at + BLOCK])
        if offset is None:
            at += 1
            continue
        steps += COPY_STEPS
        near = at + shift
        if near >= 0 and new[at : at + BLOCK] == old[near : near + BLOCK]:
            offset = near
        before = _common_end(old, offset, new, at, min(offset, at - written))
        length = _common(old, offset, new, at, min(len(old) - offset, stop - at))
        start = _whole_start(new, at - before, at + length)
        end = _whole_end(new, start, at + length)
        if end > start:
            shift = offset - at
            found.append((start, end, start + shift))
            written = end
        at += length
    return found


def _common(old: bytes, offset: int, new: bytes, at: int, most: int) -> int:
    """How many bytes, at most `most`, are equal from `old[offset]` and `new[at]` on."""
    return _longest(most, lambda low, high: old[offset + low : offset + high] == new[at + low : at + high])


def _common_end(old: bytes, offset: int, new: bytes, at: int, most: int) -> int:
    """How many bytes, at most `most`, are equal before `old[offset]` and `new[at]`."""
    return _longest(most, lambda low, high: old[offset - high : offset - low] == new[at - high : at - low])


def _longest(most: int, equal: Callable[[int, int], bool]) -> int:
    """The largest number, at most `most`, below which everything is equal. The step doubles, then halves."""
    low, step = 0, BLOCK
    while low < most:
        step = min(step, most - low)
        if equal(low, low + step):
            low += step
            step *= 2
        elif step == 1:
            return low
        else:
            most = low + step
            step //= 2
    return low


def _whole_start(text: bytes, start: int, end: int) -> int:
    """The first position from `start` on that does not divide a character of UTF-8."""
    while start < end and text[start] & 0xC0 == 0x80:
        start += 1
    return start


def _whole_end(text: bytes, start: int, end: int) -> int:
    """The last position up to `end` that does not divide a character of UTF-8."""
    while start < end < len(text) and text[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _checksum(text: bytes) -> int:
    words = -(-len(text) // 4)
    numbers: tuple[int, ...] = struct.unpack(f">{words}I", text.ljust(4 * words, b"\0"))
    return sum(numbers) & _WORD


def _number(value: int) -> bytes:
    digits = bytearray()
    while True:
        value, digit = divmod(value, 64)
        digits.append(_DIGITS[digit])
        if not value:
            return bytes(reversed(digits))


def _value(digits: bytes) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _VALUES[digit]
    return value
