"""Chooses the tests of a mutant and runs them, the quickest and nearest first, until one fails."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mutants.operators import Mutant
from mutants.places import Place

NEAR_SECONDS: Final = 8.0  # CPU time of the unit tests beyond the mirroring module's
NEAR_FILES: Final = 10
SLACK: Final = 20  # a busy machine
WIDE_SECONDS: Final = 300.0
_SIMULATED: Final = re.compile(r"gateway/(?!client/|cli/|http/|auth/)")
_WIDE: Final = ("simulation", "integration")
_SIMULATION: Final = "tests/simulation/test_simulation.py"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a mutant."""

    mutant: Mutant
    shown: str
    killed_by: str | None  # the stage whose tests noticed it
    executed: bool  # by a unit test


class Map:
    """Which tests execute which lines, and how long each takes."""

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = {}
        self._lines: dict[str, dict[int, set[str]]] = {}
        for file in sorted(folder.glob("*.json")):
            for test, report in json.loads(file.read_text()).items():
                self.seconds[test] = report["seconds"]
                for path, lines in report["lines"].items():
                    of_path = self._lines.setdefault(path, {})
                    for line in lines:
                        of_path.setdefault(line, set()).add(test)

    def tests(self, mutant: Mutant) -> set[str]:
        """The tests that execute a mutant; where imports execute it, all tests that execute its file."""
        lines = self._lines.get(mutant.path, {})
        if mutant.by_import:
            return set[str]().union(*lines.values())
        return set[str]().union(*(lines.get(line, ()) for line in range(mutant.first, mutant.last + 1)))


def stages(mutant: Mutant, known: Map, place: Place) -> Iterator[tuple[str, list[str], list[str] | None, float]]:
    """Name, files, tests (None: all in the files) and deadline in seconds of each stage."""
    if mutant.path.endswith(".lua"):
        name = Path(mutant.path).stem
        texts = {file: (place.folder / file).read_text() for file in {_file(test) for test in known.seconds}}
        tests = [test for test in known.seconds if test.startswith("tests/lua/")]
        tests.sort(key=lambda test: (f'"{name}"' not in texts[_file(test)], known.seconds[test]))
        yield _near("lua", tests, known)
    else:
        found = sorted(known.tests(mutant), key=lambda test: known.seconds[test])
        mirror = str(Path("tests/unit", *Path(mutant.path).parts[1:-1], f"test_{Path(mutant.path).stem}.py"))
        yield _near("unit", [test for test in found if _file(test) == mirror], known)
        yield _near("unit", _within(NEAR_SECONDS, [test for test in found if _file(test) != mirror], known), known)
    if _SIMULATED.match(mutant.path):
        yield "simulation", [_SIMULATION], _simulated(place), WIDE_SECONDS
    yield "integration", related(mutant.path, _wide_texts(place)), None, WIDE_SECONDS


def try_mutant(mutant: Mutant, text: str, known: Map, place: Place, *, wide: bool) -> Outcome:
    """Run the stages until one fails.

    Tests of real processes may fail on a busy machine, so a failure counts only if they pass without the mutant.
    """
    shown = mutant.describe(text)
    executed = mutant.path.endswith(".lua") or bool(known.tests(mutant))
    for stage, files, tests, seconds in stages(mutant, known, place):
        is_wide = stage in _WIDE
        if tests == [] or (is_wide and not wide):
            continue
        with place.mutated(mutant.path, mutant.apply(text)):
            passed = place.passes(files, tests, seconds)
        if not passed and (not is_wide or place.passes(files, tests, seconds)):
            return Outcome(mutant, shown, stage, executed)
    return Outcome(mutant, shown, None, executed)


def related(path: str, texts: Mapping[str, str], count: int = 2) -> list[str]:
    """The test files that speak most of a module: its words in their names, then in their texts."""
    words = [word.rstrip("s") for word in re.split(r"\W|_", path.removeprefix("gateway/").rsplit(".", 1)[0])]

    def score(file: str) -> float:
        stem = Path(file).stem
        return sum(5 * (word in stem) + math.log1p(texts[file].lower().count(word)) for word in words)

    return sorted(texts, key=lambda file: (-score(file), file))[:count]


def _near(stage: str, tests: list[str], known: Map) -> tuple[str, list[str], list[str], float]:
    files = list(dict.fromkeys(_file(test) for test in tests))
    return stage, files, tests, 60 + SLACK * sum(known.seconds[test] for test in tests)


def _within(seconds: float, tests: list[str], known: Map) -> list[str]:
    counts: dict[str, int] = {}
    for test in tests:
        counts[_file(test)] = counts.get(_file(test), 0) + 1
    chosen = sorted(counts, key=lambda file: -counts[file])[:NEAR_FILES]
    found = []
    for test in tests:
        seconds -= known.seconds[test]
        if _file(test) in chosen and seconds > 0:
            found.append(test)
    return found


def _simulated(place: Place) -> list[str]:
    file = place.folder / _SIMULATION
    found = re.findall(r'^    "(.+)": \(\d+, \[$', file.read_text(), re.MULTILINE) if file.exists() else []
    kept = [f"{_SIMULATION}::test_a_history_that_found_a_fault_keeps_all_promises[{name}]" for name in found]
    return [*kept, f"{_SIMULATION}::test_random_histories_keep_all_promises[0]"]


def _wide_texts(place: Place) -> dict[str, str]:
    found = [
        file
        for part in ("integration", "hostile", "model")
        for file in (place.folder / "tests" / part).glob("test_*.py")
    ]
    return {str(file.relative_to(place.folder)): file.read_text().lower() for file in found}


def _file(test: str) -> str:
    return test.partition("::")[0]
