"""The operators of the mutation tests: what they change, and what they leave alone."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from mutants.__main__ import sample
from mutants.operators import mutants, number
from mutants.places import Place
from mutants.trial import Map, related, try_mutant
from tests.kit.process import ROOT


def texts(code: str, path: str = "a.py") -> list[str]:
    """All mutated texts."""
    return [mutant.apply(code) for mutant in mutants(path, code)]


@pytest.mark.parametrize(("code", "mutated"), [
    ("x = a < b", ["x = (a <= b)"]),
    ("x = a is not b", ["x = (a is b)"]),
    ("x = a in b", ["x = (a not in b)"]),
    ("x = a < b <= c", ["x = (a <= b <= c)", "x = (a < b < c)"]),
    ("x = a and b", ["x = (a or b)"]),
    ("x = not a", ["x = (a)"]),
    ("x = a + b", ["x = (a - b)"]),
    ("x = True", ["x = False"]),
    ("x = 1", ["x = 2"]),
    ("x = 1000", ["x = 2000"]),
    ("x = 0.25", ["x = 0.5"]),
    ("x = a if b else c", ["x = (c if b else a)"]),
    ("f(a)", ["pass"]),
    ("async def f():\n    await g()", ["async def f():\n    pass"]),
    ("a.b = c", ["pass"]),
    ("del a[b]", ["pass"]),
    ("def f():\n    return a", ["def f():\n    return None"]),
    ("while a:\n    break", ["while a:\n    continue"]),
    ("x = 'ä', a < b", ["x = 'ä', (a <= b)"]),
])  # fmt: skip
def test_python_is_changed_in_one_place(code: str, mutated: list[str]) -> None:
    assert texts(code) == mutated


@pytest.mark.parametrize("code", [
    '"""Only text."""',
    "log.info('so many', count=1 + 2)",
    "self._log.warning('late', seconds=1)",
    "def f(x: Literal[1]) -> Literal[2]:\n    ...",
    "@dataclass(frozen=True)\nclass A:\n    ...",
    "if TYPE_CHECKING:\n    x = 1",
    "assert a < b",
    "__slots__ = (1, 2)",
    "def __repr__(self):\n    return a + b",
    "class A:\n    def __init__(self):\n        self.a = a",
    "x = 'a' + b",
    "def f():\n    return None",
    "def f():\n    return ''",
])  # fmt: skip
def test_what_no_test_should_notice_is_left_alone(code: str) -> None:
    assert texts(code) == []


@pytest.mark.parametrize(("code", "mutated"), [
    ("local x = a == b", ["local x = a ~= b"]),
    ("local x = a and b", ["local x = a or b"]),
    ("local x = 60 -- 2 < 3", ["local x = 120 -- 2 < 3"]),
    ("local x = a + b", ["local x = a - b"]),
    ("redis.call('SET', KEYS[k], 'a < 1')", [""]),
    ("if a then redis.call('DEL', k) end", [
        "if true then redis.call('DEL', k) end", "if false then redis.call('DEL', k) end", "if a then  end",
    ]),
    ("return a", ["return 0"]),
])  # fmt: skip
def test_lua_is_changed_in_one_place(code: str, mutated: list[str]) -> None:
    assert texts(code, "a.lua") == mutated


def test_small_numbers_grow_by_one_and_others_double() -> None:
    assert [number(n) for n in (0, 16, 17, 0.5, 2.0)] == ["1", "17", "34", "1.0", "3.0"]


def test_each_mutant_of_the_gateway_is_another_python_program() -> None:
    text = (ROOT / "gateway/core/stream_position.py").read_text()
    for mutant in mutants("sequence.py", text):
        changed = mutant.apply(text)
        assert changed != text
        ast.parse(changed)


def test_a_seed_chooses_the_same_mutants_and_one_in_seven_is_lua() -> None:
    code = {"a.py": "x = 1\n" * 50, "b.lua": "local x = 1\n" * 50}
    chosen = sample(code, 7, 21)
    assert sample(code, 7, 21) == chosen
    assert sample(code, 8, 21) != chosen
    assert len(set(chosen)) == 21
    assert sum(mutant.path == "b.lua" for mutant in chosen) == 3


def test_the_nearest_wide_tests_are_those_that_name_the_module() -> None:
    files = {"tests/integration/test_cache.py": "cache", "tests/integration/test_wire.py": "cache " * 9, "c.py": ""}
    assert related("gateway/cache/cache.py", files) == [
        "tests/integration/test_cache.py", "tests/integration/test_wire.py",
    ]  # fmt: skip


class Tree:
    """Stands for a place: the stages fail that the test says, with and without a mutant."""

    def __init__(self, tmp_path: Path, fail: set[str], fail_always: set[str]) -> None:
        self.folder = tmp_path
        self.fail, self.fail_always = fail, fail_always
        self.is_mutated = False

    @contextmanager
    def mutated(self, _path: str, _text: str) -> Iterator[None]:
        self.is_mutated = True
        yield
        self.is_mutated = False

    def passes(self, files: list[str], _tests: object, _seconds: float) -> bool:
        stage = "simulation" if "simulation" in files[0] else files[0].split("/")[1]
        return stage not in self.fail_always and not (self.is_mutated and stage in self.fail)


@pytest.mark.parametrize(("fail", "fail_always", "wide", "killed_by"), [
    ((), (), True, None), (("unit", "integration"), (), True, "unit"), (("integration",), (), True, "integration"),
    (("integration",), (), False, None), (("integration",), ("integration",), True, None),
    (("simulation",), ("integration",), True, "simulation"),
])  # fmt: skip
def test_a_mutant_is_killed_by_the_first_stage_that_fails_with_it_only(
    fail: tuple[str, ...], fail_always: tuple[str, ...], wide: bool, killed_by: str | None, tmp_path: Path
) -> None:
    (tmp_path / "tests/integration").mkdir(parents=True)
    (tmp_path / "tests/integration/test_a.py").touch()
    path, text = "gateway/a.py", "def f():\n    return a"
    (tmp_path / "a.json").write_text(json.dumps({"tests/unit/test_a.py::t": {"seconds": 0.1, "lines": {path: [1, 2]}}}))
    known = Map(tmp_path)
    [mutant] = mutants(path, text)
    tree = Tree(tmp_path, set(fail), set(fail_always))
    outcome = try_mutant(mutant, text, known, cast(Place, tree), wide=wide)
    assert (outcome.killed_by, outcome.executed) == (killed_by, True)
    assert outcome.shown == "gateway/a.py:2  return a  ->  return None"


def test_the_pytest_plugin_imports_nothing_of_the_project() -> None:
    tree = ast.parse(Path(ROOT / "mutants/plugin.py").read_text())
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [module for module in imported if module.startswith(("gateway", "mutants", "tests"))]
