"""Targets of the figures, and whether they are met.  (pure)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from bench.figures import Results

Value: TypeAlias = Callable[[Results], float | None]  # None if not measured

US = "CPU us per delivery"
PEERS: Final = ("starlette", "ws", "socketio", "python-socketio")


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound: an upper bound with `at_most`, otherwise a lower bound."""

    figure: str
    value: Value
    bound: float
    at_most: bool = True
    unit: str = ""

    @property
    def text(self) -> str:
        """The bound as text."""
        return f"{'at most' if self.at_most else 'at least'} {self.bound:,.10g}{self.unit}"

    def met(self, results: Results) -> bool | None:
        """Whether the target is met; None if the figure was not measured."""
        value = self.value(results)
        if value is None:
            return None
        return value <= self.bound if self.at_most else value >= self.bound


def of(scenario: str, metric: str, contender: str = "gateway") -> Value:
    """The median of a metric."""
    return lambda results: results.median(scenario, contender, metric)


def ratio(upper: Value, lower: Value) -> Value:
    """`upper` divided by `lower`."""

    def divided(results: Results) -> float | None:
        above, below = upper(results), lower(results)
        return None if above is None or not below else above / below

    return divided


def least(values: list[Value]) -> Value:
    """The smallest measured value."""

    def smallest(results: Results) -> float | None:
        return min((value for one in values if (value := one(results)) is not None), default=None)

    return smallest


def spread(values: list[Value]) -> Value:
    """The largest value divided by the smallest; None unless all were measured."""

    def apart(results: Results) -> float | None:
        measured = [one(results) for one in values]
        known = [value for value in measured if value]
        return max(known) / min(known) if known and len(known) == len(measured) else None

    return apart


TARGETS: Final = (
    Target(
        "paced fan-out, CPU per delivery, relative to the C program",
        ratio(of("paced", US), of("paced", US, "limit")),
        1.2,
        unit=" x",
    ),
    Target(
        "the same, relative to plain Starlette", ratio(of("paced", US), of("paced", US, "starlette")), 0.65, unit=" x"
    ),
    Target("the same, relative to Socket.IO", ratio(of("paced", US), of("paced", US, "socketio")), 1.0, unit=" x"),
    Target(
        "saturation, deliveries per second and core",
        of("saturation", "deliveries per CPU second"),
        2_000_000,
        False,
        "/s",
    ),
    Target(
        "the same, relative to Socket.IO",
        ratio(of("saturation", "deliveries per CPU second"), of("saturation", "deliveries per CPU second", "socketio")),
        15,
        False,
        " x",
    ),
    Target(
        "p99 delay through HAProxy, two nodes, relative to the best peer",
        ratio(of("haproxy", "p99 ms"), least([of("haproxy", "p99 ms", peer) for peer in PEERS])),
        0.8,
        unit=" x",
    ),
    Target(
        "node CPU per delivery through HAProxy, relative to plain Starlette",
        ratio(of("haproxy", US), of("haproxy", US, "starlette")),
        0.65,
        unit=" x",
    ),
    Target("memory of an idle, subscribed, registered connection", of("storm", "KB per connection"), 6, unit=" KB"),
    Target(
        "connects + subscribes + registrations per second and core",
        of("storm", "connects per CPU second"),
        2500,
        False,
        "/s",
    ),
    Target("CPU of a message to a topic with one subscriber", of("topics", "CPU us per message"), 25, unit=" us"),
    Target("HTTP publishes per second, without history", of("publishing", "HTTP publishes/s"), 5000, False, "/s"),
    Target("HTTP publishes per second, with history", of("publishing", "HTTP publishes/s, history"), 3000, False, "/s"),
    Target(
        "CPU per delivery for 100 to 10,000 subscribers, largest / smallest",
        spread([of(f"subscribers-{n}", US) for n in (100, 1000, 10_000)]),
        1.25,
        unit=" x",
    ),
    Target("Redis round trips per 100 connects + subscribes", of("storm", "Redis round trips per 100"), 1),
    Target(
        "Redis commands when idle, with 10,000 clients relative to none",
        ratio(of("storm", "idle Redis commands/s, full"), of("storm", "idle Redis commands/s, empty")),
        1.1,
        unit=" x",
    ),
)


def asked() -> frozenset[tuple[str, str]]:
    """The pairs of scenario and contender that the targets need."""
    seen: set[tuple[str, str]] = set()

    class Listening(Results):
        def median(self, scenario: str, contender: str, metric: str) -> float | None:  # noqa: ARG002
            seen.add((scenario, contender))
            return 1.0

    for target in TARGETS:
        target.met(Listening())
    return frozenset(seen)
