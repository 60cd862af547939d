"""Reports how many histories the tests have played, and how fast."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up what the tests of random histories recorded in all test processes."""
    played = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in getattr(report, "user_properties", ())
        if name == "histories"
    ]
    if played:
        count, seconds = (sum(column) for column in zip(*played, strict=True))
        terminalreporter.write_line(
            f"simulation: {count:,} histories, {60 * count / seconds:,.0f} per minute of CPU time"
        )
