"""A private Redis or several, gateway nodes and HAProxy, in a folder of their own; the verbs are those of the tests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.plan import Plan
from tests.cluster import Balancer, Cluster, Node, Redis
from tests.deadlines import until
from tests.redis_cluster import RedisCluster
from tests.sentinel import Sentinels

# "h" keeps history, and one of these topics a snapshot too; "p" keeps nothing.
RULES = """
[[topic]]
pattern = "h1"
history = 5000
snapshot = true

[[topic]]
pattern = "h*"
history = 5000
"""

HARD_STOP_SECONDS = 4  # after a reload HAProxy's old worker cuts what it still has
STOP_SECONDS = 30.0
READY_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Stack:
    """What is broken. All its methods block."""

    store: Redis | Sentinels | RedisCluster
    nodes: Cluster
    balancer: Balancer

    @property
    def redis(self) -> Redis:
        """The one server, where there is one."""
        assert isinstance(self.store, Redis)
        return self.store

    @property
    def sentinels(self) -> Sentinels:
        """The servers and who watches them, where they are several."""
        assert isinstance(self.store, Sentinels)
        return self.store

    @property
    def redis_cluster(self) -> RedisCluster:
        """The masters and their replicas, where it is a Redis Cluster."""
        assert isinstance(self.store, RedisCluster)
        return self.store

    def some_node(self, rng: random.Random) -> Node:
        """One of those that have clients."""
        return rng.choice([node for node in self.nodes if node.metric("gateway_connections") >= 1])

    def start(self, node: Node) -> None:
        """Run a node that has ended, and wait until HAProxy gives it clients."""
        node.start()
        until(node.ready, READY_SECONDS, f"{node.name} is ready")
        self.until_up(node)

    def until_up(self, node: Node) -> None:
        """Wait until HAProxy gives it clients."""
        until(lambda: self.balancer.up(node), READY_SECONDS, f"HAProxy has found {node.name} up")

    def leave(self, node: Node) -> None:
        """Ask a node to drain and end; it must do so in order."""
        node.terminate()
        code = node.process.exit_code(STOP_SECONDS)
        assert code == 0, f"{node.name} ended with {code} after SIGTERM"


@contextmanager
def running(plan: Plan, folder: Path) -> Iterator[Stack]:
    """The stack, all up; its logs are in `folder`. Nothing of it outlives the `with`."""
    rules = folder / "topics.toml"
    rules.write_text(RULES)
    with ExitStack() as stack:
        store = _store(plan, folder)
        stack.enter_context(store)
        nodes = stack.enter_context(
            Cluster(
                plan.nodes, folder, store, topics=rules, lease_seconds=plan.lease_seconds,
                ping_seconds=plan.ping_seconds, drain_seconds=plan.drain_seconds, wait_replicas=plan.wait_replicas,
            )
        )  # fmt: skip
        balancer = stack.enter_context(
            Balancer(nodes.nodes, folder, LB_HARDSTOP=f"{HARD_STOP_SECONDS}s", RL_CONN=20_000, RL_REQ=20_000)
        )
        yield Stack(store, nodes, balancer)


def _store(plan: Plan, folder: Path) -> Redis | Sentinels | RedisCluster:
    match plan.redis:
        case "sentinel":
            return Sentinels(folder)
        case "cluster":
            return RedisCluster(folder)
        case _:
            return Redis(folder, aof=True, fsync=plan.fsync)
