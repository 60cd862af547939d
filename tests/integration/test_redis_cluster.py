"""On a Redis Cluster: one server holds each topic, every script uses one slot, and slots may move."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from gateway.broker.client import RedisClient
from gateway.broker.history import History
from gateway.broker.keys import Keys
from gateway.broker.slot_map import slot_of
from gateway.cache import cache as caches
from gateway.metrics import Metrics
from gateway.services.manager import Run, ServiceManager
from tests.conftest import Connect
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.node import NAMESPACE
from tests.kit.process import ROOT
from tests.kit.redis import Redis
from tests.kit.redis_cluster import RedisCluster
from tests.kit.waiting import eventually, until

LEASE_SECONDS = 2.0
SPREAD = 0.2
KEYS = Keys(NAMESPACE, sharded=True)
STEPS = sorted((ROOT / "gateway" / "broker" / "lua").glob("*.lua"))

RULES = """
[[topic]]
pattern = "kept*"
history = 5000
presence = true

[[topic]]
pattern = "last*"
snapshot = true
"""


@pytest.fixture
def servers(folder: Path) -> Iterator[RedisCluster]:
    """Three masters, a replica each."""
    with RedisCluster(folder) as running:
        yield running


@pytest.fixture
def nodes(servers: RedisCluster, folder: Path) -> Iterator[Cluster]:
    """Two."""
    (folder / "topics.toml").write_text(RULES)
    with Cluster(2, folder, servers, topics=folder / "topics.toml", lease_seconds=LEASE_SECONDS) as running:
        yield running
        assert running.complaints() == []


@pytest.fixture
async def redis_client(servers: RedisCluster) -> AsyncIterator[RedisClient]:
    """A RedisClient of its own, with its background tasks running."""
    made = RedisClient(servers.url, timeout_seconds=5.0, name="test", metrics=Metrics())
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await made.close()


def channel(topic: str) -> str:
    """Where a topic's messages are said."""
    return KEYS.audience(f"topic:{topic}")


def heard_at(servers: RedisCluster, topic: str) -> dict[int, tuple[bool, bool]]:
    """For each master's port: whether the topic has a sharded subscription there, and (wrongly) a plain one."""
    name = channel(topic)
    return {
        server.port: (name in server.cli("PUBSUB", "SHARDCHANNELS"), name in server.cli("PUBSUB", "CHANNELS"))
        for server in servers.masters()
    }


def topic_of(servers: RedisCluster, master: Redis) -> str:
    """One with history that lies there."""
    return next(name for name in map("kept{}".format, range(1000)) if servers.owner(slot_of(name)) is master)


async def say(api: Api, topic: str, first: int, last: int) -> None:
    """Publish these numbers, each once; tried until it is taken."""
    for number in range(first, last + 1):
        message = {"topic": topic, "data": number, "idempotencyKey": f"{topic}:{number}"}

        async def taken(message: dict[str, object] = message) -> bool:
            return (await api.http.post("/api/publish", json=message)).status_code == 200

        await eventually(taken, 30)


async def had_all(client: Client, topic: str, last: int) -> None:
    """Wait until the client received each number from 1 to `last` once, in order."""
    await eventually(lambda: last in client.data(topic), 30)
    assert client.data(topic) == list(range(1, last + 1))


async def test_topics_use_the_master_of_their_slot_only_and_spread_over_all_masters(
    servers: RedisCluster, nodes: Cluster, connect: Connect, api: Callable[[Front], Api]
) -> None:
    names = [f"topic-{at}" for at in range(60)]
    subscriber = await connect(nodes[0])
    for at in range(0, len(names), 20):
        await subscriber.subscribe(*names[at : at + 20])
    for name in names[:6]:
        owner = servers.owner(slot_of(name)).port
        assert heard_at(servers, name) == {server.port: (server.port == owner, False) for server in servers.masters()}
    before = servers.published()
    many = [{"topic": f"topic-{at}", "data": at} for at in range(3000)]
    for at in range(0, len(many), 100):
        await api(nodes[1]).publish_all(many[at : at + 100])
    counts = [count - before[port] for port, count in servers.published().items()]
    assert sum(counts) >= len(many), "each is one SPUBLISH"
    mean = sum(counts) / len(counts)
    assert max(abs(count - mean) for count in counts) < SPREAD * mean, counts
    for name in names:
        await subscriber.hear(type="DATA", topic=name, data=int(name.removeprefix("topic-")))


