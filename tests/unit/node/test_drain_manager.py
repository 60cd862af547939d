"""gateway.node.drain_manager: which handshakes are refused, and when clients are closed, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson
import pytest

from gateway.core.errors import CloseReason
from gateway.core.events import Event
from gateway.node import drain_manager
from gateway.node.drain_manager import GRACE_SECONDS, UNREADY_SECONDS, DrainManager, Phase
from gateway.protocols.native import encoder
from gateway.transports.connection import ConnectionStage
from tests.unit.virtual_time import in_virtual_time, later, quiet


class Client:
    """A connection: when it was closed, and what it was told."""

    def __init__(self) -> None:
        self.stage = ConnectionStage.OPEN
        self.closed: list[tuple[float, CloseReason, str]] = []
        self.sent: list[Any] = []

    def disconnect(self, reason: CloseReason, text: str) -> None:
        self.closed.append((asyncio.get_running_loop().time(), reason, text))
        self.stage = next(stage for stage in ConnectionStage if stage is not ConnectionStage.OPEN)


class FakeSender:
    """Hands each message to its client."""

    def send(self, connection: Any, event: Event) -> None:
        connection.sent.append(orjson.loads(encoder.text(event, 0)))


class Node:
    """A node with so many clients."""

    def __init__(self, count: int, drain_seconds: float = 10) -> None:
        self.clients = [Client() for _ in range(count)]
        self.drain_manager = DrainManager(cast(Any, self), cast(Any, FakeSender()), drain_seconds=drain_seconds)

    def __iter__(self) -> Any:
        return iter([client for client in self.clients if client.stage is ConnectionStage.OPEN])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def times(self) -> list[float]:
        return sorted(closed[0] for client in self.clients for closed in client.closed)


@in_virtual_time
async def test_a_drain_closes_each_client_once_over_its_window_and_says_why() -> None:
    node = Node(50)
    await node.drain_manager.drain()
    times = node.times()
    assert len(times) == 50
    assert all(len(client.closed) == 1 for client in node.clients)
    assert times[-1] - times[0] > 5
    assert times[-1] <= UNREADY_SECONDS + 10
    assert {closed[1:] for client in node.clients for closed in client.closed} == {(CloseReason.SHUTDOWN, "shutdown")}
    [sent] = node.clients[0].sent
    assert sent["data"]["code"] == 1001
    assert sent["data"]["reconnectMs"] >= 0
    assert (node.drain_manager.phase, node.drain_manager.draining) == (Phase.REJECTING, True)
    await node.drain_manager.drain()
    assert len(node.times()) == 50, "a second drain does nothing"


@in_virtual_time
async def test_a_drain_waits_until_the_load_balancers_know_and_no_longer() -> None:
    node = Node(1, drain_seconds=0)
    for _ in range(2):
        for balancer in ("lb1", "lb2"):
            node.drain_manager.readiness_checked(balancer, False)
        await later(1)
    drain = asyncio.create_task(node.drain_manager.drain())
    await later(1)
    assert (node.drain_manager.phase, node.drain_manager.draining, node.times()) == (Phase.UNREADY, True, [])
    assert not node.drain_manager.refuses_handshake("a"), "a handshake is still accepted"
    for balancer in ("lb1", "lb1", "lb2"):
        node.drain_manager.readiness_checked(balancer, True)
    await quiet()
    assert node.times() == []
    node.drain_manager.readiness_checked("lb2", True)
    await drain
    assert node.times()[0] == pytest.approx(3, abs=0.01)
    assert (
        node.drain_manager.refuses_handshake("a")
        and node.drain_manager.refuses_handshake("a")
        and node.drain_manager.refuses_handshake(None)
    )


@in_virtual_time
async def test_load_balancers_that_do_not_ask_again_hold_up_a_drain_for_a_limited_time() -> None:
    node = Node(1, drain_seconds=0)
    for _ in range(2):
        node.drain_manager.readiness_checked("lb1", False)
        await later(1)
    await node.drain_manager.drain()
    assert node.times()[0] == pytest.approx(2 + UNREADY_SECONDS, abs=0.01)


@in_virtual_time
async def test_a_drain_in_a_hurry_closes_the_rest_at_once() -> None:
    node = Node(20, drain_seconds=1000)
    drain = asyncio.create_task(node.drain_manager.drain())
    await later(UNREADY_SECONDS + 300)
    left = len(node)
    assert 0 < left < 20
    node.drain_manager.finish_now()
    now = asyncio.get_running_loop().time()
    await drain
    assert len(node) == 0
    assert node.times()[-1] == pytest.approx(now, abs=0.01)


@in_virtual_time
async def test_a_client_that_comes_amid_a_drain_is_closed_at_once_and_otherwise_not() -> None:
    node = Node(0, drain_seconds=0)
    early, late = Client(), Client()
    node.drain_manager.client_accepted(cast(Any, early))
    assert early.closed == []
    await node.drain_manager.drain()
    node.drain_manager.client_accepted(cast(Any, late))
    assert [closed[1] for closed in late.closed] == [CloseReason.SHUTDOWN]


@in_virtual_time
async def test_a_move_closes_all_but_so_many_and_rejects_each_new_handshake_once_meanwhile() -> None:
    node = Node(30)
    move = asyncio.create_task(node.drain_manager.rebalance(10, 20, 5))
    await later(4)
    assert (node.drain_manager.phase, node.times()) == (Phase.SERVING, [])
    await later(2)
    assert node.drain_manager.phase is Phase.REBALANCING
    assert not node.drain_manager.draining
    assert [
        node.drain_manager.refuses_handshake("a"),
        node.drain_manager.refuses_handshake("a"),
        node.drain_manager.refuses_handshake("b"),
    ] == [
        True,
        False,
        True,
    ]
    assert not node.drain_manager.refuses_handshake(None)
    await later(20)
    assert (len(node), len(node.times())) == (10, 20)
    assert node.times()[0] >= 5 and node.times()[-1] <= 25.01
    moved = next(client for client in node.clients if client.closed)
    assert (moved.closed[0][1:], moved.sent[0]["data"]["code"]) == ((CloseReason.MOVE, "move"), 3011)
    await later(GRACE_SECONDS - 2)
    assert node.drain_manager.refuses_handshake("c")
    await move
    assert (node.drain_manager.phase, node.drain_manager.refuses_handshake("d"), len(node)) == (
        Phase.SERVING,
        False,
        10,
    )


@in_virtual_time
async def test_clients_that_left_on_their_own_count_as_moved() -> None:
    node = Node(20)
    move = asyncio.create_task(node.drain_manager.rebalance(10, 20, 0))
    await later(5)
    for client in list(node)[: max(0, len(node) - 10)]:
        client.stage = next(stage for stage in ConnectionStage if stage is not ConnectionStage.OPEN)
    closed = len(node.times())
    await move
    assert (len(node), len(node.times())) == (10, closed)


@in_virtual_time
async def test_a_move_during_a_move_or_a_drain_does_nothing_and_a_drain_ends_a_move() -> None:
    node = Node(20, drain_seconds=0)
    first = asyncio.create_task(node.drain_manager.rebalance(10, 50, 0))
    await later(1)
    await node.drain_manager.rebalance(0, 0, 0)
    assert len(node) >= 10
    await node.drain_manager.drain()
    assert len(node) == 0
    await first
    assert node.drain_manager.phase is Phase.REJECTING
    await node.drain_manager.rebalance(0, 0, 0)
    assert node.drain_manager.phase is Phase.REJECTING


@in_virtual_time
async def test_of_rejected_handshakes_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_manager, "MAX_HANDSHAKES", 2)
    node = Node(0)
    assert not node.drain_manager.refuses_handshake("a")
    assert [
        node.drain_manager.refuses_handshake(name, avoided=True) for name in ("a", "b", "a", "b", "c", "b", "a")
    ] == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
    ]
