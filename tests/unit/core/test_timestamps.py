"""gateway.core.timestamps: times on the wire."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import timestamps


@settings(deadline=None)
@given(st.integers(0, 253402300799999))
def test_iso_gives_the_millisecond_in_utc(milliseconds: int) -> None:
    text = timestamps.iso_time(milliseconds)
    assert len(text) == 24 and text.endswith("Z")
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo is not None
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() == pytest.approx(milliseconds / 1000, abs=1e-4)


def test_iso_looks_so() -> None:
    assert timestamps.iso_time(0) == "1970-01-01T00:00:00.000Z"
    assert timestamps.iso_time(1795502108477) == "2026-11-24T06:35:08.477Z"
    assert timestamps.iso_time(1795502108000) == "2026-11-24T06:35:08.000Z"


def test_a_clock_gives_whole_milliseconds() -> None:
    assert timestamps.Clock(lambda: 1.2345).ms() == 1234
