"""The users of deploy/redis/users.acl: their rights are enough for everything that nodes and publishers do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.dev import redis_program
from gateway.publisher import Publisher, Unavailable
from tests.conftest import Connect
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.process import ROOT
from tests.kit.redis import Redis
from tests.kit.redis_cluster import RedisCluster
from tests.kit.sentinel import Sentinels
from tests.kit.waiting import eventually

FILE = ROOT / "deploy" / "redis" / "users.acl"
SINCE_7_2 = {"+client|setinfo", "+waitaof"}  # docs/how-to/run-the-cluster.md: leave them out for an older Redis
RULES = """
[[topic]]
pattern = "kept*"
history = 50
presence = true

[[topic]]
pattern = "last*"
snapshot = true
"""


@dataclass
class Store:
    """Redis whose nodes and publishers have the rights of the file."""

    servers: Sequence[Redis]
    address: str
    url: str = ""

    def __post_init__(self) -> None:
        self.url = self.url_of("gateway")

    def url_of(self, user: str) -> str:
        """The URL for one of the users."""
        return self.address.replace("://", f"://{user}:secret@")

    def denied(self) -> list[str]:
        """What Redis has denied its users, as it logs it."""
        return [f"{row['username']}: {row['object']}" for server in self.servers for row in server.cli("ACL", "LOG")]


def restricted(servers: Sequence[Redis], address: str) -> Store:
    old = "7.0" in str(servers[0].cli("INFO", "server")["redis_version"])
    for line in FILE.read_text().splitlines():
        _, name, *words = line.split()
        words = [">secret" if word.startswith(">") else word for word in words if not (old and word in SINCE_7_2)]
        for server in servers:
            server.cli("ACL", "SETUSER", name, *words)
    return Store(servers, address)


@pytest.fixture(params=["redis", "valkey", "sentinel", "cluster"])
def store(request: pytest.FixtureRequest, folder: Path) -> Iterator[Store]:
    """Redis, Valkey, a master that Sentinels watch, or a Redis Cluster."""
    if request.param == "sentinel":
        with Sentinels(folder) as sentinels:
            yield restricted(sentinels.servers, sentinels.url)
        return
    if request.param == "cluster":
        with RedisCluster(folder) as cluster:
            yield restricted(cluster.servers, cluster.url)
        return
    server = "redis-server" if request.param == "redis" else str(redis_program())
    with Redis(folder, server=server) as redis:
        yield restricted([redis], redis.url)


async def test_nodes_and_publishers_do_everything_with_the_rights_of_the_file(
    store: Store, folder: Path, connect: Connect, api: Callable[[Front], Api]
) -> None:
    (folder / "topics.toml").write_text(RULES)
    with Cluster(2, folder, store, topics=folder / "topics.toml", lease_seconds=3) as nodes:
        ann, bob = await connect(nodes[0], user="ann"), await connect(nodes[1], user="bob", role="admin")
        for client in (ann, bob):
            assert (await client.subscribe("kept", "last", "plain"))["type"] == "ACKNOWLEDGMENT"
        await _publish(nodes, ann, bob, api)
        await _administrate(nodes, ann, api)
        async with Publisher(store.url_of("publisher")) as publisher:
            assert await publisher.publish("kept", "by the publisher", idempotencyKey="k9") is not None
            await publisher.publish("last", "by the publisher")
        await bob.hear(type="DATA", topic="kept", data="by the publisher")
        nodes[0].kill()
        http = api(nodes[1])

        async def is_alone() -> bool:
            return len((await http.get("/api/nodes"))["nodes"]) == 1

        await eventually(is_alone, 30, "the dead node is gone")
        await bob.hear(type="PRESENCE", topic="kept", count=1, within=30)
        assert nodes[1].reasons() == []
        assert nodes[1].complaints() == []
    assert store.denied() == []


async def _publish(nodes: Cluster, ann: Client, bob: Client, api: Callable[[Front], Api]) -> None:
    for topic in ("kept", "last", "plain"):
        assert (await ann.publish(topic, f"by ann on {topic}"))["type"] == "ACKNOWLEDGMENT"
        await bob.hear(type="DATA", topic=topic, data=f"by ann on {topic}")
    http = api(nodes[1])
    for _ in range(2):
        await http.publish("kept", "once", idempotencyKey="k1")
    await http.publish("plain", "to ann", to={"user": "ann"})
    await http.publish("plain", "to admins", to={"role": "admin"})
    await http.publish("plain", "to one client", to={"client": ann.id})
    await ann.hear(type="DATA", topic="plain", data="to one client")
    await bob.hear(type="DATA", topic="plain", data="to admins")
    assert ann.data("kept").count("once") == 1
    assert len((await http.get("/api/topics/kept/history"))["messages"]) == 2

    async def are_present() -> bool:
        return bool((await http.get("/api/topics/kept/presence"))["count"] == 2)

    await eventually(are_present, what="presence shows both clients")  # its rows are written behind
    await http.delete("/api/topics/kept/history")


async def _administrate(nodes: Cluster, ann: Client, api: Callable[[Front], Api]) -> None:
    http = api(nodes[1])

    async def are_listed() -> bool:
        topics = {topic["topic"] for topic in (await http.get("/api/topics"))["topics"]}
        return len(await http.clients()) == 2 and topics >= {"kept", "last", "plain"}

    await eventually(are_listed, what="the lists show the clients and their topics")  # their rows are written behind
    for key in ("a:1", "a:2"):
        assert (await http.http.put(f"/api/cache/{key}", json={"value": 1, "ttlSeconds": 60})).status_code == 200
        assert (await api(nodes[0]).get(f"/api/cache/{key}"))["value"] == 1
    assert (await http.delete("/api/cache?prefix=a:"))["cleared"] == 2
    reported = await http.http.put("/api/services/mail", json={"status": "active", "leaseSeconds": 60})
    assert reported.status_code == 200, reported.text
    assert any(service["service"] == "mail" for service in (await http.get("/api/services"))["services"])
    await http.post("/api/revocations", {"user": "eve"})
    assert len((await http.get("/api/revocations"))["revocations"]) == 1
    assert (await ann.call(type="REQUEST", topic="system", action="getStatus"))["type"] != "ERROR"


async def test_a_publisher_may_not_do_what_nodes_do(store: Store) -> None:
    with pytest.raises(Unavailable, match="lacks a permission"):
        async with Publisher(store.url_of("publisher"), namespace="other:") as publisher:
            await publisher.publish("kept", 1)
    assert all(denied.startswith("publisher: other:") for denied in store.denied())


def test_each_right_is_one_that_the_code_uses() -> None:
    code = "".join(path.read_text() for path in (ROOT / "gateway").rglob("*") if path.suffix in (".py", ".lua"))
    used = {word.lower() for word in re.findall(r"[\"'(]([A-Z]{3,})\b", code)}
    of_the_driver = {"client", "cluster", "ping", "ssubscribe", "sunsubscribe"}  # or joined from parts
    for line in FILE.read_text().splitlines():
        rights = {word[1:].partition("|")[0] for word in line.split() if word.startswith("+")}
        assert rights - of_the_driver <= used, rights - used


def test_the_file_is_one_that_redis_loads(folder: Path) -> None:
    place = folder / "own"
    place.mkdir()
    with Redis(place, more={"aclfile": str(FILE)}, server=str(redis_program())) as redis:
        assert set(redis.cli("ACL", "USERS")) == {"default", "gateway", "publisher"}
