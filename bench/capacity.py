"""Estimates what a cluster needs for a number of clients, from measured figures; for docs/how-to/scale.md.  (pure)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.figures import Results

SIZES: Final = (10_000, 100_000, 1_000_000, 10_000_000)

# Assumptions about the application; docs/how-to/scale.md explains how to change them.
DELIVERIES: Final = 2.0  # messages a second to each client
PUBLISHES: Final = 500  # a second, in the whole cluster
MESSAGE_BYTES: Final = 200
# Ethernet, IP and TCP with timestamps, and the head of a WebSocket frame.
OVERHEAD_BYTES: Final = 14 + 20 + 32 + 4

# Target utilisation.
NODE_BUSY: Final = 0.5  # of a node's core; the rest is for clients of a failed node
NODE_CLIENTS: Final = 20_000  # per node: so many reconnect elsewhere when it fails
BALANCER_BUSY: Final = 0.6
REDIS_BUSY: Final = 0.5
KERNEL_KB: Final = 4.5  # per idle TCP socket; `Slab` of /proc/meminfo for 16,000 of them


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured costs on one core."""

    delivery_us: float  # of a node, at 10,000 subscribers, the most expensive case
    connection_kb: float
    connects: float  # per second
    balancer_us: float  # of HAProxy, per delivery
    balancer_kb: float  # of HAProxy, per connection
    row_bytes: float  # in Redis, per client
    publish_us: float  # of Redis, with one node
    node_us: float  # for each further node


@dataclass(frozen=True, slots=True)
class Need:
    """Requirements of a number of clients."""

    clients: int
    nodes: int
    node_gb: float  # of all nodes, with the kernel's share
    balancer_cores: float
    balancer_gb: float
    redis_shards: int
    redis_gb: float
    gigabits: float  # per second, to the clients
    back_seconds: float  # for the other nodes to connect a dead node's clients, if all reconnect at once


class Unmeasured(LookupError):
    """A required figure is not in the results; the message names it."""


def costs(results: Results) -> Costs:
    """The costs, from the medians.

    Raises:
        Unmeasured: A figure is missing.
    """

    def of(scenario: str, metric: str) -> float:
        found = results.median(scenario, "gateway", metric)
        if not found:
            raise Unmeasured(f'"{metric}" of the scenario {scenario}: make bench SCENARIOS={scenario}')
        return found

    one, four = (of("beside", f"Redis CPU us per message, {n} nodes") for n in (1, 4))
    return Costs(
        delivery_us=of("subscribers-10000", "CPU us per delivery"),
        connection_kb=of("storm", "KB per connection"),
        connects=of("storm", "connects per CPU second"),
        balancer_us=of("beside", "HAProxy CPU us per delivery"),
        balancer_kb=of("beside", "HAProxy KB per connection"),
        row_bytes=of("beside", "Redis bytes per client"),
        publish_us=one,
        node_us=max(0.0, four - one) / 3,
    )


def need(clients: int, cost: Costs) -> Need:
    """The requirements of `clients`, with one spare node."""
    deliveries = clients * DELIVERIES
    busy = deliveries * cost.delivery_us / 1e6 / NODE_BUSY
    nodes = 1 + max(1, math.ceil(busy), math.ceil(clients / NODE_CLIENTS))
    # Every node subscribes to every topic: the worst case.
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
    """The table, with a column for each of `SIZES`.

    Raises:
        Unmeasured: A figure is missing.
    """
    head = ("", *(f"{size:,} clients" for size in SIZES))
    cost = costs(results)
    needs = [need(size, cost) for size in SIZES]
    return [
        head,
        ("nodes of one core, including one spare", *(f"{one.nodes:,}" for one in needs)),
        ("GB of all nodes, including sockets", *(_figure(one.node_gb) for one in needs)),
        ("HAProxy cores", *(f"{one.balancer_cores:,.1f}" for one in needs)),
        ("GB of HAProxy, including sockets", *(_figure(one.balancer_gb) for one in needs)),
        ("Redis masters", *(f"{one.redis_shards:,}" for one in needs)),
        ("GB of rows in Redis", *(_figure(one.redis_gb) for one in needs)),
        ("Gbit/s to the clients", *(_figure(one.gigabits) for one in needs)),
        ("s until the other nodes have a failed node's clients", *(_figure(one.back_seconds) for one in needs)),
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
