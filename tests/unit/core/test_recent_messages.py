"""A node keeps a bounded number of messages and bytes for each topic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.recent_messages import ENTRY_BYTES, RecentMessages
from gateway.core.stream_position import StreamEntry


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 20), st.integers(100, 2000))
def test_the_newest_are_kept_as_many_as_fit(sizes: list[int], number: int, size: int) -> None:
    recent: RecentMessages[StreamEntry] = RecentMessages(number, size)
    for offset, length in enumerate(sizes, 1):
        recent.append(StreamEntry(offset, b"x" * length))
        kept = [len(entry.body) + ENTRY_BYTES for entry in recent]
        assert [entry.offset for entry in recent] == list(range(offset - len(kept) + 1, offset + 1))
        assert len(kept) <= number
        assert sum(kept) <= size or len(kept) == 1
        if len(kept) < min(number, offset):
            assert sum(kept) + sizes[offset - len(kept) - 1] + ENTRY_BYTES > size, "one more would have fitted"
    recent.clear()
    assert not recent
