"""The figures that a node publishes."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import stats
from gateway.core.stats import StatsSample
from gateway.metrics import Metrics

INF = math.inf


def reading(at: float, values: dict[str, float] | None = None, relay: dict[float, float] | None = None) -> StatsSample:
    return StatsSample(at, values or {}, {"gateway_relay_delay_seconds": relay} if relay else {})


def test_rates_are_what_was_added_by_the_second() -> None:
    before = reading(100, {"gateway_deliveries_total": 1000, "gateway_opens_total": 7})
    after = reading(105, {"gateway_deliveries_total": 2000, "gateway_opens_total": 7, "gateway_errors_total": 1})
    result = stats.stats_between(before, after)
    assert result["seconds"] == 5
    assert result["rates"]["delivered"] == 200
    assert result["rates"]["opened"] == 0
    assert result["rates"]["errors"] == 0.2  # an instrument that appeared meanwhile began at nothing
    assert result["rates"]["received"] == 0


def test_cache_rates_are_split_by_where_values_were_found() -> None:
    before = reading(0, {"gateway_cache_reads_total:near": 10, "gateway_cache_reads_total": 30})
    after = reading(5, {"gateway_cache_reads_total:near": 60, "gateway_cache_reads_total": 85})
    result = stats.stats_between(before, after)["cache"]
    assert (result["near"], result["miss"], result["loads"]) == (10, 0, 0)


def test_delays_are_of_this_time_alone_and_in_milliseconds() -> None:
    slow_past = {0.001: 0.0, 0.01: 100.0, INF: 100.0}
    result = stats.stats_between(reading(0, relay=slow_past), reading(5, relay={0.001: 50.0, 0.01: 150.0, INF: 150.0}))
    assert result["delays"]["relay"] == {"p50": 0.5, "p99": 0.99}


def test_without_measurements_there_is_no_delay() -> None:
    same = {0.001: 5.0, INF: 5.0}
    result = stats.stats_between(reading(0, relay=same), reading(5, relay=same))
    assert result["delays"] == {"relay": None, "loop": None, "redis": None}


@pytest.mark.parametrize(
    ("counts", "part", "value"),
    [
        ([(1.0, 10.0), (2.0, 10.0), (INF, 10.0)], 0.5, 0.5),
        ([(1.0, 0.0), (2.0, 10.0), (INF, 10.0)], 0.5, 1.5),
        ([(1.0, 5.0), (2.0, 10.0), (INF, 10.0)], 0.5, 1.0),
        ([(1.0, 5.0), (2.0, 10.0), (INF, 10.0)], 0.99, 1.98),
        ([(1.0, 0.0), (2.0, 0.0), (INF, 10.0)], 0.99, 2.0),  # above the last bound nothing else is known
        ([(1.0, 1.0), (INF, 1.0)], 1.0, 1.0),
    ],
)
def test_between_two_bounds_the_measured_lie_evenly(
    counts: list[tuple[float, float]], part: float, value: float
) -> None:
    assert stats.quantile(counts, part) == pytest.approx(value)


@given(st.integers(0, 2**32), st.floats(0.01, 1))
def test_a_quantile_is_in_the_bucket_that_the_measured_value_is_in(seed: int, part: float) -> None:
    chance = random.Random(seed)
    measured = sorted(chance.uniform(0, 8) for _ in range(chance.randint(1, 200)))
    bounds = [0.5, 1, 2, 4, 8, INF]
    counts = [(bound, float(sum(value <= bound for value in measured))) for bound in bounds]
    exact = measured[max(0, math.ceil(part * len(measured) - 1e-9) - 1)]
    found = stats.quantile(counts, part)
    upper = next(bound for bound in bounds if exact <= bound)
    assert found <= upper
    assert found >= max([0.0, *(bound for bound in bounds if bound < exact)])


def test_instruments_are_read_with_and_without_their_labels() -> None:
    metrics = Metrics()
    metrics.received.labels("ping").inc()
    metrics.received.labels("SUBSCRIBE").inc(2)
    metrics.relay_delay.observe(0.002)
    values, buckets = metrics.totals()
    assert values["gateway_messages_received_total"] == 3  # over its labels
    assert values["gateway_messages_received_total:SUBSCRIBE"] == 2
    assert values["process_resident_memory_bytes"] > 0
    assert buckets["gateway_relay_delay_seconds"][INF] == 1
    assert buckets["gateway_relay_delay_seconds"][0.001] == 0
