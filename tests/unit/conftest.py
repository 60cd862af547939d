"""Fixtures for all unit tests."""

from __future__ import annotations

import pytest

from gateway.transports import connection, http1


@pytest.fixture(autouse=True)
def _one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn of the loop is enough for all that a test sends, also on a slow machine."""
    for module in (connection, http1):
        monkeypatch.setattr(module, "TURN_SECONDS", 60.0)
