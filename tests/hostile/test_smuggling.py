"""Ambiguous requests: none of them reaches a path behind the public port that is not public."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.kit.client import new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY
from tests.kit.raw import exchange

# What only the nodes' API and metrics, or the balancer's statistics, would say.
INTERNAL = (
    b"gateway_connections",
    b'"nodes"',
    b'"clients"',
    b"openapi",
    b"haproxy_",
    b"pxname",
    b'"ready"',
    b"results",
)
KEY = f"Authorization: Bearer {API_KEY}\r\n"


def discloses(answer: bytes) -> list[bytes]:
    """The internal things that are in an answer."""
    return [word for word in INTERNAL if word in answer]


@pytest.mark.parametrize(
    "path",
    [
        "/metrics", "/%6detrics", "/%6Detrics", "//metrics", "///metrics", "/./metrics", "/metrics/", "/metrics?",
        "/metrics;x", "/metrics%00", "/metrics%20", "/METRICS", "\\metrics", "/\\metrics", "/api/../metrics",
        "/ws/../metrics", "/ws/%2e%2e/metrics", "/ws%2f..%2fmetrics", "/static/../metrics", "/static/%2e%2e/metrics",
        "/static/..%2f..%2fmetrics", "/static/..;/metrics", "/static//..//metrics", "/gateway.js/../api/nodes",
        "/gateway.js/../metrics", "/healthz/../metrics", "/console/../api/nodes", "/console/%2e%2e/metrics",
        "/console", "/console/", "/%63onsole", "//console", "/console?/gateway.js", "/console%3f", "/api",
        "/api/", "/api/nodes", "//api/nodes", "/%61pi/nodes", "/api%2fnodes", "/API/nodes", "/api/v69/../nodes",
        "/api/ws", "/%61pi/ws", "/api/v69/../ws", "/ws/../api/ws",
        "/api/v69/ws/../../nodes", "/api/v69/ws%2f..%2f..%2fnodes", "/api/openapi.json", "/readyz", "/%72eadyz",
        "/stats", "/stats;csv", "/%73tats", "/haproxy?stats", "/?/../metrics", "/#/../metrics", "*", "metrics",
        "http://localhost/metrics", "http://localhost//metrics", "http://127.0.0.1:9000/metrics",
        "/ws\t/../metrics", "/../metrics", "/..;/metrics", "/static/page.js/../../../metrics",
    ],
)  # fmt: skip
async def test_no_path_leads_behind_the_public_port(front: LoadBalancer, plain: Cluster, path: str) -> None:
    for method in ("GET", "POST"):
        answer = await exchange(
            front.port,
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{KEY}Connection: close\r\n\r\n".encode(),
            source=new_source(),
        )
        assert not discloses(answer), answer
        assert not answer or int(answer.split(b" ", 2)[1]) in (200, 400, 404, 405), answer
        if b"/../" in path.encode() or "metrics" in path or "nodes" in path:
            assert b" 200 " not in answer[:16] or path.startswith(("/?", "/#")), answer


HIDDEN = f"GET /api/nodes HTTP/1.1\r\nHost: localhost\r\n{KEY}\r\n".encode()
METRICS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)

# Lines of a head that different programs may read in different ways.
FRAMING = [
    "Content-Length: {size}\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: {size}",
    "Content-Length: 0\r\nContent-Length: {size}",
    "Content-Length: {size}\r\nContent-Length: 0",
    "Content-Length: 0, {size}",
    "Content-Length: +0",
    "Content-Length: -1",
    "Content-Length: 0x0",
    "Content-Length : 0",
    "Content-Length: 0\r\n Transfer-Encoding: chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding:\x0bchunked",
    "Transfer-Encoding: \x00chunked",
    " Transfer-Encoding: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 7\r\nSec-WebSocket-Key: x",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x",
    "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    "Connection: X-Forwarded-For\r\nX-Forwarded-For: 127.0.0.1",
    "Expect: 100-continue\r\nContent-Length: {size}",
]


@pytest.mark.parametrize("hidden", [HIDDEN, METRICS], ids=["api", "metrics"])
@pytest.mark.parametrize(
    "lines",
    FRAMING,
    ids=ascii,
)
async def test_no_request_hides_in_another(front: LoadBalancer, plain: Cluster, lines: str, hidden: bytes) -> None:
    for method, path in (("GET", "/"), ("POST", "/"), ("GET", "/ws")):
        for body in (hidden, b"0\r\n\r\n" + hidden, CHUNK):
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n" + lines.format(size=len(body)) + "\r\n\r\n"
            answer = await exchange(front.port, head.encode("latin-1") + body, source=new_source())
            assert not discloses(answer), answer


async def test_http_0_9_and_1_0_are_no_way_around(front: LoadBalancer, plain: Cluster) -> None:
    for request in (b"GET /metrics\r\n\r\n", b"GET /metrics HTTP/1.0\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n",
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT 127.0.0.1:9000 HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"TRACE / HTTP/1.1\r\nHost: localhost\r\nMax-Forwards: 0\r\n\r\n"):  # fmt: skip
        answer = await exchange(front.port, request + METRICS, source=new_source())
        assert not discloses(answer), answer


async def test_many_headers_and_large_cookies_are_refused_and_cost_nothing(front: LoadBalancer, plain: Cluster) -> None:
    before = plain[0].memory_bytes()
    floods = [
        "Cookie: " + "a=b; " * 20_000 + "\r\n",
        "".join(f"X-{at}: y\r\n" for at in range(5000)),
        "X: " + "y" * 100_000 + "\r\n",
        "Cookie: session=" + "x" * 60_000 + "\r\n",
    ]
    for lines in floods:
        request = f"GET / HTTP/1.1\r\nHost: localhost\r\n{lines}Connection: close\r\n\r\n".encode()
        answer = await exchange(front.port, request, source=new_source())
        assert answer.startswith(b"HTTP/1.1 400 "), answer[:100]
        for _ in range(25):  # the node itself, reached by another way
            answer = await exchange(plain[0].port, request)
            assert answer[9:12] in (b"200", b"431", b""), answer[:100]  # or it is reset amid the flood
    assert plain[0].memory_bytes() - before < 20 << 20
    assert (await exchange(plain[0].port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")).endswith(b"ok\n")


@pytest.mark.parametrize("cookies", [2, 300, 500, 3000])
async def test_a_handshake_with_many_cookies_is_decided_at_once(plain: Cluster, cookies: int) -> None:
    value = "; ".join(f"c{at}=" + "x" * 10 for at in range(cookies)) + "; session=rubbish"
    request = (
        f"GET /ws HTTP/1.1\r\nHost: localhost\r\nCookie: {value}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", plain[0].port)
    started = time.monotonic()
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read(100)
    assert answer[9:12] == b"101"
    assert time.monotonic() - started < 5
    writer.transport.abort()


async def test_a_slow_handshake_is_ended(front: LoadBalancer, plain: Cluster) -> None:
    """Slowloris; HAProxy gives a request 5 s. A node's own deadline is in tests/unit/transports/test_http1.py."""
    source = new_source()
    peers = [await asyncio.open_connection("127.0.0.1", front.port, local_addr=(source, 0)) for _ in range(50)]
    heads = [b"GET /ws HTTP/1.1\r\nHost: localhost\r\nX: " for _ in peers]
    for (_, writer), head in zip(peers, heads, strict=True):
        writer.write(head)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        async with asyncio.timeout(15):
            answer = asyncio.ensure_future(reader.read())
            while not answer.done():
                writer.write(b"x")
                await asyncio.wait([answer], timeout=0.5)
            writer.transport.abort()
            return await answer

    answers = await asyncio.gather(*(drip(*peer) for peer in peers), return_exceptions=True)
    answered = [answer for answer in answers if isinstance(answer, bytes)]
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answered if answer)
    assert all(isinstance(answer, bytes | ConnectionError) for answer in answers)
    assert (await exchange(front.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")).endswith(b"ok")
