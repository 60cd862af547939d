"""Another program writes invalid values to the nodes' keys: nodes stay ready, and only the invalid row is affected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis as Raw

from gateway.broker.keys import Keys
from tests.conftest import Connect
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.node import API_KEY, NAMESPACE
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

Clusters = Callable[..., Cluster]
ApiOf = Callable[[Front], Api]
KEYS = Keys(NAMESPACE)
LEASE_SECONDS = 2.0
HUGE = 64 << 20


@pytest.fixture
async def raw(redis: Redis) -> AsyncIterator[Raw]:
    """Redis, written by another program."""
    async with Raw.from_url(redis.url, socket_timeout=60) as client:
        yield client


async def ids(raw: Raw) -> list[str]:
    """The nodes' ids."""
    found: list[Any] = await raw.zrange(KEYS.nodes, 0, -1)
    return [one.decode() for one in found]


async def written(raw: Raw, node_ids: list[str]) -> None:
    """Wait until the nodes' first write, which removes what stood there before, is done."""

    async def done() -> bool:
        return all([await raw.hexists(KEYS.topics(node_id), "prices") for node_id in node_ids])

    await eventually(done)


async def works(nodes: Cluster, clients: list[Client], api: ApiOf, number: int) -> None:
    """Every node is ready, and what is published is delivered."""
    for node in nodes:
        await eventually(node.ready)
    await api(nodes[0]).publish("prices", number)
    for client in clients:
        await client.hear(type="DATA", topic="prices", data=number)


async def test_nodes_live_with_rows_that_no_gateway_writes(
    cluster: Clusters, connect: Connect, api: ApiOf, raw: Raw
) -> None:
    nodes = cluster(2, lease_seconds=LEASE_SECONDS)
    clients = [await connect(node, user="ann") for node in nodes]
    for client in clients:
        await client.subscribe("prices")
    first, second = await ids(raw)
    await written(raw, [first, second])
    bad = b"\xff\xfe"
    await raw.zadd(KEYS.nodes, {bad: 1, b"\xff alive": 4e12, b"x" * 1000: 4e12, b"n.b\n": 5})
    await raw.hset(KEYS.topics(first), mapping={bad: 1, b"topic": b"many", b"other": b"9" * 400})
    await raw.hset(
        KEYS.clients(first), mapping={bad: b"{}", f"{first}.77".encode(): b"[1", f"{first}.78".encode(): b"{}"}
    )
    await raw.zadd(KEYS.revoked, {bad: 4e9, b"token": 4e9, b"nobody:x": float("inf"), b"user:" + b"u" * 5000: 4e9})
    await raw.zadd(KEYS.revoked_users, {bad: float("inf")})
    await raw.set(KEYS.revoked_version, bad)
    await raw.zadd(KEYS.services, {bad: 4e12, b"a b": 4e12})
    await raw.zadd(KEYS.connection_nodes, {bad: 4e12, b"\xff": 1})
    await raw.hset(KEYS.node_connections(second), mapping={b"user:ann": b"many"})
    # A dead node with nothing that can be read.
    await raw.zadd(KEYS.nodes, {"dead.00000000": 1})
    await raw.hset(KEYS.topics("dead.00000000"), mapping={bad: 1, b"prices": b"1"})
    await raw.hset(KEYS.presence("dead.00000000", "prices"), mapping={bad: bad})

    await eventually(lambda: all(node.metric("gateway_malformed_total", kind="revocation") for node in nodes))
    await eventually(lambda: any(node.metric("gateway_malformed_total", kind="node") for node in nodes))
    await asyncio.sleep(2 * LEASE_SECONDS / 5)
    await works(nodes, clients, api, 1)
    skipped = nodes[0].metric("gateway_malformed_total", kind="topic")
    assert [row["topic"] for row in (await api(nodes[0]).get("/api/topics"))["topics"]] == ["prices"]
    assert nodes[0].metric("gateway_malformed_total", kind="topic") == skipped + 3
    assert {row["id"] for row in (await api(nodes[0]).get("/api/nodes"))["nodes"]} == {first, second}
    assert {row["id"] for row in await api(nodes[1]).clients()} == {client.id for client in clients}
    await eventually(lambda: forgotten(raw, "dead.00000000"))
    newcomer = await connect(nodes[0], user="bob")
    await newcomer.subscribe("prices")
    await asyncio.to_thread(nodes.grow, 1)  # and a new node starts beside them; the clients answer pings meanwhile
    await works(nodes, [*clients, newcomer], api, 2)
    for node in nodes:
        node.finish_log()
        assert len(node.events("malformed value in Redis skipped")) <= 8, "once for each kind"


