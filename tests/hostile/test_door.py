"""Hosts, origins and the headers of every response, at a node and through HAProxy."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import orjson
import pytest
from websockets.exceptions import InvalidStatus

from tests.conftest import Connect
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, Node
from tests.kit.raw import exchange
from tests.kit.waiting import eventually

Balancers = Callable[..., LoadBalancer]

STRICT = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


async def head(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a request as it stands."""
    answer = await exchange(port, request)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


@pytest.mark.parametrize("target", ["/", "/metrics", "/api/nodes", "/static/page.js", "/nothing"])
async def test_a_host_that_is_not_ours_is_not_served(front: LoadBalancer, plain: Cluster, target: str) -> None:
    """DNS rebinding: the page and the socket would be of one origin, but the host is not ours."""
    request = f"GET {target} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode()
    status, body = await head(plain[0].port, request)
    assert status == 421
    assert orjson.loads(body)["error"]["code"] == "wrong_host"
    assert (await head(front.port, request))[0] in (404, 421)


@pytest.mark.parametrize("path", ["/ws", "/api/v69/ws"])
async def test_a_socket_for_a_foreign_host_gets_421(
    front: LoadBalancer, plain: Cluster, connect: Connect, path: str
) -> None:
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
async def test_a_page_of_another_site_opens_no_socket(
    front: LoadBalancer, plain: Cluster, connect: Connect, origin: str
) -> None:
    """Cross-site WebSocket hijacking: the browser would send the user's cookies."""
    for door in (plain[0], front):
        with pytest.raises(InvalidStatus) as refusal:
            await connect(door, origin=origin)
        assert refusal.value.response.status_code == 403
        assert orjson.loads(refusal.value.response.body or b"")["error"]["code"] in (403, "forbidden")


async def test_every_origin_header_must_be_permitted(front: LoadBalancer, plain: Cluster) -> None:
    for door in (plain[0], front):
        host = door.url.removeprefix("http://")
        for origins in ([door.url, "https://evil.example"], ["https://evil.example", door.url]):
            lines = "".join(f"Origin: {origin}\r\n" for origin in origins)
            request = (
                f"GET /ws HTTP/1.1\r\nHost: {host}\r\n{lines}Upgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert (await head(door.port, request.encode()))[0] in (400, 403)


async def test_every_response_has_the_security_headers(front: LoadBalancer, plain: Cluster) -> None:
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
    front: LoadBalancer, plain: Cluster, path: str, method: str, headers: dict[str, str], status: int
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
    front: LoadBalancer, plain: Cluster, lines: str, status: int
) -> None:
    request = (
        f"POST /api/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {API_KEY}\r\n{lines}\r\n"
        "Connection: close\r\n\r\n"
    )
    port = int(front.admin.rpartition(":")[2])
    got, body = await head(port, request.encode())
    assert got == status
    assert orjson.loads(body)["error"].keys() == {"code", "message"}


# ---- origins of apps, and the scheme

APPS = [
    "capacitor://localhost", "ionic://localhost", "tauri://localhost", "chrome-extension://abcdefghijklmnop",
    "moz-extension://1f0a-22", "app://obsidian.md", "file://", "null", "https://app.example:8443",
]  # fmt: skip


async def test_apps_connect_once_they_are_listed(
    cluster: Callable[..., Cluster], haproxy: Balancers, plain: Cluster, connect: Connect
) -> None:
    (node,) = cluster(1, origins=",".join(APPS))
    balancer = haproxy([node], LB_ORIGINS=" ".join(APPS))
    for origin in APPS:
        for door in (node, balancer):
            assert (await connect(door, origin=origin)).open
            opened = await opened_by(door, origin)
            assert opened.status_code == 200
            assert opened.headers["access-control-allow-origin"] == origin
        with pytest.raises(InvalidStatus):
            await connect(plain[0], origin=origin)
    for origin in ("capacitor://localhost.evil.example", "capacitor://", "nulls", "file:///x", "app://other"):
        for door in (node, balancer):
            with pytest.raises(InvalidStatus):
                await connect(door, origin=origin)


async def opened_by(door: Node | LoadBalancer, origin: str) -> httpx.Response:
    """The answer to a page of that origin that opens a stream."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"{door.url}/poll", headers={"Origin": origin})


def with_scheme(door: Node | LoadBalancer, scheme: str) -> str:
    """The door's own origin, but for the scheme."""
    return f"{scheme}://{door.url.removeprefix('http://')}"


async def test_the_scheme_counts_for_our_own_host_too(front: LoadBalancer, plain: Cluster, connect: Connect) -> None:
    for door in (plain[0], front):
        await connect(door, origin=with_scheme(door, "http"))
        for scheme in ("https", "ws", "capacitor"):
            with pytest.raises(InvalidStatus) as refusal:
                await connect(door, origin=with_scheme(door, scheme))
            assert refusal.value.response.status_code == 403
            opened = await opened_by(door, with_scheme(door, scheme))
            assert opened.status_code == 403
            assert "access-control-allow-origin" not in opened.headers


