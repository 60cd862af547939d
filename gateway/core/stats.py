"""The figures that a node publishes to administrators every few seconds: rates and delays.  (pure)

Prometheus counters and histograms only grow. Administrators want current rates and percentiles, so the node publishes
the difference between two readings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

# The interval between publications. The rule of the topic (`topics.OWN`) keeps ten minutes of all nodes' figures.
SECONDS: Final = 5.0

_RATES: Final = {
    "received": "gateway_messages_received_total",
    "relayed": "gateway_messages_relayed_total",
    "delivered": "gateway_deliveries_total",
    "receivedBytes": "gateway_received_bytes_total",
    "sentBytes": "gateway_sent_bytes_total",
    "opened": "gateway_opens_total",
    "closed": "gateway_closes_total",
    "refused": "gateway_refusals_total",
    "errors": "gateway_errors_total",
    "slowConsumers": "gateway_slow_consumers_total",
}
_CACHE: Final = {
    **{found: f"gateway_cache_reads_total:{found}" for found in ("near", "redis", "stale", "miss", "unavailable")},
    "loads": "gateway_cache_loads_total",
    "waits": "gateway_cache_waits_total",
    "readBytes": "gateway_cache_bytes_total:read",
    "writtenBytes": "gateway_cache_bytes_total:written",
}
_DELAYS: Final = {
    "relay": "gateway_relay_delay_seconds",
    "loop": "gateway_loop_lag_seconds",
    "redis": "gateway_redis_round_trip_seconds",
}


@dataclass(frozen=True, slots=True)
class StatsSample:
    """The values of all metrics at one moment."""

    at: float  # seconds of a monotonic clock
    values: Mapping[str, float]  # counters and gauges: `name` is the sum over all labels, `name:label` one label
    buckets: Mapping[str, Mapping[float, float]]  # histograms by name: the count of values up to each bound, in seconds


def stats_between(before: StatsSample, after: StatsSample) -> dict[str, Any]:
    """The figures between two readings, as the node publishes them.

    `rates` and `cache` are per second. `delays` are in ms, null if nothing was measured. `cpu` is in cores.
    """
    seconds = after.at - before.at

    def rate(name: str) -> float:
        return (after.values.get(name, 0.0) - before.values.get(name, 0.0)) / seconds

    return {
        "seconds": round(seconds, 3),
        "rates": {word: round(rate(name), 2) for word, name in _RATES.items()},
        "cache": {word: round(rate(name), 2) for word, name in _CACHE.items()},
        "delays": {
            word: _percentiles(before.buckets.get(name, {}), after.buckets.get(name, {}))
            for word, name in _DELAYS.items()
        },
        "cpu": round(rate("process_cpu_seconds_total"), 3),
        "memoryBytes": int(after.values.get("process_resident_memory_bytes", 0)),
    }


def _percentiles(before: Mapping[float, float], after: Mapping[float, float]) -> dict[str, float] | None:
    counts = [(bound, count - before.get(bound, 0.0)) for bound, count in sorted(after.items())]
    if not counts or counts[-1][1] <= 0:
        return None
    return {name: round(quantile(counts, part) * 1000, 2) for name, part in (("p50", 0.5), ("p99", 0.99))}


def quantile(counts: Sequence[tuple[float, float]], part: float) -> float:
    """The quantile `part` (0 to 1) of a histogram, in the unit of its bounds.

    `counts` holds ascending upper bounds with cumulative counts; the last count is above zero. Values between two
    bounds count as evenly spread, as in Prometheus. A quantile above the last finite bound is that bound.
    """
    rank = part * counts[-1][1]
    low, below = 0.0, 0.0
    for bound, count in counts:
        if count >= rank and count > below:
            return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (count - below)
        low, below = low if math.isinf(bound) else bound, count
    return low