async def test_every_lua_step_takes_one_slot(
    servers: RedisCluster, nodes: Cluster, connect: Connect, redis_client: RedisClient
) -> None:
    assert len(STEPS) > 20
    api = Api(nodes[0])
    # renew_lease, index_node, write_rows; count_connections; server_life, write_presence, peek_history
    first, second = await connect(nodes[0], user="ann"), await connect(nodes[1], user="bob")
    for client in (first, second):
        await client.subscribe("kept", "last")
    # append_history, publish_snapshot, take_tokens
    await first.publish("kept", 1)
    await first.publish("last", 2)
    await second.hear(type="DATA", topic="kept", data=1)
    await second.hear(type="DATA", topic="last", data=2)
    # read_history, read_snapshot; page_hash, live_nodes
    await (await connect(nodes[0])).subscribe("kept", "last")
    await eventually(lambda: present(api, {"ann", "bob"}), 20)
    # publish_once
    answer = await api.http.post("/api/publish", json={"topic": "plain", "data": 1, "idempotencyKey": "once"})
    assert answer.status_code == 200, answer.text
    # index_services, write_service; page_sorted_set, read_services
    answer = await api.http.put("/api/services/feed", json={"status": "active", "leaseSeconds": 30})
    assert answer.status_code == 200, answer.text
    assert (await api.get("/api/services/feed"))["status"] == "active"
    await api.get("/api/services")
    # revoke_tokens
    answer = await api.http.post("/api/revocations", json={"user": "mallory"})
    assert answer.status_code == 200, answer.text
    # begin_history, renew_epoch
    page = await History(redis_client, KEYS).read("kept", None)
    assert (await History(redis_client, KEYS).begin("kept", page)).epoch == page.epoch
    assert await History(redis_client, KEYS).renew_epoch("kept", page.epoch) != page.epoch
    # acquire_leadership, release_leadership
    said = asyncio.Event()
    async with ServiceManager.connect(servers.url, lease_seconds=LEASE_SECONDS) as services:

        @services.every(0.05, singleton=True)
        async def counter(run: Run) -> None:
            await run.publish("kept", "fenced")
            said.set()

        await services.start()
        await asyncio.wait_for(said.wait(), 20)
    # write_cache, read_cache, unlock_cache, delete_cache
    async with caches.connect(servers.url, timeout_seconds=5) as cache:
        await cache.set("a", 1, strict=True)
        assert await cache.get_or_set("b", load_b) == 2
        with pytest.raises(ZeroDivisionError):
            await cache.get_or_set("c", load_nothing)
        assert await cache.delete("a", strict=True)
    # reap_presence, remove_node, unindex_node: a node that has rows dies
    await eventually(lambda: counted_on_both(api, "last"), 20)
    nodes[1].kill()

    def left() -> set[str]:
        """The steps that no server has taken."""
        return {
            step.stem
            for step in STEPS
            if not any(server.cli("SCRIPT", "EXISTS", digest(redis_client, step))[0] for server in servers.masters())
        }

    await eventually(lambda: "unindex_node" not in left(), 20)
    assert left() == set()
    await api.close()


async def present(api: Api, users: set[str]) -> bool:
    """Whether these users are shown as present on `kept`."""
    return users <= {member["user"] for member in (await api.get("/api/topics/kept/presence"))["members"]}


async def counted_on_both(api: Api, topic: str) -> bool:
    """Whether both nodes have written that the topic has subscribers."""
    return len((await api.get(f"/api/topics/{topic}"))["nodes"]) == 2


async def load_b() -> int:
    """A value for the cache."""
    return 2


async def load_nothing() -> int:
    """No value."""
    raise ZeroDivisionError


def digest(redis_client: RedisClient, step: Path) -> str:
    """By which Redis knows it."""
    return redis_client.script(step.stem).digest


async def test_a_slot_that_moves_takes_its_topics_along(
    servers: RedisCluster, nodes: Cluster, connect: Connect
) -> None:
    topic, plain = "kept1", "plain"
    subscriber, api = await connect(nodes[0]), Api(nodes[1])
    await subscriber.subscribe(topic, plain)
    await say(api, topic, 1, 20)
    before = servers.owner(slot_of(topic))
    numbers = asyncio.create_task(say(api, topic, 21, 200))
    await asyncio.to_thread(servers.move, [slot_of(topic), slot_of(plain)])
    assert servers.owner(slot_of(topic)) is not before
    await numbers
    await had_all(subscriber, topic, 200)
    # The topic without history gets a gap, and its next message is received from the new master.
    await subscriber.hear(type="SYSTEM", action="gap", data={"topics": [plain]})
    await api.publish(plain, "after")
    await subscriber.hear(type="DATA", topic=plain, data="after")
    owner = servers.owner(slot_of(topic)).port
    assert heard_at(servers, topic) == {server.port: (server.port == owner, False) for server in servers.masters()}
    await api.close()


