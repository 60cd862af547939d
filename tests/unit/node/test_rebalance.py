"""gateway.node.rebalance: which handshakes are refused, and which clients are moved, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.errors import CloseReason
from gateway.node import rebalance
from gateway.node.drain import Phase
from gateway.node.rebalance import GRACE_SECONDS
from gateway.transports.connection import ConnectionStage
from tests.unit.node.leaving import Node
from tests.unit.virtual_time import in_virtual_time, later


@in_virtual_time
async def test_a_move_closes_all_but_so_many_and_rejects_each_new_handshake_once_meanwhile() -> None:
    node = Node(30)
    move = asyncio.create_task(node.rebalance.run(10, 20, 5))
    await later(4)
    assert (node.rebalance.moving, node.times()) == (False, [])
    await later(2)
    assert node.rebalance.moving
    assert not node.drain.draining
    assert [
        node.refuses("a"),
        node.refuses("a"),
        node.refuses("b"),
    ] == [
        True,
        False,
        True,
    ]
    assert not node.refuses(None)
    await later(20)
    assert (len(node), len(node.times())) == (10, 20)
    assert node.times()[0] >= 5 and node.times()[-1] <= 25.01
    moved = next(client for client in node.clients if client.closed)
    assert (moved.closed[0][1:], moved.sent[0]["data"]["code"]) == ((CloseReason.MOVE, "move"), 3011)
    await later(GRACE_SECONDS - 2)
    assert node.refuses("c")
    await move
    assert (node.rebalance.moving, node.refuses("d"), len(node)) == (
        False,
        False,
        10,
    )


@in_virtual_time
async def test_clients_that_left_on_their_own_count_as_moved() -> None:
    node = Node(20)
    move = asyncio.create_task(node.rebalance.run(10, 20, 0))
    await later(5)
    for client in list(node)[: max(0, len(node) - 10)]:
        client.stage = next(stage for stage in ConnectionStage if stage is not ConnectionStage.OPEN)
    closed = len(node.times())
    await move
    assert (len(node), len(node.times())) == (10, closed)


@in_virtual_time
async def test_a_move_during_a_move_or_a_drain_does_nothing_and_a_drain_ends_a_move() -> None:
    node = Node(20, drain_seconds=0)
    first = asyncio.create_task(node.rebalance.run(10, 50, 0))
    await later(1)
    await node.rebalance.run(0, 0, 0)
    assert len(node) >= 10
    await node.drain.run()
    assert len(node) == 0
    await first
    assert node.drain.phase is Phase.REJECTING
    await node.rebalance.run(0, 0, 0)
    assert node.drain.phase is Phase.REJECTING


@in_virtual_time
async def test_of_rejected_handshakes_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebalance, "MAX_HANDSHAKES", 2)
    node = Node(0)
    assert not node.refuses("a")
    assert [node.rebalance.refuses_handshake(name, avoided=True) for name in ("a", "b", "a", "b", "c", "b", "a")] == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
    ]
