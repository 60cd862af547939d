"""docs/explanation/security.md names a test for each promise, and each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROWS = [
    line for line in (ROOT / "docs" / "explanation" / "security.md").read_text().splitlines()
    if line.startswith("|") and "---" not in line and "shown by" not in line
]  # fmt: skip
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def functions_of(file: str) -> set[str]:
    """The names of its test functions."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_row_names_tests_that_exist() -> None:
    assert len(ROWS) >= 20
    for row in ROWS:
        named = NAMED.findall(row.split("|")[4])
        assert named, row
        for file, test in named:
            assert test.startswith("test_")
            assert test in functions_of(file), f"{file}::{test}"
