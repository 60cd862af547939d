"""What a cluster needs for so many clients, reckoned from what was measured; for docs/scaling.md.  (pure)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.figures import Results

SIZES: Final = (10_000, 100_000, 1_000_000, 10_000_000)

# What is assumed of the application; docs/scaling.md says how to put in one's own.
DELIVERIES: Final = 2.0  # messages a second to each client
PUBLISHES: Final = 500  # a second, in the whole cluster
MESSAGE_BYTES: Final = 200
# Ethernet, IP and TCP with timestamps, and the head of a WebSocket frame.
OVERHEAD_BYTES: Final = 14 + 20 + 32 + 4

# How full things may be.
NODE_BUSY: Final = 0.5  # of a node's core in calm; the rest is for those who come from a node that died
NODE_CLIENTS: Final = 20_000  # of one node: so many must come back elsewhere when it dies
BALANCER_BUSY: Final = 0.6
REDIS_BUSY: Final = 0.5
KERNEL_KB: Final = 4.5  # of an idle TCP socket; `Slab` of /proc/meminfo over 16,000 of them


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured on one core."""

    delivery_us: float  # of a node, at 10,000 subscribers: the dearest
    connection_kb: float
    connects: float  # a second
    balancer_us: float  # of HAProxy, a delivery
    balancer_kb: float  # of HAProxy, a connection
    row_bytes: float  # in Redis, a client
    publish_us: float  # of Redis, for one node
    node_us: float  # and for each node more


@dataclass(frozen=True, slots=True)
class Need:
    """What so many clients need."""

    clients: int
    nodes: int
    node_gb: float  # of all nodes, with the kernel's share
    balancer_cores: float
    balancer_gb: float
    redis_shards: int
    redis_gb: float
    gigabits: float  # a second, to the clients
    back_seconds: float  # of the others, to connect the clients of a dead node, if these came at once


class Unmeasured(LookupError):
    """A figure that the sums begin with is not among the results; the message names it."""


def costs(results: Results) -> Costs:
    """From the medians.

    Raises:
        Unmeasured: One of them was never taken, or under another name.
    """

    def of(scenario: str, metric: str) -> float:
        found = results.median(scenario, "gateway", metric)
        if not found:
            raise Unmeasured(f'"{metric}" of the scenario {scenario}: make bench SCENARIOS={scenario}')
        return found

    one, four = (of("beside", f"Redis CPU us a message, {n} nodes") for n in (1, 4))
    return Costs(
        delivery_us=of("subscribers-10000", "CPU us a delivery"),
        connection_kb=of("storm", "KB a connection"),
        connects=of("storm", "connects a CPU second"),
        balancer_us=of("beside", "HAProxy CPU us a delivery"),
        balancer_kb=of("beside", "HAProxy KB a connection"),
        row_bytes=of("beside", "Redis bytes a client"),
        publish_us=one,
        node_us=max(0.0, four - one) / 3,
    )


def need(clients: int, cost: Costs) -> Need:
    """For `clients`, with one node more than they fill."""
    deliveries = clients * DELIVERIES
    busy = deliveries * cost.delivery_us / 1e6 / NODE_BUSY
    nodes = 1 + max(1, math.ceil(busy), math.ceil(clients / NODE_CLIENTS))
    # Every node hears every topic: the worst case, and that of topics which all clients hear.
    redis = PUBLISHES * (cost.publish_us + (nodes - 1) * cost.node_us) / 1e6
    others = nodes - 1
    spare = others * (1 - deliveries / nodes * cost.delivery_us / 1e6) * cost.connects
    return Need(
        clients=clients,
        nodes=nodes,
        node_gb=clients * (cost.connection_kb + KERNEL_KB) / 1e6,
        balancer_cores=deliveries * cost.balancer_us / 1e6 / BALANCER_BUSY,
        balancer_gb=clients * (cost.balancer_kb + 2 * KERNEL_KB) / 1e6,
        redis_shards=max(1, math.ceil(redis / REDIS_BUSY)),
        redis_gb=clients * cost.row_bytes / 1e9,
        gigabits=deliveries * (MESSAGE_BYTES + OVERHEAD_BYTES) * 8 / 1e9,
        back_seconds=clients / nodes / spare,
    )


def rows(results: Results) -> list[Sequence[str]]:
    """The table, a column for each of `SIZES`.

    Raises:
        Unmeasured: as `costs`.
    """
    head = ("", *(f"{size:,} clients" for size in SIZES))
    cost = costs(results)
    needs = [need(size, cost) for size in SIZES]
    return [
        head,
        ("nodes, a core each, one to spare", *(f"{one.nodes:,}" for one in needs)),
        ("GB of all nodes, sockets included", *(_figure(one.node_gb) for one in needs)),
        ("HAProxy cores", *(f"{one.balancer_cores:,.1f}" for one in needs)),
        ("GB of HAProxy, sockets included", *(_figure(one.balancer_gb) for one in needs)),
        ("Redis masters", *(f"{one.redis_shards:,}" for one in needs)),
        ("GB of rows in Redis", *(_figure(one.redis_gb) for one in needs)),
        ("Gbit/s to the clients", *(_figure(one.gigabits) for one in needs)),
        ("s that the others need to take a dead node's clients", *(_figure(one.back_seconds) for one in needs)),
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
