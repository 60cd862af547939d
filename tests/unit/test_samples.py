"""The samples in README and docs/: each fenced block is checked as far as its language allows.

A block in ```text is output, a diagram or a sketch with placeholders, which nothing can check. Every other block has a
language of `CHECKS`.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from typing import NamedTuple

import click
import pytest
import yaml

from gateway.auth import api_keys
from gateway.cli.main import cli
from gateway.core import topic_rules
from gateway.http.api import router
from tests.kit.process import ROOT, program

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Sample(NamedTuple):
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str


def _samples() -> list[Sample]:
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        whole = page.read_text()
        for block in FENCE.finditer(whole):
            indent = len(block[1])
            lines = (line[indent:] for line in block[3].splitlines())
            name = str(page.relative_to(ROOT))
            found.append(Sample(name, whole.count("\n", 0, block.start()) + 1, block[2], "\n".join(lines) + "\n"))
    return found


SAMPLES = _samples()


def python(text: str) -> None:
    """It compiles, and what it imports of this project exists."""
    for node in ast.walk(compile(text, "sample", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gateway":
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


def toml(text: str) -> None:
    """It is TOML, and the rules or keys in it are valid."""
    tables = tomllib.loads(text)
    if "topic" in tables:
        topic_rules.parse(text, "sample")
    if "key" in tables:
        api_keys.parse(text, "sample")


def javascript(text: str) -> None:
    """It is a valid module."""
    done = subprocess.run(
        [program("node"), "--check", "--input-type=module"], input=text, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def html(text: str) -> None:
    """Its scripts are valid."""
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert scripts
    for script in scripts:
        javascript(script)


def shell(text: str) -> None:
    """Its syntax is valid; the gateway commands and their options, make targets and API paths in it exist."""
    done = subprocess.run(["bash", "-n"], input=text, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in _commands(text):
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert set(named) <= targets, f"make has no {set(named) - targets}"
        if words[0] == "gateway":
            _check_command(cli, words[1:])
    for path in re.findall(r"/api/[\w/:.%{}$-]*", text):
        assert any(_fits(route.path, path) for route in router.ROUTES), f"the API has no {path}"


def _commands(text: str) -> list[list[str]]:
    """The simple commands of a script, as words."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\||;|&&", line.partition(" #")[0]):
            try:
                words = shlex.split(part)
            except ValueError:  # a quote that goes over several lines
                continue
            while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
                words.pop(0)
            if words:
                words[0] = words[0].removeprefix(".venv/bin/")
                found.append(words)
    return found


def _check_command(group: click.Group, words: list[str]) -> None:
    if not words or words[0].startswith("-"):
        return
    command = group.commands.get(words[0])
    assert command is not None, f"gateway has no command {words[0]}"
    if isinstance(command, click.Group):
        _check_command(command, words[1:])
        return
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    given = {word.partition("=")[0] for word in words[1:] if re.match(r"--[a-z]", word)}
    assert given <= known, f"gateway {words[0]} has no {given - known}"


def _fits(route: str, path: str) -> bool:
    pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(route))
    return re.fullmatch(pattern, path.rstrip("./")) is not None


CHECKS: dict[str, Callable[[str], object]] = {
    "python": python, "toml": toml, "js": javascript, "html": html, "sh": shell,
    "nginx": str.strip,  # not checked: the tests need no nginx
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}  # fmt: skip


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.page}:{sample.line}")
def test_each_sample_is_valid(sample: Sample) -> None:
    if sample.language == "text":
        return
    assert sample.language in CHECKS, "name the language of the block, or text if nothing can check it"
    CHECKS[sample.language](sample.text)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "from gateway.tokens import nothing\n"), ("python", "def\n"), ("toml", "[[topic]]\nhistory = 1\n"),
        ("js", "await = 1\n"), ("sh", "gateway publish --no-such-option t 1\n"), ("sh", "gateway fly\n"),
        ("sh", "make nothing\n"), ("sh", "curl http://localhost:8404/api/nothing\n"), ("sh", "if true\n"),
        ("html", "<script>let let = 1</script>"),
    ],
)  # fmt: skip
def test_a_wrong_sample_would_be_found(language: str, text: str) -> None:
    with pytest.raises((AssertionError, SyntaxError, topic_rules.RulesError)):
        CHECKS[language](text)


def test_the_sample_rules_keep_what_the_shipped_rules_protect() -> None:
    [sample] = [
        each for each in SAMPLES if each.page == "docs/reference/topic-rules.md" and "token:price:*" in each.text
    ]
    rule = topic_rules.parse(sample.text, "sample").of("token:price:SOL")
    assert rule.publish is topic_rules.Need.ADMIN
