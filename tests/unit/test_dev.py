"""gateway.dev: what it needs before it starts anything."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway import dev
from gateway.cli.main import cli


def test_without_any_redis_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert dev.redis_program() is None
    done = CliRunner().invoke(cli, ["dev"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "pip install '.[dev-server]'" in done.stderr and "package manager" in done.stderr


def test_the_embedded_server_is_preferred_to_an_installed_one() -> None:
    program = dev.redis_program()
    assert program is not None and program.endswith("/valkey-server")


def test_an_installed_server_is_used_where_there_is_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(shutil, "which", {"redis-server": "/usr/bin/redis-server"}.get)
    assert dev.redis_program() == "/usr/bin/redis-server"


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(dev.DevError, match=f"Port {port} is in use: .* choose another with --port"):
            dev.DevCluster(port=port).__enter__()


def test_a_folder_with_a_long_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(dev.DevError, match="too long for a Unix socket"):
        dev.DevCluster(data=tmp_path / ("a" * 100)).__enter__()


def test_another_users_folder_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 4242)
    cluster = dev.DevCluster()
    with pytest.raises(dev.DevError, match="belongs to another user"):
        cluster.__enter__()
    assert cluster.folder.parent == Path(tempfile.gettempdir()).resolve()
    cluster.folder.rmdir()
