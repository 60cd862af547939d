"""A filter of a subscription: a condition on the tags of messages.  (pure)

A filter is a tree in JSON, as in Centrifugo. A node of it is a comparison, or combines other nodes:

    {"key": "symbol", "cmp": "eq", "val": "BTC"}
    {"op": "and", "nodes": [{"key": "price", "cmp": "gt", "val": "100"}, {"op": "not", "nodes": [...]}]}

    eq, neq            the tag equals `val`, or not; a missing tag equals nothing
    in, nin            the tag is one of `vals`, or not; a missing tag counts as the empty string
    ex, nex            the tag exists, or not
    sw, ew, ct         the tag starts with, ends with or contains `val`
    gt, gte, lt, lte   the tag and `val` are decimal numbers, which compare so; false if either is not a number
    and, or, not       `nodes` are all true, or one of them, or the only one is false

Equal filters have the same canonical text, so a node can evaluate each distinct filter once per message.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from operator import ge, gt, le, lt
from typing import Any, Final, TypeAlias

import orjson

from gateway.core.json_text import Json
from gateway.core.names import quoted

MAX_DEPTH: Final = 8  # levels of nodes
MAX_NODES: Final = 64
MAX_BYTES: Final = 4096  # of a filter as JSON text

_FIELDS: Final = frozenset({"op", "key", "cmp", "val", "vals", "nodes"})
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]{1,19})?")
_MAX_DIGITS: Final = 200  # characters of a number

_Test: TypeAlias = Callable[[Mapping[str, str]], bool]

_TEXT_TESTS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "sw": str.startswith,
    "ew": str.endswith,
    "ct": str.__contains__,
}
_NUMBER_TESTS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {"gt": gt, "gte": ge, "lt": lt, "lte": le}
_WITH_VAL: Final = frozenset({"eq", "neq", *_TEXT_TESTS, *_NUMBER_TESTS})
_WITH_VALS: Final = frozenset({"in", "nin"})
_WITHOUT: Final = frozenset({"ex", "nex"})
_COMPARISONS: Final = ", ".join(("eq", "neq", "in", "nin", "ex", "nex", *_TEXT_TESTS, *_NUMBER_TESTS))


class TagFilter:
    """A valid filter, ready to evaluate. Filters with the same meaning and form are equal.

    Args:
        tree: The filter as a client gives it.

    Raises:
        ValueError: `tree` is not a filter, or exceeds a limit.
    """

    __slots__ = ("_test", "canonical", "digest", "nodes")

    def __init__(self, tree: Json) -> None:
        budget = _Budget()
        normal = _normalized(tree, budget, MAX_DEPTH)
        self.canonical: Final = orjson.dumps(normal)
        if len(self.canonical) > MAX_BYTES:
            raise ValueError(f"a filter of {len(self.canonical)} bytes exceeds the limit of {MAX_BYTES}: shorten it")
        self.digest: Final = hashlib.blake2b(self.canonical, digest_size=16).hexdigest()
        self.nodes: Final = MAX_NODES - budget.nodes
        self._test: Final = _compiled(normal)

    def matches(self, tags: Mapping[str, str]) -> bool:
        """Whether a message with these tags passes the filter."""
        return self._test(tags)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TagFilter) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)


class _Budget:
    """The nodes and characters that the rest of a filter may have, so that a refused filter costs no more."""

    def __init__(self) -> None:
        self.nodes = MAX_NODES
        self.characters = MAX_BYTES

    def take_node(self) -> None:
        """Count a node."""
        self.nodes -= 1
        if self.nodes < 0:
            raise ValueError(f"a filter has at most {MAX_NODES} nodes: use in or nin for many values of one tag")

    def take_text(self, text: str) -> None:
        """Count a string."""
        self.characters -= len(text) + 1
        if self.characters < 0:
            raise ValueError(f"a filter has at most {MAX_BYTES} bytes: shorten its keys and values")


def _normalized(tree: Json, budget: _Budget, depth: int) -> dict[str, Json]:
    """`tree` with the fields that matter alone, in one order."""
    if not isinstance(tree, dict):
        raise ValueError(f"a node of a filter must be an object, not {quoted(tree)}")  # noqa: TRY004  the type of input
    unknown = tree.keys() - _FIELDS
    if unknown:
        raise ValueError(f"a node of a filter has no field {quoted(min(unknown))}: remove it")
    budget.take_node()
    if not depth:
        raise ValueError(f"a filter has at most {MAX_DEPTH} levels: combine its conditions with fewer nested nodes")
    operation = _text(tree, "op", budget)
    if operation == "":
        return _normalized_comparison(tree, budget)
    if operation not in ("and", "or", "not"):
        raise ValueError(f"op must be and, or, not, or absent for a comparison, not {quoted(operation)}")
    nodes = _list(tree, "nodes")
    if operation == "not" and len(nodes) != 1:
        raise ValueError(f"a not node needs exactly one node, not {len(nodes)}: combine them with and or or")
    if not nodes:
        raise ValueError(f"nodes of {operation} is empty: give it a node, or remove {operation}")
    return {"op": operation, "nodes": [_normalized(node, budget, depth - 1) for node in nodes]}


def _normalized_comparison(tree: Mapping[str, Json], budget: _Budget) -> dict[str, Json]:
    comparison, key, val = (_text(tree, name, budget) for name in ("cmp", "key", "val"))
    vals = _list(tree, "vals")
    if comparison not in _WITH_VAL | _WITH_VALS | _WITHOUT:
        raise ValueError(f"cmp must be one of {_COMPARISONS}, not {quoted(comparison)}")
    if key == "" and comparison not in _WITHOUT:
        raise ValueError(f"a comparison with {comparison} needs key, the name of a tag")
    if (comparison in _WITH_VAL) != (val != ""):
        needed = "needs val, a string that is not empty" if comparison in _WITH_VAL else "has no val: remove it"
        raise ValueError(f"a comparison with {comparison} {needed}")
    if (comparison in _WITH_VALS) != bool(vals):
        needed = "needs vals, a list that is not empty" if comparison in _WITH_VALS else "has no vals: remove it"
        raise ValueError(f"a comparison with {comparison} {needed}")
    for value in vals:
        if not isinstance(value, str):
            raise ValueError(f"vals must contain strings, not {quoted(value)}: tags are strings")  # noqa: TRY004  the type of input
        budget.take_text(value)
    if vals:
        return {"key": key, "cmp": comparison, "vals": sorted(set(vals))}
    return {"key": key, "cmp": comparison, "val": val}


def _text(tree: Mapping[str, Json], name: str, budget: _Budget) -> str:
    value = tree.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} of a filter must be a string, not {quoted(value)}: write numbers as strings")  # noqa: TRY004  the type of input
    budget.take_text(value)
    return value


def _list(tree: Mapping[str, Json], name: str) -> list[Json]:
    value = tree.get(name)
    if not isinstance(value, list | None):
        raise ValueError(f"{name} of a filter must be a list, not {quoted(value)}")  # noqa: TRY004  the type of input
    return value or []


def _compiled(node: Mapping[str, Json]) -> _Test:
    if "op" not in node:
        return _compiled_comparison(node["key"], node["cmp"], node.get("val", ""), node.get("vals", ()))
    tests = [_compiled(child) for child in node["nodes"]]
    match node["op"]:
        case "and":
            return lambda tags: all(test(tags) for test in tests)
        case "or":
            return lambda tags: any(test(tags) for test in tests)
    [only] = tests
    return lambda tags: not only(tags)


def _compiled_comparison(key: str, comparison: str, val: str, vals: list[str]) -> _Test:
    if comparison in _TEXT_TESTS:
        text_test = _TEXT_TESTS[comparison]
        return lambda tags: key in tags and text_test(tags[key], val)
    if comparison in _NUMBER_TESTS:
        return _compiled_number(key, _NUMBER_TESTS[comparison], val)
    accepted = frozenset(vals)
    tests: Mapping[str, _Test] = {
        "eq": lambda tags: tags.get(key) == val,
        "neq": lambda tags: tags.get(key) != val,
        "in": lambda tags: tags.get(key, "") in accepted,
        "nin": lambda tags: tags.get(key, "") not in accepted,
        "ex": lambda tags: key in tags,
        "nex": lambda tags: key not in tags,
    }
    return tests[comparison]


def _compiled_number(key: str, number_test: Callable[[Any, Any], bool], val: str) -> _Test:
    bound = _number(val)
    if bound is None:
        return lambda _tags: False

    def test(tags: Mapping[str, str]) -> bool:
        value = _number(tags.get(key, ""))
        return value is not None and number_test(value, bound)

    return test


def _number(text: str) -> Decimal | None:
    """The decimal number `text`: exact, with at most 19 digits of a fraction. None if it is not one."""
    return Decimal(text) if len(text) <= _MAX_DIGITS and _NUMBER.fullmatch(text) else None
