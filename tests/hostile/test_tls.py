"""TLS at the load balancer, with a certificate made here: HTTP/1.1, HTTP/2, and a browser."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h2.connection
import h2.errors
import h2.events
import h2.settings
import httpx
import orjson
import pytest
import websockets
from playwright.async_api import async_playwright
from websockets.asyncio.client import connect as open_socket
from websockets.typing import Origin

from tests.browser.conftest import CHROMIUM_ARGUMENTS
from tests.kit.client import SECONDS
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import token
from tests.kit.process import program
from tests.kit.raw import text

UNTRUSTING = ssl.create_default_context()
UNTRUSTING.check_hostname = False
UNTRUSTING.verify_mode = ssl.CERT_NONE  # the tests' certificate has no trusted issuer


@pytest.fixture
def certificate(folder: Path) -> Path:
    """Certificate and key for localhost, in one file as HAProxy wants them."""
    key, cert, both = folder / "key.pem", folder / "cert.pem", folder / "lb.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    return both


@pytest.fixture
def secure(plain: Cluster, haproxy: Callable[..., LoadBalancer], certificate: Path) -> LoadBalancer:
    """HAProxy with TLS before `plain`."""
    return haproxy(plain.nodes, LB_CERT=certificate)


async def test_a_socket_over_tls(secure: LoadBalancer) -> None:
    async with open_socket(
        secure.ws, ssl=UNTRUSTING, compression=None, proxy=None, origin=Origin(secure.url)
    ) as socket:
        assert orjson.loads(await socket.recv())["action"] == "welcome"
        await socket.send('{"type":"ping","timestamp":1}')
        assert orjson.loads(await socket.recv()) == {"type": "pong", "timestamp": 1}
        assert socket.response is not None
        [cookie] = socket.response.headers.get_all("Set-Cookie")
        assert cookie.startswith("GW=")
        assert {"Secure", "HttpOnly", "SameSite=Lax"} <= {part.strip() for part in cookie.split(";")}


@pytest.mark.parametrize("path", ["/", "/healthz", "/nothing", "/ws", "/static/page.css"])
async def test_every_answer_binds_the_browser_to_tls(secure: LoadBalancer, path: str) -> None:
    async with httpx.AsyncClient(verify=UNTRUSTING, trust_env=False) as client:
        answer = await client.get(secure.url + path)
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert "server" not in answer.headers


async def test_old_tls_versions_are_rejected(secure: LoadBalancer) -> None:
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", secure.port, ssl=old)


async def test_plain_http_is_not_spoken_there(secure: LoadBalancer) -> None:
    with pytest.raises((websockets.InvalidHandshake, websockets.InvalidMessage, OSError)):
        await open_socket(secure.ws.replace("wss:", "ws:"), proxy=None, open_timeout=SECONDS)


class Http2:
    """One HTTP/2 connection; what each stream hears."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.state = h2.connection.H2Connection()
        self.headers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.state.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self._writer.write(self.state.data_to_send())

    async def until(self, holds: Callable[[], Any]) -> Any:
        """Read until something holds."""
        async with asyncio.timeout(SECONDS):
            while not (found := holds()):
                data = await self._reader.read(1 << 16)
                assert data, "the connection ended"
                for event in self.state.receive_data(data):
                    self._note(event)
                self.flush()
        return found

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived(stream_id=int(number)):
                self.headers[number] = {_text(name): _text(value) for name, value in event.headers or ()}
            case h2.events.DataReceived(stream_id=int(number)):
                self.bodies[number] = self.bodies.get(number, b"") + (event.data or b"")
                self.state.acknowledge_received_data(event.flow_controlled_length or 0, number)
            case h2.events.StreamReset(stream_id=int(number)) | h2.events.StreamEnded(stream_id=int(number)):
                self.ended.add(number)

    async def request(self, *headers: tuple[str, str], open_end: bool = False) -> int:
        """Send a request; its stream, once its headers are answered or it was reset."""
        number = self.state.get_next_available_stream_id()
        self.state.send_headers(number, list(headers), end_stream=not open_end)
        self.flush()
        await self.until(lambda: number in self.headers or number in self.ended)
        return number

    def send(self, number: int, data: bytes) -> None:
        self.state.send_data(number, data)
        self.flush()

    async def messages(self, number: int, count: int) -> list[Any]:
        """The next WebSocket messages on a stream."""
        found: list[Any] = []

        def enough() -> bool:
            stream, self.bodies[number] = self.bodies.get(number, b""), b""
            while len(stream) >= 2:
                size, start = stream[1], 2
                if size == 126:
                    size, start = int.from_bytes(stream[2:4], "big"), 4
                if len(stream) < start + size:
                    break
                found.append(orjson.loads(stream[start : start + size]))
                stream = stream[start + size :]
            self.bodies[number] = stream
            return len(found) >= count

        await self.until(enough)
        return found


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@pytest.fixture
async def http2(secure: LoadBalancer) -> AsyncIterator[Http2]:
    """A connection to `secure` that agreed on HTTP/2."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", secure.port, ssl=context)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    yield Http2(reader, writer)
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def upgrade(secure: LoadBalancer, path: str = "/ws", **more: str) -> list[tuple[str, str]]:
    """What opens a WebSocket on a stream (RFC 8441, 5)."""
    return [
        (":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", path),
        (":authority", urlsplit(secure.url).netloc), ("sec-websocket-version", "13"), *more.items(),
    ]  # fmt: skip


async def test_two_sockets_and_a_page_share_one_http2_connection(secure: LoadBalancer, http2: Http2) -> None:
    await http2.until(lambda: http2.state.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL))
    page = await http2.request(
        (":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", urlsplit(secure.url).netloc)
    )
    assert http2.headers[page][":status"] == "200"
    first = await http2.request(*upgrade(secure, origin=secure.url, cookie=f"session={token('ann')}"), open_end=True)
    second = await http2.request(*upgrade(secure), open_end=True)
    for number in (first, second):
        assert http2.headers[number][":status"] == "200"
        assert (await http2.messages(number, 1))[0]["action"] == "welcome"
    http2.send(second, text({"type": "SUBSCRIBE", "topics": ["over-http2"]}))
    assert (await http2.messages(second, 1))[0]["operation"] == "subscribe"
    http2.send(first, text({"type": "PUBLISH", "topic": "over-http2", "data": "received"}))
    assert (await http2.messages(first, 1))[0]["operation"] == "publish"
    assert (await http2.messages(second, 1))[0]["data"] == "received"


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        ("/ws", {"origin": "https://elsewhere.example"}, "403"),
        ("/api/nodes", {}, "404"),
        ("/%77s/../metrics", {}, "404"),
        ("/metrics", {}, "404"),
    ],
    ids=str,
)
async def test_http2_is_no_way_around(
    secure: LoadBalancer, http2: Http2, path: str, more: dict[str, str], status: str
) -> None:
    await http2.until(lambda: http2.state.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL))
    number = await http2.request(*upgrade(secure, path, **more), open_end=True)
    assert http2.headers[number][":status"] == status


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/ HTTP/1.1\r\nHost: x\r\n\r\nGET /api/nodes", "a", "b"),
        ("/", "transfer-encoding", "chunked"),
        ("/", "a", "b\r\n\r\nGET /api/nodes HTTP/1.1"),
        ("/", "a\r\nx", "b"),
    ],
    ids=ascii,
)
async def test_nothing_is_smuggled_from_http2_into_http1(
    plain: Cluster, secure: LoadBalancer, http2: Http2, path: str, name: str, value: str
) -> None:
    http2.state.config.validate_outbound_headers = False
    http2.state.config.normalize_outbound_headers = False
    number = http2.state.get_next_available_stream_id()
    head = [(":method", "GET"), (":scheme", "https"), (":path", path), (":authority", urlsplit(secure.url).netloc)]
    http2.state.send_headers(number, [*head, (name, value)], end_stream=True)
    http2.flush()
    with contextlib.suppress(AssertionError, h2.exceptions.ProtocolError):  # or the whole connection is ended
        await http2.until(lambda: number in http2.headers or number in http2.ended)
    assert http2.headers.get(number, {}).get(":status", "400") in ("400", "404", "413")


async def test_a_browser_over_tls(secure: LoadBalancer) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program("chromium"), args=CHROMIUM_ARGUMENTS)
        try:
            context = await browser.new_context(ignore_https_errors=True)
            page = await context.new_page()
            sockets: list[str] = []
            page.on("websocket", lambda socket: sockets.append(socket.url))
            problems: list[str] = []
            page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
            url = secure.url.replace("127.0.0.1", "localhost")
            await page.goto(url)
            await page.get_by_text("Connected to node").nth(1).wait_for(timeout=SECONDS * 1000)
            protocol = await page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol")
            assert protocol == "h2"
            first, second = sockets
            assert first == url.replace("https:", "wss:") + "/ws"
            assert second.startswith(f"{first}?avoid=")
            [cookie] = [one for one in await context.cookies() if one["name"] == "GW"]
            assert cookie["secure"] and cookie["httpOnly"]
            assert problems == []  # nothing that the content security policy stopped, for one
        finally:
            await browser.close()
