"""The load balancer with the repository's configuration, in front of real nodes."""

from __future__ import annotations

import http.client
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.conftest import Connect
from tests.kit.client import Api, Client, Front, new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, Node
from tests.kit.waiting import eventually

ApiOf = Callable[[Front], Api]
Balancers = Callable[..., LoadBalancer]


def ask(url: str, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """The answer to a request whose path is sent as it stands: no client tidies it up."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        answer.read()
        return answer
    finally:
        connection.close()


# ---- stickiness


async def test_the_same_cookie_reaches_the_same_node(front: LoadBalancer, plain: Cluster, connect: Connect) -> None:
    for _ in range(3):
        jar: dict[str, str] = {}
        first = await connect(front, cookies=jar, source=new_source())
        assert "GW" in jar
        again = [await connect(front, cookies=jar, source=new_source()) for _ in range(5)]
        assert {client.node for client in again} == {first.node}


async def test_a_source_without_cookies_always_reaches_the_same_node(
    front: LoadBalancer, plain: Cluster, connect: Connect
) -> None:
    nodes = set()
    for _ in range(6):
        source = new_source()
        clients = [await connect(front, source=source) for _ in range(4)]
        assert len({client.node for client in clients}) == 1
        nodes.add(clients[0].node)
    assert len(nodes) > 1


async def test_a_second_browser_behind_one_address_gets_a_cookie_too(
    front: LoadBalancer, plain: Cluster, connect: Connect
) -> None:
    source = new_source()
    for _ in range(3):
        jar: dict[str, str] = {}
        first = await connect(front, cookies=jar, source=source)
        assert "GW" in jar
        assert (await connect(front, cookies=jar, source=new_source())).node == first.node


async def test_a_cookie_moves_no_neighbour(front: LoadBalancer, plain: Cluster, connect: Connect) -> None:
    """A client with a cookie for another node leaves the entry of the address it shares alone."""
    source, jar = new_source(), dict[str, str]()
    neighbour = await connect(front, source=source)
    while (await connect(front, cookies=jar, source=new_source())).node == neighbour.node:
        jar.clear()
    assert (await connect(front, cookies=jar, source=source)).node != neighbour.node
    assert (await connect(front, source=source)).node == neighbour.node


async def test_a_second_socket_of_a_browser_may_avoid_the_node_of_the_first(
    front: LoadBalancer, plain: Cluster, connect: Connect
) -> None:
    jar: dict[str, str] = {}
    first = await connect(front, cookies=jar, source=new_source())
    cookie = dict(jar)
    for _ in range(5):
        second = await connect(f"{front.ws}?avoid={first.node}", cookies=jar, source=new_source())
        assert second.node != first.node
    assert jar == cookie
    assert (await connect(front, cookies=jar, source=new_source())).node == first.node


async def test_a_client_that_avoids_the_only_node_is_accepted(
    cluster: Callable[..., Cluster], haproxy: Balancers, connect: Connect
) -> None:
    [node] = cluster(1)
    front = haproxy([node])
    assert (await connect(f"{front.ws}?avoid={node.name}")).node == node.name
    assert (await connect(f"{node.ws}?avoid={node.name}")).node == node.name  # no other node accepts it


async def test_the_page_gives_the_cookie_that_the_socket_uses(
    front: LoadBalancer, plain: Cluster, connect: Connect
) -> None:
    answer = ask(front.url, "/")
    assert answer.status == 200
    cookie = answer.getheader("Set-Cookie") or ""
    assert cookie.startswith("GW=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    jar = {"GW": cookie.removeprefix("GW=").partition(";")[0]}
    assert len({(await connect(front, cookies=dict(jar), source=new_source())).node for _ in range(4)}) == 1


# ---- what is public


@pytest.mark.parametrize(
    "path",
    [
        "/api/publish", "/api/nodes", "/api/openapi.json", "/metrics", "/%6detrics", "/%6Detrics", "//metrics",
        "/metrics/", "/METRICS", "/readyz", "/%72eadyz", "/api/../metrics", "/ws/../metrics", "/ws/../api/nodes",
        "/static/../metrics", "/static/%2e%2e/metrics", "/static//x.js", "/static/.hidden", "/api/v69/ws/../nodes",
        "/api/v69/nodes", "/ws/", "/ws%2f", "/stats", "/stats;csv", "/nothing",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_is_not_listed_is_not_there(front: LoadBalancer, plain: Cluster, path: str, method: str) -> None:
    key = {"Authorization": f"Bearer {API_KEY}"}
    assert ask(front.url, path, method, key).status == 404


def test_what_is_public_is_there(front: LoadBalancer, plain: Cluster) -> None:
    assert ask(front.url, "/").status == 200
    assert ask(front.url, "/healthz").status == 200
    assert ask(front.url, "/ws").status == 426
    assert ask(front.url, "/", "POST").status == 405


def test_the_internal_side_has_the_api_and_the_balancers_own_figures(front: LoadBalancer, plain: Cluster) -> None:
    assert ask(front.admin, "/api/nodes", headers={"Authorization": f"Bearer {API_KEY}"}).status == 200
    assert ask(front.admin, "/api/nodes").status == 401
    assert ask(front.admin, "/metrics").status == 200
    assert ask(front.admin, "/stats").status == 200
    assert ask(front.admin, "/healthz").status == 200
    assert ask(front.admin, "/readyz").status == 404
    assert ask(front.admin, "/nothing").status == 404


async def test_the_console_is_on_the_internal_side_alone_and_so_is_its_socket(
    front: LoadBalancer, plain: Cluster, connect: Connect
) -> None:
    assert ask(front.url, "/console").status == 404
    assert ask(front.admin, "/static/icon.svg").status == 200
    assert ask(front.admin, "/static/../metrics").status == 404
    assert ask(front.url, "/api/ws").status == 404
    assert ask(front.admin, "/api/ws").status == 426
    await connect(front.admin.replace("http", "ws") + "/api/ws", origin=front.admin)
    with pytest.raises(InvalidStatus) as refusal:
        await connect(front.admin.replace("http", "ws") + "/api/ws", origin=front.url)
    assert refusal.value.response.status_code == 403


async def test_the_internal_side_sets_no_cookie_and_spreads(front: LoadBalancer, plain: Cluster, api: ApiOf) -> None:
    answer = await api(front).http.get("/api/nodes")
    assert "set-cookie" not in answer.headers
    assert {node["name"] for node in answer.json()["nodes"]} == {"n1", "n2", "n3"}


async def test_a_foreign_origin_is_refused(front: LoadBalancer, plain: Cluster, connect: Connect) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(front, origin="https://elsewhere.example")
    assert refusal.value.response.status_code == 403
    await connect(front, origin=front.url)


async def test_a_listed_origin_is_accepted(
    cluster: Callable[..., Cluster], haproxy: Balancers, connect: Connect
) -> None:
    ours = "https://app.example"
    nodes = cluster(1, origins=ours)
    balancer = haproxy(nodes.nodes, LB_ORIGINS=f"https://other.example {ours}")
    await connect(balancer, origin=ours)


@pytest.mark.parametrize("origin", ["https://app.example", 'https://a"b\\c'])
def test_a_refused_origin_is_named_with_the_settings_that_permit_it(
    front: LoadBalancer, plain: Cluster, origin: str
) -> None:
    for door, settings in ((front, ["LB_ORIGINS", "GATEWAY_ORIGINS", "LB_TRUSTED"]), (plain[0], ["GATEWAY_ORIGINS"])):
        answer = httpx.get(f"{door.url}/sse", headers={"Origin": origin}, trust_env=False)
        assert answer.status_code == 403
        message = answer.json()["error"]["message"]
        assert message.startswith(f"origin {origin} may not connect to {door.url}; ")
        assert [setting for setting in settings if setting not in message] == []


@pytest.mark.parametrize(
    "smuggled",
    [
        {"X-Forwarded-For": "6.6.6.6"},
        {"X-Forwarded-For": "127.0.0.1, 6.6.6.6"},
        {"Forwarded": "for=6.6.6.6"},
        {"X-Real-IP": "6.6.6.6"},
        {"x_forwarded_for": "6.6.6.6"},
    ],
    ids=str,
)
async def test_an_address_that_the_client_claims_is_not_believed(
    front: LoadBalancer, plain: Cluster, connect: Connect, api: ApiOf, smuggled: dict[str, str]
) -> None:
    source = new_source()
    through = await connect(front, source=source, headers=smuggled)
    direct = await connect(plain[0], source=source, headers=smuggled)
    for client in (through, direct):
        assert await ip_of(api(front), client) == source


async def ip_of(api: Api, client: Client) -> str:
    """The address that the registry has of a client."""

    async def is_listed() -> bool:
        return (await api.http.get(f"/api/clients/{client.id}")).status_code == 200

    await eventually(is_listed)
    return str((await api.get(f"/api/clients/{client.id}"))["ip"])


# ---- nodes that leave


async def test_a_draining_node_gets_no_new_client_and_keeps_its_old_ones_a_while(
    cluster: Callable[..., Cluster], haproxy: Balancers, connect: Connect
) -> None:
    nodes = cluster(2, drain_seconds=60)
    leaver, stayer = nodes
    balancer = haproxy(nodes.nodes)
    jar = await jar_for(leaver, balancer, connect)
    old = [await connect(balancer, cookies=dict(jar), source=new_source()) for _ in range(30)]
    assert {client.node for client in old} == {leaver.name}

    leaver.terminate()
    await eventually(lambda: balancer.down(leaver), 5)
    new = [await connect(balancer, cookies=dict(jar), source=new_source()) for _ in range(5)]
    new += [await connect(balancer, source=new_source()) for _ in range(5)]
    assert {client.node for client in new} == {stayer.name}
    assert leaver.process.alive
    assert sum(client.open for client in old) > 15
    staying = [client for client in old if client.open][-1]
    assert (await staying.subscribe("still-served"))["operation"] == "subscribe"


async def test_a_dead_nodes_clients_go_elsewhere_at_once(
    cluster: Callable[..., Cluster], haproxy: Balancers, connect: Connect
) -> None:
    nodes = cluster(3)
    balancer = haproxy(nodes.nodes)
    jar = await jar_for(nodes[0], balancer, connect)
    nodes[0].kill()
    delays = []
    landed: Counter[str] = Counter()
    for _ in range(10):
        started = time.monotonic()
        landed[(await connect(balancer, cookies=dict(jar), source=new_source())).node] += 1
        delays.append(time.monotonic() - started)
    assert landed.keys() == {"n2", "n3"}
    assert max(delays) < 1, "a client waited until HAProxy had noticed"


async def test_the_balancer_answers_503_if_no_node_is_ready(
    cluster: Callable[..., Cluster], haproxy: Balancers, connect: Connect
) -> None:
    nodes = cluster(1)
    balancer = haproxy(nodes.nodes)
    nodes[0].kill()
    await eventually(lambda: ask(balancer.url, "/healthz").status == 503)
    with pytest.raises(InvalidStatus) as refusal:
        await connect(balancer)
    assert refusal.value.response.status_code == 503


async def jar_for(node: Node, balancer: LoadBalancer, connect: Connect) -> dict[str, str]:
    """The cookies of a browser that HAProxy has put on `node`."""
    while True:
        jar: dict[str, str] = {}
        client = await connect(balancer, cookies=jar, source=new_source())
        if client.node == node.name:
            return jar
