"""gateway.core.instruments, and how the metrics page shows them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.instruments import Counters, Histogram
from gateway.metrics import Metrics


def test_counters_count_by_their_label() -> None:
    counters = Counters()
    counters.labels("a").inc()
    counters.labels("b").inc(3)
    counters.labels("a").inc()
    assert {label: counter.value for label, counter in counters.items()} == {"a": 2, "b": 3}


@given(st.lists(st.sampled_from([0.0, 0.1, 0.1000001, 1.0, 2.5, 9.0])))
def test_a_histogram_counts_values_up_to_each_bound(observed: list[float]) -> None:
    histogram = Histogram((0.1, 1.0, 2.5))
    for value in observed:
        histogram.observe(value)
    assert histogram.bounds == (0.1, 1.0, 2.5, math.inf)
    assert histogram.totals() == [sum(value <= bound for value in observed) for bound in histogram.bounds]
    assert histogram.sum == sum(observed)


def test_the_page_shows_each_instrument_in_prometheus_format() -> None:
    metrics = Metrics()
    metrics.opens.labels("native").inc()
    metrics.closes.labels("1000").inc(2)
    metrics.fanout.observe(0.0002)
    metrics.fanout.observe(7)
    lines = metrics.exposition().decode().splitlines()
    for line in (
        "# HELP gateway_opens_total sockets accepted, by protocol",
        "# TYPE gateway_opens_total counter",
        'gateway_opens_total{protocol="native"} 1.0',
        "gateway_slow_consumers_total 0.0",
        'gateway_closes_total{code="1000"} 2.0',
        "# TYPE gateway_fanout_seconds histogram",
        'gateway_fanout_seconds_bucket{le="0.0001"} 0.0',
        'gateway_fanout_seconds_bucket{le="0.00025"} 1.0',
        'gateway_fanout_seconds_bucket{le="5.0"} 1.0',
        'gateway_fanout_seconds_bucket{le="+Inf"} 2.0',
        "gateway_fanout_seconds_count 2.0",
        "gateway_fanout_seconds_sum 7.0002",
    ):
        assert line in lines
    assert not [line for line in lines if "_created" in line]
