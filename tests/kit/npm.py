"""Packages of npm, installed once for all tests."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

from tests.kit.process import ROOT, program


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
