"""A node drains: it accepts no client, notifies and closes its clients at a pace, and leaves no state in Redis."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidHandshake, InvalidStatus

from tests.conftest import Connect
from tests.kit.client import Api, Client, Front, new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, NAMESPACE, Node
from tests.kit.process import clean_environment
from tests.kit.redis import Redis
from tests.kit.waiting import eventually
from tests.returning import Returning

Start = Callable[..., Cluster]
Of = Callable[[Front], Api]
Balance = Callable[..., LoadBalancer]


async def exit_code(node: Node) -> int:
    """Its exit code, waited for."""
    return await asyncio.to_thread(node.process.exit_code)


def has_said(node: Node, event: str) -> bool:
    return bool(node.events(event))


def reconnect_ms(client: Client) -> int:
    """The message that the client got before its node closed it."""
    (farewell,) = client.received(type="SYSTEM", action="shutdown")
    assert farewell["data"]["code"] == 1001
    delays: int = farewell["data"]["reconnectMs"]
    return delays


# ---- the closes


async def test_closes_are_spread_over_the_window(cluster: Start, connect: Connect) -> None:
    window, bins, n = 3.0, 6, 300
    (node,) = cluster(1, drain_seconds=window)
    clients = await asyncio.gather(*(connect(node) for _ in range(n)))
    closed: list[float] = []

    async def note(client: Client) -> None:
        assert await client.closed() == 3001
        closed.append(time.monotonic())

    node.terminate()
    await asyncio.gather(*map(note, clients))
    assert await exit_code(node) == 0
    taken = max(closed) - min(closed)
    assert window * 0.5 <= taken <= window * 1.5  # this process may see the first closes late
    histogram = Counter(min(bins - 1, int((at - min(closed)) / taken * bins)) for at in closed)
    # Each part of the window has its share of 50, but for the machine's own hiccups.
    assert all(n / bins / 2 <= histogram[at] <= n / bins * 2 for at in range(bins)), histogram
    # And within a step they come back apart.
    delays = [reconnect_ms(client) for client in clients]
    assert min(delays) >= 50 and max(delays) < 500
    assert len(set(delays)) > n / 4


async def test_a_second_signal_hastens_it_and_spreads_the_return_instead(cluster: Start, connect: Connect) -> None:
    (node,) = cluster(1, drain_seconds=600)
    clients = await asyncio.gather(*(connect(node) for _ in range(200)))
    node.terminate()
    await eventually(lambda: has_said(node, "draining"))
    node.terminate()
    assert await asyncio.gather(*(client.closed() for client in clients)) == [3001] * 200
    assert await exit_code(node) == 0
    assert all(reconnect_ms(client) >= 50 for client in clients)


async def test_what_it_wrote_to_redis_is_gone(cluster: Start, redis: Redis, connect: Connect) -> None:
    nodes = cluster(2, drain_seconds=0.2, lease_seconds=60)
    client = await connect(nodes[0])
    await client.subscribe("news")
    mine = client.id.rpartition(".")[0]
    await eventually(lambda: any(mine in key for key in redis.cli("KEYS", "*")))
    nodes[0].terminate()
    assert await exit_code(nodes[0]) == 0
    assert not [key for key in redis.cli("KEYS", "*") if mine in key]
    assert redis.cli("ZSCORE", f"{NAMESPACE}ws:nodes", mine) is None


async def test_redis_need_not_be_there(cluster: Start, redis: Redis, connect: Connect) -> None:
    nodes = cluster(1, drain_seconds=0.5)
    clients = await asyncio.gather(*(connect(nodes[0]) for _ in range(20)))
    redis.stop()
    await eventually(lambda: nodes[0].reasons())
    nodes[0].terminate()
    assert await asyncio.gather(*(client.closed() for client in clients)) == [3001] * 20
    assert await exit_code(nodes[0]) == 0
    assert all(client.received(action="shutdown") for client in clients)


# ---- who comes meanwhile


async def test_a_leaving_node_refuses_new_sockets(cluster: Start, connect: Connect) -> None:
    (node,) = cluster(1, drain_seconds=60)
    clients = await asyncio.gather(*(connect(node) for _ in range(50)))
    node.terminate()
    await eventually(lambda: any(not client.open for client in clients), 60)
    with pytest.raises(InvalidStatus) as refused:
        await connect(node)
    assert refused.value.response.status_code == 503
    assert node.reasons() == ["draining"]
    node.terminate()
    assert await exit_code(node) == 0


async def test_it_waits_until_each_load_balancer_has_seen_it(
    cluster: Start, haproxy: Balance, folder: Path, connect: Connect
) -> None:
    nodes = cluster(2, drain_seconds=0.5)
    other = folder / "other"
    other.mkdir()
    balancers = [
        await asyncio.to_thread(haproxy, nodes.nodes),
        await asyncio.to_thread(lambda: haproxy(nodes.nodes, LB_RUN=other)),
    ]
    client = await connect(nodes[0])
    # Both have asked for a while: a drain knows them.
    checked = [balancer.servers()["gw1"]["lastchg"] for balancer in balancers]
    await eventually(
        lambda: all(int(b.servers()["gw1"]["lastchg"]) >= int(c) + 2 for b, c in zip(balancers, checked, strict=True))
    )
    nodes[0].terminate()
    await client.hear(action="shutdown")
    assert [balancer.servers()["gw1"]["status"].startswith("DOWN") for balancer in balancers] == [True, True]
    assert await exit_code(nodes[0]) == 0


async def test_it_does_not_wait_for_ever(cluster: Start, connect: Connect) -> None:
    (node,) = cluster(1, drain_seconds=0)
    client = await connect(node)
    # A load balancer that asks, and then hears no answer.
    started = time.monotonic()
    async with httpx.AsyncClient(headers={"User-Agent": "lb"}, trust_env=False) as balancer:
        while time.monotonic() - started < 1.5:
            assert (await balancer.get(f"{node.url}/readyz")).status_code == 200
            await asyncio.sleep(0.2)
    node.terminate()
    assert await client.closed(within=10) == 3001
    assert await exit_code(node) == 0
    (drained,) = node.events("drained")
    assert 3 < drained["unready_seconds"] < 6


# ---- orders


@pytest.mark.parametrize("by", ["name", "id"])
async def test_any_node_can_order_it(cluster: Start, connect: Connect, api: Of, by: str) -> None:
    nodes = cluster(2, drain_seconds=0.2)
    client, other = await connect(nodes[0]), await connect(nodes[1])
    node_id = client.id.rpartition(".")[0]
    named = "n1" if by == "name" else node_id
    assert await api(nodes[1]).post(f"/api/nodes/{named}/drain", {}) == {"draining": [node_id]}
    assert await client.closed() == 3001
    assert await exit_code(nodes[0]) == 0
    assert other.open and nodes[1].ready()


async def test_it_can_be_ordered_by_the_command_line(cluster: Start, connect: Connect) -> None:
    nodes = cluster(2, drain_seconds=0.2)
    client = await connect(nodes[0])
    command = [sys.executable, "-m", "gateway", "drain", "n1", "--url", nodes[1].url, "--api-key", API_KEY]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=clean_environment())
    out, _ = await process.communicate()
    assert out.decode() == f"{client.id.rpartition('.')[0]} is draining.\n"
    assert await client.closed() == 3001
    assert await exit_code(nodes[0]) == 0


async def test_a_node_can_order_its_own_drain_though_redis_is_away(
    cluster: Start, redis: Redis, connect: Connect, api: Of
) -> None:
    (node,) = cluster(1, drain_seconds=0.2)
    client = await connect(node)
    redis.stop()
    node_id = client.id.rpartition(".")[0]
    assert await api(node).post(f"/api/nodes/{node_id}/drain", {}) == {"draining": [node_id]}
    assert await exit_code(node) == 0


async def test_a_drain_of_an_unknown_node_is_rejected(plain: Cluster, api: Of) -> None:
    answer = await api(plain[0]).http.post("/api/nodes/unknown/drain")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_of_two_nodes_of_one_name_the_id_decides(cluster: Start, redis: Redis, api: Of) -> None:
    nodes = cluster(2, node="twin")
    rows = (await api(nodes[0]).get("/api/nodes"))["nodes"]
    answer = await api(nodes[0]).http.post("/api/nodes/twin/drain")
    assert answer.status_code == 409
    assert all(row["id"] in answer.json()["error"]["message"] for row in rows)
    assert all(node.ready() for node in nodes)


# ---- all nodes, one after the other


async def test_a_rolling_restart_rejects_no_client_and_loses_nothing(cluster: Start, haproxy: Balance, api: Of) -> None:
    nodes = cluster(3, drain_seconds=1.5)
    balancer = await asyncio.to_thread(lambda: haproxy(nodes.nodes, RL_CUR=5000, RL_CONN=20000, RL_REQ=20000))
    topic = "contest-chat"
    browsers = await asyncio.gather(*(Returning(balancer, topic).start() for _ in range(60)))
    over = asyncio.Event()
    connects, connected_by = 0, list[int]()  # in all; when each node was back
    failures, published = list[str](), list[int]()

    async def come_and_go(cookies: dict[str, str] | None) -> None:
        nonlocal connects
        while not over.is_set():
            connects += 1
            try:
                await (await Client.connect(balancer, cookies=cookies, source=new_source())).leave()
            except (OSError, InvalidHandshake, AssertionError) as error:
                failures.append(repr(error))
            await asyncio.sleep(0.1)

    async def publish() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            # Through a node that is not just restarting, as HAProxy's internal door would choose.
            (result,) = (await api(balancer).post("/api/publish", {"topic": topic, "data": number}))["results"]
            published.append(result["offset"])
            await asyncio.sleep(0.05)

    steady = [asyncio.create_task(work) for work in (come_and_go(None), come_and_go({}), come_and_go({}), publish())]
    for node in nodes:
        await asyncio.to_thread(node.restart)
        await eventually(partial(balancer.up, node), 30, "the restarted node is up for HAProxy")
        connected_by.append(connects)
    over.set()
    await asyncio.gather(*steady)
    # Steadily: some, however slow the machine, while each node was away.
    assert all(later - before > 5 for before, later in itertools.pairwise([0, *connected_by])), connected_by
    assert failures == []
    assert [failure for browser in browsers for failure in browser.failures] == []
    moved = [browser for browser in browsers if len(browser.stays) > 1]
    assert len(moved) >= 40  # two of three nodes' worth at the least
    for browser in browsers:
        await eventually(partial(browser.has_heard, published[-1]))
        received = browser.received()
        assert received == list(range(received[0], published[-1] + 1))  # none lost, none twice, in order
        assert all(browser.recovered)
        assert {stay.code for stay in browser.stays[:-1]} <= {3001}
    await asyncio.gather(*(browser.stop() for browser in browsers))
