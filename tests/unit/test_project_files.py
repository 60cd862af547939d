"""The files that contributors expect: that they are valid, and name what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.process import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"]


def _yaml(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_workflow_runs_the_checks_on_each_supported_python() -> None:
    jobs = _yaml(".github/workflows/ci.yml")["jobs"]
    assert any(".ci/run" in step.get("run", "") for step in jobs["check"]["steps"])
    project = (ROOT / "pyproject.toml").read_text()
    supported = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    assert jobs["check"]["strategy"]["matrix"]["python"] == supported


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_form_has_fields_with_labels(name: str) -> None:
    form = _yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    assert all(field["attributes"]["label"] for field in form["body"])


def test_the_hooks_run_the_tools_of_make_lint_and_types() -> None:
    [repository] = _yaml(".pre-commit-config.yaml")["repos"]
    entries = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repository["hooks"]}
    assert entries == {"ruff", "lint-imports", "mypy"}


@pytest.mark.parametrize("page", PAGES)
def test_each_page_links_only_to_files_that_exist(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_contributing_finds_each_rule_in_a_file_that_has_it() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for question, word in {
        "the limit on subscriptions per second": "count_topics",
        "the close code of a slow client": "3008",
        "who may subscribe": "Need",
        "the replay after a reconnect": "gap",
        "the JSON of DATA": '"type":"DATA"',
        "Redis pipelining": "class Pipelines",
        "the back-off of pub/sub reconnects": "RETRY_BASE_SECONDS",
        "reaping of dead nodes": "reap",
        "readiness": "unready_reasons",
        "connections per user": "class ConnectionLimits",
        "the HAProxy cookie on a rebalance": "cookie",
        "a new protocol": "PROTOCOLS",
    }.items():
        [file] = re.findall(rf"^\| {question} \| `([^`]+)`", page, re.MULTILINE)
        assert word in (ROOT / file).read_text(), f"{question}: {file} has no {word}"


NAMED_FILE = re.compile(r"`([\w.-]+(?:/[\w.-]+)*(?:\.(?:py|lua|mjs|sh|cfg|toml|yml|md)|/))`")
BUILT = {"dist/"}
# Files of other projects, of an operator, or of an example in the text.
ELSEWHERE = {"my-page/rules.toml", "topics.toml", "keys.toml", "app.py", "manage.py", "asgi.py"}


def _named_files(page: Path) -> set[str]:
    return set(NAMED_FILE.findall(page.read_text())) - BUILT - ELSEWHERE


def _exists(name: str) -> bool:
    if any((ROOT / base / name).exists() for base in (".", "gateway", "docs")):
        return True
    return "/" not in name and any(
        found for top in ("gateway", "tests", "haproxy", "stack", "deploy") for found in (ROOT / top).rglob(name)
    )


PAGES_WITH_FILES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md"), *ROOT.glob("docs/**/*.md")} - {ROOT / "CHANGELOG.md"}
)


@pytest.mark.parametrize("page", PAGES_WITH_FILES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_file_that_a_page_names_exists(page: Path) -> None:
    assert [name for name in sorted(_named_files(page)) if not _exists(name)] == []


def test_each_module_that_a_comment_names_exists() -> None:
    missing = [
        f"{module.relative_to(ROOT)}: {name}"
        for module in sorted((ROOT / "gateway").rglob("*.py"))
        for name in re.findall(r"(?<![\w./-])\w+(?:/\w+)*\.py\b", module.read_text())
        if name not in ELSEWHERE and not _exists(name)
    ]
    assert missing == []
