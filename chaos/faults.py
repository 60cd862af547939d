"""The faults. After each, everything runs again, but the cluster may still be recovering."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from chaos.plan import Plan
from chaos.stack import BALANCERS, HARD_STOP_SECONDS, SERVICES, Stack
from tests.kit.redis_cluster import slots_around

Outage = tuple[float, float]  # loop times: a master was killed, another had taken over
Act = Callable[[Stack, Plan, random.Random], Awaitable[list[Outage] | None]]

DOWN_SECONDS: Final = 2.0
MOVED_SLOTS: Final = 1000
LOST_PERCENT: Final = 20  # of a node's packets, in each direction
TAIL_BYTES: Final = 20_000  # of the AOF: about a second of traffic


@dataclass(frozen=True, slots=True)
class Fault:
    """An action, and the promises that hold in spite of it."""

    about: str
    act: Act
    keeps_history: bool = True  # no loss on topics with history; otherwise every loss is reported
    forks: bool = False  # two histories exist for a while: losses are only reported, with every plan
    forgets: bool = False  # every client must be notified, on every topic with history


async def nothing(_stack: Stack, plan: Plan, _rng: random.Random) -> None:
    """No fault: the baseline for the others."""
    await asyncio.sleep(plan.calm_seconds)


async def kill_node(stack: Stack, plan: Plan, rng: random.Random) -> None:
    """Its clients must reconnect elsewhere, its rows disappear at lease end; then it restarts with a new id."""
    node = await asyncio.to_thread(stack.some_node, rng)
    await asyncio.to_thread(node.kill)
    await asyncio.sleep(plan.lease_seconds + 2)
    await asyncio.to_thread(stack.start, node)


async def freeze_node(stack: Stack, plan: Plan, rng: random.Random) -> None:
    """Longer than its lease and its clients' timeouts: it wakes up without a lease, with old messages."""
    node = await asyncio.to_thread(stack.some_node, rng)
    node.freeze()
    try:
        await asyncio.sleep(plan.freeze_node_seconds)
    finally:
        node.thaw()
    await asyncio.to_thread(stack.until_up, node)


async def deafen(stack: Stack, _plan: Plan, rng: random.Random) -> None:
    """No node receives publishes until it notices the lost subscriber connection."""
    for _ in range(3):
        await asyncio.to_thread(stack.redis.kill_pubsub)
        await asyncio.sleep(rng.uniform(0.2, 1.0))


