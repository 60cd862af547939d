"""gateway.node.reaper: one surviving node removes a dead node's rows and publishes each leave once."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.broker.envelope import Envelope
from gateway.broker.keys import Keys
from gateway.cluster.presence_store import PresenceStore, parse_presence
from gateway.core.presence_set import Member
from gateway.node.reaper import BATCH_MEMBERS, REAP_AFTER_SECONDS, Reaper
from tests.unit.cluster.test_registry import LEASE_MS, Node
from tests.unit.memory_redis import MemoryRedis

KEYS = Keys("", False)


class At:
    """A node that will die, and two that live."""

    def __init__(self) -> None:
        self.redis = MemoryRedis()
        self.dead, self.one, self.two = (Node(self.redis, node_id) for node_id in ("n0.a", "n1.b", "n2.c"))
        self.found = 0
        self.reapers = [
            Reaper(
                self.redis.client, KEYS, node.registry, found=self._found,
                now_ms=lambda: 7,
            )
            for node in (self.one, self.two)
        ]  # fmt: skip
        for node in (self.dead, self.one, self.two):
            node.begin()

    def _found(self) -> None:
        self.found += 1

    def join(self, topic: str, count: int) -> list[str]:
        people = [Member(f"n0.a.{number}", "ann") for number in range(count)]
        self.dead.topics[topic] = count
        self.dead.registry.touch_topic(topic)
        asyncio.run(self.dead.registry.flush())
        presence_store = PresenceStore(self.redis.client, KEYS, "n0.a")
        for at in range(0, count, 100):
            asyncio.run(presence_store.write(topic, people[at : at + 100], [], 0, drop_first=False))
        return [one.client_id for one in people]

    def die(self) -> None:
        self.redis.published.clear()
        self.redis.now_ms += LEASE_MS // 2
        for node in (self.one, self.two):
            asyncio.run(node.registry.renew_lease())
            asyncio.run(node.registry.enroll())
        self.redis.now_ms += LEASE_MS // 2

    def sent(self) -> list[Any]:
        found, self.redis.published = self.redis.published, []
        return [(channel, *parse_presence(Envelope.unpack(payload))) for channel, payload in found if payload]


def test_a_living_node_is_not_touched() -> None:
    at = At()
    at.join("t", 2)
    at.sent()
    following = asyncio.run(at.reapers[0].enroll())
    assert 0 < following - REAP_AFTER_SECONDS <= LEASE_MS / 1000
    asyncio.run(at.reapers[0].reap())
    assert (at.found, at.sent()) == (0, [])
    assert at.redis.run("HLEN", KEYS.presence("n0.a", "t")) == 2


def test_the_people_of_a_dead_node_are_announced_once_and_all_its_rows_go() -> None:
    at = At()
    ids = at.join("t", 3)
    at.join("u", 0)
    at.die()
    for reaper in at.reapers:
        asyncio.run(reaper.enroll())
    assert at.found == 2
    for reaper in at.reapers:
        asyncio.run(reaper.reap())
    [(channel, joined, left, dead)] = at.sent()
    assert (channel, joined, sorted(left), dead) == (KEYS.audience("topic:t"), [], sorted(ids), True)
    keys = (KEYS.node("n0.a"), KEYS.clients("n0.a"), KEYS.topics("n0.a"), KEYS.presence("n0.a", "t"))
    assert at.redis.run("EXISTS", *keys) == 0
    assert at.redis.run("ZSCORE", KEYS.nodes, "n0.a") is None
    asyncio.run(at.reapers[0].enroll())
    assert at.found == 2, "it is not found again"


def test_very_many_people_are_removed_in_batches_and_each_is_announced_once() -> None:
    at = At()
    ids = at.join("t", 2 * BATCH_MEMBERS + 1)
    at.die()
    asyncio.run(at.reapers[0].enroll())
    asyncio.run(at.reapers[0].reap())
    sent = at.sent()
    assert [len(left) for _, _, left, _ in sent] == [BATCH_MEMBERS, BATCH_MEMBERS, 1]
    assert sorted(one for _, _, left, _ in sent for one in left) == sorted(ids)


def test_a_node_that_is_back_when_it_is_reaped_keeps_its_rows() -> None:
    at = At()
    at.join("t", 2)
    at.die()
    asyncio.run(at.reapers[0].enroll())
    asyncio.run(at.dead.registry.renew_lease())
    asyncio.run(at.reapers[0].reap())
    assert at.sent() == []
    assert at.redis.run("EXISTS", KEYS.node("n0.a")) == 1
    assert at.redis.run("ZSCORE", KEYS.nodes, "n0.a") is not None


def test_what_no_gateway_has_written_goes_without_an_announcement() -> None:
    at = At()
    [client] = at.join("t", 1)
    at.join("wrong", 1)
    at.redis.run("HSET", KEYS.presence("n0.a", "t"), "strange", "{}")
    at.redis.run("UNLINK", KEYS.presence("n0.a", "wrong"))
    at.redis.run("SET", KEYS.presence("n0.a", "wrong"), "x")
    at.redis.run("ZADD", KEYS.nodes, 1, "no node")
    at.die()
    asyncio.run(at.reapers[0].enroll())
    asyncio.run(at.reapers[0].reap())
    assert [(channel, left) for channel, _, left, _ in at.sent()] == [(KEYS.audience("topic:t"), [client])]
    assert at.redis.run("EXISTS", KEYS.presence("n0.a", "t"), KEYS.presence("n0.a", "wrong"), KEYS.topics("n0.a")) == 0
    assert at.redis.run("ZSCORE", KEYS.nodes, "no node") is None
