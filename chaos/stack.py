"""Private Redis servers, gateway nodes and HAProxy, in their own folder; built from the test kit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.network import Network
from chaos.plan import Plan
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import Node
from tests.kit.redis import Redis
from tests.kit.redis_cluster import RedisCluster
from tests.kit.sentinel import Sentinels
from tests.kit.waiting import until

# Topics with "h" have history, and one of them a snapshot; topics with "p" have neither.
RULES = """
[[topic]]
pattern = "h1"
history = 5000
snapshot = true

[[topic]]
pattern = "h*"
history = 5000
"""

HARD_STOP_SECONDS = 4  # after a reload HAProxy's old worker closes its remaining sockets
STOP_SECONDS = 30.0
READY_SECONDS = 40.0


CLIENTS = "clients"  # the host of all clients and of this process
SERVICES = ["r1", "r2", "r3", "s1", "s2", "s3"]  # Redis servers and Sentinels
BALANCERS = ["lb1", "lb2"]
PEER_PORT = 10_000


@dataclass(frozen=True, slots=True)
class Stack:
    """The system under test. All methods block."""

    store: Redis | Sentinels | RedisCluster
    nodes: Cluster
    balancers: Sequence[LoadBalancer]
    cables: Network | None = None
    crowd: str = "127.0"  # first two numbers of the clients' addresses

    @property
    def redis(self) -> Redis:
        """The single server, if Redis is one server."""
        assert isinstance(self.store, Redis)
        return self.store

    @property
    def sentinels(self) -> Sentinels:
        """The servers and their Sentinels, if Redis has Sentinels."""
        assert isinstance(self.store, Sentinels)
        return self.store

    @property
    def redis_cluster(self) -> RedisCluster:
        """The masters and their replicas, if Redis is a Redis Cluster."""
        assert isinstance(self.store, RedisCluster)
        return self.store

    @property
    def network(self) -> Network:
        """The hosts, if there are any: nodes, and those of `SERVICES` and `BALANCERS`, by name."""
        assert self.cables is not None
        return self.cables

    def publishes(self) -> dict[int, int]:
        """Published messages of each master of a Redis Cluster, by its port; otherwise empty."""
        return self.store.published() if isinstance(self.store, RedisCluster) else {}

    def source(self, at: int) -> str:
        """The address of a client; HAProxy keeps a source on one node."""
        return f"{self.crowd}.{16 + at // 250}.{1 + at % 250}"

    def ways(self, at: int) -> list[str]:
        """The URLs of a client, in the order of its attempts."""
        urls = [balancer.ws for balancer in self.balancers]
        first = at % len(urls)
        return urls[first:] + urls[:first]

    def some_node(self, rng: random.Random) -> Node:
        """A random node that has clients."""
        return rng.choice([node for node in self.nodes if node.metric("gateway_connections") >= 1])

    def start(self, node: Node) -> None:
        """Starts a stopped node, and waits until every HAProxy reports it up."""
        node.start()
        until(node.ready, READY_SECONDS, f"{node.name} is ready")
        self.until_up(node)

    def until_up(self, *nodes: Node) -> None:
        """Waits until every HAProxy reports the nodes up."""
        for balancer in self.balancers:
            for node in nodes:
                until(lambda b=balancer, n=node: b.up(n), READY_SECONDS, f"HAProxy reports {node.name} up")  # type: ignore[misc]

    def leave(self, node: Node) -> None:
        """Drains a node; it must exit with 0."""
        node.terminate()
        code = node.process.exit_code(STOP_SECONDS)
        assert code == 0, f"{node.name} exited with {code} after SIGTERM"

    def halves(self, *, master: bool) -> tuple[list[str], list[str]]:
        """All hosts except the clients', in two halves. The smaller has one Sentinel, and the master or a replica."""
        chosen = self.sentinels.master()
        if not master:
            chosen = next(server for server in self.sentinels.servers if server is not chosen)
        small = ["lb1", "n1", "n2", f"r{self.sentinels.servers.index(chosen) + 1}", "s1"]
        every = [*BALANCERS, *(node.name for node in self.nodes), *SERVICES]
        return small, [name for name in every if name not in small]


