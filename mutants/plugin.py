"""A pytest plugin of the runner, copied beside the tests as ``mutants_plugin.py``; it imports nothing of the project.

MUTANTS_MAP=folder       records which lines each test executes: a file of the folder for each file of tests
MUTANTS_TESTS=in.json    runs only the tests of this list, in its order
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register what the environment asks for."""
    if out := os.environ.get("MUTANTS_MAP"):
        config.pluginmanager.register(_Map(Path(out)))
    if wanted := os.environ.get("MUTANTS_TESTS"):
        config.pluginmanager.register(_Selection(json.loads(Path(wanted).read_text())))


class _Selection:
    def __init__(self, wanted: list[str]) -> None:
        self._rank = {test: rank for rank, test in enumerate(wanted)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self._rank), key=lambda it: self._rank[it.nodeid])


class _Map:
    def __init__(self, out: Path) -> None:
        import coverage  # only here: the tree under test may have an environment without it

        self._out = out
        self._coverage = coverage.Coverage(data_file=None, source=["gateway"], config_file=False)
        self._coverage.start()
        self._seconds: dict[str, float] = {}

    def pytest_sessionstart(self) -> None:
        import hypothesis

        hypothesis.settings.register_profile("map", max_examples=5, deadline=None)
        hypothesis.settings.load_profile("map")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._coverage.switch_context(item.nodeid)
        started = time.process_time()
        try:
            return (yield)
        finally:
            if item.nodeid in self._seconds:
                self._seconds[item.nodeid] = time.process_time() - started

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._seconds[report.nodeid] = 0

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        here = f"{Path.cwd()}/"
        lines: dict[str, dict[str, list[int]]] = {}  # by test, then by file
        for path in data.measured_files():
            for line, tests in data.contexts_by_lineno(path).items():
                for test in tests:
                    lines.setdefault(test, {}).setdefault(path.removeprefix(here), []).append(line)
        for file in {test.partition("::")[0] for test in self._seconds}:
            report = {
                test: {"seconds": seconds, "lines": lines.get(test, {})}
                for test, seconds in self._seconds.items()
                if test.startswith(f"{file}::")
            }
            (self._out / f"{file.replace('/', '.')}.json").write_text(json.dumps(report))