async def test_amid_a_move_commands_follow_the_keys_and_publishes_wait_for_the_end(
    servers: RedisCluster, redis_client: RedisClient
) -> None:
    key, slot = KEYS.history_meta("kept"), slot_of("kept")
    await redis_client.execute("HSET", key, "top", 7)
    between, enough = threading.Event(), threading.Event()

    def amid(_slot: int) -> None:
        between.set()
        assert enough.wait(20)

    moving = asyncio.create_task(asyncio.to_thread(servers.move, [slot], 1, amid))
    assert await asyncio.to_thread(between.wait, 20)
    said = asyncio.create_task(redis_client.transact([("HINCRBY", key, "top", 1)]))
    assert await redis_client.execute("HGET", key, "top") == b"7", "the old master says ASK, the new one has it"
    await asyncio.wait([said], timeout=0.3)
    assert not said.done(), "the command waits until the new master owns the slot"
    enough.set()
    await moving
    assert await said == [8]
    assert await redis_client.execute("HGET", key, "top") == b"8"


async def test_while_a_master_is_dead_the_others_topics_go_on_and_its_own_come_back(
    servers: RedisCluster, nodes: Cluster, connect: Connect
) -> None:
    dying, living, *_ = servers.masters()
    lost, kept = topic_of(servers, dying), topic_of(servers, living)
    subscriber, api = await connect(nodes[0]), Api(nodes[1])
    await subscriber.subscribe(lost, kept)
    await say(api, lost, 1, 10)
    await say(api, kept, 1, 10)
    await eventually(lambda: subscriber.data(lost) == subscriber.data(kept) == list(range(1, 11)))
    await asyncio.to_thread(lambda: until(lambda: dying.cli("WAIT", 1, 100) == 1))  # nothing is lost with it
    dying.kill()
    taking_over = asyncio.create_task(asyncio.to_thread(servers.fail_over, dying))
    number = 10
    while not taking_over.done():
        number += 1
        assert (await api.http.post("/api/publish", json={"topic": kept, "data": number})).status_code == 200
        await asyncio.sleep(0.05)
    await taking_over
    assert number > 12, "it took a while"
    await say(api, lost, 11, 20)
    await had_all(subscriber, lost, 20)
    await had_all(subscriber, kept, number)
    await asyncio.to_thread(until, lambda: all(node.ready() for node in nodes), 20, "the nodes are ready")
    await asyncio.to_thread(dying.start)
    await asyncio.to_thread(servers.until_whole)
    await api.close()


async def test_nodes_stay_ready_while_a_part_of_the_slots_has_no_server(
    servers: RedisCluster, nodes: Cluster, connect: Connect
) -> None:
    dying, living, *_ = servers.masters()
    replica = next(
        server for server in servers.servers if (role := server.cli("ROLE"))[0] == "slave" and role[2] == dying.port
    )
    lost, kept = topic_of(servers, dying), topic_of(servers, living)
    subscriber, api = await connect(nodes[0]), Api(nodes[1])
    await subscriber.subscribe(lost, kept)
    await say(api, lost, 1, 5)
    await say(api, kept, 1, 5)
    await asyncio.to_thread(lambda: until(lambda: dying.cli("WAIT", 1, 100) == 1))
    replica.kill()
    dying.kill()
    unready: list[list[str]] = []
    said = ""

    async def sent() -> bool:
        nonlocal said
        unready.extend(reasons for node in nodes if (reasons := node.reasons()))
        answer = await api.http.post("/api/publish", json={"topic": lost, "data": 6})
        assert answer.status_code == 503
        said = answer.json()["error"]["message"]
        about = (await api.http.get("/readyz")).json()
        return "has failed" in said and any(str(dying.port) in reason for reason in about["impaired"])

    await eventually(sent, 20, "the cluster has found out, and the nodes name the part")
    assert str(dying.port) in said and "slot" in said
    numbers = iter(range(6, 1000))
    for _ in range(15):  # three leases
        message = {"topic": kept, "data": next(numbers)}
        assert (await api.http.post("/api/publish", json=message)).status_code == 200
        unready.extend(reasons for node in nodes if (reasons := node.reasons()))
        await asyncio.sleep(0.4)
    await had_all(subscriber, kept, 20)
    assert unready == [], "no node would do better"
    assert subscriber.received(type="SYSTEM", action="degraded")
    newcomer = await connect(nodes[1])
    assert (await newcomer.subscribe(kept))["status"] == "success"
    await asyncio.to_thread(dying.start)
    await asyncio.to_thread(replica.start)
    await asyncio.to_thread(servers.until_whole)
    await subscriber.hear(type="SYSTEM", action="restored")

    async def whole() -> bool:
        return "impaired" not in (await api.http.get("/readyz")).json()

    await eventually(whole, 20)
    await api.close()
