"""The metrics as Prometheus reads them: its registry and collectors. Only nodes load this module, not publishers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gateway.core.instruments import Counter, Described, Gauge, Histogram, Instrument


def registry(instruments: Iterable[Described]) -> CollectorRegistry:
    """A new registry of the process' own metrics and of `instruments`, which are read at each scrape."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    made.register(_Instruments(instruments))
    return made


class _Instruments(Collector):
    def __init__(self, instruments: Iterable[Described]) -> None:
        self._instruments = instruments

    def collect(self) -> list[Metric]:
        return [_family(*described) for described in self._instruments]


def _family(name: str, about: str, label: str, instrument: Instrument) -> Metric:
    if isinstance(instrument, Histogram):
        bounds = map(floatToGoString, instrument.bounds)
        return HistogramMetricFamily(name, about, list(zip(bounds, instrument.totals(), strict=True)), instrument.sum)
    if isinstance(instrument, Counter):
        return CounterMetricFamily(name, about, instrument.value)
    if isinstance(instrument, Gauge):
        return GaugeMetricFamily(name, about, instrument.value)
    family = CounterMetricFamily(name, about, labels=[label])
    for value, counter in instrument.items():
        family.add_metric([value], counter.value)
    return family


class Readings(Collector):
    """Functions that are read at each scrape, as `Metrics.read` takes them."""

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


class ByLabel(Collector):
    """A gauge with one label, which a function reads at each scrape."""

    def __init__(self, name: str, about: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._made = partial(GaugeMetricFamily, name, about, labels=[label])
        self._read = read

    def collect(self) -> list[Metric]:
        family = self._made()
        for value, number in self._read().items():
            family.add_metric([value], number)
        return [family]


class Services(Collector):
    """The services of this node and of the cluster, as `Metrics.read_services` takes them."""

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
        failed = CounterMetricFamily(
            "gateway_service_failures", "failed operations of this node's services", labels=["service"]
        )
        for service, operations, failures in self._operations():
            done.add_metric([service], operations)
            failed.add_metric([service], failures)
        there = GaugeMetricFamily(
            "gateway_service_instances", "instances in the cluster, reported by one node", labels=["service", "status"]
        )
        for labels, number in self._instances().items():
            there.add_metric(labels, number)
        return [done, failed, there]
