"""Several load balancers in front of the same nodes: each of them leads a browser to its node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import WebSocketException

from tests.conftest import Connect
from tests.kit.client import new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.nameserver import NameServer
from tests.kit.node import Node
from tests.kit.process import Host, free_port
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

Pair = tuple[LoadBalancer, LoadBalancer]


@pytest.fixture
def nodes(cluster: Callable[..., Cluster]) -> Cluster:
    """Three."""
    return cluster(3)


@pytest.fixture
def pair(nodes: Cluster, folder: Path) -> Iterator[Pair]:
    """Two that know of each other. They list the nodes in different orders, as two that find them by DNS do."""
    peers = {"LB1": f"127.0.0.1:{free_port()}", "LB2": f"127.0.0.1:{free_port()}"}
    with ExitStack() as stack:

        def start(name: str, order: int) -> LoadBalancer:
            (folder / name).mkdir()
            return stack.enter_context(LoadBalancer(nodes[::order], folder / name, LB_NAME=name, **peers))

        yield start("lb1", 1), start("lb2", -1)


async def test_the_cookie_of_one_leads_to_the_same_node_through_the_other(pair: Pair, connect: Connect) -> None:
    for first, second in (pair, pair[::-1]):
        reached = set()
        for _ in range(4):
            jar: dict[str, str] = {}
            node = (await connect(first, cookies=jar, source=new_source())).node
            server = jar["GW"].partition("|")[0]  # behind it stands when it was given, for its end
            again = [await connect(second, cookies=jar, source=new_source()) for _ in range(3)]
            assert {client.node for client in again} == {node}
            assert jar["GW"].partition("|")[0] == server
            reached.add(node)
        assert len(reached) > 1, "all on one node would prove nothing"


async def test_a_source_without_a_cookie_that_one_knows_is_known_by_the_other(pair: Pair, connect: Connect) -> None:
    for first, second in (pair, pair[::-1]):
        reached = set()
        for _ in range(4):
            source = new_source()
            node = (await connect(first, source=source)).node
            await eventually(lambda source=source, second=second: source in second.stuck())  # type: ignore[misc]
            assert (await connect(second, source=source)).node == node
            reached.add(node)
        assert len(reached) > 1


async def test_with_one_killed_its_clients_find_their_nodes_through_the_other(pair: Pair, connect: Connect) -> None:
    first, second = pair
    known, jars = {}, {}
    for _ in range(4):
        source, jar = new_source(), dict[str, str]()
        known[source] = (await connect(first, source=source)).node
        jars[(await connect(first, source=new_source(), cookies=jar)).node] = jar
    await eventually(lambda: known.keys() <= second.stuck().keys())
    first.kill()
    with pytest.raises((OSError, WebSocketException)):
        await connect(first)
    assert {source: (await connect(second, source=source)).node for source in known} == known
    for node, jar in jars.items():
        assert (await connect(second, source=new_source(), cookies=jar)).node == node
    # What it missed it is taught when it is back.
    late = new_source()
    known[late] = (await connect(second, source=late)).node
    first.start()
    await eventually(lambda: known.keys() <= first.stuck().keys())
    assert {source: (await connect(first, source=source)).node for source in known} == known


async def test_after_a_reload_a_source_is_still_known(pair: Pair, connect: Connect) -> None:
    first, second = pair
    source = new_source()
    node = (await connect(first, source=source)).node
    await eventually(lambda: source in second.stuck())
    [worker] = first.process.children()
    first.reload()
    await eventually(lambda: set(first.process.children()) - {worker})
    # The old worker teaches the new one; where that fails, HAProxy asks the other load balancer after 5 s.
    await eventually(lambda: source in first.stuck(), 30)
    assert (await connect(first, source=source)).node == node


async def test_each_counts_for_itself_what_a_source_does(pair: Pair, connect: Connect) -> None:
    first, second = pair
    source = new_source()
    await connect(first, source=source)
    await eventually(lambda: source in second.stuck())
    assert source in first.ask("show table rl_req")
    assert source not in second.ask("show table rl_req")


async def test_nodes_are_found_by_a_name_as_they_come_and_go(folder: Path, redis: Redis, connect: Connect) -> None:
    port = free_port()
    with ExitStack() as stack:
        nodes = [stack.enter_context(Node(f"n{at}", folder, redis, Host(f"127.0.2.{at}"), port)) for at in range(1, 4)]
        names = stack.enter_context(NameServer(["127.0.2.1", "127.0.2.2"]))
        sent = {"GW_DNS": "gateway.example", "GW_PORT": port, "GW_MAX": 4, "LB_NS": names.address}
        balancer = stack.enter_context(LoadBalancer([], folder, **sent))
        until(lambda: balancer.up(nodes[0]) and balancer.up(nodes[1]), 20)
        jar: dict[str, str] = {}
        first = await connect(balancer, cookies=jar, source=new_source())
        reached = {(await connect(balancer, source=new_source())).node for _ in range(8)}
        assert reached == {"n1", "n2"}
        names.addresses.append("127.0.2.3")
        until(lambda: balancer.up(nodes[2]), 20)
        names.addresses.remove("127.0.2.1" if first.node == "n2" else "127.0.2.2")
        gone = nodes[0] if first.node == "n2" else nodes[1]
        until(lambda: not balancer.up(gone), 20)
        assert (await connect(balancer, cookies=jar, source=new_source())).node == first.node
        assert first.open
