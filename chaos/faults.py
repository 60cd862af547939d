"""What can happen to a cluster. Each fault ends with everything running again, though not yet calm."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from chaos.plan import Plan
from chaos.stack import HARD_STOP_SECONDS, Stack
from tests.redis_cluster import slots_around

Act = Callable[[Stack, Plan, random.Random], Awaitable[None]]

DOWN_SECONDS: Final = 2.0
MOVED_SLOTS: Final = 1000
TAIL_BYTES: Final = 20_000  # of the AOF: about a second of traffic


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done, and what is promised in spite of it."""

    about: str
    act: Act
    keeps_history: bool = True  # topics with history lose nothing; else: whatever is lost is told
    forgets: bool = False  # every client must be told, on every topic with history


async def nothing(_stack: Stack, plan: Plan, _rng: random.Random) -> None:
    """The measure for all others."""
    await asyncio.sleep(plan.calm_seconds)


async def kill_node(stack: Stack, plan: Plan, rng: random.Random) -> None:
    """Its clients must go elsewhere, its rows be gone at lease end; then it comes back under a new id."""
    node = await asyncio.to_thread(stack.some_node, rng)
    await asyncio.to_thread(node.kill)
    await asyncio.sleep(plan.lease_seconds + 2)
    await asyncio.to_thread(stack.start, node)


async def freeze_node(stack: Stack, plan: Plan, rng: random.Random) -> None:
    """Longer than its lease and its clients' patience: it wakes up as a ghost, full of old messages."""
    node = await asyncio.to_thread(stack.some_node, rng)
    node.freeze()
    try:
        await asyncio.sleep(plan.freeze_node_seconds)
    finally:
        node.thaw()
    await asyncio.to_thread(stack.until_up, node)


async def deafen(stack: Stack, _plan: Plan, rng: random.Random) -> None:
    """No node hears what is published until it has noticed."""
    for _ in range(3):
        await asyncio.to_thread(stack.redis.kill_pubsub)
        await asyncio.sleep(rng.uniform(0.2, 1.0))


async def restart_redis(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """In order: it writes its AOF before it ends."""
    await asyncio.to_thread(stack.redis.stop)
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(stack.redis.start)


async def freeze_redis(stack: Stack, plan: Plan, _rng: random.Random) -> None:
    """No connection breaks and nothing is answered."""
    stack.redis.freeze()
    try:
        await asyncio.sleep(plan.freeze_redis_seconds)
    finally:
        stack.redis.thaw()


async def reload_haproxy(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """The old worker keeps its sockets, and at the hard stop cuts them all at once."""
    stack.balancer.reload()
    await asyncio.sleep(HARD_STOP_SECONDS + 2)
    for node in stack.nodes:
        await asyncio.to_thread(stack.until_up, node)


async def rolling_restart(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """Each node drains, ends and comes back before the next."""
    for node in stack.nodes:
        await asyncio.to_thread(stack.leave, node)
        await asyncio.to_thread(stack.start, node)


async def lose_tail(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """A power cut: Redis comes back without its last moments, and gives the same offsets to other messages."""
    await asyncio.to_thread(stack.redis.kill)
    await asyncio.to_thread(stack.redis.forget_tail, TAIL_BYTES)
    await asyncio.to_thread(stack.redis.start)


async def kill_redis(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """Without a chance to write what it holds; the kernel has what it wrote."""
    await asyncio.to_thread(stack.redis.kill)
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(stack.redis.start)


async def flush(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """Histories, leases, rows: all gone, while everything runs."""
    await asyncio.to_thread(stack.redis.flush)


async def fail_over(stack: Stack, _plan: Plan, _rng: random.Random) -> None:
    """kill -9 the master, three times; each time a replica takes over, which may not have had the last messages."""
    for _ in range(3):
        killed = await asyncio.to_thread(stack.sentinels.fail_over)
        await asyncio.to_thread(killed.start)
        await asyncio.to_thread(stack.sentinels.until_whole)


async def kill_shard(stack: Stack, _plan: Plan, rng: random.Random) -> None:
    """kill -9 a master of the cluster; its replica takes over, and may not have had the last messages."""
    servers = stack.redis_cluster
    killed = rng.choice(await asyncio.to_thread(servers.masters))
    await asyncio.to_thread(servers.fail_over, killed)
    await asyncio.to_thread(killed.start)
    await asyncio.to_thread(servers.until_whole)


async def move_slots(stack: Stack, plan: Plan, _rng: random.Random) -> None:
    """A thousand slots, those of all topics among them, go to the next master, and after a moment back."""
    servers, slots = stack.redis_cluster, slots_around(plan.topics(), MOVED_SLOTS)
    await asyncio.to_thread(servers.move, slots)
    await asyncio.sleep(plan.calm_seconds)
    await asyncio.to_thread(servers.move, slots, -1)
    await asyncio.to_thread(servers.until_whole)


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
}

_OF_A_REDIS: Final = {
    "single": ("deafen", "redis-restart", "redis-freeze", "redis-kill", "tail", "flush"),
    "sentinel": ("failover",),
    "cluster": ("shard", "move"),
}

# Which can happen, by the kind of Redis.
KNOWN: Final = {
    kind: [name for name in FAULTS if name in own or not any(name in other for other in _OF_A_REDIS.values())]
    for kind, own in _OF_A_REDIS.items()
}
