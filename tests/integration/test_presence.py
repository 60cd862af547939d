"""Presence over the cluster: no clients of dead nodes, and no leave and join on a page reload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gateway import tokens
from gateway.broker.client import RedisClient
from gateway.broker.keys import Keys
from gateway.cluster.presence_store import MEMBERS_MS, PresenceStore
from gateway.core.presence_set import Member
from gateway.metrics import Metrics
from tests.conftest import Connect
from tests.kit.client import Api, Client
from tests.kit.cluster import Cluster
from tests.kit.node import JWT_SECRET, Node, token
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

Start = Callable[..., Cluster]
Of = Callable[..., Api]


def rules(folder: Path) -> Path:
    file = folder / "topics.toml"
    file.write_text('[[topic]]\npattern = "room"\npresence = true\n')
    return file


def people(message: dict[str, Any], which: str) -> set[str]:
    return {person["user"] for person in message[which]}


async def presence_of(client: Client, which: str, user: str, within: float = 10) -> dict[str, Any]:
    """The PRESENCE message in which `client` hears that `user` has joined or left."""

    def found() -> dict[str, Any] | None:
        return next((m for m in client.received(type="PRESENCE") if user in people(m, which)), None)

    await eventually(lambda: found() is not None, within, f"{user} {which}")
    return found() or {}


async def here(api: Api) -> set[str]:
    found = await api.get("/api/topics/room/presence")
    assert found["count"] == len(found["members"])
    return people(found, "members")


async def test_joins_and_leaves_reach_all_nodes(cluster: Start, folder: Path, connect: Connect, api: Of) -> None:
    nodes = cluster(2, topics=rules(folder), presence_grace_seconds=0.5)
    ann = await connect(nodes[0], user="ann")
    await ann.subscribe("room")
    bob = await connect(nodes[1], user="bob")
    await bob.subscribe("room")
    await presence_of(ann, "joined", "bob")
    answer = await bob.ask(type="REQUEST", topic="room", action="presence", requestId="q")
    await eventually(lambda: _here_is(api(nodes[1]), {"ann", "bob"}))
    assert people(answer["data"], "members") <= {"ann", "bob"}
    await bob.close()
    left = await presence_of(ann, "left", "bob")
    assert left["left"] == [{"clientId": bob.id, "user": "bob"}]
    assert left["count"] == 1
    await eventually(lambda: _here_is(api(nodes[1]), {"ann"}))


async def _here_is(api: Api, expected: set[str]) -> bool:
    return await here(api) == expected


async def test_a_page_reload_on_another_node_causes_no_join_and_no_leave(
    cluster: Start, folder: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder), presence_grace_seconds=3)
    watcher = await connect(nodes[0], user="watcher")
    await watcher.subscribe("room")
    ann = await connect(nodes[0], user="ann")
    await ann.subscribe("room")
    await presence_of(watcher, "joined", "ann")
    for node in (nodes[1], nodes[0], nodes[1]):
        await ann.close()
        ann = await connect(node, user="ann")
        await ann.subscribe("room")
    bob = await connect(nodes[1], user="bob")
    await bob.subscribe("room")
    await presence_of(watcher, "joined", "bob")
    await bob.close()
    await presence_of(watcher, "left", "bob")
    names = [name for m in watcher.received(type="PRESENCE") for name in people(m, "joined") | people(m, "left")]
    assert names.count("ann") == 1, "she came once, and has not left"


async def test_a_dead_nodes_people_leave_when_its_lease_ends(
    cluster: Start, folder: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(3, topics=rules(folder), lease_seconds=2, presence_grace_seconds=30)
    watcher = await connect(nodes[0], user="watcher")
    await watcher.subscribe("room")
    moved, gone = await connect(nodes[1], user="moved"), await connect(nodes[1], user="gone")
    for client, user in ((moved, "moved"), (gone, "gone")):
        await client.subscribe("room")
        await presence_of(watcher, "joined", user)
    nodes[1].kill()
    again = await connect(nodes[2], user="moved")
    await again.subscribe("room")
    left = await presence_of(watcher, "left", "gone", within=3)  # the lease, and one second
    assert left["count"] == 2
    for node in (nodes[0], nodes[2]):  # each hears of it by itself
        await eventually(partial(_here_is, api(node), {"watcher", "moved"}))
    assert all("moved" not in people(m, "left") for m in watcher.received(type="PRESENCE"))


async def test_presence_is_healed_after_a_flush_and_a_deaf_moment(
    cluster: Start, folder: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder), lease_seconds=2, presence_grace_seconds=0)
    clients = {name: await connect(nodes[n % 2], user=name) for n, name in enumerate(("ann", "bob", "cid"))}
    for client in clients.values():
        await client.subscribe("room")
    await eventually(lambda: _in_redis(redis, nodes, 3))
    redis.flush()
    await eventually(lambda: _in_redis(redis, nodes, 3))
    redis.kill_pubsub()
    await clients["cid"].close()
    await presence_of(clients["ann"], "left", "cid")
    await eventually(lambda: _here_is(api(nodes[1]), {"ann", "bob"}))


async def _in_redis(redis: Redis, nodes: Cluster, expected: int) -> bool:
    keys = redis.cli("KEYS", "gw:ws:node:*:topic:room")
    return sum(int(redis.cli("HLEN", key)) for key in keys) == expected


async def test_a_topic_without_presence_publishes_none(cluster: Start, folder: Path, connect: Connect, api: Of) -> None:
    node: Node = cluster(1, topics=rules(folder))[0]
    client = await connect(node)
    await client.subscribe("plain")
    assert (await client.ask(type="REQUEST", topic="plain", action="presence", requestId="q"))["code"] == 4007
    refused = await api(node).http.get("/api/topics/plain/presence")
    assert refused.status_code == 404


async def test_a_client_that_logs_in_or_changes_its_user_is_shown_as_that_user_everywhere(
    cluster: Start, folder: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder), presence_grace_seconds=30)
    watcher = await connect(nodes[1], user="watcher")
    await watcher.subscribe("room")
    client = await connect(nodes[0])
    await client.subscribe("room")
    await eventually(
        lambda: any(client.id == p["clientId"] for m in watcher.received(type="PRESENCE") for p in m["joined"])
    )
    for user in ("ann", "bob"):
        await client.send(type="AUTH", authToken=token(user))
        await presence_of(watcher, "joined", user)
        for node in nodes:
            await eventually(partial(_here_is, api(node), {"watcher", user}))
    assert (await presence_of(watcher, "left", "ann", within=5))["count"] == 2
    await client.send(type="SUBSCRIBE", topics=["room"], authToken=token("cid"), requestId="s")
    await presence_of(watcher, "joined", "cid")
    await presence_of(watcher, "left", "bob", within=5)


async def test_presence_rows_are_written_with_the_reapers_index_without_subscribers(redis: Redis) -> None:
    keys, node_id, metrics = Keys("gw:", False), "n1.00000001", Metrics()
    redis_client = RedisClient(redis.url, timeout_seconds=5, name="test", metrics=metrics)
    running = asyncio.create_task(redis_client.run())
    try:
        presence_store = PresenceStore(redis_client, keys, node_id)
        people = keys.presence(node_id, "room")
        ann = Member(f"{node_id}.1", "ann")
        assert not await presence_store.write("room", [ann], [], 0, drop_first=False), "there is no lease"
        assert redis.cli("KEYS", "*") == []
        redis.cli("HSET", keys.node(node_id), "name", "n1")
        assert await presence_store.write("room", [ann], [], 0, drop_first=False), (
            "no subscriber receives it, which is no error"
        )
        assert redis.cli("HGET", keys.topics(node_id), "room") == "1"
        assert 0 < int(redis.cli("PTTL", people)) <= MEMBERS_MS
        redis.cli("PEXPIRE", people, 5000)
        assert await presence_store.count(["room", "other"], [node_id, "n2.00000002"]) == [1, 0]
        assert int(redis.cli("PTTL", people)) > 5000, "a check renews it"
        redis.cli("HSET", people, "n2.00000002.1", '{"user":"stranger"}')
        redis.cli("ZADD", keys.nodes, 9999999999999, node_id)
        assert await presence_store.read("room") == [ann], "a node's rows are about its own clients"
        assert await presence_store.write("room", [], [ann.client_id, "n2.00000002.1"], 0, drop_first=False)
        assert not int(redis.cli("EXISTS", people))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await redis_client.close()


async def test_a_row_that_went_missing_is_written_again(
    cluster: Start, folder: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder), lease_seconds=1)
    clients = [await connect(node, user=user) for node, user in zip(nodes, ("ann", "bob"), strict=True)]
    for client in clients:
        await client.subscribe("room")
    await eventually(lambda: _in_redis(redis, nodes, 2))
    redis.cli("DEL", f"gw:ws:node:{{{clients[0].id.rpartition('.')[0]}}}:topic:room")
    await eventually(lambda: _in_redis(redis, nodes, 2), 20)
    for node in nodes:
        await eventually(partial(_here_is, api(node), {"ann", "bob"}))
    assert not [m for client in clients for m in client.received(type="PRESENCE") if m["left"]]


async def test_presence_shows_the_info_of_tokens_and_each_client(
    cluster: Start, connect: Connect, folder: Path, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder))
    ann, again, bob = await connect(nodes[0]), await connect(nodes[1]), await connect(nodes[1], user="bob")
    for client, name in ((ann, "Ann"), (again, "Anna")):
        jwt = tokens.issue(JWT_SECRET, "ann", info={"name": name})
        assert (await client.ask(type="AUTH", authToken=jwt))["status"] == "success"
    await bob.subscribe("room")
    await ann.subscribe("room")
    joined = (await presence_of(bob, "joined", "ann"))["joined"]
    # bob's own join may be in the same message.
    assert [each for each in joined if each["user"] == "ann"] == [
        {"clientId": ann.id, "user": "ann", "info": {"name": "Ann"}}
    ]
    await again.subscribe("room")

    async def all_listed() -> bool:
        found = await api(nodes[0]).get("/api/topics/room/presence", clients=1)
        return {one["clientId"]: one.get("info") for one in found["clients"]} == {
            ann.id: {"name": "Ann"}, again.id: {"name": "Anna"}, bob.id: None
        }  # fmt: skip

    await eventually(all_listed)
    answer = await bob.call(type="REQUEST", topic="room", action="presence", clients=True)
    assert answer["data"]["count"] == 2 and len(answer["data"]["clients"]) == 3
    jwt = tokens.issue(JWT_SECRET, "ann", info={"name": "Queen Ann"})  # the same user with another info
    await ann.ask(type="AUTH", authToken=jwt)

    async def renamed() -> bool:
        found = await api(nodes[1]).get("/api/topics/room/presence", clients=1)
        return {"name": "Queen Ann"} in [one.get("info") for one in found["clients"]]

    await eventually(renamed)
    long = tokens.issue(JWT_SECRET, "ann", info="x" * 2047)
    refused = await again.ask(type="AUTH", authToken=long)
    assert refused["code"] == 4401 and "2049 bytes" in refused["message"]
