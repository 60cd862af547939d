"""The package: what it needs, what it contains, and how long its imports take."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.kit.process import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_MS = 80
# What only nodes and the command line need.
SERVER = {
    "click",
    "httptools",
    "httpx",
    "jwt",
    "prometheus_client",
    "rich",
    "starlette",
    "structlog",
    "uvicorn",
    "uvloop",
}


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_.-]", one, maxsplit=1)[0] for one in requirements}


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_publisher_and_a_client_need_two_packages_each() -> None:
    extras = PROJECT["optional-dependencies"]
    assert _names(PROJECT["dependencies"]) == {"orjson"}
    assert _names(extras["publisher"]) == {"redis"}
    assert _names(extras["client"]) == {"websockets"}


def test_the_constraints_hold_every_package_of_a_node_and_no_address() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line) for line in lines), lines
    held = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert {name.lower() for name in _names(PROJECT["optional-dependencies"]["server"])} <= held


@pytest.mark.parametrize("module", ["gateway.client", "gateway.publisher", "gateway.sync_publisher"])
def test_an_import_takes_less_than_80_ms_of_cpu(module: str) -> None:
    code = f"import time; began = time.process_time(); import {module}; print(time.process_time() - began)"
    assert statistics.median(float(_python(code)) for _ in range(5)) * 1000 < IMPORT_MS


@pytest.mark.parametrize(
    "statement",
    [
        "from gateway.client import Gateway",
        "from gateway.publisher import Publisher, ProtocolError, Unavailable",
        "from gateway.sync_publisher import SyncPublisher",
    ],
)
def test_publishers_and_clients_load_nothing_of_a_node(statement: str) -> None:
    loaded = _python(f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})")
    assert not SERVER & set(loaded.split())


def test_the_command_names_the_extra_that_is_missing() -> None:
    code = "import sys; sys.modules['click'] = None; from gateway.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("gateway: click is not installed.") and "'.[server]'" in done.stderr


def test_the_packages_build_and_pass_strict_checks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    for name in ("gateway", "docs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", str(source)], check=True, capture_output=True)
    [wheel], [sdist] = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
    assert {"gateway/py.typed", "gateway/static/client/gateway.js"} <= set(names)
    assert all(name.startswith(("gateway/", "websocket_gateway_cluster-")) for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    with tarfile.open(sdist) as packed:
        top = {Path(name).parts[1] for name in packed.getnames()} - {".gitignore"}
    assert top == {
        "gateway",
        "docs",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "pyproject.toml",
        "PKG-INFO",
    }


def test_npm_packs_the_browser_client(tmp_path: Path) -> None:
    client = tmp_path / "client"
    shutil.copytree(ROOT / "gateway" / "static" / "client", client)
    packed = subprocess.run(
        ["npm", "pack", "--json", "--offline"], cwd=client, check=True, capture_output=True, text=True
    )
    [package] = json.loads(packed.stdout[packed.stdout.index("[") :])
    assert {file["path"] for file in package["files"]} == {
        "README.md", "package.json", "gateway.js", "gateway.http.js", "gateway.d.ts", "messages.d.ts",
    }  # fmt: skip
    assert json.loads((client / "package.json").read_text())["license"] == PROJECT["license"]
