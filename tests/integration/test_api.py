"""The HTTP API against a running cluster."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Connect
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.node import API_KEY
from tests.kit.waiting import eventually

ApiOf = Callable[[Front], Api]


@pytest.fixture
def back_end(plain: Cluster, api: ApiOf) -> Api:
    """The API of any node."""
    return api(plain[0])


async def listed(api: Api, clients: list[Client], **by: str) -> None:
    """Wait until the registry lists exactly `clients` by these filters."""

    async def holds() -> bool:
        return {row["id"] for row in await api.clients(**by)} == {client.id for client in clients}

    await eventually(holds)


@pytest.mark.parametrize(
    "header", [None, "", API_KEY, f"Basic {API_KEY}", "Bearer", f"Bearer {API_KEY}x", "Bearer é", "Bearer x y"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/publish"), ("GET", "/api/topics"), ("GET", "/api/topics/x"), ("GET", "/api/clients"),
        ("GET", "/api/clients/n1.1.1"), ("DELETE", "/api/clients/n1.1.1"), ("DELETE", "/api/users/ann/clients"),
        ("DELETE", "/api/clients/n1.1.1/topics/x"), ("GET", "/api/nodes"),
    ],
)  # fmt: skip
async def test_the_api_answers_nothing_without_the_key(
    plain: Cluster, back_end: Api, method: str, path: str, header: str | None
) -> None:
    back_end.http.headers.pop("Authorization")
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    answer = await back_end.http.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("topic", ["system", "service", "circuit-breaker", "gateway:figures", "gateway:x"])
async def test_only_the_gateway_publishes_on_its_own_topics(back_end: Api, topic: str) -> None:
    answer = await back_end.http.post(
        "/api/publish", json={"messages": [{"topic": "t", "data": 1}, {"topic": topic, "data": 1}]}
    )
    assert answer.status_code == 403
    assert "is reserved" in answer.json()["error"]["message"]


async def test_a_node_without_a_key_has_no_api(cluster: Callable[..., Cluster], api: ApiOf) -> None:
    (node,) = cluster(1, api_key="")
    for header in ("Bearer", "Bearer x"):
        answer = await api(node).http.get("/api/nodes", headers={"Authorization": header})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "api_off")


async def test_a_client_is_listed_with_what_is_known_of_it(plain: Cluster, back_end: Api, connect: Connect) -> None:
    client = await connect(plain[1], user="ann", role="admin", source="127.0.9.9", headers={"User-Agent": "Tests/1"})
    await client.subscribe("b", "a")
    await listed(back_end, [client], topic="a")
    row = await back_end.get(f"/api/clients/{client.id}")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row.pop("connectedAt"))
    assert row == {
        "id": client.id, "node": client.id.rpartition(".")[0], "ip": "127.0.9.9", "userAgent": row["userAgent"],
        "transport": "websocket", "user": "ann", "role": "admin", "topics": ["a", "b"],
    }  # fmt: skip
    assert "Tests/1" in row["userAgent"]
    assert (await back_end.clients(user="ann"))[0]["id"] == client.id
    await client.close()
    await listed(back_end, [], user="ann")
    assert (await back_end.http.get(f"/api/clients/{client.id}")).status_code == 404


async def test_clients_are_found_by_user_topic_and_node(plain: Cluster, back_end: Api, connect: Connect) -> None:
    clients = [await connect(node, user=user) for node in plain for user in ("ann", "bob", None)]
    await asyncio.gather(*(client.subscribe("even" if at % 2 == 0 else "odd") for at, client in enumerate(clients)))
    await listed(back_end, clients)
    await listed(back_end, clients[::2], topic="even")
    await listed(back_end, clients[1::2], topic="odd")
    await listed(back_end, clients[0::3], user="ann")
    await listed(back_end, clients[3:6], node="n2")
    await listed(back_end, clients[3:6], node=clients[3].id.rpartition(".")[0])
    await listed(back_end, [clients[0], clients[6]], user="ann", topic="even")
    await listed(back_end, [clients[4]], user="bob", topic="even", node="n2")
    await listed(back_end, [], user="unknown")
    await listed(back_end, [], ip="203.0.113.7")
    away = await connect(plain[2], source="127.0.9.10")
    await listed(back_end, [away], ip="127.0.9.10")
    await listed(back_end, [], node="n9")


@pytest.mark.parametrize("limit", [1, 2, 4, 7, 8])
async def test_pages_hold_every_client_once(plain: Cluster, back_end: Api, connect: Connect, limit: int) -> None:
    clients = [await connect(node, user="paged" if at % 3 else "other") for node in plain for at in range(4)]
    await listed(back_end, clients)
    found: list[str] = []
    pages, query = 0, dict[str, Any](limit=limit, user="paged")
    while True:
        page = await back_end.get("/api/clients", **query)
        assert len(page["clients"]) <= limit
        found += [row["id"] for row in page["clients"]]
        pages += 1
        if page["next"] is None:
            break
        query["cursor"] = page["next"]
    wanted = sorted(client.id for at, client in enumerate(clients) if at % 4 % 3)
    assert sorted(found) == wanted
    assert pages == -(-len(wanted) // limit)


async def test_a_page_goes_on_where_its_last_client_has_left(plain: Cluster, back_end: Api, connect: Connect) -> None:
    clients = [await connect(plain[0]) for _ in range(4)]
    await listed(back_end, clients)
    page = await back_end.get("/api/clients", limit=2)
    assert page["next"] == clients[1].id
    await clients[1].close()
    await listed(back_end, [clients[0], *clients[2:]])
    rest = await back_end.get("/api/clients", limit=2, cursor=page["next"])
    assert [row["id"] for row in rest["clients"]] == [clients[2].id, clients[3].id]
    assert rest["next"] is None


async def node_ids(back_end: Api) -> list[str]:
    """Ids of the living nodes."""
    return [row["id"] for row in (await back_end.get("/api/nodes"))["nodes"]]


async def test_topics_are_counted_over_all_nodes(plain: Cluster, back_end: Api, connect: Connect) -> None:
    clients = [await connect(node) for node in (plain[0], plain[0], plain[2])]
    await asyncio.gather(*(client.subscribe("counted", "a/b:c.d-e") for client in clients))
    ids = [client.id.rpartition(".")[0] for client in clients]
    row = {"topic": "counted", "subscribers": 3, "nodes": {ids[0]: 2, ids[2]: 1}}

    async def reported(path: str, wanted: Any, **query: str | int) -> None:
        async def holds() -> bool:
            return bool(await back_end.get(path, **query) == wanted)

        await eventually(holds)

    await reported("/api/topics/counted", row)
    await reported("/api/topics/a/b:c.d-e", {**row, "topic": "a/b:c.d-e"})
    other, totals = {**row, "topic": "a/b:c.d-e"}, {**dict.fromkeys(await node_ids(back_end), 0), ids[0]: 2, ids[2]: 2}
    await reported("/api/topics", {"topics": [other, row], "next": None, "nodes": totals})
    await reported("/api/topics", {"topics": [other], "next": "a/b:c.d-e", "nodes": totals}, limit=1)
    await reported("/api/topics", {"topics": [row], "next": None, "nodes": totals}, limit=1, after="a/b:c.d-e")
    await reported("/api/topics", {"topics": [row], "next": None, "nodes": totals}, contains="nte")
    await reported("/api/topics", {"topics": [], "next": None, "nodes": totals}, contains="*")
    await clients[0].unsubscribe("counted")
    await clients[2].close()
    await reported("/api/topics/counted", {"topic": "counted", "subscribers": 1, "nodes": {ids[0]: 1}})
    await reported("/api/topics/unheard", {"topic": "unheard", "subscribers": 0, "nodes": {}})


async def test_nodes_are_listed(plain: Cluster, back_end: Api, connect: Connect) -> None:
    client = await connect(plain[1])
    await listed(back_end, [client])
    nodes: list[Any] = []

    async def are_told() -> bool:  # a node writes its row at its next beat
        nodes[:] = (await back_end.get("/api/nodes"))["nodes"]
        return [(node["name"], node["clients"], node["ready"], node["draining"]) for node in nodes] == [
            ("n1", 0, True, False), ("n2", 1, True, False), ("n3", 0, True, False),
        ]  # fmt: skip

    await eventually(are_told)
    assert [node["address"] for node in nodes] == [f"127.0.0.1:{node.port}" for node in plain]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"5", 400),
        (b"{}", 400),
        (b'{"topic":"refused"}', 400),
        (b'{"topic":"no good","data":1}', 400),
        (b'{"topic":"refused","data":1,"extra":1}', 400),
        (b'{"messages":[]}', 400),
        (b'{"messages":{}}', 400),
        (b'{"messages":[{"topic":"refused","data":1}],"topic":"refused"}', 400),
        (b'{"messages":[{"topic":"refused","data":1},{"topic":"refused"}]}', 400),
        (b'{"messages":[{"topic":"refused","data":1},5]}', 400),
        (b'{"messages":[' + b",".join([b'{"topic":"refused","data":1}'] * 1001) + b"]}", 400),
        (b'{"topic":"refused","data":' + b"[" * 300 + b"]" * 300 + b"}", 400),
        (b'{"topic":"refused","data":1,"to":{}}', 400),
        (b'{"topic":"refused","data":1,"to":{"user":"a","role":"b"}}', 400),
        (b'{"topic":"refused","data":1,"to":{"planet":"x"}}', 400),
        (b'{"topic":"refused","data":1,"to":{"client":"a b"}}', 400),
        (b'{"topic":"refused","data":1,"to":{"user":"a"},"except":"n1.1.1"}', 400),
        (b'{"messages":[{"topic":"refused","data":1},{"topic":"refused","data":"' + b"x" * (1 << 20) + b'"}]}', 413),
        (b'{"topic":"refused","data":"' + b"x" * (2 << 20) + b'"}', 413),
    ],
    ids=lambda value: repr(value)[:70],
)
async def test_a_publish_is_refused_whole(
    plain: Cluster, back_end: Api, connect: Connect, body: bytes, status: int
) -> None:
    client = await connect(plain[1])
    await client.subscribe("refused")
    answer = await back_end.http.post("/api/publish", content=body)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"code", "message"}
    await back_end.publish("refused", "fence")
    await client.hear(type="DATA")
    assert client.data() == ["fence"]


async def test_a_publish_may_say_more_than_data(plain: Cluster, back_end: Api, connect: Connect) -> None:
    client = await connect(plain[2])
    await client.subscribe("rich")
    answer = await back_end.http.post(
        "/api/publish",
        json={"topic": "rich", "data": None, "action": "a", "subtype": "ß", "priority": "high", "tags": {"é": "b"}},
    )
    assert answer.json() == {"results": [{"topic": "rich"}]}
    received = await client.hear(type="DATA")
    assert (
        received.items()
        >= {"data": None, "action": "a", "subtype": "ß", "priority": "high", "tags": {"é": "b"}}.items()
    )


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=10001", "limit=%C2%B2", "colour=red", "limit="]
)
async def test_a_question_that_makes_no_sense_is_refused(plain: Cluster, back_end: Api, query: str) -> None:
    answer = await back_end.http.get(f"/api/clients?{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/clients/n1.unknown.1", 404), ("DELETE", "/api/clients/n1.unknown.1", 404),
        ("GET", "/api/clients/rubbish", 404), ("DELETE", "/api/clients/n1.unknown.1/topics/x", 404),
        ("GET", "/api/topics/no%20good", 404), ("GET", "/api/nothing", 404), ("GET", "/api/publish", 405),
        ("PUT", "/api/nodes", 405),
    ],
)  # fmt: skip
async def test_errors_for_missing_resources_have_the_api_form(
    plain: Cluster, back_end: Api, method: str, path: str, status: int
) -> None:
    answer = await back_end.http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"code", "message"}
