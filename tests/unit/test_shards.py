"""Which server has which slot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cluster.shards import ONLY, SLOTS, Shards, address, named, slot_of

ROWS = [
    (0, 5460, (b"10.0.0.1", 7001, b"id"), (b"10.0.0.4", 7004, b"id")),
    (5461, 10922, (b"10.0.0.2", 7002, b"id")),
    (10923, 16383, (b"10.0.0.3", 7003, b"id")),
]


def learned() -> Shards:
    shards = Shards(sharded=True)
    shards.learn(ROWS, "10.0.0.1:7001")
    return shards


def test_a_single_redis_has_everything_and_nothing_has_a_slot() -> None:
    shards = Shards(sharded=False)
    assert shards.servers == (ONLY,) and not shards.uncovered
    assert shards.slot(("GET", "a")) == shards.slot(("GET", "b")) == 0
    assert shards.owner(0) == shards.server("a") == ONLY
    assert shards.name_at(ONLY, "gw:ws:node:n.f00d") == "gw:ws:node:n.f00d"


def test_of_a_cluster_nothing_is_known_before_it_is_asked() -> None:
    shards = Shards(sharded=True)
    assert shards.servers == () and shards.uncovered == SLOTS
    assert shards.owner(7) is None


def test_what_a_server_tells_is_taken_in_and_only_news_counts() -> None:
    shards = learned()
    assert shards.servers == ("10.0.0.1:7001", "10.0.0.2:7002", "10.0.0.3:7003")
    assert [shards.owner(slot) for slot in (0, 5460, 5461, 16383)] == [
        "10.0.0.1:7001", "10.0.0.1:7001", "10.0.0.2:7002", "10.0.0.3:7003",
    ]  # fmt: skip
    before = shards.version
    shards.learn(ROWS, "10.0.0.2:7002")
    assert shards.version == before
    shards.learn(ROWS[:2], "10.0.0.2:7002")
    assert shards.version != before and shards.uncovered == 5461
    assert shards.owner(16383) is None


def test_a_slot_is_noted_elsewhere_and_a_server_without_any_is_gone() -> None:
    shards = learned()
    shards.move(5, "10.0.0.9:7009")
    assert shards.owner(5) == "10.0.0.9:7009" and "10.0.0.9:7009" in shards.servers
    version = shards.version
    shards.move(5, "10.0.0.9:7009")
    assert shards.version == version
    shards.move(5, "10.0.0.1:7001")
    assert "10.0.0.9:7009" not in shards.servers


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "a{x}b"), "a{x}b"),
        (("SPUBLISH", "gw:ws:topic:{t}", b"text"), "gw:ws:topic:{t}"),
        (("EVAL", "return 1", 2, "k{x}", "l{x}", 5), "k{x}"),
        (("EVALSHA", "digest", 1, b"k{x}"), "k{x}"),
    ],
)
def test_a_command_goes_where_its_first_key_lies(command: tuple[object, ...], key: str) -> None:
    assert learned().slot(command) == slot_of(key)


def test_what_has_no_key_goes_anywhere() -> None:
    assert learned().slot(("PING",)) == 0


@given(st.sampled_from([7001, 7002, 7003]))
def test_a_name_is_found_that_lies_at_a_server(port: int) -> None:
    shards = learned()
    server = next(one for one in shards.servers if one.endswith(str(port)))
    name = shards.name_at(server, "gw:ws:node:{n.f00d}")
    assert name.startswith("gw:ws:node:n.f00d:{") and shards.server(name) == server


def test_at_a_server_without_slots_there_is_no_name() -> None:
    with pytest.raises(LookupError):
        learned().name_at("10.0.0.9:7009", "x")


@pytest.mark.parametrize("host", ["", "?"])
def test_a_server_that_does_not_tell_its_host_means_where_it_was_asked(host: str) -> None:
    assert named(host, 7001, "redis-1:6379") == "redis-1:7001"
    assert named(host, 7001, "[::1]:6379") == "[::1]:7001"
    assert named("other", 7001, "redis-1:6379") == "other:7001"


def test_an_ipv6_address_is_told_from_its_port() -> None:
    assert (address("::1", 5), address("h", 5)) == ("[::1]:5", "h:5")


NODES = """\
a 10.0.0.1:7001@17001,one master - 0 1 1 connected 0-5460
b 10.0.0.2:7002@17002 master,fail - 0 1 2 connected 5461-10922
c 10.0.0.3:7003@17003 master,fail? - 0 1 3 connected 10923-16383
d 10.0.0.4:7004@17004 slave,fail a 0 1 1 connected

nonsense
"""


def test_masters_that_have_failed_are_told_from_those_that_are_suspected() -> None:
    rows = [
        (0, 5460, (b"10.0.0.1", 7001, b"a")),
        (5461, 10922, (b"10.0.0.2", 7002, b"b")),
        (10923, 16383, (b"10.0.0.3", 7003, b"c")),
    ]
    shards = learned()
    version = shards.version
    shards.learn(rows, "10.0.0.1:7001", NODES)
    assert shards.failed == {"10.0.0.2:7002"}
    assert shards.suspected == {"10.0.0.2:7002", "10.0.0.3:7003"}
    assert shards.version == version, "they still have their slots"
    shards.learn(rows, "10.0.0.1:7001")
    assert not shards.failed and not shards.suspected
