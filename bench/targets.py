"""What the figures are held against, and whether they hold.  (pure)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from bench.figures import Results

Value: TypeAlias = Callable[[Results], float | None]  # None: it was not measured

US = "CPU us a delivery"
PEERS: Final = ("starlette", "ws", "socketio", "python-socketio")


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound, `at_most` or at least; a bound may itself be measured in the same run."""

    figure: str
    value: Value
    bound: float
    at_most: bool = True
    unit: str = ""

    @property
    def said(self) -> str:
        """The bound in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:,g}{self.unit}"

    def met(self, results: Results) -> bool | None:
        """Whether it holds; None if it was not measured."""
        value = self.value(results)
        if value is None:
            return None
        return value <= self.bound if self.at_most else value >= self.bound


def of(scenario: str, metric: str, contender: str = "gateway") -> Value:
    """A median."""
    return lambda results: results.median(scenario, contender, metric)


def ratio(upper: Value, lower: Value) -> Value:
    """One by the other."""

    def divided(results: Results) -> float | None:
        above, below = upper(results), lower(results)
        return None if above is None or not below else above / below

    return divided


def least(values: list[Value]) -> Value:
    """The smallest of those that were measured."""

    def smallest(results: Results) -> float | None:
        return min((value for one in values if (value := one(results)) is not None), default=None)

    return smallest


def spread(values: list[Value]) -> Value:
    """The largest by the smallest; all must have been measured."""

    def apart(results: Results) -> float | None:
        measured = [one(results) for one in values]
        known = [value for value in measured if value]
        return max(known) / min(known) if known and len(known) == len(measured) else None

    return apart


TARGETS: Final = (
    Target(
        "paced fan-out, CPU a delivery: by the C limit",
        ratio(of("paced", US), of("paced", US, "limit")),
        1.2,
        unit=" x",
    ),
    Target("by plain Starlette", ratio(of("paced", US), of("paced", US, "starlette")), 0.65, unit=" x"),
    Target("by Socket.IO", ratio(of("paced", US), of("paced", US, "socketio")), 1.0, unit=" x"),
    Target(
        "saturation, deliveries a second of a core", of("saturation", "deliveries a CPU second"), 2_000_000, False, "/s"
    ),
    Target(
        "by Socket.IO",
        ratio(of("saturation", "deliveries a CPU second"), of("saturation", "deliveries a CPU second", "socketio")),
        15,
        False,
        " x",
    ),
    Target(
        "p99 delay through HAProxy, two nodes: by the best peer",
        ratio(of("haproxy", "p99 ms"), least([of("haproxy", "p99 ms", peer) for peer in PEERS])),
        0.8,
        unit=" x",
    ),
    Target(
        "node CPU a delivery there: by plain Starlette",
        ratio(of("haproxy", US), of("haproxy", US, "starlette")),
        0.65,
        unit=" x",
    ),
    Target("an idle, subscribed, registered connection", of("storm", "KB a connection"), 6, unit=" KB"),
    Target(
        "connects + subscribes + registrations a second of a core",
        of("storm", "connects a CPU second"),
        2500,
        False,
        "/s",
    ),
    Target("a message to a topic with one subscriber, CPU", of("topics", "CPU us a message"), 25, unit=" us"),
    Target("HTTP publishes a second, without history", of("publishing", "HTTP publishes/s"), 5000, False, "/s"),
    Target("with history", of("publishing", "HTTP publishes/s, history"), 3000, False, "/s"),
    Target(
        "cost a delivery from 100 to 10,000 subscribers, largest by smallest",
        spread([of(f"subscribers-{n}", US) for n in (100, 1000, 10_000)]),
        1.25,
        unit=" x",
    ),
    Target("Redis round trips per 100 connects + subscribes", of("storm", "Redis round trips per 100"), 1),
    Target(
        "Redis commands of a beat with 10,000 clients: by none",
        ratio(of("storm", "idle Redis commands/s, full"), of("storm", "idle Redis commands/s, empty")),
        1.1,
        unit=" x",
    ),
)


def asked() -> frozenset[tuple[str, str]]:
    """The scenarios that the targets speak of, each with a contender."""
    seen: set[tuple[str, str]] = set()

    class Listening(Results):
        def median(self, scenario: str, contender: str, metric: str) -> float | None:  # noqa: ARG002
            seen.add((scenario, contender))
            return 1.0

    for target in TARGETS:
        target.met(Listening())
    return frozenset(seen)
