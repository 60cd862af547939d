"""The dependency graph of services: their start order, their dependants, and a text tree of them.  (pure)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

Graph = Mapping[str, Iterable[str]]  # service -> those it depends on


class DependencyError(ValueError):
    """The services cannot all start. The message names them."""


def order(graph: Graph) -> list[str]:
    """The services in start order: each after all services that it depends on, otherwise in the given order.

    Raises:
        DependencyError: A service depends on an unknown service, or services depend on each other in a cycle.
    """
    for service, needs in graph.items():
        unknown = sorted(set(needs) - graph.keys())
        if unknown:
            raise DependencyError(f"{service} depends on {', '.join(unknown)}: no such service is registered")
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        # graphlib lists the cycle from dependency to dependant, with the first service repeated at the end.
        raise DependencyError(f"services depend on each other: {' -> '.join(reversed(error.args[1]))}") from None


def dependents(graph: Graph, service: str) -> list[str]:
    """The services that directly depend on `service`, sorted."""
    return sorted(other for other, needs in graph.items() if service in needs)


def tree_lines(graph: Graph, describe: Callable[[str], str]) -> Iterator[str]:
    """The lines of a text tree of the graph, dependencies above their dependants.

    `describe` returns the text for one service. A service with several dependencies appears below each of them, but
    its own dependants are listed only once. A dependency that is not in the graph is shown too.
    """
    needs = {service: set(of) for service, of in graph.items()}
    for of in list(needs.values()):
        for missing in of - needs.keys():
            needs[missing] = set()
    shown: set[str] = set()

    def below(service: str, indent: str) -> Iterator[str]:
        children = dependents(needs, service)
        for at, child in enumerate(children):
            last = at == len(children) - 1
            again = child in shown and bool(dependents(needs, child))
            yield f"{indent}{'└─ ' if last else '├─ '}{describe(child)}{' …' if again else ''}"
            if child not in shown:
                shown.add(child)
                yield from below(child, indent + ("   " if last else "│  "))

    roots = sorted(service for service, of in needs.items() if not of)
    # Other programs may report cycles. Each is shown from its alphabetically first service on.
    for service in [*roots, *sorted(needs)]:
        if service not in shown:
            shown.add(service)
            yield describe(service)
            yield from below(service, "")
