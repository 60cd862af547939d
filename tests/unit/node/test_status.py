"""The status of a node: all readers get the same state, each with the details meant for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.core.hub import Audiences, Hub
from gateway.core.topic_rules import TopicRules
from gateway.metrics import Metrics
from gateway.node import gauges
from gateway.node.drain import Phase
from gateway.node.readiness import Readiness
from gateway.node.status import NodeFacts, NodeStatus
from gateway.protocols.native.protocol import NATIVE


class TwoClients(list[int]):
    """The open connections: two, of one protocol."""

    by_protocol = {"native": 2}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__((0, 1))


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
        self.pubsub, self.authenticator, self.lease = (
            SimpleNamespace(reason=None, unready_reason=None, impaired=None, partial=None) for _ in range(3)
        )
        self.own_channels = SimpleNamespace(confirmed=True)
        self.drain_state = SimpleNamespace(draining=False, phase=Phase.SERVING)
        hub, clients, drain = CountingHub(), cast(Any, TwoClients()), cast(Any, self.drain_state)
        self.readiness = Readiness(
            cast(Any, self.authenticator), cast(Any, self.pubsub), cast(Any, self.own_channels), cast(Any, self.lease),
            drain,
        )  # fmt: skip
        self.status = NodeStatus(
            NodeFacts("n1.a", "n1", "10.0.0.1:9000", TopicRules(())), self.readiness, drain,
            cast(Any, SimpleNamespace(moving=False)), clients, hub, lambda: self.now_ms,
        )  # fmt: skip
        commands = SimpleNamespace(limits=SimpleNamespace(buffered_bytes=lambda: 7), received_bytes=11)
        connections = SimpleNamespace(deflater=SimpleNamespace(in_bytes=13, out_bytes=5))
        gauges.register(self.metrics, self.readiness, clients, hub, cast(Any, commands), cast(Any, connections))

    def drain(self) -> None:
        self.drain_state.draining, self.drain_state.phase = True, Phase.UNREADY


def tell(part: str, reason: str) -> Callable[[Node], None]:
    """Has a part of the node say why it is not well."""
    return lambda node: setattr(getattr(node, part), "unready_reason" if part == "authenticator" else "reason", reason)


def test_all_readers_see_that_a_node_is_ready() -> None:
    node = Node()
    node.status.services = "active"
    node.now_ms += 2500
    assert node.readiness.unready_reasons() == []
    assert node.status.node_row() == {
        "name": "n1", "address": "10.0.0.1:9000", "path": "/ws", "version": node.status.node_row()["version"],
        "started": "1970-01-01T00:00:01.000Z", "clients": 2, "topics": 1, "ready": 1, "draining": 0, "moving": 0,
        "rules": TopicRules(()).digest,
    }  # fmt: skip
    report = node.status.report()
    assert (report["id"], report["ready"], report["reasons"], report["subscriptions"]) == ("n1.a", True, [], 1)
    assert "rules" not in report
    status = node.status.status()
    assert (status["status"], status["uptimeSeconds"], status["services"]) == ("ok", 2, "active")


@pytest.mark.parametrize(
    ("unwell", "reason"),
    [
        (Node.drain, "draining"),
        (tell("authenticator", "no keys"), "no keys"),
        (tell("pubsub", "away"), "bus: away"),
        (lambda node: setattr(node.own_channels, "confirmed", False), "bus: channels not yet confirmed"),
        (tell("lease", "lease not renewed"), "lease not renewed"),
    ],
)
def test_every_fault_is_named_to_all_readers(unwell: Callable[[Node], None], reason: str) -> None:
    node = Node()
    unwell(node)
    assert node.readiness.unready_reasons() == [reason]
    assert (node.status.report()["ready"], node.status.report()["reasons"]) == (False, [reason])
    assert node.status.status()["status"] == "degraded"
    # Who reads the row reads it under the lease, so the lease is no reason there.
    assert node.status.node_row()["ready"] == int(reason == "lease not renewed")


def test_all_reasons_are_listed_and_lost_pubsub_covers_its_channels() -> None:
    node = Node()
    node.drain()
    for part in ("authenticator", "pubsub", "lease"):
        tell(part, f"{part} fails")(node)
    node.own_channels.confirmed = False
    assert node.readiness.unready_reasons() == ["draining", "authenticator fails", "bus: pubsub fails", "lease fails"]


def test_topics_are_counted_and_never_listed_for_any_reader() -> None:
    node = Node()
    assert (node.status.status()["topics"], node.status.node_row()["topics"]) == (1, 1)
    assert node.metrics.totals()[0]["gateway_topics"] == 1


def test_prometheus_reads_it_at_each_scrape() -> None:
    values, _ = Node().metrics.totals()
    assert (values["gateway_connections"], values["gateway_buffered_bytes"]) == (2, 7)
    assert (values["gateway_received_bytes_total"], values["gateway_deflate_out_bytes_total"]) == (11, 5)


def test_a_fault_of_redis_for_all_nodes_is_reported_and_keeps_them_ready() -> None:
    node = Node()
    assert node.readiness.impairments() == []
    node.lease.impaired = "OOM: Redis refuses writes"
    assert node.readiness.unready_reasons() == [] and node.readiness.impairments() == ["OOM: Redis refuses writes"]
    assert node.metrics.totals()[0]["gateway_redis_impaired"] == 1


def test_a_lease_on_the_part_that_is_away_is_no_reason() -> None:
    node = Node()
    node.lease.reason, node.pubsub.partial = "lease not renewed", "10.0.0.1:7001 is away"
    assert node.readiness.unready_reasons() == [] and node.readiness.impairments() == ["10.0.0.1:7001 is away"]
    node.pubsub.partial = None
    assert node.readiness.unready_reasons() == ["lease not renewed"]
