"""The browser client: its own tests, run by node; its two builds; its size; its package."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import minify  # type: ignore[import-untyped]

import gateway
from gateway.http.pages import STATIC

TESTS = Path(__file__).parent.parent / "node"
CLIENT = STATIC / "client"
# Of the classic build, minified but with the long names of private members; 5.6 KB compressed. What is new since 10 KB:
# the server's limits, changes of mind about a topic, tokens that are refused and addresses that cannot be had.
MOST_BYTES = 14_500


def run(*words: str | Path, at: Path = CLIENT) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run(words, cwd=at, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass() -> None:
    printed = run("node", "--test", at=TESTS)
    assert "# fail 0" in printed
    assert "# skipped 0" in printed


def test_the_classic_build_is_the_module(tmp_path: Path) -> None:
    copied = tmp_path / "client"
    shutil.copytree(CLIENT, copied)
    (copied / "gateway.classic.js").unlink()
    run("node", "classic.mjs", at=copied)
    built = (copied / "gateway.classic.js").read_text()
    assert built == (CLIENT / "gateway.classic.js").read_text(), "run `node classic.mjs` in gateway/static/client"
    script = tmp_path / "page.cjs"
    script.write_text(f"{built}\nconsole.log(gateway.Gateway.name);")
    assert run("node", script) == "Gateway\n"


def test_it_is_small() -> None:
    minified = minify.string("application/javascript", (CLIENT / "gateway.classic.js").read_text())
    assert len(minified.encode()) < MOST_BYTES


def test_it_is_a_package_of_the_gateways_own_version() -> None:
    [package] = json.loads(run("npm", "pack", "--dry-run", "--json", "--ignore-scripts", "--offline"))
    assert package["version"] == gateway.__version__
    assert {file["path"] for file in package["files"]} == {
        "README.md", "package.json", "gateway.js", "gateway.http.js", "gateway.classic.js", "gateway.d.ts",
    }  # fmt: skip
