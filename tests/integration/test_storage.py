"""Stored data in Redis: its bounds in bytes, and an expiry of every key."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

import redis as redis_py

from gateway.broker.keys import node_of
from gateway.publisher import Publisher
from tests.conftest import Connect
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

MIB = 1 << 20

Start = Callable[..., Cluster]


async def store(client: Client, topics: list[str], data: str) -> list[str]:
    """Publish `data` on these topics until one is refused; those that were not."""
    for at, topic in enumerate(topics):
        answer = await client.publish(topic, data)
        if answer["type"] == "ERROR":
            assert (answer["code"], answer["temporary"]) == (4029, True)
            assert topic in answer["message"] and "daily limit of bytes" in answer["message"]
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
        stored += await store(client, made_up[len(stored) :], "x" * (MIB - 10_000))
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
    assert 8 < len(stored) < 14
    again = await connect(node)
    assert await store(again, ["contest-chat-0"], "x") == []
    [key] = redis.cli("KEYS", "gw:ws:allowance:*")
    assert 86_400 * 0.9 < redis.cli("TTL", key) < 86_400 * 1.1


async def test_steady_publishes_on_a_topic_that_keeps_messages_seldom_ask_for_the_allowance(
    cluster: Start, connect: Connect, redis: Redis
) -> None:
    def asked() -> list[int]:
        """How often the allowance was written, and how often it was asked whether a key exists."""
        stats = redis.cli("INFO", "commandstats")
        return [stats.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in ("set", "exists")]

    [node] = cluster(1)
    client = await connect(node, user="ann")
    before = asked()
    assert len(await store(client, ["contest-chat"] * 100, "x")) == 100
    charged, looked_for = (now - then for now, then in zip(asked(), before, strict=True))
    assert 1 <= charged <= 40
    assert 1 <= looked_for <= 3


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
    assert len(await node.logged("Redis nearly full, storing client messages rejected")) == 1


# ---- of a topic

RULES = """
[[topic]]
pattern = "kept*"
history = 200
history_bytes = 60000
"""


def entries(redis: Redis, topic: str) -> list[tuple[int, int]]:
    """Offset of each message in a stream, and what is counted for it."""
    with redis_py.Redis(port=redis.port) as connection:
        found = connection.xrange(f"gw:ws:history:{{{topic}}}")
    return [(int(identity.split(b"-")[0]), len(fields[b"m"]) + 64) for identity, fields in found]


async def test_a_topic_keeps_so_many_bytes_and_no_message_more(
    cluster: Start, redis: Redis, api: Callable[[Front], Api], folder: Path
) -> None:
    (folder / "topics.toml").write_text(RULES)
    [node] = cluster(1, topics=folder / "topics.toml")
    chance = random.Random(7)
    sizes: dict[int, int] = {}
    for round_ in range(40):
        some = [{"topic": "kept", "data": "x" * chance.choice((10, 100, 1000, 20_000))} for _ in range(8)]
        await api(node).publish_all(some)
        if round_ == 20:
            await api(node).delete("/api/topics/kept/history")
            sizes.clear()
            continue
        kept = entries(redis, "kept")
        sizes |= kept
        oldest, newest = kept[0][0], kept[-1][0]
        assert newest == 8 * (round_ + 1)
        assert [offset for offset, _ in kept] == list(range(oldest, newest + 1))
        assert sum(size for _, size in kept) <= 60_000
        if oldest - 1 in sizes:
            assert sum(size for _, size in kept) + sizes[oldest - 1] > 60_000, "one more would have fitted"
    # A large message makes thousands of small ones go, and no other.
    await api(node).publish_all([{"topic": "kept-small", "data": "x"}] * 200)
    assert len(entries(redis, "kept-small")) == 200
    await api(node).publish("kept-small", "x" * 50_000)
    kept = entries(redis, "kept-small")
    assert 1 < len(kept) < 110 and sum(size for _, size in kept) <= 60_000
    answer = await api(node).http.post("/api/publish", json={"topic": "kept", "data": "x" * 60_000})
    assert answer.status_code == 413 and "history_bytes" in answer.json()["error"]["message"]


async def test_a_client_that_missed_trimmed_messages_gets_a_gap(
    cluster: Start, connect: Connect, api: Callable[[Front], Api], folder: Path
) -> None:
    (folder / "topics.toml").write_text(RULES)
    nodes = cluster(2, topics=folder / "topics.toml")
    client = await connect(nodes[0])
    first = (await client.subscribe("kept"))["positions"]["kept"]
    await api(nodes[0]).publish("kept", "x" * 30_000)
    await eventually(lambda: len(client.data("kept")) == 1)
    second = (await client.subscribe("kept"))["positions"]["kept"]
    for size in (25_000, 25_000):
        await api(nodes[0]).publish("kept", "y" * size)
    for node in nodes:
        late = await connect(node)
        lost = await late.subscribe("kept", recover={"kept": first})
        assert lost["positions"]["kept"]["recovered"] is False
        whole = await connect(node)
        got = await whole.subscribe("kept", recover={"kept": second})
        assert got["positions"]["kept"]["recovered"] is True
        assert [len(data) for data in whole.data("kept")] == [25_000, 25_000]


# ---- keys


def lasting(redis: Redis) -> set[str]:
    """The keys that have no TTL."""
    return {key for key in redis.cli("KEYS", "*") if redis.cli("PTTL", key) == -1}


async def test_every_key_ends_or_belongs_to_a_node(
    cluster: Start, connect: Connect, redis: Redis, api: Callable[[Front], Api], folder: Path
) -> None:
    rules = 'snapshot = true\npresence = true\nhistory = 5\n[[topic]]\npattern = "last*"\nsnapshot = true\n'
    (folder / "topics.toml").write_text(f'[[topic]]\npattern = "kept*"\n{rules}')
    nodes = cluster(2, topics=folder / "topics.toml", lease_seconds=2)
    one, two = await connect(nodes[0], user="ann"), await connect(nodes[1], user="bob")
    http = api(nodes[0]).http
    for client in (one, two):
        await client.subscribe("kept", "last", "plain", "kept-empty", "last-empty")
        for topic in ("kept", "last", "plain", "kept-made-up", "last-made-up"):
            assert (await client.publish(topic, 1))["type"] == "ACKNOWLEDGMENT"
        for action in ("history", "presence"):
            await client.call(type="REQUEST", topic="kept", action=action)
            await client.call(type="REQUEST", topic="kept-never-published", action=action)
    await api(nodes[0]).publish("kept", 1, idempotencyKey="once")
    await api(nodes[0]).publish("plain", 1, to={"user": "ann"})
    assert (await http.put("/api/cache/a", json={"value": 1})).status_code == 200
    assert (await http.put("/api/services/a", json={"status": "active", "leaseSeconds": 5})).status_code == 200
    assert (await http.post("/api/revocations", json={"user": "unknown"})).status_code == 200
    redis.cli("PUBLISH", "gw:ws:broadcast", '{"topic":"kept","data":1,"timestamp":1,"sourceId":1}')
    redis.cli("PUBLISH", "gw:ws:broadcast", '{"topic":"last","data":1,"sourceId":1}')
    async with Publisher(redis.url) as publisher:
        await publisher.publish("kept", 1)
    await eventually(lambda: one.data("kept").count(1) >= 5)

    rows = redis.cli("KEYS", "gw:ws:node:*")
    owned = {f"gw:ws:node:{{{node_of(client.id)}}}" for client in (one, two)}
    await eventually(lambda: any(":topic:" in key for key in redis.cli("KEYS", "gw:ws:node:*")))
    for key in lasting(redis) - {"gw:ws:nodes"}:
        assert any(key.startswith(f"{node}:") for node in owned), key
    assert not [key for key in redis.cli("KEYS", "*") if "never-published" in key or key.endswith("empty}")], rows

    nodes[0].kill()
    nodes[1].kill()
    cluster_again = Cluster(1, folder, redis, lease_seconds=2)  # it removes the rows of the two
    with cluster_again:
        await eventually(lambda: not any(key.startswith(node) for key in lasting(redis) for node in owned))
        await eventually(lambda: redis.cli("ZCARD", "gw:ws:nodes") == 1)
        cluster_again[0].terminate()
        assert cluster_again[0].process.exit_code() == 0
    assert lasting(redis) == set()


async def test_an_idle_node_asks_redis_at_most_fifteen_times_a_second(cluster: Start, redis: Redis) -> None:
    def commands() -> int:
        """All that Redis has done, within scripts too, but for what this test asks."""
        stats = redis.cli("INFO", "commandstats")
        return sum(about["calls"] for name, about in stats.items() if name not in ("cmdstat_info", "cmdstat_hello"))

    [node] = cluster(1)
    await asyncio.sleep(2)  # what a start asks is over
    before, started = commands(), time.monotonic()
    await asyncio.sleep(20)  # two leases: all periodic work is done several times
    after, seconds = commands(), time.monotonic() - started
    assert (after - before) / seconds <= 15
    assert node.ready() and after > before
