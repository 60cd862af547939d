"""The mapping of HAProxy's server slots to nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.haproxy_slots import (
    UNUSED_ADDRESS,
    AssignSlot,
    FreeSlot,
    HaproxyServer,
    ListedNode,
    SlotChange,
    slot_changes,
)

PATIENCE = 60.0


def node(at: int, *, ready: bool = True) -> ListedNode:
    """Node n<at>, at an address of its own."""
    return ListedNode(f"n{at}.x", f"10.0.0.{at}:9000", ready)


def leading(name: str, at: int, status: str = "UP", seconds: float = 1000) -> HaproxyServer:
    """A server that leads to node n<at>."""
    return HaproxyServer(name, f"10.0.0.{at}:9000", status, seconds)


def free(name: str) -> HaproxyServer:
    """One that leads nowhere."""
    return HaproxyServer(name, UNUSED_ADDRESS, "MAINT", 1000)


def made(nodes: list[ListedNode], servers: list[HaproxyServer]) -> list[SlotChange]:
    """The changes, where there is room for all."""
    found, homeless = slot_changes(nodes, servers, own="slot", patience_seconds=PATIENCE)
    assert homeless == []
    return found


def test_nodes_that_are_ready_get_free_slots() -> None:
    assert made([node(2), node(1)], [free("slot1"), free("slot2"), free("slot3")]) == [
        AssignSlot("slot1", "10.0.0.1:9000", "n1.x"), AssignSlot("slot2", "10.0.0.2:9000", "n2.x"),
    ]  # fmt: skip


def test_a_node_that_is_not_ready_gets_none_yet_and_loses_none() -> None:
    assert made([node(1, ready=False), node(2, ready=False)], [leading("slot1", 1, "DOWN"), free("slot2")]) == []


def test_a_node_that_has_a_slot_keeps_it_under_another_id_too() -> None:
    assert made([ListedNode("n1.later", "10.0.0.1:9000", True)], [leading("slot2", 1, "DOWN"), free("slot1")]) == []


def test_one_address_is_given_one_slot() -> None:
    two = [ListedNode("n1.a", "10.0.0.1:9000", True), ListedNode("n1.b", "10.0.0.1:9000", True)]
    assert len(made(two, [free("slot1"), free("slot2")])) == 1


def test_a_node_that_somebody_else_has_listed_gets_no_second_server() -> None:
    assert made([node(1)], [leading("gw1", 1), free("slot1")]) == []


def test_an_unregistered_node_keeps_its_slot_while_it_is_up() -> None:
    assert made([], [leading("slot1", 1), leading("slot2", 2, "UP 1/2")]) == []


def test_an_unregistered_node_that_is_down_for_long_loses_its_slot() -> None:
    down = [leading("slot1", 1, "DOWN", PATIENCE), leading("slot2", 2, "DOWN", PATIENCE - 1)]
    assert made([], down) == [FreeSlot("slot1", "10.0.0.1:9000")]


def test_maintenance_by_hand_stays() -> None:
    assert made([node(1)], [leading("slot1", 1, "MAINT"), leading("slot2", 2, "MAINT"), free("slot3")]) == []


def test_a_node_without_a_slot_is_named() -> None:
    found, homeless = slot_changes([node(1), node(2)], [free("slot1")], own="slot", patience_seconds=PATIENCE)
    assert found == [AssignSlot("slot1", "10.0.0.1:9000", "n1.x")]
    assert homeless == ["no slot of 1 is free for n2.x (10.0.0.2:9000)"]


SERVERS = st.lists(
    st.builds(
        HaproxyServer, st.from_regex(r"(slot|slots|gw|myslot)\d{1,2}", fullmatch=True),
        st.one_of(st.just(UNUSED_ADDRESS), st.integers(1, 9).map("10.0.0.{}:9000".format)),
        st.sampled_from(["UP", "UP 1/2", "DOWN", "DOWN 1/2", "MAINT", "DRAIN", "no check"]), st.floats(0, 1000),
    ),
    unique_by=lambda server: server.name,
)  # fmt: skip
NODES = st.lists(st.builds(node, st.integers(1, 9), ready=st.booleans()), unique_by=lambda one: one.id)


@given(NODES, SERVERS)
def test_only_our_slots_change_and_never_one_that_serves(nodes: list[ListedNode], servers: list[HaproxyServer]) -> None:
    found, homeless = slot_changes(nodes, servers, own="slot", patience_seconds=PATIENCE)
    by_name = {server.name: server for server in servers}
    assert len({change.server for change in found}) == len(found)
    for change in found:
        server = by_name[change.server]
        assert server.name.removeprefix("slot").isdigit()
        if isinstance(change, AssignSlot):
            assert server.address == UNUSED_ADDRESS
        else:
            assert server.status.startswith("DOWN") and server.address not in {one.address for one in nodes}
    led = [server.address for server in servers] + [
        change.address for change in found if isinstance(change, AssignSlot)
    ]
    assert len(homeless) == sum(one.ready and one.address not in led for one in nodes)
