"""Logging: a state that lasts is logged when it changes, not at every retry."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from gateway.logs import CHANGE_SECONDS, REPEAT_SECONDS, StateLog


class Clock:
    """Seconds, moved by the test."""

    now = 100.0


def test_a_state_that_lasts_is_logged_when_it_begins_changes_and_ends() -> None:
    clock = Clock()
    state = StateLog("fails", over="works again", now=lambda: clock.now, part="a")

    def logged(*reasons: str) -> list[tuple[Any, Any]]:
        """What is logged if it lasts for these reasons, a second apart."""
        with capture_logs() as lines:
            for reason in reasons:
                clock.now += 1
                state.begin(reason)
        assert all(line["part"] == "a" and line["event"] == "fails" for line in lines)
        return [(line["reason"], line.get("seconds")) for line in lines]

    assert logged("away") == [("away", None)]
    assert logged(*["away"] * 100) == []
    assert logged("slow") == [("slow", 101)]  # another reason
    assert logged(*["away", "slow"] * int(CHANGE_SECONDS)) == [("away", 112)]  # it changes all the time
    clock.now += REPEAT_SECONDS
    assert len(logged(*["slow"] * 10)) == 1  # once more, since it lasts
    with capture_logs() as lines:
        state.end()
        state.end()
    assert [line["event"] for line in lines] == ["works again"]
    assert logged("away") == [("away", None)]
