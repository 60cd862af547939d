"""page: a page of a hash, without fields and values that are too large."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from gateway.broker.keys import Keys
from tests.lua.steps import Steps

KEY = "a hash"


def test_a_small_hash_is_one_page(steps: Steps) -> None:
    assert steps.call("page_hash", [KEY], 0, 10, 3, 4) == [b"0", 0, []]
    steps.redis.hset(KEY, "a", "b")
    with steps.nothing_done():
        assert steps.call("page_hash", [KEY], 0, 10, 3, 4) == [b"0", 0, [b"a", b"b"]]


def test_what_is_too_large_is_left_out_and_counted(steps: Steps) -> None:
    steps.redis.hset(KEY, mapping={"abc": "wxyz", "abcd": "x", "ab": "vwxyz", "": ""})
    cursor, left_out, flat = steps.call("page_hash", [KEY], 0, 10, 3, 4)
    assert (cursor, left_out) == (b"0", 2)
    assert dict(zip(flat[::2], flat[1::2], strict=True)) == {b"abc": b"wxyz", b"": b""}


def test_pages_of_a_large_hash_give_each_field(steps: Steps, keys: Keys) -> None:
    whole = {b"f%d" % at: b"v%d" % at for at in range(5000)}
    steps.redis.hset(KEY, mapping=whole)
    found: dict[bytes, bytes] = {}
    cursor, pages = b"0", 0
    while pages == 0 or cursor != b"0":
        cursor, left_out, flat = steps.call("page_hash", [KEY], cursor, 1000, 100, 100)
        assert left_out == 0
        assert len(flat) // 2 >= 900 or cursor == b"0"
        found.update(zip(flat[::2], flat[1::2], strict=True))
        pages += 1
    assert found == whole
    assert pages >= 4


def test_a_key_of_another_type_is_refused(steps: Steps) -> None:
    steps.redis.set(KEY, "x")
    with steps.nothing_done(), pytest.raises(ResponseError, match="WRONGTYPE"):
        steps.call("page_hash", [KEY], 0, 10, 3, 4)
