"""Which clients the policy of WebSocket handshakes accepts, and when it waits."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from gateway.cluster.connection_limits import Answer
from gateway.core.identity import ANONYMOUS, AuthError, Identity, UnknownKey
from gateway.http import handshake
from gateway.http.middleware import HEADERS
from gateway.http.websocket import OPERATOR_PATH, WebSocketPolicy
from gateway.metrics import Metrics
from tests.unit.transports.test_handshake import GOOD, FakeConnection

ANN = Identity("ann")
PROXY = ("192.0.2.7", 1)  # the peer of every request here


class FakeNode:
    """What the policy asks of a node. Tokens: "ann" is valid, "rotated" once the key server was asked."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(hosts=("live.example",), trusted_proxies=(PROXY[0],), node="n1", origins=())
        self.metrics = Metrics()
        self.drain = self.rebalance = self.admission = self.authenticator = self
        self.rejects_handshakes = False
        self.verifier = SimpleNamespace(verify=self._verify)
        self.verify_operator = object()
        self.draining = False
        self.answer: Answer | None = None
        self.asked_key_server = asyncio.Event()
        self.slots: list[tuple[str | None, str]] = []
        self.rejections: list[str] = []
        self.opened: list[tuple[str | None, str, str, object]] = []

    def refuses_handshake(self, _request_id: str | None, avoided: bool) -> bool:
        return self.draining or avoided

    def _verify(self, token: str) -> Identity:
        if token == "ann":
            return ANN
        raise (UnknownKey if token == "rotated" else AuthError)("token_invalid", "no")

    async def identify(self, _token: str) -> Identity:
        await self.asked_key_server.wait()
        return ANN

    def request_slot(self, user: str | None, ip: str) -> Answer | None:
        self.slots.append((user, ip))
        return self.answer

    def rejected(self, full: str) -> None:
        self.rejections.append(full)

    def cancel(self, user: str | None, ip: str) -> None:
        self.slots.remove((user, ip))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    fake = FakeNode()

    def opened(
        client: handshake.AcceptedClient, _connection: object, _protocol: object, _node: object, verify: object
    ) -> None:
        fake.opened.append((client.identity.user, client.ip, client.user_agent, verify))

    monkeypatch.setattr(handshake, "open_connection", opened)
    return fake


def connect(
    node: FakeNode, *more: tuple[bytes, bytes], target: bytes = b"/ws", host: bytes = b"live.example"
) -> FakeConnection:
    """A connection whose client sent an upgrade request with these headers."""
    connection = FakeConnection(WebSocketPolicy(cast(Any, node)).decide)
    connection.start([(b"host", host), *GOOD[1:], *more], target)
    return connection


async def test_an_ordinary_client_is_accepted_at_once(node: FakeNode) -> None:
    connection = connect(node, (b"user-agent", b"x"), (b"cookie", b"a=1; session=ann"))
    assert connection.status == 101
    assert node.opened == [("ann", PROXY[0], "x", None)]
    assert node.slots == [("ann", PROXY[0])]


async def test_the_proxy_states_the_address_and_the_scheme(node: FakeNode) -> None:
    forwarded = ((b"x-forwarded-for", b"198.51.100.9"), (b"x-forwarded-proto", b"https"))
    own_page = (b"origin", b"https://live.example")
    assert connect(node, *forwarded, own_page).status == 101
    assert node.opened == [(None, "198.51.100.9", "", None)]
    node.settings.trusted_proxies = ()
    (*_, host), scheme = connect(node, *forwarded).outcomes, node.opened[-1]
    assert host and scheme == (None, PROXY[0], "", None)


async def test_operators_tokens_are_verified_in_another_way(node: FakeNode) -> None:
    assert connect(node, target=OPERATOR_PATH.encode()).status == 101
    assert node.opened[0][3] is node.verify_operator


@pytest.mark.parametrize(
    ("status", "code", "how"),
    [
        (421, "wrong_host", {"host": b"evil.example"}),
        (404, 404, {"target": b"/wsx"}),
        (503, 503, {"target": b"/ws?avoid=n1"}),
        (403, 403, {"more": (b"origin", b"https://evil.example")}),
        (403, 403, {"more": (b"sec-fetch-site", b"cross-site")}),
        (400, 400, {"target": b"/ws?token=x"}),
    ],
)
async def test_a_refusal_names_its_reason(node: FakeNode, status: int, code: object, how: dict[str, Any]) -> None:
    more = [how.pop("more")] if "more" in how else []
    connection = connect(node, *more, **how)
    assert (connection.status, connection.outcomes, node.slots) == (status, ["refused"], [])
    head, _, body = connection.written.partition(b"\r\n\r\n")
    assert orjson.loads(body)["error"]["code"] == code
    sent = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
    assert sent.items() >= HEADERS.items()
    assert ("retry-after" in sent) is (status == 503)


async def test_a_second_host_header_is_refused(node: FakeNode) -> None:
    assert connect(node, (b"host", b"live.example")).status == 400


async def test_a_draining_node_refuses_before_it_verifies_a_token(node: FakeNode) -> None:
    node.draining = True
    assert connect(node, (b"cookie", b"session=rotated")).status == 503


async def test_an_invalid_cookie_makes_an_anonymous_client(node: FakeNode) -> None:
    connect(node, (b"cookie", b"session=bad"))
    assert node.slots == [(ANONYMOUS.user, PROXY[0])]


async def test_a_client_with_an_unknown_key_waits_for_the_key_server(node: FakeNode) -> None:
    connection = connect(node, (b"cookie", b"session=rotated"))
    await asyncio.sleep(0)
    assert not connection.written
    node.asked_key_server.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert connection.status == 101 and node.opened[0][0] == "ann"


async def test_a_client_that_left_while_the_key_server_was_asked_takes_no_slot(node: FakeNode) -> None:
    connection = connect(node, (b"cookie", b"session=rotated"))
    await asyncio.sleep(0)
    connection.handshake.cancel()
    node.asked_key_server.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (node.slots, node.opened, connection.written) == ([], [], b"")


async def test_an_error_of_the_key_server_costs_the_client_status_500(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_token: str) -> Identity:
        raise RuntimeError("broken")

    monkeypatch.setattr(node, "identify", fail)
    connection = connect(node, (b"cookie", b"session=rotated"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert connection.status == 500


async def test_a_limited_client_waits_for_its_slot(node: FakeNode) -> None:
    node.answer = asyncio.get_running_loop().create_future()
    connection = connect(node)
    assert not connection.written
    node.answer.set_result(None)
    await asyncio.sleep(0)
    assert connection.status == 101 and len(node.opened) == 1


async def test_a_client_over_its_limit_is_refused(node: FakeNode) -> None:
    node.answer = asyncio.get_running_loop().create_future()
    connection = connect(node)
    node.answer.set_result("address_connections")
    await asyncio.sleep(0)
    assert (connection.status, node.rejections, node.opened) == (429, ["address_connections"], [])


async def test_the_slot_of_a_client_that_left_meanwhile_is_released(node: FakeNode) -> None:
    node.answer = asyncio.get_running_loop().create_future()
    connection = connect(node)
    assert len(node.slots) == 1
    connection.handshake.cancel()
    node.answer.set_result(None)
    await asyncio.sleep(0)
    assert (node.slots, node.opened, connection.written) == ([], [], b"")
