"""The cache over HTTP: all nodes return a value that was written through one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.cache.cache import connect
from gateway.cache.store import MAX_VALUE_BYTES
from tests.contract import Contract
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.redis import Redis

Of = Callable[[Front], Api]


@pytest.mark.parametrize("key", ["contest:5", "a/b?c=d#e%", "é", "x" * 500])
async def test_a_value_put_on_one_node_is_there_on_all(plain: Cluster, api: Of, key: str) -> None:
    contract, quoted = Contract(), _quoted(key)
    put = await api(plain[0]).http.put(f"/api/cache/{quoted}", json={"value": {"a": None}, "ttlSeconds": 60})
    assert put.status_code == 200, put.text
    contract.check(put)
    for node in plain:
        got = await api(node).http.get(f"/api/cache/{quoted}")
        contract.check(got)
        assert (got.json()["key"], got.json()["value"]) == (key, {"a": None})
        assert 50 < got.json()["ttlSeconds"] <= 60
    gone = await api(plain[1]).http.delete(f"/api/cache/{quoted}")
    contract.check(gone)
    assert gone.json() == {"deleted": True}
    assert (await api(plain[1]).http.get(f"/api/cache/{quoted}")).status_code == 404
    assert (await api(plain[0]).http.delete(f"/api/cache/{quoted}")).json() == {"deleted": False}


async def test_a_prefix_is_cleared(plain: Cluster, api: Of) -> None:
    http = api(plain[0]).http
    for key in ("clear:1", "clear:2", "kept:1"):
        await http.put(f"/api/cache/{key}", json={"value": None})
    cleared = await http.delete("/api/cache", params={"prefix": "clear:"})
    Contract().check(cleared)
    assert cleared.json() == {"cleared": 2}
    assert (await http.get("/api/cache/kept:1")).json()["value"] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/cache/none", None, 404),
        ("GET", "/api/cache/a%20b", None, 400),
        ("GET", "/api/cache/%7Ba%7D", None, 400),
        ("GET", "/api/cache/" + "x" * 501, None, 400),
        ("DELETE", "/api/cache", None, 400),
        ("DELETE", "/api/cache?prefix=a%20b", None, 400),
        ("PUT", "/api/cache/a", {}, 400),
        ("PUT", "/api/cache/a", [], 400),
        ("PUT", "/api/cache/a", {"value": 1, "ttl": 5}, 400),
        ("PUT", "/api/cache/a", {"value": 1, "ttlSeconds": 0}, 400),
        ("PUT", "/api/cache/a", {"value": 1, "ttlSeconds": True}, 400),
        ("PUT", "/api/cache/a", {"value": 1, "ttlSeconds": "60"}, 400),
        ("PUT", "/api/cache/a", {"value": "x" * MAX_VALUE_BYTES}, 413),
        ("PUT", "/api/cache/a", {"value": "x" * 2 * MAX_VALUE_BYTES}, 413),
    ],
)
async def test_what_cannot_be_is_refused(
    plain: Cluster, api: Of, method: str, path: str, body: object, status: int
) -> None:
    answer = await api(plain[0]).http.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    Contract().check(answer)


async def test_the_api_answers_503_without_redis(cluster: Callable[..., Cluster], redis: Redis, api: Of) -> None:
    node = cluster(1)[0]
    http = api(node).http
    await http.put("/api/cache/a", json={"value": 1})
    redis.stop()
    for answer in (
        await http.get("/api/cache/b"),
        await http.put("/api/cache/a", json={"value": 1}),
        await http.delete("/api/cache/a"),
        await http.delete("/api/cache?prefix=a"),
    ):
        assert answer.status_code == 503, answer.text
        Contract().check(answer)
    redis.start()


async def test_what_it_does_is_counted(cluster: Callable[..., Cluster], api: Of) -> None:
    [node] = cluster(1)
    http = api(node).http
    for _ in range(2):
        assert (await http.get("/api/cache/counted")).status_code == 404
    assert (await http.put("/api/cache/counted", json={"value": "four"})).status_code == 200
    for _ in range(3):
        assert (await http.get("/api/cache/counted")).status_code == 200
    text = len('"four"')

    def count(name: str, **labels: str) -> float:
        return node.metric(f"gateway_cache_{name}", **labels)

    assert [count("reads_total", found=how) for how in ("miss", "redis", "near")] == [2, 1, 2]
    assert count("writes_total", result="ok") == 1
    assert [count("bytes_total", direction=way) for way in ("written", "read")] == [text, text]
    assert count("near_values") == 1
    assert count("near_bytes") >= text


async def test_nodes_and_other_programs_share_it(plain: Cluster, front: LoadBalancer, api: Of) -> None:
    async with connect(plain.redis.url) as cache:
        await cache.set("shared", [1], strict=True)
        assert (await api(front).http.get("/api/cache/shared")).json()["value"] == [1]


def _quoted(key: str) -> str:
    return "".join(f"%{byte:02X}" for byte in key.encode())
