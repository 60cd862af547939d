"""Connections of a user and of an address are counted over all nodes, and the slots of a dead node are freed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.broker.client import RedisClient
from gateway.broker.keys import Keys
from gateway.cluster.connection_limits import ConnectionLimits
from gateway.metrics import Metrics
from tests.conftest import Connect
from tests.kit.client import Client
from tests.kit.cluster import Cluster
from tests.kit.node import Node, token
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

Clusters = Callable[..., Cluster]
ALLOWED = 3
LEASE_SECONDS = 3.0


async def refused(connect: Connect, node: Node, **how: Any) -> bool:
    """Whether a handshake is answered 429; if it is not, the client stays."""
    try:
        await connect(node, **how)
    except InvalidStatus as error:
        answer = error.response
    else:
        return False
    assert answer.status_code == 429
    assert b"too many connections of this" in answer.body
    assert answer.headers["Retry-After"] == "5"
    return True


@pytest.fixture
def three(cluster: Clusters) -> Cluster:
    """Three nodes, three connections a user."""
    return cluster(3, max_user_connections=ALLOWED, lease_seconds=LEASE_SECONDS)


async def test_the_fourth_connection_is_rejected_on_every_node_until_another_closes(
    three: Cluster, connect: Connect
) -> None:
    clients = [await connect(node, user="ann") for node in three]
    assert all([await refused(connect, node, user="ann") for node in three])
    assert not await refused(connect, three[0], user="bob")
    assert not await refused(connect, three[0])  # an anonymous client
    assert sum(node.metric("gateway_limited_total", limit="user_connections") for node in three) == 3
    assert sum(node.metric("gateway_refusals_total", status="429") for node in three) == 3
    await clients[0].close()

    async def let_in() -> bool:
        return not await refused(connect, three[2], user="ann")

    await eventually(let_in)
    assert await refused(connect, three[1], user="ann")


async def test_of_many_simultaneous_connections_exactly_the_limit_is_accepted(three: Cluster, connect: Connect) -> None:
    for user in ("ann", "bob"):
        found = await asyncio.gather(*(refused(connect, three[at % 3], user=user) for at in range(24)))
        assert Counter(found) == {False: ALLOWED, True: 24 - ALLOWED}


async def test_a_client_that_exceeds_the_limit_by_a_later_auth_is_closed(three: Cluster, connect: Connect) -> None:
    clients = [await connect(node, user="ann") for node in three]
    late: Client = await connect(three[1])
    with pytest.raises((ConnectionClosed, AssertionError)):
        await late.authenticate("ann")
    await eventually(lambda: not late.open)
    assert late.socket.close_code == 3504
    by_token: Client = await connect(three[1])
    await by_token.send(type="SUBSCRIBE", topics=["t"], authToken=token("ann"))
    await eventually(lambda: by_token.socket.close_code == 3504)
    # A slot belongs to the identity: a client that changes its user returns the slot.
    assert (await clients[0].authenticate("bob"))["status"] == "success"
    assert (await clients[1].authenticate("ann"))["status"] == "success", "it has its slot already"
    other: Client = await connect(three[2])

    async def becomes_ann() -> bool:
        nonlocal other
        if not other.open:
            other = await connect(three[2])
        await other.send(type="AUTH", authToken=token("ann"))
        await eventually(lambda: not other.open or other.received(operation="authenticate"))
        return other.open

    await eventually(becomes_ann)
    assert await refused(connect, three[0], user="ann")


async def test_a_killed_nodes_slots_are_free_within_its_lease(three: Cluster, connect: Connect) -> None:
    for _ in range(ALLOWED):
        await connect(three[0], user="ann")
    assert await refused(connect, three[1], user="ann")
    three[0].kill()
    started = asyncio.get_running_loop().time()
    await eventually(lambda: _let_in(connect, three[1], "ann"), LEASE_SECONDS + 5)
    assert asyncio.get_running_loop().time() - started <= LEASE_SECONDS + 1
    for node in (three[1], three[2]):  # one is taken; two are left, not three
        assert not await refused(connect, node, user="ann")
    assert await refused(connect, three[2], user="ann")


async def test_a_frozen_nodes_slots_are_free_after_its_lease_and_counted_again_when_it_wakes(
    three: Cluster, connect: Connect
) -> None:
    for _ in range(ALLOWED):
        await connect(three[0], user="ann")
    three[0].freeze()
    await eventually(lambda: _let_in(connect, three[1], "ann"), LEASE_SECONDS + 5)
    three[0].thaw()
    await eventually(lambda: held(three.redis, "user:ann") == 4)  # no client is closed
    assert await refused(connect, three[2], user="ann")


async def test_a_node_that_leaves_gives_its_slots_back_at_once(three: Cluster, connect: Connect) -> None:
    for _ in range(ALLOWED):
        await connect(three[0], user="ann")
    three[0].terminate()
    three[0].process.exit_code()
    assert not await refused(connect, three[1], user="ann")


async def test_a_flushed_redis_knows_all_slots_again_after_a_beat(three: Cluster, connect: Connect) -> None:
    for node in three:
        await connect(node, user="ann")
    three.redis.flush()
    await eventually(lambda: held(three.redis, "user:ann") == 3)
    assert await refused(connect, three[1], user="ann")


async def test_without_redis_a_node_counts_its_own_and_lets_the_others_be(three: Cluster, connect: Connect) -> None:
    await connect(three[0], user="ann")
    three.redis.stop()
    await eventually(lambda: all(node.metric("gateway_redis_up") == 0 for node in three))
    for _ in range(ALLOWED):
        assert not await refused(connect, three[1], user="ann")  # four in all: without Redis no node can know
    assert await refused(connect, three[1], user="ann")
    late: Client = await connect(three[2])
    await late.send(type="AUTH", authToken=token("bob"))
    three.redis.start()
    await eventually(lambda: held(three.redis, "user:ann") == 4)
    await eventually(lambda: all(node.ready() for node in three))
    assert await refused(connect, three[2], user="ann")
    await late.hear(operation="authenticate", status="success")


async def test_an_address_is_counted_over_all_nodes_and_a_trusted_proxys_own_is_not(
    cluster: Clusters, connect: Connect
) -> None:
    nodes = cluster(2, max_address_connections=2)
    for address, same in (("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::ffff")):
        for node in nodes:
            assert not await refused(connect, node, headers={"X-Forwarded-For": address})
        assert await refused(connect, nodes[1], headers={"X-Forwarded-For": same})
        # What a client writes before its proxy's word counts for nothing.
        assert await refused(connect, nodes[0], headers={"X-Forwarded-For": f"203.0.113.9, {same}"})
    assert not await refused(connect, nodes[0], headers={"X-Forwarded-For": "2001:db8:0:1::1"})
    for _ in range(4):
        assert not await refused(connect, nodes[0])  # 127.0.0.1 is GATEWAY_TRUSTED_PROXIES
    for source, expected in zip(["127.0.5.1"] * 3, [False, False, True], strict=True):
        assert await refused(connect, nodes[0], source=source) == expected
        # It is no proxy: its word is not taken.
    assert await refused(connect, nodes[1], source="127.0.5.1", headers={"X-Forwarded-For": "198.51.100.1"})


# ---- the step itself


async def test_random_comings_and_goings_keep_every_limit(redis: Redis) -> None:
    chance = random.Random(5)
    async with counting(redis, 3, user_limit=2, address_limit=4) as nodes:
        inside: list[tuple[ConnectionLimits, str | None, str | None]] = []

        async def come() -> None:
            connection_limits = chance.choice(nodes)
            user, address = chance.choice([None, "ann", "bob", "eve"]), chance.choice([None, "x", "y"])
            task = asyncio.create_task(connection_limits.acquire(user, address))
            if chance.random() < 0.2:  # it goes away while it is asked for
                await asyncio.sleep(chance.random() * 0.01)
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if await task is None:
                    inside.append((connection_limits, user, address))

        for _ in range(40):
            await asyncio.gather(*(come() for _ in range(chance.randrange(12))))
            users, addresses = Counter(i[1] for i in inside), Counter(i[2] for i in inside)
            assert all(count <= 2 for user, count in users.items() if user)
            assert all(count <= 4 for address, count in addresses.items() if address)
            chance.shuffle(inside)
            for _ in range(chance.randrange(len(inside) + 1)):
                connection_limits, user, address = inside.pop()
                connection_limits.release(user, address)
        for connection_limits, user, address in inside:
            connection_limits.release(user, address)
        await eventually(lambda: counts(redis) == {})
        assert await nodes[0].acquire("ann", "x") is None


@contextlib.asynccontextmanager
async def counting(
    redis: Redis, n: int, *, user_limit: int, address_limit: int
) -> AsyncIterator[list[ConnectionLimits]]:
    """So many nodes, as far as they count."""
    redis_clients = [RedisClient(redis.url, timeout_seconds=2, name=f"n{at}", metrics=Metrics()) for at in range(n)]
    nodes = [
        ConnectionLimits(
            redis_client, Keys("gw:"), f"n.{at}", lease_seconds=10, user_limit=user_limit, address_limit=address_limit
        )
        for at, redis_client in enumerate(redis_clients)
    ]
    tasks = [asyncio.create_task(connection_limits.run()) for connection_limits in nodes]
    try:
        yield nodes
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for redis_client in redis_clients:
            await redis_client.close()


def counts(redis: Redis) -> dict[str, int]:
    """Connections by user and address, as Redis has them."""
    found: Counter[str] = Counter()
    for key in redis.cli("KEYS", "gw:ws:{slots}:*"):
        for who, count in redis.cli("HGETALL", key).items():
            found[who] += int(count)
    return {who: count for who, count in found.items() if who}


def held(redis: Redis, who: str) -> int:
    """Connections of one of them."""
    return counts(redis).get(who, 0)


async def _let_in(connect: Connect, node: Node, user: str) -> bool:
    return not await refused(connect, node, user=user)
