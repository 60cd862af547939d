"""Which server has which slot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.broker.slot_map import ONLY_SERVER, SLOTS, SlotMap, resolve_server, server_name, slot_of

ROWS = [
    (0, 5460, (b"10.0.0.1", 7001, b"id"), (b"10.0.0.4", 7004, b"id")),
    (5461, 10922, (b"10.0.0.2", 7002, b"id")),
    (10923, 16383, (b"10.0.0.3", 7003, b"id")),
]


def learned() -> SlotMap:
    slot_map = SlotMap(sharded=True)
    slot_map.update(ROWS, "10.0.0.1:7001")
    return slot_map


def test_a_single_redis_has_everything_and_nothing_has_a_slot() -> None:
    slot_map = SlotMap(sharded=False)
    assert slot_map.servers == (ONLY_SERVER,) and not slot_map.uncovered
    assert slot_map.slot(("GET", "a")) == slot_map.slot(("GET", "b")) == 0
    assert slot_map.owner(0) == slot_map.server("a") == ONLY_SERVER
    assert slot_map.name_at(ONLY_SERVER, "gw:ws:node:n.f00d") == "gw:ws:node:n.f00d"


def test_of_a_cluster_nothing_is_known_before_it_is_asked() -> None:
    slot_map = SlotMap(sharded=True)
    assert slot_map.servers == () and slot_map.uncovered == SLOTS
    assert slot_map.owner(7) is None


def test_what_a_server_tells_is_taken_in_and_only_news_counts() -> None:
    slot_map = learned()
    assert slot_map.servers == ("10.0.0.1:7001", "10.0.0.2:7002", "10.0.0.3:7003")
    assert [slot_map.owner(slot) for slot in (0, 5460, 5461, 16383)] == [
        "10.0.0.1:7001", "10.0.0.1:7001", "10.0.0.2:7002", "10.0.0.3:7003",
    ]  # fmt: skip
    before = slot_map.version
    slot_map.update(ROWS, "10.0.0.2:7002")
    assert slot_map.version == before
    slot_map.update(ROWS[:2], "10.0.0.2:7002")
    assert slot_map.version != before and slot_map.uncovered == 5461
    assert slot_map.owner(16383) is None


def test_a_slot_is_noted_elsewhere_and_a_server_without_any_is_gone() -> None:
    slot_map = learned()
    slot_map.move(5, "10.0.0.9:7009")
    assert slot_map.owner(5) == "10.0.0.9:7009" and "10.0.0.9:7009" in slot_map.servers
    version = slot_map.version
    slot_map.move(5, "10.0.0.9:7009")
    assert slot_map.version == version
    slot_map.move(5, "10.0.0.1:7001")
    assert "10.0.0.9:7009" not in slot_map.servers


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
    slot_map = learned()
    server = next(one for one in slot_map.servers if one.endswith(str(port)))
    name = slot_map.name_at(server, "gw:ws:node:{n.f00d}")
    assert name.startswith("gw:ws:node:n.f00d:{") and slot_map.server(name) == server


def test_at_a_server_without_slots_there_is_no_name() -> None:
    with pytest.raises(LookupError):
        learned().name_at("10.0.0.9:7009", "x")


@pytest.mark.parametrize("host", ["", "?"])
def test_a_server_that_does_not_tell_its_host_means_where_it_was_asked(host: str) -> None:
    assert resolve_server(host, 7001, "redis-1:6379") == "redis-1:7001"
    assert resolve_server(host, 7001, "[::1]:6379") == "[::1]:7001"
    assert resolve_server("other", 7001, "redis-1:6379") == "other:7001"


def test_an_ipv6_address_is_bracketed_before_its_port() -> None:
    assert (server_name("::1", 5), server_name("h", 5)) == ("[::1]:5", "h:5")


NODES = """\
a 10.0.0.1:7001@17001,one master - 0 1 1 connected 0-5460
b 10.0.0.2:7002@17002 master,fail - 0 1 2 connected 5461-10922
c 10.0.0.3:7003@17003 master,fail? - 0 1 3 connected 10923-16383
d 10.0.0.4:7004@17004 slave,fail a 0 1 1 connected

nonsense
"""


def test_failed_masters_are_distinguished_from_suspected_ones() -> None:
    rows = [
        (0, 5460, (b"10.0.0.1", 7001, b"a")),
        (5461, 10922, (b"10.0.0.2", 7002, b"b")),
        (10923, 16383, (b"10.0.0.3", 7003, b"c")),
    ]
    slot_map = learned()
    version = slot_map.version
    slot_map.update(rows, "10.0.0.1:7001", NODES)
    assert slot_map.failed == {"10.0.0.2:7002"}
    assert slot_map.suspected == {"10.0.0.2:7002", "10.0.0.3:7003"}
    assert slot_map.version == version, "they still have their slots"
    slot_map.update(rows, "10.0.0.1:7001")
    assert not slot_map.failed and not slot_map.suspected
