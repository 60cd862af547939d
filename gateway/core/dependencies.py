"""Which service needs which: the order to start in, who is held back, and the picture of it.  (pure)"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

Graph = Mapping[str, Iterable[str]]  # service -> those it depends on


class DependencyError(ValueError):
    """Services that could never all start; the message names them."""


def order(graph: Graph) -> list[str]:
    """The services, each behind all it depends on; else in the order given.

    Raises:
        DependencyError: One depends on itself, on one that is not there, or in a circle.
    """
    for service, needs in graph.items():
        unknown = sorted(set(needs) - graph.keys())
        if unknown:
            raise DependencyError(f"{service} depends on {', '.join(unknown)}: no such service is registered")
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        # graphlib gives it from what is needed to who needs it, closed.
        raise DependencyError(f"services depend on each other: {' -> '.join(reversed(error.args[1]))}") from None


def dependants(graph: Graph, service: str) -> list[str]:
    """Those that depend on `service`, directly; sorted."""
    return sorted(other for other, needs in graph.items() if service in needs)


def lines(graph: Graph, say: Callable[[str], str]) -> Iterator[str]:
    """The graph as a tree for people: what others need stands above them; `say` gives a service's own line.

    One that needs several stands below each of them, but is unfolded only once. A name that is not in the graph is
    shown too: somebody depends on it.
    """
    needs = {service: set(of) for service, of in graph.items()}
    for of in list(needs.values()):
        for missing in of - needs.keys():
            needs[missing] = set()
    shown: set[str] = set()

    def below(service: str, indent: str) -> Iterator[str]:
        children = dependants(needs, service)
        for at, child in enumerate(children):
            last = at == len(children) - 1
            again = child in shown and bool(dependants(needs, child))
            yield f"{indent}{'└─ ' if last else '├─ '}{say(child)}{' …' if again else ''}"
            if child not in shown:
                shown.add(child)
                yield from below(child, indent + ("   " if last else "│  "))

    roots = sorted(service for service, of in needs.items() if not of)
    # Other programs may tell of circles; they are shown too, opened where the alphabet says.
    for service in [*roots, *sorted(needs)]:
        if service not in shown:
            shown.add(service)
            yield say(service)
            yield from below(service, "")
