"""Every instrument, once. Labels never hold a topic, a user or a client: their number has no bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """One node's instruments, in a registry of their own so that two nodes can live in one test."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.received = Counter("gateway_messages_received", "messages from clients", ["type"], registry=registry)
        self.relayed = Counter(
            "gateway_messages_relayed", "messages heard from the cluster", ["kind"], registry=registry
        )
        self.housekeeping_failures = Counter(
            "gateway_housekeeping_failures", "runs of periodic work that failed; they are retried", ["step"],
            registry=registry,
        )  # fmt: skip
        self.malformed = Counter(
            "gateway_malformed", "values read from Redis that were not valid and were skipped", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.fanout = Histogram(
            "gateway_fanout_seconds", "time to hand what waits to all its hearers", buckets=_FAST, registry=registry
        )
        self.relay_delay = Histogram(
            "gateway_relay_delay_seconds", "publish to delivery; two hosts' clocks", buckets=_FAST, registry=registry
        )
        self.round_trip = Histogram(
            "gateway_redis_round_trip_seconds", "a command's way to Redis and back", buckets=_FAST, registry=registry
        )
        self.self_check = Histogram(
            "gateway_self_check_seconds", "a token's way through the node's own channel", buckets=_FAST,
            registry=registry,
        )  # fmt: skip
        self.loop_lag = Histogram(
            "gateway_loop_lag_seconds", "how late the event loop wakes a timer", buckets=_FAST, registry=registry
        )
        self.slow_consumers = Counter(
            "gateway_slow_consumers", "clients closed because they did not read", registry=registry
        )
        self.opens = Counter("gateway_opens", "sockets accepted", registry=registry)
        self.refusals = Counter("gateway_refusals", "handshakes refused", ["status"], registry=registry)
        self.closes = Counter("gateway_closes", "sockets closed, by code", ["code"], registry=registry)
        self.errors = Counter("gateway_errors", "ERROR messages sent, by code", ["code"], registry=registry)
        self.limited = Counter(
            "gateway_limited", "what a limit has refused, dropped or closed", ["limit"], registry=registry
        )
        self.registry_writes = Counter(
            "gateway_registry_writes", "rows written to Redis and the round trips that took", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.publishes = Counter("gateway_publishes", "messages to publish, by result", ["result"], registry=registry)
        self.stream_reads = Counter("gateway_stream_reads", "reads of topics' streams", registry=registry)
        self.key_fetches = Counter(
            "gateway_key_fetches", "fetches of the key server's keys, by result", ["result"], registry=registry
        )
        self.permissions = Counter(
            "gateway_permissions", "questions of permission to the back end, by how they were answered", ["result"],
            registry=registry,
        )  # fmt: skip
        self.reconnects = Counter("gateway_bus_reconnects", "subscriber connections lost", registry=registry)
        self.backend_calls = Counter(
            "gateway_backend_calls", "calls to the back end, by how they ended", ["result"], registry=registry
        )
        self.backend_seconds = Histogram(
            "gateway_backend_seconds", "call to answer, of those it answered", buckets=_FAST, registry=registry
        )
        self.cache_reads = Counter(
            "gateway_cache_reads", "values asked of the cache, by where they were found", ["found"], registry=registry
        )
        self.cache_writes = Counter(
            "gateway_cache_writes", "values written or deleted, by result", ["result"], registry=registry
        )
        self.cache_loads = Counter("gateway_cache_loads", "loads run by this node", ["result"], registry=registry)
        self.cache_waits = Counter(
            "gateway_cache_waits", "callers and nodes that waited for another's load", ["for"], registry=registry
        )
        self.cache_bytes = Counter(
            "gateway_cache_bytes", "texts of values moved from and to Redis", ["direction"], registry=registry
        )
        self.redis_up = Gauge("gateway_redis_up", "1 while the bus is connected", registry=registry)

    def read(self, gauges: Mapping[str, Callable[[], float]], counters: Mapping[str, Callable[[], float]]) -> None:
        """Have these read at each scrape, so that the hot path only adds to an integer."""
        self.registry.register(_Readings(gauges, counters))

    def totals(self) -> tuple[dict[str, float], dict[str, dict[float, float]]]:
        """Counters and gauges: by name the sum over labels, by `name:label` the one. Histograms: counts by bound."""
        values: dict[str, float] = {}
        buckets: dict[str, dict[float, float]] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    counts = buckets.setdefault(family.name, {})
                    bound = float(sample.labels["le"])
                    counts[bound] = counts.get(bound, 0.0) + sample.value
                else:
                    values[sample.name] = values.get(sample.name, 0.0) + sample.value
                    for label in sample.labels.values():
                        named = f"{sample.name}:{label}"
                        values[named] = values.get(named, 0.0) + sample.value
        return values, buckets

    def read_services(
        self, operations: Callable[[], Iterable[tuple[str, int, int]]],
        instances: Callable[[], Mapping[tuple[str, str], int]],
    ) -> None:  # fmt: skip
        """Have these read at each scrape: this node's services, their operations and failures; and, by service and
        status, how many instances the cluster has. Both have at most `records.MAX_SERVICES` names.
        """
        self.registry.register(_Services(operations, instances))

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Readings(Collector):
    def __init__(self, gauges: Mapping[str, Callable[[], float]], counters: Mapping[str, Callable[[], float]]) -> None:
        self._gauges = gauges
        self._counters = counters

    def collect(self) -> list[Metric]:
        found: list[Metric] = [
            GaugeMetricFamily(name, name.removeprefix("gateway_").replace("_", " ") + " of this node", read())
            for name, read in self._gauges.items()
        ]
        found += [
            CounterMetricFamily(name, name.removeprefix("gateway_").replace("_", " ") + " of this node", read())
            for name, read in self._counters.items()
        ]
        return found


class _Services(Collector):
    def __init__(
        self, operations: Callable[[], Iterable[tuple[str, int, int]]],
        instances: Callable[[], Mapping[tuple[str, str], int]],
    ) -> None:  # fmt: skip
        self._operations = operations
        self._instances = instances

    def collect(self) -> list[Metric]:
        done = CounterMetricFamily(
            "gateway_service_operations", "operations of this node's services", labels=["service"]
        )
        failed = CounterMetricFamily("gateway_service_failures", "of those, the failed", labels=["service"])
        for service, operations, failures in self._operations():
            done.add_metric([service], operations)
            failed.add_metric([service], failures)
        there = GaugeMetricFamily(
            "gateway_service_instances", "instances in the cluster; one node tells", labels=["service", "status"]
        )
        for labels, number in self._instances().items():
            there.add_metric(labels, number)
        return [done, failed, there]