def keys_of(node_id: str) -> dict[str, str]:
    """Keys that nodes read, by what they hold."""
    return {
        "index": KEYS.nodes,
        "lease": KEYS.node(node_id),
        "clients": KEYS.clients(node_id),
        "topics": KEYS.topics(node_id),
        "presence": KEYS.presence(node_id, "contest-chat"),
        "slots": KEYS.connection_nodes,
        "counts": KEYS.node_connections(node_id),
        "revoked": KEYS.revoked,
        "revoked users": KEYS.revoked_users,
        "revoked version": KEYS.revoked_version,
        "rules": KEYS.rules,
        "services": KEYS.services,
        "service": KEYS.service("gateway.bus"),
        "leader": KEYS.leader("gateway.announcer"),
        "fence": KEYS.fence("gateway.announcer"),
        "snapshot": KEYS.snapshot("market-data"),
        "cache": KEYS.cache_value("a"),
        "quota": KEYS.quota("ann"),
    }


async def test_a_key_of_another_type_affects_that_key_only_and_is_replaced(
    cluster: Clusters, connect: Connect, api: ApiOf, raw: Raw
) -> None:
    nodes = cluster(2, lease_seconds=LEASE_SECONDS)
    clients = [await connect(node, user="ann") for node in nodes]
    for client in clients:
        await client.subscribe("prices", "contest-chat")
    [first, other] = await ids(raw)
    await written(raw, [first, other])
    async with httpx.AsyncClient(
        base_url=nodes[0].api_url, headers={"authorization": f"Bearer {API_KEY}"}, trust_env=False
    ) as http:
        for number, (what, key) in enumerate(keys_of(first).items()):
            await raw.delete(key)
            await (raw.rpush(key, "x") if number % 2 else raw.xadd(key, {"x": "y"}))
            statuses = [
                (await http.get(path)).status_code
                for path in (
                    "/api/nodes", "/api/clients", "/api/topics", "/api/topics/prices", f"/api/clients/{clients[0].id}",
                    "/api/services", "/api/cache/a", "/api/topics/contest-chat/presence",
                )
            ]  # fmt: skip
            assert {*statuses} <= {200, 404, 502, 503}, (what, statuses)
            await works(nodes, clients, api, number)
            newcomer = await connect(nodes[0], user="ann")
            await newcomer.subscribe("market-data", "contest-chat")
            await newcomer.close()

        async def listed() -> bool:
            received = (await http.get("/api/topics/news")).json()["subscribers"]
            return bool(len(await api(nodes[1]).clients()) == len(await nodes_of(http)) == received == 2)

        for client in clients:  # a change writes the rows
            await client.subscribe("news")
        await eventually(listed)
    for key in (KEYS.nodes, KEYS.revoked, KEYS.connection_nodes, KEYS.services):
        await eventually(partial(is_of_type, raw, key, b"zset", b"none"), what=key)
    for key in (KEYS.node(first), KEYS.clients(first), KEYS.topics(first), KEYS.node_connections(first)):
        await eventually(partial(is_of_type, raw, key, b"hash"), what=key)


async def is_of_type(raw: Raw, key: str, *types: bytes) -> bool:
    """Whether `key` holds one of these types."""
    return await raw.type(key) in types


async def forgotten(raw: Raw, node_id: str) -> bool:
    """Whether no key is about this node."""
    return await raw.keys(f"*{node_id}*") == []


async def nodes_of(http: httpx.AsyncClient) -> list[Any]:
    """The nodes that the API lists."""
    rows: list[Any] = (await http.get("/api/nodes")).json()["nodes"]
    return rows


async def test_a_huge_value_stalls_no_node(cluster: Clusters, connect: Connect, api: ApiOf, raw: Raw) -> None:
    [node] = cluster(1, redis_timeout_seconds=10)
    client = await connect(node)
    await client.subscribe("prices", "contest-chat")
    [node_id] = await ids(raw)
    await written(raw, [node_id])
    keys = keys_of(node_id)
    for what in ("topics", "presence"):
        await raw.eval("redis.call('HSET', KEYS[1], 'x', string.rep('x', ARGV[1]))", 1, keys[what], HUGE)
    await raw.eval("redis.call('HSET', KEYS[1], 'v', 1, 'm', string.rep('x', ARGV[1]))", 1, keys["snapshot"], HUGE)
    await raw.eval("redis.call('SET', KEYS[1], string.rep('x', ARGV[1]))", 1, keys["cache"], HUGE)
    before = node.memory_bytes()
    async with httpx.AsyncClient(
        base_url=node.api_url, headers={"authorization": f"Bearer {API_KEY}"}, trust_env=False, timeout=20
    ) as http:
        for path in ("/api/nodes", "/api/topics", "/api/services", "/api/cache/a", "/api/topics/contest-chat/presence"):
            with suppress(httpx.TransportError):
                assert (await http.get(path)).status_code in (200, 404, 502, 503), path
    newcomer = await connect(node)
    await newcomer.subscribe("market-data", "contest-chat")
    await eventually(node.ready)
    await api(node).publish("prices", 1)
    await client.hear(type="DATA", data=1)
    assert node.memory_bytes() - before < HUGE / 2
    for kind in ("topic", "snapshot", "cache"):
        assert node.metric("gateway_malformed_total", kind=kind) == 1, kind