async def restart_redis(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """An orderly stop: Redis writes its AOF before it exits."""
    await asyncio.to_thread(stack.redis.stop)
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(stack.redis.start)


async def freeze_redis(stack: Stack, plan: Plan, _rng: random.Random) -> None:
    """No connection breaks, and Redis does not answer."""
    stack.redis.freeze()
    try:
        await asyncio.sleep(plan.freeze_redis_seconds)
    finally:
        stack.redis.thaw()


async def reload_haproxy(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """The old worker keeps its sockets, and closes them all at once at the hard stop."""
    for balancer in stack.balancers:
        balancer.reload()
    await asyncio.sleep(HARD_STOP_SECONDS + 2)
    await asyncio.to_thread(stack.until_up, *stack.nodes)


async def rolling_restart(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """Each node drains, exits and restarts before the next."""
    for node in stack.nodes:
        await asyncio.to_thread(stack.leave, node)
        await asyncio.to_thread(stack.start, node)


async def lose_tail(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """A power failure: Redis restarts without its last writes, and gives the same offsets to other messages."""
    await asyncio.to_thread(stack.redis.kill)
    await asyncio.to_thread(stack.redis.forget_tail, TAIL_BYTES)
    await asyncio.to_thread(stack.redis.start)


async def kill_redis(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """Redis cannot write its buffers; the kernel has everything written before."""
    await asyncio.to_thread(stack.redis.kill)
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(stack.redis.start)


async def flush(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """Deletes histories, leases and rows while everything runs."""
    await asyncio.to_thread(stack.redis.flush)


async def fail_over(stack: Stack, plan: Plan, _rng: random.Random) -> list[Outage]:
    """kill -9 the master, three times; each time a replica takes over, perhaps without the last messages."""
    loop, outages = asyncio.get_running_loop(), []
    for _ in range(3):
        began = loop.time()
        killed = await asyncio.to_thread(stack.sentinels.fail_over)
        outages.append((began, loop.time()))
        await asyncio.to_thread(killed.start)
        await asyncio.to_thread(stack.sentinels.until_whole)
        await asyncio.sleep(plan.calm_seconds)  # so that outages do not overlap
    return outages


async def kill_shard(stack: Stack, _plan: Plan, rng: random.Random) -> list[Outage]:
    """kill -9 a master of the Redis Cluster; its replica takes over, perhaps without the last messages."""
    servers = stack.redis_cluster
    killed = rng.choice(await asyncio.to_thread(servers.masters))
    began = asyncio.get_running_loop().time()
    await asyncio.to_thread(servers.fail_over, killed)
    ended = asyncio.get_running_loop().time()
    await asyncio.to_thread(killed.start)
    await asyncio.to_thread(servers.until_whole)
    return [(began, ended)]


async def move_slots(stack: Stack, plan: Plan, _rng: random.Random) -> None:
    """Moves a thousand slots, including those of all topics, to the next master, and later back."""
    servers, slots = stack.redis_cluster, slots_around(plan.topics(), MOVED_SLOTS)
    await asyncio.to_thread(servers.move, slots)
    await asyncio.sleep(plan.calm_seconds)
    await asyncio.to_thread(servers.move, slots, -1)
    await asyncio.to_thread(servers.until_whole)


async def kill_balancer(stack: Stack, _plan: Plan, rng: random.Random) -> None:
    """Its clients reach their nodes through the other load balancer."""
    balancer = rng.choice(stack.balancers)
    await asyncio.to_thread(balancer.kill)
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(balancer.start)


async def cut_redis(stack: Stack, plan: Plan, rng: random.Random) -> None:
    """The node keeps its clients, receives nothing, is unready and listed by no query. Then it repairs the topics."""
    node = await asyncio.to_thread(stack.some_node, rng)
    async with _cut(stack, [node.name], SERVICES):
        await asyncio.sleep(plan.cut_seconds)
        assert await asyncio.to_thread(node.reasons), f"{node.name} is ready without Redis"
    await asyncio.to_thread(stack.until_up, node)


async def cut_balancer(stack: Stack, plan: Plan, rng: random.Random) -> None:
    """Sockets between the two are dead, and neither end is notified."""
    node, at = await asyncio.to_thread(stack.some_node, rng), rng.randrange(len(BALANCERS))
    async with _cut(stack, [node.name], [BALANCERS[at]]):
        await asyncio.sleep(plan.cut_seconds)
        down = await asyncio.to_thread(stack.balancers[at].down, node)
        assert down, f"{BALANCERS[at]} sends clients to {node.name}, which it cannot reach"
    await asyncio.to_thread(stack.until_up, node)


async def halve(stack: Stack, plan: Plan, _rng: random.Random) -> None:
    """One half has no Redis master; the other half continues, with the master and most Sentinels."""
    small, large = await asyncio.to_thread(lambda: stack.halves(master=False))
    await _halve(stack, plan, small, large)


async def halve_with_master(stack: Stack, plan: Plan, _rng: random.Random) -> None:
    """The half with the master has too few Sentinels: the other half promotes a master."""
    small, large = await asyncio.to_thread(lambda: stack.halves(master=True))
    await _halve(stack, plan, small, large)
    assert await asyncio.to_thread(lambda: stack.halves(master=True)[0]) != small, "the master has not changed"


async def _halve(stack: Stack, plan: Plan, small: Sequence[str], large: Sequence[str]) -> None:
    async with _cut(stack, small, large):
        await asyncio.sleep(plan.cut_seconds)
        for node in stack.nodes:
            reasons = await asyncio.to_thread(node.reasons)
            assert bool(reasons) is (node.name in small), f"{node.name}: {reasons or 'ready'}"
    await asyncio.to_thread(stack.sentinels.until_whole)
    await asyncio.to_thread(stack.until_up, *stack.nodes)


async def lose_packets(stack: Stack, plan: Plan, rng: random.Random) -> None:
    """A bad cable: TCP retransmits lost packets, ever later."""
    node = await asyncio.to_thread(stack.some_node, rng)
    try:
        await asyncio.to_thread(stack.network.lose, node.name, LOST_PERCENT)
        await asyncio.sleep(plan.cut_seconds)
    finally:
        await asyncio.to_thread(stack.network.heal)
    await asyncio.to_thread(stack.until_up, node)


@asynccontextmanager
async def _cut(stack: Stack, some: Sequence[str], others: Sequence[str]) -> AsyncIterator[None]:
    try:
        await asyncio.to_thread(stack.network.cut, some, others)
        yield
    finally:
        await asyncio.to_thread(stack.network.heal)


FAULTS: Final = {
    "calm": Fault("nothing at all", nothing),
    "kill": Fault("kill -9 a node", kill_node),
    "freeze": Fault("freeze a node", freeze_node),
    "deafen": Fault("cut pub/sub, 3 times", deafen),
    "redis-restart": Fault("stop and start Redis", restart_redis),
    "redis-freeze": Fault("freeze Redis", freeze_redis),
    "reload": Fault("reload HAProxy", reload_haproxy),
    "rolling": Fault("rolling restart", rolling_restart),
    "redis-kill": Fault("kill -9 Redis", kill_redis, keeps_history=False),
    "tail": Fault("Redis loses its tail", lose_tail, keeps_history=False),
    "flush": Fault("FLUSHALL", flush, keeps_history=False, forgets=True),
    "failover": Fault("kill -9 the Redis master, 3 times", fail_over, keeps_history=False),
    "shard": Fault("kill -9 a Redis Cluster's master", kill_shard, keeps_history=False),
    "move": Fault("move 1,000 slots, and back", move_slots),
    "balancer-kill": Fault("kill -9 a load balancer", kill_balancer),
    "cut-redis": Fault("cut a node from Redis", cut_redis),
    "cut-balancer": Fault("cut a load balancer from a node", cut_balancer),
    "halves": Fault("cut one half from the other", halve),
    "halves-master": Fault("cut off the half with the master", halve_with_master, keeps_history=False, forks=True),
    "packets": Fault("lose one packet in five of a node", lose_packets),
}

_OF_A_REDIS: Final = {
    "single": ("deafen", "redis-restart", "redis-freeze", "redis-kill", "tail", "flush"),
    "sentinel": ("failover",),
    "cluster": ("shard", "move"),
    "hosts": ("balancer-kill", "cut-redis", "cut-balancer", "halves", "halves-master", "packets"),
}

# The faults for each kind of Redis, and for separate hosts.
KNOWN: Final = {
    kind: [name for name in FAULTS if name in own or not any(name in other for other in _OF_A_REDIS.values())]
    for kind, own in _OF_A_REDIS.items()
}
# Some faults of the other kinds that may behave differently here.
KNOWN["hosts"] = ["calm", "kill", "failover", *_OF_A_REDIS["hosts"]]
