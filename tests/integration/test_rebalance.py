"""After scale-out the surplus moves to the empty nodes, slowly; nobody else is touched, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.client import Api, Front
from tests.cluster import Balancer, Cluster
from tests.deadlines import eventually, until
from tests.returning import Returning

ApiOf = Callable[[Front], Api]

TOPIC = "contest-chat"  # the default rules keep its history


@pytest.fixture
async def crowd() -> AsyncIterator[Callable[[Front, int], Any]]:
    """`await crowd(balancer, 60)`: so many browsers that come back."""
    browsers: list[Returning] = []

    async def come(front: Front, n: int) -> list[Returning]:
        new = await asyncio.gather(*(Returning(front, TOPIC).start() for _ in range(n)))
        browsers.extend(new)
        return list(new)

    yield come
    await asyncio.gather(*(browser.stop() for browser in browsers))


async def post(api: Api, path: str, **body: Any) -> Any:
    """The answer to a POST, which is 200."""
    answer = await api.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def where(browsers: list[Returning]) -> Counter[str]:
    """How many are on each node."""
    return Counter(browser.node for browser in browsers if browser.client is not None)


async def scaled_out(cluster: Callable[..., Cluster], haproxy: Callable[..., Balancer], **settings: object) -> Any:
    """Three nodes behind a balancer, the third of them down."""
    nodes = cluster(3, **settings)
    balancer = haproxy(nodes.nodes, RL_CUR=1000)
    nodes[2].terminate()
    assert nodes[2].process.exit_code() == 0
    until(lambda: not balancer.up(nodes[2]), what="HAProxy has seen it leave")
    return nodes, balancer


@pytest.mark.parametrize("slow_start", [True, False])
async def test_probe(
    cluster: Callable[..., Cluster], haproxy: Callable[..., Balancer], crowd: Any, api: ApiOf, slow_start: bool
) -> None:
    nodes, balancer = await asyncio.to_thread(lambda: asyncio.run(scaled_out(cluster, haproxy)))
    browsers = await crowd(balancer, 60)
    print(where(browsers))
    nodes[2].process.spawn()
    await eventually(lambda: balancer.up(nodes[2]), 20)
    if not slow_start:
        await eventually(lambda: balancer.servers()["gw3"]["weight"] == "100", 40)
    await eventually(lambda: nodes[2].ready())
    print(balancer.servers()["gw3"]["weight"])
    told = await post(api(nodes[0]), "/api/rebalance", seconds=5)
    print(told)
    for _ in range(10):
        await asyncio.sleep(1)
        print(where(browsers), {k: (v["status"], v["weight"], v["scur"], v["wretr"], v["wredis"], v["chkdown"]) for k, v in balancer.servers().items()})
    print(Counter((s.code, len(b.stays)) for b in browsers for s in b.stays), [b.failures for b in browsers if b.failures])