@contextmanager
def running(plan: Plan, folder: Path) -> Iterator[Stack]:
    """Runs the stack; its logs are in `folder`. Leaving the `with` stops all processes.

    Raises:
        NetworkError: This machine cannot create separate hosts.
    """
    with _hosts(plan, folder) if plan.hosts else _here(plan, folder) as stack:
        yield stack


@contextmanager
def _here(plan: Plan, folder: Path) -> Iterator[Stack]:
    with ExitStack() as stack:
        store = _store(plan, folder)
        stack.enter_context(store)
        nodes = stack.enter_context(Cluster(plan.nodes, folder, store, **_settings(plan, folder)))
        balancer = stack.enter_context(LoadBalancer(nodes.nodes, folder, **LIMITS, **_trusted(plan)))
        yield Stack(store, nodes, [balancer])


@contextmanager
def _hosts(plan: Plan, folder: Path) -> Iterator[Stack]:
    """Each process on its own host, and this process on the clients' host."""
    with ExitStack() as stack:
        names = [f"n{at}" for at in range(1, plan.nodes + 1)]
        network = stack.enter_context(Network([CLIENTS, *BALANCERS, *names, *SERVICES]))
        crowd = network.crowd(CLIENTS)
        stack.enter_context(network.inside(CLIENTS))
        hosts = [network.host(name) for name in SERVICES]
        # A master without replicas must not accept writes that will be lost.
        strict = {"min-replicas-to-write": "1", "min-replicas-max-lag": str(plan.max_lag_seconds)}
        store = stack.enter_context(Sentinels(folder, hosts=hosts[:3], watcher_hosts=hosts[3:], more=strict))
        trusted = ",".join(network.host(name).address for name in BALANCERS)
        settings = {**_settings(plan, folder), "trusted_proxies": trusted}
        nodes = stack.enter_context(
            Cluster(plan.nodes, folder, store, [network.host(name) for name in names], **settings)
        )
        peers = {f"LB{at}": f"{network.host(name).address}:{PEER_PORT}" for at, name in enumerate(BALANCERS, 1)}
        balancers = []
        for name in BALANCERS:
            (folder / name).mkdir()
            balancer = LoadBalancer(nodes.nodes, folder / name, network.host(name), LB_NAME=name, **peers, **LIMITS)
            balancers.append(stack.enter_context(balancer))
        yield Stack(store, nodes, balancers, network, crowd)


LIMITS: Final = {"LB_HARDSTOP": f"{HARD_STOP_SECONDS}s", "RL_CONN": 20_000, "RL_REQ": 20_000}


def _trusted(plan: Plan) -> dict[str, object]:
    """Clients of centrifuge-python name their address in a header."""
    return {"LB_TRUSTED": "127.0.0.1"} if plan.client == "centrifugo" else {}


def _settings(plan: Plan, folder: Path) -> dict[str, object]:
    rules = folder / "topics.toml"
    rules.write_text(RULES)
    return {
        "topics": rules, "lease_seconds": plan.lease_seconds, "ping_seconds": plan.ping_seconds,
        "pong_seconds": plan.pong_seconds, "drain_seconds": plan.drain_seconds, "wait_replicas": plan.wait_replicas,
        "centrifugo": int(plan.client == "centrifugo"),
    }  # fmt: skip


def _store(plan: Plan, folder: Path) -> Redis | Sentinels | RedisCluster:
    match plan.redis:
        case "sentinel":
            return Sentinels(folder)
        case "cluster":
            return RedisCluster(folder)
        case _:
            return Redis(folder, aof=True, fsync=plan.fsync)
