"""What is kept in Redis: its bounds in bytes, and that every key ends."""

from __future__ import annotations

from collections.abc import Callable

from tests.client import Api, Client, Front
from tests.cluster import Cluster, Redis
from tests.conftest import Connect
from tests.deadlines import eventually

MIB = 1 << 20

Start = Callable[..., Cluster]


async def store(client: Client, topics: list[str], data: str) -> list[str]:
    """Publish `data` on these topics until one is refused; those that were not."""
    for at, topic in enumerate(topics):
        answer = await client.publish(topic, data)
        if answer["type"] == "ERROR":
            assert (answer["code"], answer["temporary"]) == (4029, True)
            assert topic in answer["message"] and "bytes a day" in answer["message"]
            return topics[:at]
    return topics


async def test_one_user_stores_32_mib_at_once_on_all_nodes_together(
    cluster: Start, connect: Connect, redis: Redis, api: Callable[[Front], Api]
) -> None:
    nodes = cluster(2)
    before = int(redis.cli("INFO", "memory")["used_memory"])
    made_up = [f"contest-chat-{at}" for at in range(60)]
    stored: list[str] = []
    for node in nodes:
        client = await connect(node, user="ann")
        stored += await store(client, made_up[len(stored) :], "x" * (MIB - 2000))
    assert len(stored) == 32
    assert int(redis.cli("INFO", "memory")["used_memory"]) - before < 48 * MIB
    assert nodes[0].metric("gateway_limited_total", limit="stored_bytes") == 1
    # Another user has an allowance of its own, a plain topic needs none, and API keys are not limited.
    other = await connect(nodes[0], user="bob")
    assert (await other.publish("contest-chat-0", "x"))["type"] == "ACKNOWLEDGMENT"
    assert (await client.publish("plain", "x"))["type"] == "ACKNOWLEDGMENT"
    await api(nodes[0]).publish("contest-chat-0", "x" * 1000)


async def test_topics_that_a_client_makes_up_have_a_bound(cluster: Start, connect: Connect, redis: Redis) -> None:
    [node] = cluster(1, user_stored_bytes=64 << 10, open=1)
    client = await connect(node)  # anonymous: its address has the allowance
    stored = await store(client, [f"contest-chat-{at}" for at in range(100)], "x")
    assert 30 < len(stored) < 64
    again = await connect(node)
    assert await store(again, ["contest-chat-again"], "x") == []
    [key] = redis.cli("KEYS", "gw:ws:allowance:*")
    assert 0 < redis.cli("TTL", key) <= 86_400


async def test_while_redis_is_nearly_full_clients_store_nothing(
    cluster: Start, connect: Connect, api: Callable[[Front], Api]
) -> None:
    [node] = cluster(1, redis_memory_bytes=1000)
    await eventually(lambda: node.metric("gateway_redis_used_bytes") > 0)
    client = await connect(node, user="ann")
    await client.subscribe("contest-chat", "plain")
    answer = await client.publish("contest-chat", "x")
    assert (answer["code"], answer["temporary"]) == (5030, True) and "nearly full" in answer["message"]
    assert (await client.publish("plain", "x"))["type"] == "ACKNOWLEDGMENT"
    await api(node).publish("contest-chat", "by a key")
    await eventually(lambda: client.data("contest-chat") == ["by a key"])
    assert node.reasons() == [], "it is no reason to send clients elsewhere"
    assert node.metric("gateway_limited_total", limit="redis_memory") == 1
    assert len(node.events("Redis is nearly full, clients store nothing")) == 1
