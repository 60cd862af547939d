"""After scale-out the surplus of clients moves slowly to the empty node; other clients stay, and no message is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.waiting import eventually
from tests.returning import Returning

Start = Callable[..., Cluster]
Of = Callable[[Front], Api]

TOPIC = "contest-chat"  # the default rules keep its history
BROWSERS = 60


def where(browsers: list[Returning]) -> Counter[str]:
    """How many are on each node."""
    return Counter(browser.node for browser in browsers if browser.client is not None)


async def counted(api: Api, browsers: list[Returning]) -> bool:
    """Whether the registry has all of them."""
    return len(await api.clients()) == len(browsers)


async def test_the_surplus_moves_to_a_new_node_and_stays_there(
    cluster: Start, haproxy: Callable[..., LoadBalancer], api: Of
) -> None:
    nodes = cluster(3)
    balancer = await asyncio.to_thread(haproxy, nodes.nodes)
    nodes[2].terminate()
    await asyncio.to_thread(nodes[2].process.exit_code)
    await eventually(lambda: not balancer.up(nodes[2]))
    # Half of them keep cookies, as browsers do; HAProxy knows the others by their address. Some use a fixed delay, as
    # the first front end does, and ignore the delay that the node asks for.
    browsers = await asyncio.gather(
        *(
            Returning(balancer, TOPIC, keeps_cookies=at % 2 == 0, connect_after=3.0 if at % 3 == 0 else None).start()
            for at in range(BROWSERS)
        )
    )
    assert where(browsers) == {"n1": 30, "n2": 30}
    await asyncio.to_thread(nodes[2].process.spawn)
    await eventually(lambda: balancer.up(nodes[2]), 20)
    await eventually(lambda: counted(api(balancer), browsers))
    before = balancer.servers()

    over = asyncio.Event()
    published: list[int] = []

    async def publish() -> None:
        while not over.is_set():
            (result,) = (await api(balancer).post("/api/publish", {"topic": TOPIC, "data": "tick"}))["results"]
            published.append(result["offset"])
            await asyncio.sleep(0.05)

    publisher = asyncio.create_task(publish())
    answer = await api(balancer).post("/api/rebalance", {"seconds": 5})
    assert {move["node"].rpartition(".")[0]: move["clients"] for move in answer["moves"]} == {"n1": 10, "n2": 10}
    # HAProxy gives a new node its share slowly at first; to move there earlier would be in vain.
    assert 10 < answer["after"] <= 25
    await eventually(lambda: where(browsers) == {"n1": 20, "n2": 20, "n3": 20}, answer["after"] + 30)
    over.set()
    await publisher

    moved = [browser for browser in browsers if len(browser.stays) > 1]
    assert len(moved) == 20
    for browser in moved:
        first, second = browser.stays
        assert first.code == 3011 and second.node == "n3"
        assert first.farewell is not None and 50 <= first.farewell["data"]["reconnectMs"] < 500
    ended = sorted(browser.stays[0].ended for browser in moved)
    assert ended[-1] - ended[0] > 3  # of the 5 s
    for browser in browsers:
        await eventually(partial(browser.has_heard, published[-1]))
        received = browser.received()
        assert received == list(range(received[0], published[-1] + 1))  # none lost, none twice, in order
        assert all(browser.recovered) and not browser.failures
    # The refusals that sent them there did not make HAProxy doubt the nodes.
    after = balancer.servers()
    for name in ("gw1", "gw2"):
        assert int(after[name]["wretr"]) > int(before[name]["wretr"])
        assert after[name]["chkdown"] == before[name]["chkdown"] and after[name]["status"] == "UP"
    # Their cookie, and their address where they have none, lead to the new node from now on.
    for browser in moved:
        client = await Client.connect(balancer, cookies=browser.cookies, source=browser.source)
        assert client.node == "n3"
        await client.leave()
    await asyncio.gather(*(browser.stop() for browser in browsers))


async def test_a_moved_client_that_finds_no_other_node_is_accepted_again(
    cluster: Start, haproxy: Callable[..., LoadBalancer], api: Of
) -> None:
    nodes = cluster(2)
    balancer = await asyncio.to_thread(haproxy, nodes.nodes)
    nodes[1].terminate()
    await asyncio.to_thread(nodes[1].process.exit_code)
    await eventually(lambda: not balancer.up(nodes[1]))
    browsers = await asyncio.gather(*(Returning(balancer, TOPIC).start() for _ in range(10)))
    node_id = browsers[0].client.id.rpartition(".")[0] if browsers[0].client else ""
    # As it would be if the node with room had died after the plan was made.
    nodes.redis.cli("PUBLISH", "gw:ws:control", f'{{"op":"move","node":"{node_id}","keep":0,"seconds":1}}')
    await eventually(lambda: all(len(browser.stays) == 2 for browser in browsers), 20)
    assert where(browsers) == {"n1": 10}
    assert [failure for browser in browsers for failure in browser.failures] == []
    await asyncio.gather(*(browser.stop() for browser in browsers))


async def test_where_all_is_even_nothing_moves(plain: Cluster, api: Of) -> None:
    assert await api(plain[0]).post("/api/rebalance", {}) == {"moves": [], "seconds": 60.0, "after": 0.0}


@pytest.mark.parametrize("body", [{"seconds": -1}, {"seconds": "5"}, {"seconds": True}, {"seconds": 1e9}, [], 5])
async def test_a_bad_request_is_refused(plain: Cluster, api: Of, body: Any) -> None:
    answer = await api(plain[0]).http.post("/api/rebalance", json=body)
    assert answer.status_code == 400


async def test_one_rebalance_at_a_time(cluster: Start, haproxy: Callable[..., LoadBalancer], api: Of) -> None:
    nodes = cluster(1, lease_seconds=1)
    client = await Client.connect(nodes[0])
    node_id = client.id.rpartition(".")[0]
    nodes.redis.cli("PUBLISH", "gw:ws:control", f'{{"op":"move","node":"{node_id}","keep":1,"seconds":0}}')

    async def busy() -> bool:
        return (await api(nodes[0]).http.post("/api/rebalance", json={})).status_code == 409

    await eventually(busy)
    assert client.open
    await client.leave()
