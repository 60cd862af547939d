"""Docstrings name what exists."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

from tests.kit.process import ROOT

ELSEWHERE = {"CommandError", "NegotiationError"}  # of Django and websockets


def _modules() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        yield str(path.relative_to(ROOT)), path.read_text()


def test_each_exception_that_a_docstring_announces_exists() -> None:
    modules = list(_modules())
    known = set(dir(builtins)) | ELSEWHERE
    for _, text in modules:
        known |= {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)}
    unknown = [
        f"{path}: {name}"
        for path, text in modules
        for raises in re.findall(r"Raises:\n((?:[ \t]+.*\n)+)", text)
        for name in re.findall(r"^ +([A-Z]\w+): ", raises, re.MULTILINE)
        if name not in known
    ]
    assert unknown == []
