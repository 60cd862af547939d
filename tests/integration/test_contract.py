"""Every response of the API matches its description, also for invalid requests and without Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.http.api.resource import MAX_LIMIT
from gateway.http.api.router import document
from tests.conftest import Connect
from tests.contract import Contract
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.node import API_KEY
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

CONTRACT = Contract()
ODD_USER = "a/b c:d?e#f%g/clients"

Ask = Callable[[Front], httpx.AsyncClient]


@pytest.fixture
def ask(api: Callable[[Front], Api]) -> Ask:
    """`ask(node)`: HTTP with the key, and each answer held against the description."""

    async def check(response: httpx.Response) -> None:
        await response.aread()
        CONTRACT.check(response)

    def of(front: Front) -> httpx.AsyncClient:
        http = api(front).http
        http.event_hooks = {"response": [check]}
        return http

    return of


def requests(**values: str) -> list[tuple[str, str]]:
    """Each described operation that needs the key, as method and path."""
    sent = {"id": "n1.0.1", "topic": "contest-chat", "user": "ann", "node": "n0", "key": "k", "service": "feed"}
    sent |= values
    return [
        (method.upper(), path.format(**sent))
        for method, path, operation in CONTRACT.operations()
        if "security" not in operation
    ]


def of_redis(**values: str) -> list[tuple[str, str]]:
    """Those that Redis has to answer: what a key is good for, the node knows."""
    return [(method, path) for method, path in requests(**values) if path != "/api/key"]


def code(response: httpx.Response) -> tuple[int, str]:
    """Status and error code."""
    return response.status_code, response.json()["error"]["code"]


async def test_the_description_is_open_to_all_and_the_codes_own(plain: Cluster, ask: Ask) -> None:
    http = ask(plain[0])
    http.headers.pop("Authorization")
    answer = await http.get("/api/openapi.json")
    assert (answer.status_code, answer.json()) == (200, document())


async def test_every_operation_does_as_described(plain: Cluster, ask: Ask, connect: Connect) -> None:
    http = ask(plain[0])
    client = await connect(plain[1], user="ann", role="superadmin")
    anonymous = await connect(plain[2])
    await asyncio.gather(client.subscribe("described", "a/b:c"), anonymous.subscribe("described"))

    async def counted() -> bool:
        return bool((await http.get("/api/topics/described")).json()["subscribers"] == 2)

    await eventually(counted)
    for path in ("/api/topics", "/api/topics/a%2Fb:c", "/api/nodes", f"/api/clients/{client.id}"):
        assert (await http.get(path)).status_code == 200
    everything: dict[str, str | int] = {
        "user": "ann",
        "ip": "127.0.0.1",
        "topic": "described",
        "node": "n2",
        "limit": MAX_LIMIT,
        "cursor": "0.0",
    }
    assert set(everything) == {p["name"] for p in CONTRACT.document["paths"]["/api/clients"]["get"]["parameters"]}
    page = (await http.get("/api/clients", params=everything)).json()
    assert [row["id"] for row in page["clients"]] == [client.id]
    assert len((await http.get("/api/clients", params={"limit": 1})).json()["clients"]) == 1
    message = {"topic": "described", "data": 1}
    assert (await http.post("/api/publish", json=message)).json() == {"results": [{"topic": "described"}]}
    assert (await http.post("/api/publish", json={"messages": [message] * 3})).status_code == 200
    taken = await http.delete(f"/api/clients/{client.id}/topics/a%2Fb:c")
    assert taken.json() == {"unsubscribed": ["a/b:c"]}
    assert (await http.delete(f"/api/clients/{anonymous.id}")).json() == {"disconnected": [anonymous.id]}
    assert (await http.delete("/api/users/ann/clients")).json() == {"disconnected": [client.id]}
    assert await client.closed() == await anonymous.closed() == 3503


@pytest.mark.parametrize(("method", "path"), requests())
async def test_no_operation_answers_without_the_key(plain: Cluster, ask: Ask, method: str, path: str) -> None:
    http = ask(plain[0])
    http.headers["Authorization"] = "Bearer wrong"
    assert code(await http.request(method, path)) == (401, "unauthorized")


@pytest.mark.parametrize(("method", "path"), requests())
async def test_a_parameter_that_is_unknown_is_refused(plain: Cluster, ask: Ask, method: str, path: str) -> None:
    answer = await ask(plain[0]).request(method, f"{path}?usr=ann", content=b'{"topic":"t","data":1}')
    assert code(answer) == (400, "bad_request")
    assert "'usr'" in answer.json()["error"]["message"]


async def test_a_parameter_that_is_given_twice_is_refused(plain: Cluster, ask: Ask) -> None:
    assert code(await ask(plain[0]).get("/api/clients?user=ann&user=bob")) == (400, "bad_request")


@pytest.mark.parametrize("cursor", ["", "x", "n1.0.", "n1.0.x", ".1", "n1.0.1%20", "n1.0.1%0A", "%C2%B2.1", "n1.0.-1"])
async def test_a_cursor_that_was_never_given_is_refused_and_does_not_begin_again(
    plain: Cluster, ask: Ask, cursor: str
) -> None:
    assert code(await ask(plain[0]).get(f"/api/clients?cursor={cursor}")) == (400, "bad_request")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/publish", {"POST"}),
        ("GET", "/api/publish", {"POST"}),
        ("POST", "/api/clients", {"GET", "HEAD"}),
        ("POST", "/api/clients/n1.0.1", {"GET", "HEAD", "DELETE"}),
        ("GET", "/api/clients/n1.0.1/topics/t", {"DELETE"}),
        ("GET", "/api/users/ann/clients", {"DELETE"}),
        ("DELETE", "/api/topics/t", {"GET", "HEAD"}),
        ("GET", "/api/nodes/n1/drain", {"POST"}),
        ("GET", "/api/rebalance", {"POST"}),
        ("POST", "/api/services/feed", {"GET", "HEAD", "PUT", "DELETE"}),
    ],
)
async def test_another_method_is_answered_with_all_that_may_be(
    plain: Cluster, ask: Ask, method: str, path: str, allowed: set[str]
) -> None:
    answer = await ask(plain[0]).request(method, path)
    assert code(answer) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/api/", "/api/nothing", "/api/clients/a%2Fb", "/nothing", "/static/nothing"])
async def test_a_path_that_leads_nowhere_is_named(plain: Cluster, ask: Ask, path: str) -> None:
    answer = await ask(plain[0]).get(path)
    assert code(answer) == (404, "not_found")
    assert path.replace("%2F", "/") in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/clients/n1.0.1"),
        ("DELETE", "/api/clients/n1.0.1"),
        ("DELETE", "/api/clients/n1.0.1/topics/t"),
        ("GET", "/api/topics/no%20topic"),
        ("GET", "/api/topics/" + "t" * 201),
        ("DELETE", "/api/users//clients"),
        ("POST", "/api/nodes/n0/drain"),
        ("GET", "/api/services/nobodys"),
        ("DELETE", "/api/services/nobodys"),
        ("PUT", "/api/services/no%20service"),
    ],
)
async def test_what_does_not_exist_is_not_found(plain: Cluster, ask: Ask, method: str, path: str) -> None:
    assert code(await ask(plain[0]).request(method, path)) == (404, "not_found")


async def test_a_service_is_reported_shown_and_forgotten(plain: Cluster, ask: Ask) -> None:
    http = ask(plain[0])
    report = {
        "status": "degraded", "leaseSeconds": 30, "instance": "w1", "lastError": "slow", "dependsOn": ["reported-db"],
        "version": 7, "stats": {"operations": 3},
    }  # fmt: skip
    answer = await http.put("/api/services/reported", json=report)
    assert answer.json() == {"service": "reported", "instance": "w1", "version": 7}
    assert code(await http.put("/api/services/reported", json={**report, "version": 6})) == (409, "outdated")
    assert (await http.put("/api/services/reported-db", json={"status": "active", "leaseSeconds": 30})).json()[
        "version"
    ]
    shown = (await ask(plain[1]).get("/api/services/reported")).json()
    assert (shown["status"], shown["lastError"], shown["running"]) == ("degraded", "slow", 1)
    assert shown["dependencies"] == [{"service": "reported-db", "status": "active"}]
    needed = (await http.get("/api/services/reported-db")).json()
    assert needed["dependants"] == [{"service": "reported", "status": "degraded"}]
    listed = (await http.get("/api/services")).json()["services"]
    assert {"reported", "reported-db", "gateway.bus", "gateway.announcer"} <= {one["service"] for one in listed}
    for name in ("reported", "reported-db"):
        assert (await http.delete(f"/api/services/{name}")).json() == {"forgotten": name}
        assert code(await http.get(f"/api/services/{name}")) == (404, "not_found")


@pytest.mark.parametrize(
    ("report", "wrong"),
    [
        ([], "status"),
        ({}, "leaseSeconds"),
        ({"leaseSeconds": 5}, "status"),
        ({"status": "fine", "leaseSeconds": 5}, "status"),
        ({"status": "active", "leaseSeconds": 0}, "leaseSeconds"),
        ({"status": "active", "leaseSeconds": True}, "leaseSeconds"),
        ({"status": "active", "leaseSeconds": 5, "instance": "a b"}, "instance"),
        ({"status": "active", "leaseSeconds": 5, "token": 1}, "token"),
        ({"status": "active", "leaseSeconds": 5, "colour": 1}, "colour"),
    ],
)
async def test_a_report_that_cannot_be_is_refused(plain: Cluster, ask: Ask, report: Any, wrong: str) -> None:
    answer = await ask(plain[0]).put("/api/services/never", json=report)
    assert code(answer) == (400, "bad_request")
    assert wrong in answer.json()["error"]["message"]


async def test_a_topic_that_the_client_does_not_hear_cannot_be_taken(
    plain: Cluster, ask: Ask, connect: Connect
) -> None:
    client, http = await connect(plain[0]), ask(plain[1])

    async def listed() -> bool:
        return (await http.get(f"/api/clients/{client.id}")).status_code == 200

    await eventually(listed)
    assert code(await http.delete(f"/api/clients/{client.id}/topics/t")) == (404, "not_found")


async def test_a_user_of_any_name_is_found_and_disconnected(plain: Cluster, ask: Ask, connect: Connect) -> None:
    client, other = await connect(plain[1], user=ODD_USER), await connect(plain[1], user="a/b c:d?e#f%g")
    http = ask(plain[0])

    async def listed() -> bool:
        return len((await http.get("/api/clients", params={"node": "n2"})).json()["clients"]) == 2

    await eventually(listed)
    path = "/api/users/a%2Fb%20c%3Ad%3Fe%23f%25g%2Fclients/clients"
    assert (await http.delete(path)).json() == {"disconnected": [client.id]}
    assert await client.closed() == 3503
    assert other.open


async def test_a_body_that_is_too_large_is_refused_however_it_comes(plain: Cluster, ask: Ask) -> None:
    async def drops() -> Any:
        for _ in range(3):
            yield b"x" * (1 << 20)

    http = ask(plain[0])
    assert code(await http.post("/api/publish", content=drops())) == (413, "too_large")
    large = {"topic": "t", "data": "x" * (1 << 20)}
    assert code(await http.post("/api/publish", json=large)) == (413, "too_large")
    assert code(await http.post("/api/publish", json={"messages": [large, large]})) == (413, "too_large")


async def test_a_body_that_breaks_off_is_no_fault_of_the_node(plain: Cluster, ask: Ask) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", plain[0].port)
    writer.write(
        b"POST /api/publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + API_KEY.encode() +
        b"\r\nContent-Length: 100\r\n\r\n{"
    )  # fmt: skip
    await writer.drain()
    assert (await ask(plain[0]).get("/api/nodes")).status_code == 200  # meanwhile it has read the beginning
    writer.close()
    await writer.wait_closed()
    assert (await ask(plain[0]).get("/api/nodes")).status_code == 200
    # `plain` finds no fault in the node's log


async def test_a_key_may_be_any_text(cluster: Callable[..., Cluster], ask: Ask) -> None:
    key = "schlüssel-Ключ"
    (node,) = cluster(1, api_key=key)
    answer = await ask(node).get("/api/nodes", headers={b"Authorization": f"Bearer {key}".encode()})
    assert answer.status_code == 200


async def test_without_a_key_of_its_own_a_node_refuses_all(cluster: Callable[..., Cluster], ask: Ask) -> None:
    (node,) = cluster(1, api_key="")
    http = ask(node)
    for method, path in requests():
        assert code(await http.request(method, path)) == (403, "api_off")
    assert (await http.get("/api/openapi.json")).status_code == 200


def body(path: str) -> bytes:
    """One that is right there."""
    if path.startswith("/api/cache/"):
        return b'{"value":1}'
    if path == "/api/revocations":
        return b'{"jti":"t"}'
    if path.startswith("/api/services/"):
        return b'{"status":"active","leaseSeconds":1}'
    if path == "/api/broadcast":
        return b'{"topics":["t"],"data":1}'
    if path.endswith("/topics"):
        return b'{"topics":["t"]}'
    return b'{"seconds":1}' if path == "/api/rebalance" else b'{"topic":"t","data":1}'


def query(path: str) -> dict[str, str]:
    """What must stand in it there."""
    return {"prefix": "k"} if path == "/api/cache" else {}


async def test_without_redis_nothing_is_pretended(
    cluster: Callable[..., Cluster], redis: Redis, ask: Ask, connect: Connect
) -> None:
    (node,) = cluster(1)
    client = await connect(node)
    http = ask(node)
    redis.stop()
    for method, path in of_redis(id=client.id):
        answer = await http.request(method, path, content=body(path), params=query(path))
        assert code(answer) == (503, "unavailable"), (method, path)
        assert answer.headers["retry-after"] == "1"
    assert client.open, "who was to be disconnected still is there, as the answer said"


async def test_a_request_waits_for_a_frozen_redis_only_until_its_deadline(
    cluster: Callable[..., Cluster], redis: Redis, ask: Ask
) -> None:
    (node,) = cluster(1, redis_timeout_seconds=0.5)
    http = ask(node)
    redis.freeze()
    try:
        async with asyncio.timeout(10):
            answers = await asyncio.gather(
                *(http.request(method, path, content=body(path), params=query(path)) for method, path in of_redis())
            )
        assert {code(answer) for answer in answers} == {(503, "unavailable")}
    finally:
        redis.thaw()
