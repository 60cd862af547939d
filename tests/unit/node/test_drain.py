"""gateway.node.drain: when clients are closed, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gateway.core.errors import CloseReason
from gateway.node.drain import UNREADY_SECONDS, Phase
from tests.unit.node.leaving import Client, Node
from tests.unit.virtual_time import in_virtual_time, later, quiet


@in_virtual_time
async def test_a_drain_closes_each_client_once_within_its_window_with_the_reason() -> None:
    node = Node(50)
    await node.drain.run()
    times = node.times()
    assert len(times) == 50
    assert all(len(client.closed) == 1 for client in node.clients)
    assert times[-1] - times[0] > 5
    assert times[-1] <= UNREADY_SECONDS + 10
    assert {closed[1:] for client in node.clients for closed in client.closed} == {(CloseReason.SHUTDOWN, "shutdown")}
    [sent] = node.clients[0].sent
    assert sent["data"]["code"] == 1001
    assert sent["data"]["reconnectMs"] >= 0
    assert (node.drain.phase, node.drain.draining) == (Phase.REJECTING, True)
    await node.drain.run()
    assert len(node.times()) == 50, "a second drain does nothing"


@in_virtual_time
async def test_a_drain_waits_until_the_load_balancers_know_and_no_longer() -> None:
    node = Node(1, drain_seconds=0)
    for _ in range(2):
        for balancer in ("lb1", "lb2"):
            node.drain.readiness_checked(balancer, False)
        await later(1)
    drain = asyncio.create_task(node.drain.run())
    await later(1)
    assert (node.drain.phase, node.drain.draining, node.times()) == (Phase.UNREADY, True, [])
    assert not node.refuses("a"), "a handshake is still accepted"
    for balancer in ("lb1", "lb1", "lb2"):
        node.drain.readiness_checked(balancer, True)
    await quiet()
    assert node.times() == []
    node.drain.readiness_checked("lb2", True)
    await drain
    assert node.times()[0] == pytest.approx(3, abs=0.01)
    assert node.refuses("a") and node.refuses("a") and node.refuses(None)


@in_virtual_time
async def test_load_balancers_that_do_not_ask_again_hold_up_a_drain_for_a_limited_time() -> None:
    node = Node(1, drain_seconds=0)
    for _ in range(2):
        node.drain.readiness_checked("lb1", False)
        await later(1)
    await node.drain.run()
    assert node.times()[0] == pytest.approx(2 + UNREADY_SECONDS, abs=0.01)


@in_virtual_time
async def test_a_drain_in_a_hurry_closes_the_rest_at_once() -> None:
    node = Node(20, drain_seconds=1000)
    drain = asyncio.create_task(node.drain.run())
    await later(UNREADY_SECONDS + 300)
    left = len(node)
    assert 0 < left < 20
    node.drain.finish_now()
    now = asyncio.get_running_loop().time()
    await drain
    assert len(node) == 0
    assert node.times()[-1] == pytest.approx(now, abs=0.01)


@in_virtual_time
async def test_a_client_that_comes_amid_a_drain_is_closed_at_once_and_otherwise_not() -> None:
    node = Node(0, drain_seconds=0)
    early, late = Client(), Client()
    node.drain.client_accepted(cast(Any, early))
    assert early.closed == []
    await node.drain.run()
    node.drain.client_accepted(cast(Any, late))
    assert [closed[1] for closed in late.closed] == [CloseReason.SHUTDOWN]
