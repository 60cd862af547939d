"""Dependencies of services: the start order, and the graph for display."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.dependency_graph import DependencyError, dependents, order, tree_lines

GRAPHS = st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefgh"), max_size=3), max_size=8)


def test_each_stands_behind_all_it_needs() -> None:
    assert order({"c": ["b"], "b": ["a"], "a": []}) == ["a", "b", "c"]


def test_an_unknown_dependency_is_named() -> None:
    with pytest.raises(DependencyError, match=r"^feed depends on db, queue: no such service is registered$"):
        order({"feed": ["queue", "db"]})


@pytest.mark.parametrize(
    ("graph", "circle"),
    [({"a": ["a"]}, "a -> a"), ({"a": ["b"], "b": ["c"], "c": ["a"], "d": []}, "a -> b -> c -> a")],
)
def test_a_circle_is_shown_in_the_direction_of_need(graph: dict[str, list[str]], circle: str) -> None:
    with pytest.raises(DependencyError) as raised:
        order(graph)
    shown = str(raised.value).removeprefix("services depend on each other: ").split(" -> ")
    assert shown[0] == shown[-1]
    assert all(need in graph[service] for service, need in itertools.pairwise(shown))
    assert len(shown) == len(circle.split(" -> "))


def test_dependants_are_the_direct_ones() -> None:
    graph = {"a": [], "b": ["a"], "c": ["b", "a"], "d": ["c"]}
    assert dependents(graph, "a") == ["b", "c"]
    assert dependents(graph, "d") == []


def test_the_tree_stands_on_what_needs_nothing() -> None:
    graph = {"db": [], "queue": [], "prices": ["db"], "feed": ["prices"], "wallet": ["db", "queue"]}
    assert list(tree_lines(graph, str.upper)) == [
        "DB", "├─ PRICES", "│  └─ FEED", "└─ WALLET", "QUEUE", "└─ WALLET",
    ]  # fmt: skip


def test_what_stands_in_two_places_is_unfolded_once() -> None:
    graph = {"a": [], "b": [], "c": ["a", "b"], "d": ["c"]}
    assert list(tree_lines(graph, str)) == ["a", "└─ c", "   └─ d", "b", "└─ c …"]


def test_an_unregistered_dependency_is_shown_beside_its_dependents() -> None:
    assert list(tree_lines({"feed": ["db"]}, str)) == ["db", "└─ feed"]


@given(GRAPHS)
def test_every_graph_is_ordered_or_refused_and_always_drawn_whole(graph: dict[str, set[str]]) -> None:
    try:
        found = order(graph)
    except DependencyError:
        pass
    else:
        assert sorted(found) == sorted(graph)
        assert all(found.index(need) < found.index(name) for name, needs in graph.items() for need in needs)
    drawn = {line.strip("│├└─ …") for line in tree_lines(graph, str)}
    assert drawn == set(graph).union(*graph.values())