async def test_behind_a_trusted_proxy_that_ends_tls_the_page_is_an_https_one(
    plain: Cluster, front: LoadBalancer, haproxy: Balancers, connect: Connect
) -> None:
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.7"}
    trusting = haproxy(plain.nodes, LB_TRUSTED="127.0.0.1")
    for door in (plain[0], trusting):  # a node trusts 127.0.0.1 by default
        await connect(door, origin=with_scheme(door, "https"), headers=said)
        with pytest.raises(InvalidStatus):
            await connect(door, origin=with_scheme(door, "http"), headers=said)
    with pytest.raises(InvalidStatus):  # this one trusts no proxy
        await connect(front, origin=with_scheme(front, "https"), headers=said)


# ---- subprotocols, paths, bodies, versions

ASKS = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{lines}\r\n"
)


@pytest.mark.parametrize(
    ("lines", "status", "chosen"),
    [
        ("Sec-WebSocket-Protocol:\r\n", 101, None), ("Sec-WebSocket-Protocol: , \r\n", 101, None),
        ("Sec-WebSocket-Protocol:\r\nSec-WebSocket-Protocol:\r\n", 101, None),
        ("Sec-WebSocket-Protocol: a, a\r\n", 101, b"a"), ("Sec-WebSocket-Protocol: , b, c\r\n", 101, b"b"),
        ("Sec-WebSocket-Protocol: a b\r\n", 400, None), ("Sec-WebSocket-Protocol: a, (\r\n", 400, None),
    ],
)  # fmt: skip
async def test_a_list_of_subprotocols_may_be_empty(
    front: LoadBalancer, plain: Cluster, lines: str, status: int, chosen: bytes | None
) -> None:
    for door in (plain[0], front):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(ASKS.format(path="/ws", lines=lines).encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.transport.abort()
        assert int(answer.split(b" ", 2)[1]) == status
        found = re.search(rb"(?i)sec-websocket-protocol: *(.*)\r\n", answer)
        assert (found[1] if found else None) == chosen
    await eventually(lambda: sum(node.metric("gateway_connections") for node in plain) == 0, 30, "all are gone")


@pytest.mark.parametrize("path", ["/ws", "/api/v69/ws", "/api/ws"])
async def test_a_plain_get_of_a_socket_gets_upgrade_required(front: LoadBalancer, plain: Cluster, path: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for url in (plain[0].url, front.admin if path == "/api/ws" else front.url):
            answer = await client.get(url + path)
            assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")
            assert answer.json()["error"]["code"] == "upgrade_required"


@pytest.mark.parametrize("name", ["a/history", "a/presence", "a/history/history", "/history", "a//b", "a/b"])
async def test_an_encoded_slash_belongs_to_the_topics_name(
    front: LoadBalancer, plain: Cluster, connect: Connect, name: str
) -> None:
    await (await connect(plain[0])).subscribe(name)
    headers = {"Authorization": f"Bearer {API_KEY}"}
    encoded = name.replace("/", "%2F")
    async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
        for url in (plain[0].url, front.admin):

            async def is_counted(at: str = f"{url}/api/topics/{encoded}") -> bool:
                found = (await client.get(at)).json()
                return bool(found.get("topic") == name and found["subscribers"] == 1)

            await eventually(is_counted)
            listed = await client.get(f"{url}/api/topics/{encoded}/history")
            assert (listed.status_code, listed.json()["error"]["code"]) == (404, "not_found")
            assert "no history" in listed.json()["error"]["message"]
            key = f"{url}/api/cache/{encoded}%2F%252F"
            assert (await client.put(key, json={"value": 1})).json() == {"key": f"{name}/%2F"}
            assert (await client.get(key)).json()["value"] == 1
            for path in (f"services/x{encoded}", f"clients/x{encoded}", f"clients/x/topics/{encoded}"):
                answer = await client.request("DELETE", f"{url}/api/{path}")
                assert answer.status_code in (400, 404), path
                assert "There is nothing at" not in answer.text


@pytest.mark.parametrize("size", [3 << 20, 5 << 20, 20 << 20])
async def test_a_large_publish_gets_413_or_401_for_every_framing(
    front: LoadBalancer, plain: Cluster, folder: Path, size: int
) -> None:
    body = b'{"topic": "t", "data": "' + b"x" * size + b'"}'
    (folder / "body").write_bytes(body)
    for url in (plain[0].url, front.admin):
        for key, status in ((API_KEY, 413), ("wrong", 401)):
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
                answer = await client.post(f"{url}/api/publish", content=body)
                assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
                closing = await client.post(f"{url}/api/publish", content=body, headers={"Connection": "close"})
                assert closing.status_code == status
            for more in (["--header", "Expect:"], ["--http1.0"], ["--header", "Expect: 100-continue"]):
                code = await curl(
                    f"{url}/api/publish", "--data-binary", f"@{folder / 'body'}", *more,
                    "--header", f"Authorization: Bearer {key}",
                )  # fmt: skip
                # HAProxy itself denies every body that waits for "100 Continue".
                assert code == str(status) or (code == "413" and "100" in more[-1] and url == front.admin)
    async with httpx.AsyncClient(trust_env=False) as client:
        for url in (plain[0].url, front.url):
            for path in ("/say", "/poll"):
                assert (await client.post(url + path, content=body)).status_code == 413


async def curl(*words: str) -> str:
    """The status that curl has read; it must have failed at nothing."""
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--noproxy", "*", "--output", "/dev/null", "--write-out", "%{http_code}",
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err
    return out.decode()


async def test_a_body_with_a_content_encoding_is_rejected(front: LoadBalancer, plain: Cluster) -> None:
    body = gzip.compress(b'{"topic": "t", "data": 1}')
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Encoding": "gzip"}
    async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
        for url in (plain[0].url, front.admin):
            answer = await client.post(f"{url}/api/publish", content=body)
            assert answer.status_code == 415
            assert "Content-Encoding: gzip" in answer.json()["error"]["message"]
            plainly = {"Content-Encoding": "identity"}
            assert (await client.post(f"{url}/api/publish", json={"topic": "t", "data": 1}, headers=plainly)).is_success
        for url in (plain[0].url, front.url):
            assert (await client.post(f"{url}/say", content=body)).status_code == 415


@pytest.mark.parametrize("path", ["/sse?topic=t", "/", "/static/page.js", "/healthz", "/nothing", "/ws", "/readyz"])
async def test_an_answer_to_http_1_0_is_not_in_chunks(front: LoadBalancer, plain: Cluster, path: str) -> None:
    for door in (plain[0], front):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b"chunked" not in answer.lower()
        if path.startswith("/sse"):
            assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"data: {")
        else:
            await asyncio.wait_for(reader.read(), 10)
        writer.transport.abort()
    await eventually(lambda: sum(node.metric("gateway_connections") for node in plain) == 0, 30, "all are gone")


@pytest.mark.parametrize(
    "path",
    [
        "/static/console/main.js", "/static/console/", "/static/console", "/static/console/views/live.js",
        "/static/%63onsole/main.js", "/static/console%2Fmain.js", "/static%2Fconsole%2Fmain.js",
        "/static/./console/main.js",
        "/static//console/main.js", "/static/client/../console/main.js", "/static/client/%2e%2e/console/main.js",
        "/static/CONSOLE/main.js", "/static/console/../console/main.js", "/gateway.js/../static/console/main.js",
        "/static/console;x/main.js", "/static/console\\main.js", "/console/main.js",
    ],
)  # fmt: skip
async def test_the_console_is_not_on_the_public_port(front: LoadBalancer, plain: Cluster, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    status, body = await head(front.port, request)
    assert status in (400, 404)
    assert b"import" not in body


async def test_all_that_the_pages_load_is_on_their_port(front: LoadBalancer, plain: Cluster) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for url, page in ((front.url, "/"), (front.admin, "/console")):
            text = (await client.get(url + page)).text
            found = {path for path in re.findall(r'(?:src|href)="(/[^"#]*)"', text) if path != "/"}
            assert any(path.startswith("/static/") for path in found)
            for path in found:
                assert (await client.get(url + path)).status_code == 200, path
        assert (await client.get(f"{front.admin}/static/console/main.js")).status_code == 200
        assert (await client.get(f"{front.url}/static/client/gateway.js")).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (gzip.compress(b"{}", mtime=0), 415, "encoded (Content-Encoding: gzip"),
        (b'{"topic": "\xff"}', 400, "not UTF-8 text"),
        (b"", 400, "The body is empty"),
        (b"{", 400, "The body is not JSON"),
    ],
)
async def test_a_body_that_is_no_json_gets_the_reason(plain: Cluster, body: bytes, status: int, says: str) -> None:
    async with httpx.AsyncClient(trust_env=False, headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        answer = await client.post(f"{plain[0].url}/api/publish", content=body)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
    assert "str is not" not in answer.text


@pytest.mark.parametrize(
    ("query", "says"),
    [("topic=no%20topic", "the topic 'no topic'"), ("&".join(f"topic=t{at}" for at in range(21)), "21 topics")],
)
async def test_topics_in_the_url_that_cannot_be_are_named(plain: Cluster, query: str, says: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{plain[0].url}/sse?{query}")
    assert answer.status_code == 400
    assert f"cannot subscribe to {says}: give the parameter topic at most 20 times" in answer.json()["error"]["message"]
