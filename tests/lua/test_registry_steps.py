"""beat, write, enroll, forget, living and bury: a node's lease, its rows and the index of nodes."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from gateway.broker.keys import Keys
from tests.lua.steps import Steps

NODE = "n1.boot"
LEASE_MS = 10_007


@pytest.fixture
def rows(keys: Keys) -> list[str]:
    """The keys of a node: its lease, its clients, its topics."""
    return [keys.node(NODE), keys.clients(NODE), keys.topics(NODE)]


# ---- beat


def test_beat_takes_a_lease_and_drops_the_rows_of_the_last_one(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[1], "n1.boot.1", "{}")
    steps.redis.hset(rows[2], "news", 1)
    with steps.silence():
        assert steps.call("renew_lease", rows, LEASE_MS, "name", "n1", "clients", 3) == -1
    assert steps.hash(rows[0]) == {"name": "n1", "clients": "3"}
    assert steps.expires(rows[0], LEASE_MS)
    assert set(steps.state()) == {rows[0].encode()}


def test_beat_renews_a_living_lease_and_keeps_its_rows(steps: Steps, rows: list[str]) -> None:
    steps.call("renew_lease", rows, 1000, "name", "n1", "clients", 3)
    steps.redis.hset(rows[1], "n1.boot.1", "{}")
    steps.redis.hset(rows[2], "news", 1)
    for clients in (4, 5):
        assert steps.call("renew_lease", rows, LEASE_MS, "name", "n1", "clients", clients) == 0
        assert steps.hash(rows[0]) == {"name": "n1", "clients": str(clients)}
        assert steps.expires(rows[0], LEASE_MS)
    assert steps.hash(rows[1]) == {"n1.boot.1": "{}"}
    assert steps.hash(rows[2]) == {"news": "1"}
    assert steps.redis.pttl(rows[1]) == steps.redis.pttl(rows[2]) == -1


def test_beat_replaces_a_lease_of_another_type_and_drops_the_rows(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "x")
    steps.redis.set(rows[1], "x")
    steps.redis.hset(rows[2], "news", 1)
    assert steps.call("renew_lease", rows, LEASE_MS, "name", "n1") == -1
    assert steps.hash(rows[0]) == {"name": "n1"}
    assert steps.expires(rows[0], LEASE_MS)
    assert not steps.redis.exists(*rows[1:])


def test_beat_without_memory_takes_no_lease_and_keeps_the_rows(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[1], "n1.boot.1", "{}")
    steps.redis.config_set("maxmemory", 1)
    try:
        with steps.nothing_done(), pytest.raises(OutOfMemoryError):
            steps.call("renew_lease", rows, LEASE_MS, "name", "n1")
    finally:
        steps.redis.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    ("stored", "writes"),
    [("1", 1), ("17", 17), ("x", 0), ("1x", 0), ("x1", 0), ("", 0), (str(2**50), 2**50), ("9" * 400, 2**50)],
)
def test_beat_answers_how_many_writes_redis_has(steps: Steps, rows: list[str], stored: str, writes: int) -> None:
    steps.redis.hset(rows[0], "writes", stored)
    assert steps.call("renew_lease", rows, LEASE_MS, "name", "n1") == writes
    assert steps.hash(rows[0]) == {"name": "n1", "writes": stored}


# ---- write


def write(steps: Steps, rows: list[str], *parts: list[Any], drop_first: bool = False) -> Any:
    """Clients to set and to drop, topics to set and to drop; pairs are flat."""
    clients, gone, topics, unused = parts
    counts = len(clients) // 2, len(gone), len(topics) // 2, len(unused)
    return steps.call("write_rows", rows, int(drop_first), *counts, *clients, *gone, *topics, *unused)


def test_write_sets_and_drops_clients_and_topics(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], mapping={"name": "n1", "writes": 16})
    steps.redis.pexpire(rows[0], 60_000)
    ends = steps.redis.pexpiretime(rows[0])
    steps.redis.hset(rows[1], mapping={"c1": "old", "c2": "old", "c3": "old"})
    steps.redis.hset(rows[2], mapping={"t1": 1, "t2": 2})
    with steps.silence():
        assert write(steps, rows, ["c1", "new", "c4", "new"], ["c2"], ["t1", 7, "t3", 3], ["t2", "t9"]) == 17
    assert steps.hash(rows[1]) == {"c1": "new", "c3": "old", "c4": "new"}
    assert steps.hash(rows[2]) == {"t1": "7", "t3": "3"}
    assert steps.hash(rows[0]) == {"name": "n1", "writes": "17"}
    assert steps.redis.pexpiretime(rows[0]) == ends, "only a beat renews the lease"
    assert steps.redis.pttl(rows[1]) == steps.redis.pttl(rows[2]) == -1


@pytest.mark.parametrize("only", range(4))
def test_write_takes_a_single_row_of_each_kind(steps: Steps, rows: list[str], only: int) -> None:
    steps.redis.hset(rows[0], "name", "n1")
    before = ({"c1": "old", "c2": "old"}, {"t1": "1", "t2": "2"})
    for key, fields in zip(rows[1:], before, strict=True):
        steps.redis.hset(key, mapping=fields)
    parts: list[list[Any]] = [["c1", "new"], ["c1"], ["t1", 5], ["t1"]]
    assert write(steps, rows, *(part if at == only else [] for at, part in enumerate(parts))) == 1
    clients = [{"c1": "new", "c2": "old"}, {"c2": "old"}, before[0], before[0]][only]
    topics = [before[1], before[1], {"t1": "5", "t2": "2"}, {"t2": "2"}][only]
    assert steps.hash(rows[1]) == clients
    assert steps.hash(rows[2]) == topics


def test_write_of_nothing_changes_no_row(steps: Steps, rows: list[str]) -> None:
    for key in rows:
        steps.redis.hset(key, "a", "b")
    for number in (1, 2):
        assert write(steps, rows, [], [], [], []) == number
    assert [steps.hash(key) for key in rows] == [{"a": "b", "writes": "2"}, {"a": "b"}, {"a": "b"}]


@pytest.mark.parametrize(
    ("stored", "writes"),
    [("x", 1), ("1x", 1), ("x1", 1), ("", 1), (str(2**50 - 1), 2**50), ("9" * 400, 2**50 + 1)],
)
def test_write_copes_with_a_number_of_writes_that_is_none(
    steps: Steps, rows: list[str], stored: str, writes: int
) -> None:
    steps.redis.hset(rows[0], "writes", stored)
    assert write(steps, rows, ["c1", "new"], [], [], []) == writes
    assert steps.hash(rows[0]) == {"writes": str(writes)}


def test_write_drops_all_rows_first_on_request(steps: Steps, rows: list[str]) -> None:
    for key in rows:
        steps.redis.hset(key, "old", "1")
    assert write(steps, rows, ["c1", "new"], [], ["t1", 1], [], drop_first=True) == 1
    assert [steps.hash(key) for key in rows] == [{"old": "1", "writes": "1"}, {"c1": "new"}, {"t1": "1"}]


def test_write_without_a_lease_writes_nothing(steps: Steps, rows: list[str]) -> None:
    for key in rows[1:]:
        steps.redis.hset(key, "old", "1")
    for drop_first in (False, True):
        with steps.nothing_done():
            assert write(steps, rows, ["c1", "new"], ["old"], ["t1", 1], ["old"], drop_first=drop_first) == 0


def test_write_under_a_lease_of_another_type_writes_nothing(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[0], "x")
    with steps.nothing_done():
        assert write(steps, rows, ["c1", "new"], [], ["t1", 1], []) == 0


@pytest.mark.parametrize("broken", [1, 2])
def test_write_removes_rows_of_another_type_and_asks_for_all(steps: Steps, rows: list[str], broken: int) -> None:
    for key in rows:
        steps.redis.hset(key, "old", "1")
    steps.redis.delete(rows[broken])
    steps.redis.set(rows[broken], "x")
    for drop_first in (False, True):
        assert write(steps, rows, ["c1", "new"], [], ["t1", 1], [], drop_first=drop_first) == (1 if drop_first else -1)
        assert steps.hash(rows[1]) == ({"c1": "new"} if drop_first else {})
        assert steps.hash(rows[2]) == ({"t1": "1"} if drop_first else {})
    assert steps.hash(rows[0]) == {"old": "1", "writes": "1"}


def test_write_takes_as_many_rows_as_its_caller_sends(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[0], "name", "n1")
    names = [f"c{at}" for at in range(1000)]
    assert write(steps, rows, [part for name in names for part in (name, "{}")], [], [], []) == 1
    assert steps.redis.hlen(rows[1]) == 1000
    assert write(steps, rows, [], names, [], []) == 2
    assert not steps.redis.exists(rows[1])
    assert write(steps, rows, [], [], [part for name in names for part in (name, 1)], []) == 3
    assert steps.redis.hlen(rows[2]) == 1000


# ---- enroll


def test_enroll_puts_a_node_into_the_index_until_its_lease_ends(steps: Steps, keys: Keys) -> None:
    for _ in range(2):
        with steps.silence():
            assert steps.call("index_node", [keys.nodes], NODE, LEASE_MS, 10) == [[], LEASE_MS]
        assert list(steps.scores(keys.nodes)) == [NODE]
        assert steps.is_due(steps.scores(keys.nodes)[NODE], LEASE_MS)
        assert steps.redis.zscore(keys.nodes, NODE) == int(steps.redis.zscore(keys.nodes, NODE))


def test_enroll_lists_the_nodes_whose_lease_has_ended_oldest_first(steps: Steps, keys: Keys) -> None:
    now = steps.now_ms()
    steps.redis.zadd(keys.nodes, {"late": now - 1, "dead": now - 5000, "alive": now + 5000, "longer": now + 70_000})
    before = steps.scores(keys.nodes)
    ended, following = steps.call("index_node", [keys.nodes], NODE, LEASE_MS, 10)
    assert ended == [b"dead", b"late"]
    assert 5000 - (steps.now_ms() - now) <= following <= 5000
    scores = steps.scores(keys.nodes)
    del scores[NODE]
    assert scores == before


@pytest.mark.parametrize("most", [1, 2, 3])
def test_enroll_lists_no_more_than_it_is_asked_for(steps: Steps, keys: Keys, most: int) -> None:
    steps.redis.zadd(keys.nodes, {"d1": 1, "d2": 2, "d3": 3})
    ended, following = steps.call("index_node", [keys.nodes], NODE, LEASE_MS, most)
    assert ended == [b"d1", b"d2", b"d3"][:most]
    # Where more of them may have ended, the next call comes soon: within a second, or within a shorter lease.
    assert following == (1000 if most < 3 else LEASE_MS)
    assert steps.call("index_node", [keys.nodes], NODE, 500, most)[1] == 500


def test_enroll_waits_no_longer_than_its_own_lease(steps: Steps, keys: Keys) -> None:
    steps.redis.zadd(keys.nodes, {"a stranger": "+inf"})
    assert steps.call("index_node", [keys.nodes], NODE, LEASE_MS, 10) == [[], LEASE_MS]
    steps.redis.zadd(keys.nodes, {NODE: "+inf"})
    assert steps.call("index_node", [keys.nodes], NODE, LEASE_MS, 10) == [[], LEASE_MS]


def test_enroll_replaces_an_index_of_another_type(steps: Steps, keys: Keys) -> None:
    steps.redis.set(keys.nodes, "x")
    assert steps.call("index_node", [keys.nodes], NODE, LEASE_MS, 10) == [[], LEASE_MS]
    assert steps.is_due(steps.scores(keys.nodes)[NODE], LEASE_MS)


def test_enroll_reports_other_errors_and_keeps_the_index(steps: Steps, keys: Keys) -> None:
    steps.redis.zadd(keys.nodes, {"alive": 1})
    steps.redis.config_set("maxmemory", 1)
    try:
        with steps.nothing_done(), pytest.raises(OutOfMemoryError):
            steps.call("index_node", [keys.nodes], NODE, LEASE_MS, 10)
    finally:
        steps.redis.config_set("maxmemory", 0)


# ---- forget


def test_forget_takes_out_only_a_node_whose_lease_has_ended(steps: Steps, keys: Keys) -> None:
    steps.redis.zadd(keys.nodes, {"dead": steps.now_ms(), "alive": steps.now_ms() + 60_000})
    for other in ("alive", "never seen"):
        with steps.nothing_done():
            assert steps.call("unindex_node", [keys.nodes], other) == 0
    with steps.silence():
        assert steps.call("unindex_node", [keys.nodes], "dead") == 1
    assert list(steps.scores(keys.nodes)) == ["alive"]
    with steps.nothing_done():
        assert steps.call("unindex_node", [keys.nodes], "dead") == 0


# ---- living


def test_living_lists_nodes_whose_lease_lives_longest_first(steps: Steps, keys: Keys) -> None:
    now = steps.now_ms()
    steps.redis.zadd(keys.nodes, {"dead": now - 1, "short": now + 60_000, "long": now + 90_000, "ever": "+inf"})
    with steps.nothing_done():
        assert steps.call("live_nodes", [keys.nodes], 10) == [b"ever", b"long", b"short"]
        assert steps.call("live_nodes", [keys.nodes], 2) == [b"ever", b"long"]


def test_living_leaves_out_what_is_too_long_for_a_node_id(steps: Steps, keys: Keys) -> None:
    now = steps.now_ms()
    steps.redis.zadd(keys.nodes, {"a" * 100: now + 60_000, "b" * 101: now + 90_000})
    assert steps.call("live_nodes", [keys.nodes], 10) == [b"a" * 100]
    steps.redis.delete(keys.nodes)
    assert steps.call("live_nodes", [keys.nodes], 10) == []


def test_living_refuses_an_index_of_another_type(steps: Steps, keys: Keys) -> None:
    steps.redis.set(keys.nodes, "x")
    with steps.nothing_done(), pytest.raises(ResponseError, match="WRONGTYPE"):
        steps.call("live_nodes", [keys.nodes], 10)


# ---- bury


def test_bury_removes_the_rows_of_a_node_whose_lease_has_ended(steps: Steps, rows: list[str]) -> None:
    steps.redis.hset(rows[1], mapping={"c1": "{}", "c2": "{}", "c3": "{}"})
    steps.redis.hset(rows[2], "news", 1)
    with steps.silence():
        assert steps.call("remove_node", rows) == [2, 3]
    assert steps.state() == {}
    assert steps.call("remove_node", rows) == [0, 0]


def test_bury_removes_nothing_while_the_lease_lives(steps: Steps, rows: list[str]) -> None:
    for key in rows:
        steps.redis.hset(key, "a", "b")
    with steps.nothing_done():
        assert steps.call("remove_node", rows) is None


def test_bury_removes_rows_of_another_type_and_counts_no_clients(steps: Steps, rows: list[str]) -> None:
    steps.redis.set(rows[1], "x")
    steps.redis.hset(rows[2], "news", 1)
    assert steps.call("remove_node", rows) == [2, 0]
    steps.redis.hset(rows[1], "c1", "{}")
    steps.redis.set(rows[2], "x")
    assert steps.call("remove_node", rows) == [2, 1]
    assert steps.state() == {}
