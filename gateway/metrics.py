"""All metrics of a node. Labels never contain a topic, a user or a client, because their number is unlimited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from gateway.core.instruments import Instruments

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one node or publisher. A publisher runs without prometheus-client: only `registry` needs it."""

    def __init__(self) -> None:
        self._instruments = instruments = Instruments()
        self.received = instruments.counters("gateway_messages_received", "messages from clients", "type")
        self.relayed = instruments.counters("gateway_messages_relayed", "messages received from the cluster", "kind")
        self.housekeeping_failures = instruments.counters(
            "gateway_housekeeping_failures", "runs of periodic work that failed; they are retried", "step"
        )
        self.malformed = instruments.counters(
            "gateway_malformed", "values read from Redis that were not valid and were skipped", "kind"
        )
        self.fanout = instruments.histogram(
            "gateway_fanout_seconds", "time to deliver waiting messages to all subscribers"
        )
        self.relay_delay = instruments.histogram(
            "gateway_relay_delay_seconds", "time from publish to delivery, by the clocks of two hosts"
        )
        self.round_trip = instruments.histogram("gateway_redis_round_trip_seconds", "round trip of a command to Redis")
        self.self_check = instruments.histogram(
            "gateway_self_check_seconds", "round trip of a token through the node's own channel"
        )
        self.loop_lag = instruments.histogram("gateway_loop_lag_seconds", "how late the event loop wakes a timer")
        self.slow_consumers = instruments.counter("gateway_slow_consumers", "clients closed because they did not read")
        self.opens = instruments.counters("gateway_opens", "sockets accepted, by protocol", "protocol")
        self.refusals = instruments.counters("gateway_refusals", "handshakes refused", "status")
        self.closes = instruments.counters("gateway_closes", "sockets closed, by code", "code")
        self.errors = instruments.counters("gateway_errors", "ERROR messages sent, by code", "code")
        self.limited = instruments.counters(
            "gateway_limited", "messages, connections and bytes rejected because of a limit", "limit"
        )
        self.registry_writes = instruments.counters(
            "gateway_registry_writes", "rows written to Redis, and round trips for them", "kind"
        )
        self.publishes = instruments.counters("gateway_publishes", "messages to publish, by result", "result")
        self.gaps = instruments.counters(
            "gateway_gaps", "losses reported: for a topic with history, or for each client after an outage", "cause"
        )
        self.stream_reads = instruments.counter("gateway_stream_reads", "reads of topics' streams")
        self.key_fetches = instruments.counters(
            "gateway_key_fetches", "fetches of the key server's keys, by result", "result"
        )
        self.permissions = instruments.counters(
            "gateway_permissions", "permission checks of the back end, by result", "result"
        )
        self.reconnects = instruments.counter("gateway_bus_reconnects", "subscriber connections lost")
        self.backend_calls = instruments.counters("gateway_backend_calls", "calls to the back end, by result", "result")
        self.backend_seconds = instruments.histogram(
            "gateway_backend_seconds", "duration of answered calls to the back end"
        )
        self.cache_reads = instruments.counters(
            "gateway_cache_reads", "values read from the cache, by where they were found", "found"
        )
        self.cache_writes = instruments.counters(
            "gateway_cache_writes", "values written or deleted, by result", "result"
        )
        self.cache_loads = instruments.counters("gateway_cache_loads", "loads run by this node", "result")
        self.cache_waits = instruments.counters(
            "gateway_cache_waits", "callers and nodes that waited for the load of another", "for"
        )
        self.cache_bytes = instruments.counters(
            "gateway_cache_bytes", "bytes of cached values read from and written to Redis", "direction"
        )
        self.redis_up = instruments.gauge("gateway_redis_up", "1 while the bus is connected")

    @cached_property
    def registry(self) -> CollectorRegistry:
        """The registry of Prometheus with these metrics: a separate one, so that a test can run two nodes."""
        from gateway.exposition import registry

        return registry(self._instruments)

    def read(self, gauges: Mapping[str, Callable[[], float]], counters: Mapping[str, Callable[[], float]]) -> None:
        """Register functions that are read at each scrape, so that frequent operations only add to an integer."""
        from gateway.exposition import Readings

        self.registry.register(Readings(gauges, counters))

    def read_by_label(self, name: str, about: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Register a gauge with one label, which `read` returns at each scrape; the label's values must be few."""
        from gateway.exposition import ByLabel

        self.registry.register(ByLabel(name, about, label, read))

    def totals(self) -> tuple[dict[str, float], dict[str, dict[float, float]]]:
        """All values. Counters and gauges: by name the sum over labels, by `name:label` one value. Histograms: counts
        by bound.
        """
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
        """Register functions that are read at each scrape: `operations` returns the services of this node with their
        operations and failures, `instances` the number of instances in the cluster by service and status. Both return
        at most `service_records.MAX_SERVICES` services.
        """
        from gateway.exposition import Services

        self.registry.register(Services(operations, instances))

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
