"""Targets of the figures, and whether they are met.  (pure)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from bench.figures import Results

Value: TypeAlias = Callable[[Results], float | None]  # None if not measured

US: Final = "CPU us per delivery"
SATURATED: Final = "deliveries per CPU second"
PEERS: Final = ("centrifugo", "starlette", "ws", "socketio", "python-socketio")


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound: an upper bound with `at_most`, otherwise a lower bound."""

    figure: str
    value: Value
    bound: float
    at_most: bool = True
    unit: str = ""
    otherwise: Target | None = None  # replaces this target if its figure was not measured

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


def versus(scenario: str, metric: str) -> Value:
    """The median of a metric, relative to Centrifugo's."""
    return ratio(of(scenario, metric), of(scenario, metric, "centrifugo"))


def _cost(figure: str, scenario: str, metric: str, bound: float, otherwise: Target | None = None) -> Target:
    return Target(f"{figure}, relative to Centrifugo", versus(scenario, metric), bound, unit=" x", otherwise=otherwise)


TARGETS: Final = (
    Target(
        "paced fan-out, CPU per delivery, relative to the C program",
        ratio(of("paced", US), of("paced", US, "limit")),
        1.2,
        unit=" x",
    ),
    _cost("paced fan-out, CPU per delivery", "paced", US, 0.9),
    Target(
        "paced fan-out in Centrifugo's protocol, CPU per delivery, relative to the native protocol",
        ratio(of("paced", US, "gateway-centrifugo"), of("paced", US)),
        1.1,
        unit=" x",
    ),
    Target(
        "saturation, deliveries per second and core, relative to Centrifugo",
        versus("saturation", SATURATED),
        30,
        False,
        " x",
        Target("saturation, deliveries per second and core", of("saturation", SATURATED), 2_000_000, False, "/s"),
    ),
    _cost(
        "HTTP publish, CPU",
        "publishing",
        "CPU us per HTTP publish",
        1.1,
        Target("HTTP publishes per second", of("publishing", "HTTP publish, per second"), 5000, False, "/s"),
    ),
    _cost(
        "HTTP publish with history, CPU",
        "publishing",
        "CPU us per HTTP publish, history",
        1.3,
        Target(
            "HTTP publishes per second, with history",
            of("publishing", "HTTP publish, history, per second"),
            3000,
            False,
            "/s",
        ),
    ),
    _cost("HTTP publish to one subscriber, CPU", "publishing", "CPU us per HTTP publish, one subscriber", 1.1),
    _cost("publish over WebSocket, CPU", "publishing", "CPU us per socket publish", 1.6),
    _cost("one of 100 messages in a request, CPU", "publishing", "CPU us per batched message", 0.6),
    _cost(
        "one of 100 messages in a request with history, CPU", "publishing", "CPU us per batched message, history", 1.0
    ),
    Target(
        "Redis CPU of an HTTP publish with history",
        of("publishing", "Redis CPU us per HTTP publish, history"),
        18,
        unit=" us",
    ),
    Target(
        "HTTP publish, CPU with two nodes on two cores, relative to one node",
        ratio(of("two-cores", "CPU us per HTTP publish, 2 nodes"), of("two-cores", "CPU us per HTTP publish, 1 node")),
        1.15,
        unit=" x",
    ),
    _cost(
        "connect + subscribe + registration, CPU",
        "storm",
        "CPU us per connect",
        1.0,
        Target(
            "connects + subscribes + registrations per second and core",
            of("storm", "connects per CPU second"),
            2500,
            False,
            "/s",
        ),
    ),
    _cost("connect + subscribe + registration through HAProxy, CPU", "storm-haproxy", "CPU us per connect", 1.1),
    Target("memory of an idle, subscribed, registered connection", of("storm", "KB per connection"), 3.5, unit=" KB"),
    _cost("memory of such a connection", "storm", "KB per connection", 0.06),
    Target(
        "p99 delay through HAProxy, two nodes, relative to the best peer",
        ratio(of("haproxy", "p99 ms"), least([of("haproxy", "p99 ms", peer) for peer in PEERS])),
        0.8,
        unit=" x",
    ),
    Target("CPU of a message to a topic with one subscriber", of("topics", "CPU us per message"), 25, unit=" us"),
    Target(
        "CPU per delivery for 100 to 10,000 subscribers, largest / smallest",
        spread([of(f"subscribers-{n}", US) for n in (100, 1000, 10_000)]),
        1.25,
        unit=" x",
    ),
    Target("Redis round trips per 100 connects + subscribes", of("storm", "Redis round trips per 100"), 1),
    Target("Redis commands of an idle node", of("storm", "idle Redis commands/s, empty"), 15, unit="/s"),
    Target("CPU of an idle node", of("storm", "idle CPU ms/s, empty"), 4, unit=" ms/s"),
    Target(
        "Redis commands when idle, with 10,000 clients relative to none",
        ratio(of("storm", "idle Redis commands/s, full"), of("storm", "idle Redis commands/s, empty")),
        1.1,
        unit=" x",
    ),
)


def held(results: Results) -> list[Target]:
    """The targets for these results: absolute ones where Centrifugo was not measured and an absolute one exists."""
    return [one.otherwise if one.otherwise and one.value(results) is None else one for one in TARGETS]


def asked() -> frozenset[tuple[str, str]]:
    """The pairs of scenario and contender that the targets need."""
    seen: set[tuple[str, str]] = set()

    class Listening(Results):
        def median(self, scenario: str, contender: str, metric: str) -> float | None:  # noqa: ARG002
            seen.add((scenario, contender))
            return 1.0

    for target in TARGETS:
        target.met(Listening())
        if target.otherwise:
            target.otherwise.met(Listening())
    return frozenset(seen)
