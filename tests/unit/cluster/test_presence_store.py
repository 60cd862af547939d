"""gateway.cluster.presence_store: rows of two nodes on a Redis in memory, what is published, and for how long rows
stay.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.broker.envelope import Envelope
from gateway.broker.keys import Keys
from gateway.cluster.presence_store import MEMBERS_MS, PresenceStore, decode_member, parse_presence
from gateway.core.presence_set import Member
from tests.unit.cluster.test_registry import Node
from tests.unit.memory_redis import MemoryRedis

KEYS = Keys("", False)
ANN, BOB, CID = Member("n1.a.1", "ann"), Member("n2.b.1", "bob"), Member("n1.a.2", None)


class At:
    """Two nodes with a lease and the topic t."""

    def __init__(self) -> None:
        self.redis = MemoryRedis()
        for node_id in ("n1.a", "n2.b"):
            Node(self.redis, node_id).begin()
        self.one, self.two = (PresenceStore(self.redis.client, KEYS, node_id) for node_id in ("n1.a", "n2.b"))

    def write(self, who: PresenceStore, joined: Any = (), left: Any = (), *, drop_first: bool = False) -> bool:
        return asyncio.run(who.write("t", joined, left, 7, drop_first=drop_first))

    def read(self) -> set[Member]:
        return set(asyncio.run(self.one.read("t")))

    def sent(self) -> list[Any]:
        found, self.redis.published = self.redis.published, []
        return [(channel, parse_presence(Envelope.unpack(payload))) for channel, payload in found]


def test_joins_and_leaves_are_written_and_published_once_and_rows_expire_after_a_day() -> None:
    at = At()
    assert at.write(at.one, [ANN, CID])
    assert at.sent() == [("ws:topic:t", ([ANN, CID], [], False))]
    assert at.write(at.two, [BOB])
    assert at.read() == {ANN, BOB, CID}
    at.sent()
    assert at.write(at.one, [], [ANN.client_id])
    assert at.sent() == [("ws:topic:t", ([], [ANN.client_id], False))]
    assert at.read() == {BOB, CID}
    assert at.redis.ttl_ms(KEYS.presence("n1.a", "t")) == MEMBERS_MS
    assert at.write(at.one, [ANN], drop_first=True)
    assert at.read() == {ANN, BOB}


def test_without_a_lease_nothing_is_written_or_published() -> None:
    at = At()
    at.redis.run("UNLINK", KEYS.node("n1.a"))
    assert not at.write(at.one, [ANN])
    assert (at.sent(), at.redis.run("EXISTS", KEYS.presence("n1.a", "t"))) == ([], 0)


def test_a_count_adds_up_the_nodes_and_renews_the_nodes_own_rows_only() -> None:
    at = At()
    at.write(at.one, [ANN, CID])
    at.write(at.two, [BOB])
    at.redis.now_ms += 1000
    assert asyncio.run(at.one.count(["t", "u"], ["n1.a", "n2.b"])) == [3, 0]
    assert at.redis.ttl_ms(KEYS.presence("n1.a", "t")) == MEMBERS_MS
    assert at.redis.ttl_ms(KEYS.presence("n2.b", "t")) == MEMBERS_MS - 1000
    at.redis.run("SET", KEYS.presence("n2.b", "u"), "x")
    assert asyncio.run(at.one.count(["t", "u"], ["n1.a", "n2.b"])) == [3, None]


def test_clients_of_a_dead_node_are_not_read() -> None:
    at = At()
    at.write(at.two, [BOB])
    assert asyncio.run(at.one.live_nodes()) == {"n1.a", "n2.b"}
    at.redis.run("UNLINK", KEYS.node("n2.b"))
    at.redis.run("ZREM", KEYS.nodes, "n2.b")
    assert (at.read(), asyncio.run(at.one.live_nodes())) == (set(), {"n1.a"})


@pytest.mark.parametrize(("client_id", "row"), [
    ("n2.b.1", b'{"user":"x"}'), ("x", b'{"user":"x"}'), ("n1.a.7", b"{}"), ("n1.a.7", b'{"user":1}'),
])  # fmt: skip
def test_a_row_that_is_none_is_skipped_and_the_others_are_read(client_id: str, row: bytes) -> None:
    at = At()
    at.write(at.one, [ANN])
    at.redis.run("HSET", KEYS.presence("n1.a", "t"), client_id, row)
    assert at.read() == {ANN}
    assert at.redis.metrics.malformed.labels("presence").value == 1


@pytest.mark.parametrize(("client_id", "user"), [(1, "x"), (None, "x"), ("n1.a.1", 1)])
def test_values_that_are_no_client_are_refused(client_id: object, user: object) -> None:
    with pytest.raises(ValueError, match="text"):
        decode_member(client_id, user)


INFO = ANN._replace(info=b'{"name":"Ann"}')


def test_info_goes_with_a_client_to_the_row_and_to_the_other_nodes() -> None:
    at = At()
    assert at.write(at.one, [INFO, CID])
    assert at.read() == {INFO, CID}
    assert at.sent() == [("ws:topic:t", ([INFO, CID], [], False))]


def test_a_client_without_info_is_written_as_before_so_that_older_nodes_read_it() -> None:
    at = At()
    at.write(at.one, [ANN])
    [(_, payload)] = at.redis.published
    assert Envelope.unpack(payload).body == b'{"joined":[["n1.a.1","ann"]],"left":[],"dead":false}'
    assert at.redis.run("HGET", KEYS.presence("n1.a", "t"), ANN.client_id) == b'{"user":"ann"}'


def test_info_of_another_node_is_bounded() -> None:
    assert decode_member("n1.a.1", "ann", {"a": 1}) == Member("n1.a.1", "ann", b'{"a":1}')
    with pytest.raises(ValueError, match="info of 2049 bytes"):
        decode_member("n1.a.1", "ann", "x" * 2047)
