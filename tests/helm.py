"""Renders a Helm chart that uses the few template functions below, so that tests need no helm.

A function or an action that is missing here fails, so the chart cannot use one that was not tried.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ACTION: Final = re.compile(r"(\{\{-?\s*)(.*?)(\s*-?\}\})", re.DOTALL)
WORD: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\(|\)\.?[\w.]*|\||[^\s()|]+')


class RenderError(Exception):
    """The chart refuses its values, or uses something that this renderer does not know."""


def render(chart: Path, values: Mapping[str, Any], name: str, namespace: str) -> list[dict[str, Any]]:
    """All objects of the chart with `values` over its defaults."""
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    top = {
        "Values": _merged(yaml.safe_load((chart / "values.yaml").read_text()), values),
        "Release": {"Name": name, "Namespace": namespace},
        "Chart": {"AppVersion": about["appVersion"]},
        "Files": chart,
    }
    objects: list[dict[str, Any]] = []
    for file in sorted((chart / "templates").glob("*.yaml")):
        text, rest = _block(_tokens(file.read_text()), _Scope(top))
        assert not rest
        objects += [one for one in yaml.safe_load_all(text) if one]
    return objects


def _merged(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, Mapping):
        return copy.deepcopy(over)
    return {**base, **{name: _merged(base.get(name), value) for name, value in over.items()}}


def _tokens(text: str) -> list[str]:
    """Texts and actions in turn; `{{-` has trimmed the text before it."""
    parts: list[str] = []
    end = 0
    for found in ACTION.finditer(text):
        before = text[end : found.start()]
        parts += [before.rstrip() if found[1].startswith("{{-") else before, found[2]]
        end = found.end()
        if found[3].endswith("-}}"):
            end += len(text[end:]) - len(text[end:].lstrip())
    return [*parts, text[end:]]


class _Scope:
    """The values that expressions see."""

    def __init__(self, top: Mapping[str, Any], variables: Mapping[str, Any] | None = None) -> None:
        self.top = top
        self.variables = dict(variables or {})

    def value(self, expression: str) -> Any:
        """The value of a pipeline."""
        words = WORD.findall(expression)
        value = self._pipeline(words)
        if words:
            raise RenderError(f"cannot read {words} in {expression!r}")
        return value

    def _pipeline(self, words: list[str]) -> Any:
        value = self._call(words, [])
        while words and words[0] == "|":
            words.pop(0)
            value = self._call(words, [value])
        return value

    def _call(self, words: list[str], last: list[Any]) -> Any:
        first = words[0]
        if first in FUNCTIONS or first == ".Files.Get":
            words.pop(0)
            arguments = []
            while words and words[0] != "|" and not words[0].startswith(")"):
                arguments.append(self._operand(words))
            if first == ".Files.Get":
                return (self.top["Files"] / arguments[0]).read_text()
            return FUNCTIONS[first](*arguments, *last)
        return self._operand(words)

    def _operand(self, words: list[str]) -> Any:
        word = words.pop(0)
        if word == "(":
            value = self._pipeline(words)
            return _member(value, words.pop(0).removeprefix(")"))
        if word.startswith('"'):
            return json.loads(word)
        if word.isdigit():
            return int(word)
        if word.startswith("$"):
            return self.variables[word]
        if word.startswith("."):
            return _member(self.top, word)
        raise RenderError(f"this renderer does not know {word!r}")


def _member(value: Any, path: str) -> Any:
    for step in filter(None, path.split(".")):
        value = value[step]  # an unknown value is an error, unlike in Helm
    return value


def _block(parts: list[str], scope: _Scope, ends: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    """Render up to one of `ends`; the rest begins with it."""
    text = parts[0]
    rest = parts[1:]
    while rest:
        action, *rest = rest
        word, _, expression = action.partition(" ")
        if word in ends:
            return text, [action, *rest]
        match word:
            case "if":
                chosen = ""
                if scope.value(expression):
                    chosen, rest = _block(rest, scope, ("else", "end"))
                    if rest[0] == "else":
                        rest = _skipped(rest[1:], ("end",))
                else:  # the branch is not evaluated: `required` would refuse there
                    rest = _skipped(rest, ("else", "end"))
                    if rest[0] == "else":
                        chosen, rest = _block(rest[1:], scope, ("end",))
                text += chosen
            case "range":
                names, _, source = expression.partition(" := ")
                key, item = names.split(", ")
                body = rest
                rendered, rest = "", _skipped(body, ("end",))
                for name, value in sorted(scope.value(source).items()):
                    inner = _Scope(scope.top, {**scope.variables, key: name, item: value})
                    rendered += _block(body, inner, ("end",))[0]
                text += rendered
            case _:
                value = scope.value(action)
                text += rest[0] if value is None else f"{value}{rest[0]}"
                rest = rest[1:]
                continue
        text += rest[1]
        rest = rest[2:]
    return text, []


def _skipped(parts: list[str], ends: tuple[str, ...]) -> list[str]:
    """`parts` from the one of `ends` on that belongs to this block."""
    depth = 0
    for at in range(1, len(parts), 2):
        word = parts[at].partition(" ")[0]
        if word in ends and not depth:
            return parts[at:]
        depth += (word in ("if", "range")) - (word == "end")
    raise RenderError("a block has no end")


def _required(message: str, value: Any) -> Any:
    if value in (None, ""):
        raise RenderError(message)
    return value


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "quote": lambda value: json.dumps(str(value)),
    "toJson": lambda value: json.dumps(value, separators=(",", ":")),
    "fromYaml": yaml.safe_load,
    "sha256sum": lambda value: hashlib.sha256(str(value).encode()).hexdigest(),
    "default": lambda other, value: value or other,
    "required": _required,
    "add": lambda one, other: one + other,
    "not": lambda value: not value,
    "eq": lambda one, other: one == other,
}
