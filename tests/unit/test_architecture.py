"""Limits of size that keep the code readable: files, and parameters of constructors."""

from __future__ import annotations

import ast
from pathlib import Path

import gateway

ROOT = Path(gateway.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 400
MAX_PARAMETERS = 8
# Keyword arguments of the public Python client, each with a default.
PUBLIC = {"client/gateway.py Gateway"}


def constructors(file: Path) -> dict[str, int]:
    """The number of parameters of each `__init__` in the file, without `self`."""
    found = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef):
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                    arguments = function.args
                    names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
                    found[f"{file.relative_to(ROOT)} {node.name}"] = len(names) - 1
    return found


def test_no_constructor_has_more_than_eight_parameters() -> None:
    found = {name: count for file in FILES for name, count in constructors(file).items()}
    assert found["node/node.py Node"] == 4
    assert {name for name, count in found.items() if count > MAX_PARAMETERS} <= PUBLIC


def test_no_file_has_more_than_four_hundred_lines() -> None:
    sizes = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert len(sizes) > 100
    assert {file: lines for file, lines in sizes.items() if lines > MAX_LINES} == {}
