"""Who comes in by which name: hosts, origins, and what every answer says, at a node and through HAProxy."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import orjson
import pytest
from websockets.exceptions import InvalidStatus

from tests.cluster import API_KEY, Balancer, Cluster
from tests.conftest import Connect
from tests.raw import exchange

Balancers = Callable[..., Balancer]

STRICT = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


async def head(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a request as it stands."""
    answer = await exchange(port, request)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


@pytest.mark.parametrize("target", ["/", "/metrics", "/api/nodes", "/static/page.js", "/nothing"])
async def test_a_name_that_a_stranger_points_here_is_not_served(front: Balancer, plain: Cluster, target: str) -> None:
    """DNS rebinding: the page and the socket would be of one origin, but the host is not ours."""
    request = f"GET {target} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode()
    status, body = await head(plain[0].port, request)
    assert status == 421
    assert orjson.loads(body)["error"]["code"] == "wrong_host"
    assert (await head(front.port, request))[0] in (404, 421)


@pytest.mark.parametrize("path", ["/ws", "/api/v69/ws"])
async def test_nor_is_its_socket(front: Balancer, plain: Cluster, connect: Connect, path: str) -> None:
    for door in (plain[0], front):
        request = (
            f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert (await head(door.port, request.encode()))[0] == 421


async def test_a_listed_name_is_served(cluster: Callable[..., Cluster]) -> None:
    (node,) = cluster(1, hosts="live.example,*.apps.example")
    for host, status in (("live.example:8080", 200), ("a.apps.example", 200), ("other.example", 421)):
        request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        assert (await head(node.port, request))[0] == status


@pytest.mark.parametrize("hosts", ["", "Host: a\r\nHost: b\r\n", "Host: a\r\nHost: a\r\n"])
async def test_a_request_has_one_host(plain: Cluster, hosts: str) -> None:
    request = f"GET /metrics HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n".encode()
    assert (await head(plain[0].port, request))[0] == 400


@pytest.mark.parametrize(
    "origin",
    [
        "https://elsewhere.example", "null", "http://localhost.evil.example", "file://", "http://", "//", "x",
        "http://127.0.0.1", "http://[", "chrome-extension://abc",
    ],
)  # fmt: skip
async def test_a_page_from_elsewhere_opens_no_socket(
    front: Balancer, plain: Cluster, connect: Connect, origin: str
) -> None:
    """Cross-site WebSocket hijacking: the browser would send the user's cookies."""
    for door in (plain[0], front):
        with pytest.raises(InvalidStatus) as refusal:
            await connect(door, origin=origin)
        assert refusal.value.response.status_code == 403
        assert orjson.loads(refusal.value.response.body or b"")["error"]["code"] in (403, "forbidden")


async def test_of_two_origins_both_must_be_ours(front: Balancer, plain: Cluster) -> None:
    for door in (plain[0], front):
        host = door.url.removeprefix("http://")
        for origins in ([door.url, "https://evil.example"], ["https://evil.example", door.url]):
            lines = "".join(f"Origin: {origin}\r\n" for origin in origins)
            request = (
                f"GET /ws HTTP/1.1\r\nHost: {host}\r\n{lines}Upgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert (await head(door.port, request.encode()))[0] in (400, 403)


async def test_every_answer_says_what_a_browser_may_do_with_it(front: Balancer, plain: Cluster) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for path in ("/", "/static/page.js", "/static/nothing", "/nothing", "/api/nodes", "/api/openapi.json",
                     "/metrics", "/healthz", "/readyz"):  # fmt: skip
            answer = await client.get(plain[0].url + path)
            assert answer.headers.items() >= STRICT.items(), path
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert "server" not in answer.headers
        assert (await client.get(plain[0].url + "/static/page.js")).headers["cache-control"] == "no-cache"
        assert (await client.get(plain[0].url + "/api/nodes")).headers["cache-control"] == "no-store"
        for door in (front.url, front.admin):
            for path in ("/", "/healthz", "/nothing", "/ws", "/api/nodes"):
                answer = await client.get(door + path)
                assert answer.headers["x-content-type-options"] == "nosniff", (door, path)
                assert "server" not in answer.headers, (door, path)


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/nothing", "GET", {}, 404),
        ("/", "POST", {}, 405),
        ("/", "GET", {"Content-Length": "5"}, 413),
        ("/ws", "GET", {}, 426),
        ("/ws", "GET", {"Origin": "https://elsewhere.example", "Upgrade": "websocket"}, 403),
    ],
    ids=str,
)  # fmt: skip
async def test_what_the_balancer_refuses_is_refused_in_json(
    front: Balancer, plain: Cluster, path: str, method: str, headers: dict[str, str], status: int
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{lines}Connection: close\r\n\r\n"
    got, body = await head(front.port, request.encode())
    assert got == status
    error = orjson.loads(body)["error"]
    assert error.keys() == {"code", "message"}


@pytest.mark.parametrize(
    ("lines", "status"), [("Transfer-Encoding: chunked", 411), ("Content-Length: 9999999", 413)], ids=str
)
async def test_bodies_at_the_internal_door_have_a_length_and_a_limit(
    front: Balancer, plain: Cluster, lines: str, status: int
) -> None:
    request = (
        f"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {API_KEY}\r\n{lines}\r\n"
        "Connection: close\r\n\r\n"
    )
    port = int(front.admin.rpartition(":")[2])
    got, body = await head(port, request.encode())
    assert got == status
    assert orjson.loads(body)["error"].keys() == {"code", "message"}
