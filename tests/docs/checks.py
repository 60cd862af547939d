"""Checks of samples that are not run, each as far as the language allows."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import tempfile
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import orjson
import yaml

from gateway.auth import api_keys
from gateway.cli.main import cli
from gateway.core import topic_rules
from gateway.http.api import router
from tests.kit.process import ROOT, clean_environment, program


def python(text: str) -> None:
    """It compiles, and what it imports of this project exists."""
    text = textwrap.dedent(text)  # a part of a function
    for node in ast.walk(compile(text, "sample", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gateway":
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


def toml(text: str) -> None:
    """It is TOML, and the loader of the nodes accepts the rules or keys in it."""
    tables = tomllib.loads(text)
    assert tables.keys() & {"topic", "key"}, "it has neither rules nor keys"
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


def promql(text: str) -> None:
    """Each line is an expression that promtool accepts, on metrics that the nodes or HAProxy have."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rules = [{"record": f"sample:{at}", "expr": line} for at, line in enumerate(lines)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "samples", "rules": rules}]}))
        _run([program("promtool"), "check", "rules", "--lint=none", str(file)])
    code = "".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py"))
    exported = set(re.findall(r'"(gateway_[a-z_]+)"', code))
    named = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in re.findall(r"gateway_[a-z_]+", text)}
    assert named <= exported, f"no node exports {named - exported}"


def haproxy(text: str) -> None:
    """It is a valid configuration."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "haproxy.cfg"
        file.write_text(text)
        _run([program("haproxy"), "-c", "-f", str(file)])


def haproxy_variables(text: str) -> None:
    """haproxy.cfg reads these variables and is valid with them; a value of `...` stands for one of the reader's own."""
    words = [word for line in text.splitlines() for word in shlex.split(line, comments=True) if "=" in word]
    variables = dict(word.replace("=...", "=own").split("=", 1) for word in words)
    configuration = ROOT / "haproxy" / "haproxy.cfg"
    unknown = [name for name in variables if not re.search(rf"\b{name}\b", configuration.read_text())]
    assert not unknown, f"haproxy.cfg reads no {unknown}"
    with tempfile.TemporaryDirectory() as folder:
        _run([program("haproxy"), "-c", "-f", str(configuration)], **{"LB_RUN": folder, **variables})


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


CHECKS: dict[str, Callable[[str], object]] = {
    "python": python, "toml": toml, "js": javascript, "html": html, "sh": shell, "promql": promql, "haproxy": haproxy,
    "jsx": str.strip,  # the test that bundles it checks it
    "yaml": lambda text: list(yaml.safe_load_all(text)), "json": orjson.loads,
}  # fmt: skip


def _run(command: list[str], **variables: str) -> None:
    environment = clean_environment() | {"PATH": os.environ["PATH"]} | variables
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


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
