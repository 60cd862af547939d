"""Tag filters have the semantics of Centrifugo, and limits."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.json_text import Json
from gateway.core.tag_filter import MAX_BYTES, MAX_DEPTH, MAX_NODES, TagFilter

TAGS = {"symbol": "BTC-USD", "price": "120.5", "count": "42", "empty": "", "word": "many"}


def compare(key: str, cmp: str, value: str | list[str] = "") -> dict[str, Json]:
    return {"key": key, "cmp": cmp, "vals" if isinstance(value, list) else "val": value}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (compare("symbol", "eq", "BTC-USD"), True),
        (compare("symbol", "eq", "BTC"), False),
        (compare("absent", "eq", "BTC"), False),
        (compare("symbol", "neq", "BTC"), True),
        (compare("symbol", "neq", "BTC-USD"), False),
        (compare("absent", "neq", "BTC"), True),
        (compare("count", "in", ["41", "42"]), True),
        (compare("count", "in", ["41"]), False),
        (compare("absent", "in", ["41"]), False),
        (compare("absent", "in", [""]), True),
        (compare("count", "nin", ["41"]), True),
        (compare("count", "nin", ["42"]), False),
        (compare("absent", "nin", ["42"]), True),
        (compare("empty", "ex"), True),
        (compare("absent", "ex"), False),
        (compare("", "ex"), False),
        (compare("empty", "nex"), False),
        (compare("absent", "nex"), True),
        (compare("symbol", "sw", "BTC"), True),
        (compare("symbol", "sw", "USD"), False),
        (compare("absent", "sw", "USD"), False),
        (compare("symbol", "ew", "USD"), True),
        (compare("symbol", "ew", "BTC"), False),
        (compare("symbol", "ct", "C-U"), True),
        (compare("symbol", "ct", "CU"), False),
        (compare("price", "gt", "120.4"), True),
        (compare("price", "gt", "120.50"), False),
        (compare("price", "gte", "120.50"), True),
        (compare("count", "gte", "100"), False),
        (compare("count", "lt", "100"), True),
        (compare("count", "lt", "42"), False),
        (compare("count", "lte", "42"), True),
        (compare("count", "lte", "-42"), False),
        (compare("count", "gt", "+41.9999999999999999999"), True),
        (compare("count", "gt", "41.99999999999999999999"), False),  # 20 digits of a fraction are no number
        (compare("word", "gt", "1"), False),
        (compare("word", "lt", "1"), False),
        (compare("count", "gt", "few"), False),
        (compare("count", "gt", ".5"), False),
        (compare("count", "gt", "5."), False),
        (compare("count", "gt", "1e1"), False),
        (compare("count", "gt", "\u0661"), False),  # a digit of another script
        (compare("absent", "lt", "1"), False),
    ],
)
def test_comparison(node: Json, expected: bool) -> None:
    assert TagFilter(node).matches(TAGS) is expected
    assert TagFilter({"op": "not", "nodes": [node]}).matches(TAGS) is not expected


def test_nodes_combine() -> None:
    yes, no = compare("symbol", "ex"), compare("absent", "ex")
    for op, nodes, expected in [
        ("and", [yes], True), ("and", [yes, no], False), ("or", [no, yes], True), ("or", [no, no], False),
        ("or", [no, {"op": "and", "nodes": [yes, {"op": "not", "nodes": [no]}]}], True),
    ]:  # fmt: skip
        assert TagFilter({"op": op, "nodes": nodes}).matches(TAGS) is expected


def nested(levels: int) -> Json:
    node: Json = compare("a", "ex")
    for _ in range(levels - 1):
        node = {"op": "not", "nodes": [node]}
    return node


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ("a", "a node of a filter must be an object, not 'a'"),
        ({"op": "and", "nodes": [1]}, "a node of a filter must be an object, not 1"),
        ({**compare("a", "ex"), "more": 1}, "has no field 'more': remove it"),
        ({"op": "xor", "nodes": [compare("a", "ex")]}, "op must be and, or, not, or absent"),
        ({"op": "and"}, "nodes of and is empty"),
        ({"op": "not", "nodes": []}, "needs exactly one node, not 0"),
        ({"op": "not", "nodes": [compare("a", "ex")] * 2}, "needs exactly one node, not 2"),
        ({"op": "and", "nodes": {}}, "nodes of a filter must be a list"),
        ({"op": 1}, "op of a filter must be a string, not 1"),
        ({}, "cmp must be one of eq, neq, in, nin, ex, nex, sw, ew, ct, gt, gte, lt, lte, not ''"),
        (compare("a", "like", "b"), "not 'like'"),
        (compare("", "eq", "b"), "a comparison with eq needs key"),
        (compare("", "in", ["b"]), "a comparison with in needs key"),
        (compare("a", "eq"), "a comparison with eq needs val"),
        (compare("a", "eq", ["b"]), "a comparison with eq needs val"),
        ({**compare("a", "gt", "1"), "vals": ["b"]}, "a comparison with gt has no vals"),
        (compare("a", "in", []), "a comparison with in needs vals"),
        ({**compare("a", "in", ["b"]), "val": "b"}, "a comparison with in has no val"),
        (compare("a", "in", [1]), "vals must contain strings, not 1"),  # type: ignore[list-item]
        (compare("a", "ex", "b"), "a comparison with ex has no val"),
        (compare("a", "nex", ["b"]), "a comparison with nex has no vals"),
        (compare("a", "gt", 1), "val of a filter must be a string, not 1: write numbers as strings"),  # type: ignore[arg-type]
        (nested(MAX_DEPTH + 1), f"at most {MAX_DEPTH} levels"),
        ({"op": "or", "nodes": [compare("a", "ex")] * MAX_NODES}, f"at most {MAX_NODES} nodes"),
        (compare("a", "eq", "b" * MAX_BYTES), f"at most {MAX_BYTES} bytes"),
        (compare("a", "in", ["b"] * MAX_BYTES), f"at most {MAX_BYTES} bytes"),
        (compare("a", "eq", "é" * (MAX_BYTES - 100)), f"exceeds the limit of {MAX_BYTES}"),
    ],
)
def test_invalid_filters_are_refused_with_the_reason(tree: Json, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TagFilter(tree)


def test_the_limits_themselves_are_accepted() -> None:
    assert TagFilter(nested(MAX_DEPTH)).matches(TAGS) is True
    TagFilter({"op": "or", "nodes": [compare("a", "ex")] * (MAX_NODES - 1)})


def test_equal_filters_share_a_canonical_text() -> None:
    short = TagFilter({"cmp": "in", "key": "a", "vals": ["x", "y"]})
    long = TagFilter({"op": "", "key": "a", "cmp": "in", "val": "", "vals": ["y", "x", "y"], "nodes": []})
    assert short == long
    assert len({short, long, TagFilter(compare("a", "in", ["x"]))}) == 2
    assert short != short.canonical


JSON = st.recursive(
    st.none() | st.integers(0, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
TREES = st.recursive(
    st.builds(
        compare, st.sampled_from(["a", "b", ""]), st.sampled_from(["eq", "neq", "ex", "sw", "lt", "in", "?"]),
        st.sampled_from(["", "1", "x"]) | st.lists(st.sampled_from(["1", "x"])),
    ),
    lambda inner: st.fixed_dictionaries({"op": st.sampled_from(["and", "or", "not", "?"]), "nodes": st.lists(inner)}),
)  # fmt: skip


@given(JSON | TREES, st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "1", "x", "-2.5"])))
def test_any_json_is_a_filter_or_a_value_error(tree: Any, tags: dict[str, str]) -> None:
    try:
        made = TagFilter(tree)
    except ValueError:
        return
    again = TagFilter(orjson.loads(made.canonical))
    assert again == made
    assert again.matches(tags) == made.matches(tags)
    shuffled = {name: tree[name] for name in random.Random(1).sample(sorted(tree), len(tree))}
    assert TagFilter(shuffled) == made
