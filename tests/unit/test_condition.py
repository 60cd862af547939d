"""How a node is: everybody is told the same, and each what is for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.condition import Condition
from gateway.core.hub import Audiences, Hub
from gateway.departures import Phase
from gateway.metrics import Metrics
from gateway.protocols.native.protocol import NATIVE
from gateway.settings import Settings


class Clients:
    """Two of them."""

    limits = SimpleNamespace(buffered_bytes=lambda: 7)
    received_bytes = 11
    deflater = SimpleNamespace(in_bytes=13, out_bytes=5)

    def __len__(self) -> int:
        return 2


class Member:
    """A subscriber that is sent nothing."""

    client_id = "n1.a.1"
    protocol = NATIVE

    def __init__(self) -> None:
        self.audiences = Audiences()


class CountingHub(Hub):
    """A hub with a topic whose topics may be counted, and not listed: there may be a hundred thousand."""

    def __init__(self) -> None:
        super().__init__(lambda: None, lambda _: None)
        self.join(cast(Any, Member()), "topic:a")

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the cost of this grows with all topics")


class Node:
    """A node that is well, and may be made unwell."""

    def __init__(self) -> None:
        self.now_ms = 1000
        self.metrics = Metrics()
        self.bus, self.trust, self.heartbeat = (
            SimpleNamespace(reason=None, impaired=None, partial=None) for _ in range(3)
        )
        self.departures = SimpleNamespace(draining=False, phase=Phase.STAYING)
        self.condition = Condition(
            Settings(node="n1", advertise="10.0.0.1:9000"), "n1.a", clients=cast(Any, Clients()),
            hub=CountingHub(), bus=cast(Any, self.bus), trust=cast(Any, self.trust),
            heartbeat=cast(Any, self.heartbeat), departures=cast(Any, self.departures), metrics=self.metrics,
            now_ms=lambda: self.now_ms,
        )  # fmt: skip
        self.condition.listening = True

    def drain(self) -> None:
        self.departures.draining, self.departures.phase = True, Phase.UNREADY


def tell(part: str, reason: str) -> Callable[[Node], None]:
    """Has a part of the node say why it is not well."""
    return lambda node: setattr(getattr(node, part), "reason", reason)


def test_a_node_that_is_well_says_so_to_everybody() -> None:
    node = Node()
    node.condition.services = "active"
    node.now_ms += 2500
    assert node.condition.reasons() == []
    assert node.condition.row() == {
        "name": "n1", "address": "10.0.0.1:9000", "path": "/ws", "version": node.condition.row()["version"],
        "started": "1970-01-01T00:00:01.000Z", "clients": 2, "topics": 1, "ready": 1, "draining": 0, "moving": 0,
    }  # fmt: skip
    report = node.condition.report()
    assert (report["id"], report["ready"], report["reasons"], report["subscriptions"]) == ("n1.a", True, [], 1)
    status = node.condition.status()
    assert (status["status"], status["uptimeSeconds"], status["services"]) == ("ok", 2, "active")


@pytest.mark.parametrize(
    ("unwell", "reason"),
    [
        (Node.drain, "draining"),
        (tell("trust", "no keys"), "no keys"),
        (tell("bus", "away"), "bus: away"),
        (lambda node: setattr(node.condition, "listening", False), "bus: channels not yet confirmed"),
        (tell("heartbeat", "lease not renewed"), "lease not renewed"),
    ],
)
def test_what_is_not_well_is_named_and_nobody_is_told_otherwise(unwell: Callable[[Node], None], reason: str) -> None:
    node = Node()
    unwell(node)
    assert node.condition.reasons() == [reason]
    assert (node.condition.report()["ready"], node.condition.report()["reasons"]) == (False, [reason])
    assert node.condition.status()["status"] == "degraded"
    # Who reads the row reads it under the lease, so the lease is no reason there.
    assert node.condition.row()["ready"] == int(reason == "lease not renewed")


def test_all_reasons_are_told_but_a_bus_that_is_away_hears_no_channel_either() -> None:
    node = Node()
    node.drain()
    for part in ("trust", "bus", "heartbeat"):
        tell(part, f"{part} fails")(node)
    node.condition.listening = False
    assert node.condition.reasons() == ["draining", "trust fails", "bus: bus fails", "heartbeat fails"]


def test_topics_are_counted_and_never_listed_whoever_asks() -> None:
    node = Node()
    assert (node.condition.status()["topics"], node.condition.row()["topics"]) == (1, 1)
    assert node.metrics.totals()[0]["gateway_topics"] == 1


def test_prometheus_reads_it_at_each_scrape() -> None:
    values, _ = Node().metrics.totals()
    assert (values["gateway_connections"], values["gateway_buffered_bytes"]) == (2, 7)
    assert (values["gateway_received_bytes_total"], values["gateway_deflate_out_bytes_total"]) == (11, 5)


def test_what_redis_can_do_for_no_node_makes_none_unready_and_is_told() -> None:
    node = Node()
    assert node.condition.impaired() == []
    node.heartbeat.impaired = "OOM: Redis refuses writes"
    assert node.condition.reasons() == [] and node.condition.impaired() == ["OOM: Redis refuses writes"]
    assert node.metrics.totals()[0]["gateway_redis_impaired"] == 1


def test_a_lease_on_the_part_that_is_away_is_no_reason() -> None:
    node = Node()
    node.heartbeat.reason, node.bus.partial = "lease not renewed", "10.0.0.1:7001 is away"
    assert node.condition.reasons() == [] and node.condition.impaired() == ["10.0.0.1:7001 is away"]
    node.bus.partial = None
    assert node.condition.reasons() == ["lease not renewed"]
