"""gateway.cluster.registry: rows, leases and queries of two nodes on a Redis in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
import pytest

from gateway.broker.client import Unavailable
from gateway.broker.keys import Keys
from gateway.cluster.registry import SCRIPT_ROWS, WRITE_BYTES, WRITE_ROWS, LocalState, Registry
from tests.unit.memory_redis import MemoryRedis

KEYS = Keys("", False)
LEASE_MS = 2500
T = TypeVar("T")


def do(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


class Node:
    """A registry and the memory it writes."""

    def __init__(self, redis: MemoryRedis, node_id: str) -> None:
        self.id = node_id
        self.redis = redis
        self.clients: dict[str, dict[str, Any]] = {}
        self.topics: dict[str, int] = {}
        self.dropped: list[str] = []
        local_state = LocalState(
            node_row=self._about, client_row=self._client,
            client_ids=lambda: list(self.clients), subscriber_count=lambda topic: self.topics.get(topic, 0),
            topics=lambda: list(self.topics), rows_dropped=self.dropped.extend,
        )  # fmt: skip
        self.registry = Registry(
            redis.client, KEYS, node_id, lease_seconds=LEASE_MS / 1000, local_state=local_state, metrics=redis.metrics
        )

    def _about(self) -> dict[str, str | int]:
        texts = dict.fromkeys(("address", "path", "version", "started"), "2026-01-31T12:00:00Z")
        return {"name": self.id.partition(".")[0], "clients": len(self.clients), **texts}

    def _client(self, client_id: str) -> bytes | None:
        row = self.clients.get(client_id)
        return None if row is None else orjson.dumps(row)

    def connect(self, number: int, *topics: str, **about: Any) -> str:
        client_id = f"{self.id}.{number}"
        self.clients[client_id] = {
            "connectedAt": "2026-01-31T12:00:00Z", "ip": "10.0.0.1", "userAgent": None, "user": "ann", "role": None,
            "topics": list(topics), **about,
        }  # fmt: skip
        self.registry.touch_client(client_id)
        for topic in topics:
            self.topics[topic] = self.topics.get(topic, 0) + 1
            self.registry.touch_topic(topic)
        return client_id

    def begin(self) -> None:
        do(self.registry.renew_lease())
        do(self.registry.enroll())
        assert do(self.registry.flush())


class At:
    """Two nodes with a lease."""

    def __init__(self) -> None:
        self.redis = MemoryRedis()
        self.one, self.two = Node(self.redis, "n1.a"), Node(self.redis, "n2.b")
        self.one.begin()
        self.two.begin()

    def written(self) -> float:
        return float(self.redis.metrics.registry_writes.labels("row").value)


async def all_of(found: Any) -> list[str]:
    return [client["id"] async for client in found]


def test_a_heartbeat_renews_the_lease_of_all_rows_for_its_whole_length() -> None:
    at = At()
    at.one.connect(1, "t")
    do(at.one.registry.flush())
    for _ in range(3):
        at.redis.now_ms += LEASE_MS - 1
        assert do(at.one.registry.renew_lease())
        assert at.redis.ttl_ms(KEYS.node("n1.a")) == LEASE_MS
    at.redis.now_ms += LEASE_MS
    assert not do(at.one.registry.renew_lease()), "the lease has ended"
    assert at.redis.run("EXISTS", KEYS.clients("n1.a"), KEYS.topics("n1.a")) == 0
    do(at.one.registry.enroll())
    assert do(at.one.registry.flush())
    assert do(at.one.registry.topic("t"))["nodes"] == {"n1.a": 1}


def test_nothing_is_written_before_the_node_is_in_the_index() -> None:
    redis = MemoryRedis()
    node = Node(redis, "n1.a")
    node.connect(1, "t")
    do(node.registry.renew_lease())
    assert do(node.registry.flush())
    assert redis.run("EXISTS", KEYS.clients("n1.a")) == 0
    do(node.registry.enroll())
    do(node.registry.flush())
    assert redis.run("HLEN", KEYS.clients("n1.a")) == 1


def test_a_heartbeat_whose_outcome_is_unknown_has_all_rows_written_again() -> None:
    at = At()
    at.one.connect(1, "t")
    do(at.one.registry.flush())
    at.redis.away = True
    with pytest.raises(Unavailable):
        do(at.one.registry.renew_lease())
    at.redis.away = False
    assert not do(at.one.registry.renew_lease())
    assert do(at.one.registry.renew_lease()), "once"


def test_only_what_changed_is_written_and_what_is_gone_is_removed() -> None:
    at = At()
    first, second = at.one.connect(1, "t", "u"), at.one.connect(2, "t")
    do(at.one.registry.flush())
    assert at.written() == 4
    trips = len(at.redis.trips)
    do(at.one.registry.flush())
    assert len(at.redis.trips) == trips, "nothing has changed"
    del at.one.clients[first]
    at.one.topics = {"t": 1}
    at.one.registry.touch_client(first)
    at.one.registry.touch_topic("t")
    at.one.registry.touch_topic("u")
    do(at.one.registry.flush())
    assert at.written() == 7
    assert at.redis.run("HGETALL", KEYS.topics("n1.a")) == [b"t", b"1"]
    assert at.redis.run("HKEYS", KEYS.clients("n1.a")) == [second.encode()]


def test_what_could_not_be_written_is_written_later() -> None:
    at = At()
    at.one.connect(1, "t")
    at.redis.away = True
    with pytest.raises(Unavailable):
        do(at.one.registry.flush())
    at.redis.away = False
    do(at.one.registry.flush())
    assert at.written() == 2


def test_a_write_has_so_many_rows_and_bytes_at_most() -> None:
    at = At()
    for number in range(WRITE_ROWS + 1):
        at.one.connect(number)
    trips = len(at.redis.trips)
    do(at.one.registry.flush())
    assert len(at.redis.trips) == trips + 2
    for number in range(6):
        at.one.connect(number, userAgent="x" * (WRITE_BYTES // 2))
    trips = len(at.redis.trips)
    do(at.one.registry.flush())
    assert len(at.redis.trips) == trips + 3, "two rows reach the bytes of one write"


def test_rows_of_an_earlier_time_are_handed_over_before_they_are_dropped() -> None:
    at = At()
    at.one.connect(1, "old")
    do(at.one.registry.flush())
    save = at.redis.redis.data.state()
    at.one.topics.clear()
    at.one.registry.touch_topic("old")
    at.one.connect(2, "new")
    do(at.one.registry.flush())
    at.redis.redis.data.restore(save)
    assert not do(at.one.registry.renew_lease())
    do(at.one.registry.enroll())
    do(at.one.registry.flush())
    assert at.one.dropped == ["old"]
    assert at.redis.run("HKEYS", KEYS.topics("n1.a")) == [b"new"]


def test_a_node_that_leaves_removes_its_rows_lease_and_presence_in_batches() -> None:
    at = At()
    at.one.topics = {f"t{number}": 1 for number in range(SCRIPT_ROWS)}
    at.redis.run("HSET", KEYS.presence("n1.a", "t0"), "n1.a.1", "{}")
    trips = len(at.redis.trips)
    do(at.one.registry.remove_rows())
    assert at.redis.trips[trips:] == [["UNLINK", "UNLINK", "ZREM"]]
    assert do(at.two.registry.live_nodes()) == ["n2.b"]
    assert at.redis.run("EXISTS", KEYS.presence("n1.a", "t0"), KEYS.node("n1.a"), KEYS.clients("n1.a")) == 0


def test_queries_see_living_nodes_only() -> None:
    at = At()
    client = at.one.connect(1, "t")
    at.two.connect(1, "t", "u")
    at.two.connect(2, "t")
    for node in (at.one, at.two):
        do(node.registry.flush())
    registry = at.two.registry
    assert do(registry.topic("t")) == {"topic": "t", "subscribers": 3, "nodes": {"n1.a": 1, "n2.b": 2}}
    assert do(registry.topic("none")) == {"topic": "none", "subscribers": 0, "nodes": {}}
    found = do(registry.client(client))
    assert found is not None and (found["id"], found["node"], found["topics"]) == (client, "n1.a", ["t"])
    assert do(registry.client("n1.a.9")) is None
    assert [(row["id"], row["clients"], row["topics"]) for row in do(registry.nodes())] == [
        ("n1.a", 1, 1), ("n2.b", 2, 2),
    ]  # fmt: skip
    at.redis.now_ms += LEASE_MS - 1
    do(registry.renew_lease())
    do(registry.enroll())
    at.redis.now_ms += 1
    assert do(registry.topic("t"))["nodes"] == {"n2.b": 2}
    assert do(registry.client(client)) is None
    assert [row["id"] for row in do(registry.nodes())] == ["n2.b"]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
def test_pages_of_topics_together_are_all_topics_in_order(limit: int) -> None:
    at = At()
    names = sorted(f"t{number}" for number in range(20))
    for number, name in enumerate(names):
        (at.one if number % 3 else at.two).connect(number, name)
    at.one.connect(99, names[0])
    for node in (at.one, at.two):
        do(node.registry.flush())
    listed: list[Any] = []
    after: str | None = ""
    pages = 0
    while after is not None:
        page = do(at.one.registry.listings.topics(limit, after=after))
        assert len(page["topics"]) <= limit
        assert page["nodes"] == {"n1.a": 14, "n2.b": 7}
        listed += page["topics"]
        after = page["next"]
        pages += 1
    assert [topic["topic"] for topic in listed] == names
    assert pages == -(-20 // limit), "no page is empty"
    assert listed[0] == {"topic": names[0], "subscribers": 2, "nodes": {"n1.a": 1, "n2.b": 1}}
    some = do(at.one.registry.listings.topics(limit, contains="t1"))["topics"]
    assert [topic["topic"] for topic in some] == [name for name in names if "t1" in name][:limit]


def test_clients_are_listed_by_node_in_the_order_they_came_and_filtered() -> None:
    at = At()
    ours = [at.one.connect(number, "t") for number in (2, 10, 9)]
    theirs = [at.two.connect(1, "u", user="bob", ip="10.0.0.2"), at.two.connect(2, "t", "u")]
    for node in (at.one, at.two):
        do(node.registry.flush())
    in_order = [ours[0], ours[2], ours[1], *theirs]

    def listed(**how: Any) -> list[str]:
        return do(all_of(at.one.registry.listings.clients(**how)))

    assert listed() == in_order
    assert [listed(after=client) for client in in_order] == [in_order[at + 1 :] for at in range(5)]
    assert listed(user="bob") == listed(ip="10.0.0.2") == theirs[:1]
    assert listed(topic="u") == theirs
    assert listed(node="n1") == listed(node="n1.a") == in_order[:3]
    assert listed(node="n3") == []


@pytest.mark.parametrize("row", [
    b"[]", b"{}", b'{"topics":[]}',
    b'{"connectedAt":"","ip":"","userAgent":"","user":1,"role":"","topics":[]}',
    b'{"connectedAt":"","ip":"","userAgent":"","user":"","role":"","topics":"t"}',
    b'{"connectedAt":"","ip":"","userAgent":"","user":"","role":"","topics":["t",1]}',
])  # fmt: skip
def test_a_row_that_is_no_clients_is_skipped_and_counted(row: bytes) -> None:
    at = At()
    client = at.one.connect(1)
    do(at.one.registry.flush())
    at.redis.run("HSET", KEYS.clients("n1.a"), "n1.a.2", row)
    assert do(all_of(at.two.registry.listings.clients())) == [client]
    assert do(at.two.registry.client("n1.a.2")) is None
    assert at.redis.metrics.malformed.labels("client").value == 2
