"""The browser client: its own tests, run by node; its classic script; its size; its package."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import minify  # type: ignore[import-untyped]

import gateway
from gateway.http import pages
from gateway.http.pages import STATIC

TESTS = Path(__file__).parent.parent / "node"
CLIENT = STATIC / "client"
# Of the classic script, minified, but with the long names of private members; 5.6 KB compressed. New since 10 KB:
# the server's limits, changes of mind about a topic, rejected tokens and unavailable addresses.
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


def test_the_classic_script_is_the_module_with_one_global(tmp_path: Path) -> None:
    exported = re.findall(r"^export (?:class|function\*?) (\w+)", (CLIENT / "gateway.js").read_text(), re.MULTILINE)
    script = tmp_path / "page.cjs"
    script.write_text(f"{pages.classic_script()}\nconsole.log(Object.keys(gateway).join(), gateway.Gateway.name);")
    assert run("node", script) == f"{','.join(exported)} Gateway\n"


def test_it_is_small() -> None:
    minified = minify.string("application/javascript", pages.classic_script())
    assert len(minified.encode()) < MOST_BYTES


def test_it_is_a_package_of_the_gateways_own_version() -> None:
    [package] = json.loads(run("npm", "pack", "--dry-run", "--json", "--ignore-scripts", "--offline"))
    assert package["version"] == gateway.__version__
    assert {file["path"] for file in package["files"]} == {
        "README.md", "package.json", "gateway.js", "gateway.http.js", "gateway.d.ts", "messages.d.ts",
    }  # fmt: skip
