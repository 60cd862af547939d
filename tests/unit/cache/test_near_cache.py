"""What a node remembers of the cache: never what it may have missed the end of."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache.near_cache import MAX_SECONDS, OVERHEAD_BYTES, SHARE, NearCache

KB = 1024


def near(max_bytes: int = 1 << 20) -> NearCache:
    """One that hears."""
    near_cache = NearCache(max_bytes)
    near_cache.set_subscription(1)
    return near_cache


def remember(one: NearCache, key: str, text: bytes = b"1", seconds: float = 60.0, now: float = 0.0) -> None:
    one.end_read(key, one.begin_read(key), text, seconds, now)


def test_what_was_read_is_remembered_until_it_changes() -> None:
    one = near()
    remember(one, "a")
    assert one.get("a", 1) == b"1"
    one.forget(["a"])
    assert one.get("a", 1) is None
    assert (len(one), one.bytes) == (0, 0)


def test_it_is_forgotten_when_the_cache_forgets_it_or_after_the_longest_time() -> None:
    one = near()
    remember(one, "short", seconds=2)
    remember(one, "long", seconds=3600)
    remember(one, "endless", seconds=math.inf)
    assert one.get("short", 1.9) and not one.get("short", 2)
    for key in ("long", "endless"):
        assert one.get(key, MAX_SECONDS - 0.1) and not one.get(key, MAX_SECONDS)
    remember(one, "over", seconds=0)
    assert one.get("over", 0) is None


def test_a_fresh_read_gets_only_fresh_values() -> None:
    one = near()
    remember(one, "a", seconds=10)
    assert one.get("a", 3, margin=6) == b"1"
    assert one.get("a", 4, margin=6) is None
    assert one.get("a", 4) == b"1"


def test_what_changes_while_it_is_read_is_not_remembered() -> None:
    one = near()
    reading = one.begin_read("a")
    one.forget(["a"])
    one.end_read("a", reading, b"old", 60, 0)
    assert one.get("a", 0) is None
    remember(one, "a", b"new")
    assert one.get("a", 0) == b"new"


def test_a_read_that_began_after_the_change_is() -> None:
    one = near()
    before = one.begin_read("a")
    one.forget(["a"])
    after = one.begin_read("a")
    one.end_read("a", before, b"old", 60, 0)
    one.end_read("a", after, b"new", 60, 0)
    assert one.get("a", 0) == b"new"


def test_a_near_cache_without_notices_stores_nothing() -> None:
    one = NearCache(KB)
    remember(one, "a")
    assert one.get("a", 0) is None


def test_a_lost_bus_forgets_everything_and_what_is_being_read() -> None:
    for hearing in (None, 2):
        one = near()
        remember(one, "a")
        reading = one.begin_read("b")
        one.set_subscription(hearing)
        one.end_read("b", reading, b"old", 60, 0)
        assert len(one) == 0 and one.bytes == 0
        one.set_subscription(2)
        remember(one, "a")
        assert one.get("a", 0) == b"1"


def test_a_prefix_changes_all_that_begin_so() -> None:
    one = near()
    for key in ("a:1", "a:2", "b:1"):
        remember(one, key)
    reading = one.begin_read("a:3")
    one.forget_all("a:")
    one.end_read("a:3", reading, b"old", 60, 0)
    assert [key for key in ("a:1", "a:2", "a:3", "b:1") if one.get(key, 0)] == ["b:1"]


def test_the_least_used_goes_first() -> None:
    one = near(SHARE * 4 * KB)
    text = b"x" * (4 * KB - OVERHEAD_BYTES - 2)
    for at in range(SHARE):
        remember(one, f"{at:02}", text)
    assert len(one) == SHARE
    assert one.get("00", 0)
    remember(one, "99", text)
    assert one.get("00", 0) and not one.get("01", 0) and one.get("99", 0)


def test_a_large_one_does_not_drive_out_the_others() -> None:
    one = near(SHARE * KB)
    remember(one, "a")
    remember(one, "b", b"x" * KB)
    assert one.get("a", 0) and not one.get("b", 0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "begin", "end", "notice", "clear", "cut", "get"]),
        st.sampled_from("ab"),
        st.integers(0, 3),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=500)
@given(STEPS)
def test_no_read_is_older_than_the_last_received_notice(
    steps: list[tuple[str, str, int]],
) -> None:
    one, hearing = near(20 * KB), 1
    redis = {"a": 0, "b": 0}  # versions
    unheard = {"a": 0, "b": 0}  # notices under way
    reads = []
    for what, key, number in steps:
        if what == "write":
            redis[key] += 1
            unheard[key] += 1
        elif what == "begin":
            reads.append((key, one.begin_read(key), redis[key]))
        elif what == "end" and reads:
            read_key, reading, version = reads.pop(number % len(reads))
            one.end_read(read_key, reading, b"%d" % version, 1000, 0)
        elif what == "notice" and unheard[key]:
            unheard[key] -= 1
            one.forget([key])
        elif what == "clear":
            unheard = {"a": 0, "b": 0}
            one.forget_all("")
        elif what == "cut":  # what was under way is lost
            hearing += 1
            unheard = {"a": 0, "b": 0}
            one.set_subscription(hearing)
        for name in "ab":
            text = one.get(name, 0)
            assert text is None or int(text) == redis[name] or unheard[name], (name, text, redis)
    assert one.bytes == sum(len(one.get(k, 0) or b"") + 1 + OVERHEAD_BYTES for k in "ab" if one.get(k, 0))
