"""The bench itself, in the small: our node and the load generator count the same messages."""

from __future__ import annotations

from bench import scenarios
from bench.contenders import GATEWAY, LIMIT
from bench.lab import lab


def test_what_is_published_is_counted_and_its_delay_and_cost_are_known() -> None:
    with lab(0.3) as made:
        server = made.start(GATEWAY)
        came = made.connect(server, 20, topics=2)
        answer = made.publish(server, fan=10, topics=2, rate=100)
        assert came["ready"] == 20
        assert answer["published"] >= 30, "warm-up and measurement at 100 a second"
        assert (answer["lost"], answer["refused"], answer["closed"]) == (0, 0, 0)
        assert 0 < answer["received"] <= answer["published"] * 10
        assert sum(count for _, count in answer["delays_us"]) == answer["received"]
        assert made.load.ask("close", 5) == {}


def test_a_scenario_gives_figures_of_each_contender() -> None:
    for contender in (GATEWAY, LIMIT):
        with lab(0.3) as made:
            figures = scenarios.paced(made, contender, 0.02)
        assert figures["deliveries/s"] > 0
        assert figures["p50 ms"] <= figures["p99 ms"] <= figures["max ms"]


def test_the_lost_are_missed_when_they_come_back() -> None:
    with lab(0.3) as made:
        assert scenarios.recovery(made, GATEWAY, 0.02)["clients/s"] > 0
