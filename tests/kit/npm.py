"""Packages of npm, installed once for all tests."""

from __future__ import annotations

import fcntl
import json
import subprocess
from pathlib import Path
from typing import Final

from tests.kit.process import ROOT, clean_environment, program

CLIENT: Final = ROOT / "gateway" / "static" / "client"
REACT: Final = ("react@19", "react-dom@19", "vue@3", "esbuild@0.25", "typescript@5", "@types/react@19")


def installed(name: str, *packages: str) -> Path:
    """A folder of this name whose `node_modules` has `packages`, such as ``react@19``."""
    folder = ROOT / "test-artefacts" / f"npm-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        names = [package.rpartition("@")[0] for package in packages]
        if not all((folder / "node_modules" / each).exists() for each in names):
            command = [program("npm"), "install", "--no-audit", "--no-fund", "--prefer-offline", *packages]
            done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


def bundled(example: Path, to: Path, page: str = "main.jsx") -> Path:
    """The file `to` with the script of a page of the example, bundled with its own command."""
    modules = installed("react", *REACT) / "node_modules"
    words = json.loads((ROOT / "examples" / "react" / "package.json").read_text())["scripts"]["build"].split()
    assert words[:2] == ["esbuild", "main.jsx"]
    command = [str(modules / ".bin" / "esbuild"), page, *(word for word in words[2:] if "outfile" not in word)]
    command += [f"--alias:websocket-gateway-client={CLIENT / 'gateway.js'}", f"--outfile={to}"]
    environment = clean_environment() | {"NODE_PATH": str(modules)}
    done = subprocess.run(command, cwd=example, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return to
