"""Which faults, how many clients, for how long.  (pure)"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

FULL_CLIENTS = 100
REPLICAS = {"single": 0, "sentinel": 2, "cluster": 1}  # per master
QUICK_CLIENTS = 30
MANY_TOPICS = {"history_topics": 12, "plain_topics": 6}  # so that each master of a Redis Cluster has some


class PlanError(ValueError):
    """An invalid variable; the message names it, its value and the permitted values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The options of a run. Topics are numbered; those with history carry most of the traffic."""

    seed: int
    faults: tuple[str, ...]  # in this order; with `minutes`: to choose from
    minutes: float = 0  # 0: each fault once
    clients: int = FULL_CLIENTS
    client: str = "gateway"  # or "centrifugo": the package centrifuge-python
    nodes: int = 3
    restless: float = 0.1  # share of the clients that keep closing their own connection
    restless_seconds: float = 3.0  # average time between two closes
    # "sentinel": a master, two replicas, three Sentinels. "cluster": three masters with a replica each.
    redis: str = "single"
    hosts: bool = False  # each process on its own host, and two load balancers
    fsync: str = "everysec"
    wait_replicas: int = 0  # that must confirm a message on a topic with history before its acknowledgement
    lease_seconds: float = 10.0
    ping_seconds: float = 3.0
    pong_seconds: float = 3.0
    freeze_node_seconds: float = 15.0
    freeze_redis_seconds: float = 8.0
    calm_seconds: float = 2.0  # of traffic without a fault, before and after each fault
    drain_seconds: float = 3.0
    max_lag_seconds: int = 4  # with hosts: a master without replicas for this long rejects writes
    history_topics: int = 4
    plain_topics: int = 2
    history_rate: float = 40.0  # messages a second, on all topics with history together
    plain_rate: float = 10.0

    def topics(self) -> list[str]:
        """Topics with history, then the others."""
        return [f"h{at + 1}" for at in range(self.history_topics)] + [f"p{at + 1}" for at in range(self.plain_topics)]

    def rate(self, topic: str) -> float:
        """Messages a second on one topic."""
        return self.history_rate / self.history_topics if keeps(topic) else self.plain_rate / self.plain_topics

    @property
    def cut_seconds(self) -> float:
        """How long a cut lasts: longer than a lease, a failover, and the timeouts of both ends of a connection."""
        return max(self.lease_seconds, 4 * self.ping_seconds, 8.0) + 4

    @property
    def ghost_seconds(self) -> float:
        """How long a disconnected client may be listed: its node's lease and a heartbeat; or, if only the network path
        was lost, until the node misses its pong. One second is added for the query."""
        return max(1.2 * self.lease_seconds, self.ping_seconds + self.pong_seconds + 1) + 1


def keeps(topic: str) -> bool:
    """Whether a topic keeps history."""
    return topic.startswith("h")


def from_env(environ: Mapping[str, str], faults: Mapping[str, Collection[str]], seed: int) -> Plan:
    """The plan of the variables SEED, MINUTES, FAULTS, QUICK, CLIENTS, CLIENT, FSYNC, REDIS, WAIT and HOSTS.

    `faults`: the names of the faults for each kind of Redis, and for "hosts".

    Raises:
        PlanError: A value is invalid.
    """
    hosts = environ.get("HOSTS", "") not in ("", "0")
    kinds = ["sentinel"] if hosts else [kind for kind in faults if kind != "hosts"]
    redis = environ.get("REDIS") or kinds[0]
    if redis not in kinds:
        raise PlanError(f"REDIS must be one of {', '.join(kinds)}{' with HOSTS=1' * hosts}, not {redis!r}")
    known = faults["hosts" if hosts else redis]
    chosen = [name for name in re.split(r"[\s,]+", environ.get("FAULTS", "")) if name]
    unknown = set(chosen) - set(known)
    if unknown:
        given = "HOSTS=1" if hosts else f"REDIS={redis}"
        raise PlanError(f"FAULTS names {min(unknown)!r}; with {given} the faults are {', '.join(known)}")
    fsync = environ.get("FSYNC") or "everysec"
    if fsync not in ("everysec", "always", "no"):
        raise PlanError(f"FSYNC must be everysec, always or no, not {fsync!r}")
    client = environ.get("CLIENT") or "gateway"
    if client not in ("gateway", "centrifugo"):
        raise PlanError(f"CLIENT must be gateway or centrifugo, not {client!r}")
    if hosts and client != "gateway":
        raise PlanError(
            "with HOSTS=1 CLIENT must be gateway: clients of centrifuge-python have no address of their own"
        )
    quick = environ.get("QUICK", "") not in ("", "0")
    clients = int(_number(environ, "CLIENTS", QUICK_CLIENTS if quick else FULL_CLIENTS, 1, 2000))
    topics = MANY_TOPICS if redis == "cluster" else {}
    if client == "centrifugo":  # its protocol cannot report a loss on a topic without history to a connected client
        topics = {**topics, "plain_topics": 0}
    common = Plan(
        seed=int(_number(environ, "SEED", seed, 0, 2**63)), faults=tuple(chosen) or tuple(known), clients=clients,
        client=client,
        minutes=_number(environ, "MINUTES", 0, 0, 7 * 24 * 60), redis=redis, fsync=fsync,
        hosts=hosts, nodes=4 if hosts else 3, **topics,
        wait_replicas=int(_number(environ, "WAIT", 1 if hosts else 0, 0, REPLICAS[redis])),
    )  # fmt: skip
    return hurried(common) if quick else common


def hurried(plan: Plan) -> Plan:
    """The same with shorter waits: every fault still lasts longer than the timeouts that detect it."""
    values = {name: getattr(plan, name) for name in Plan.__dataclass_fields__}
    values |= {
        "lease_seconds": 2.0, "ping_seconds": 1.0, "pong_seconds": 2.0, "freeze_node_seconds": 5.0,
        "freeze_redis_seconds": 4.0, "calm_seconds": 1.0, "drain_seconds": 1.0,
    }  # fmt: skip
    return Plan(**values)


def _number(environ: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = environ.get(name) or str(default)
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not low <= float(text) <= high:
        raise PlanError(f"{name} must be a number from {low:g} to {high:g}, not {text!r}")
    return float(text)
