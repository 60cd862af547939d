"""Shared compression at a real node: clients that offer it get it, and other clients do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
import pytest

from tests.conftest import Connect
from tests.hostile.rfc6455 import DEFLATE, deflated
from tests.kit.client import Api, Client
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import Node
from tests.kit.raw import RawSocket, frame

PRICES = [{"symbol": f"TOKEN{at}", "price": at * 1.07, "change24h": at / 7} for at in range(40)]
HELLO = b'{"type":"ping","timestamp":1}'


@pytest.fixture
def node(cluster: Callable[..., Cluster]) -> Node:
    """One that compresses."""
    return cluster(1, compression=1, max_message_bytes=100_000)[0]


def offered(client: Client) -> str | None:
    """What was agreed with it."""
    assert client.socket.response is not None
    return client.socket.response.headers.get("Sec-WebSocket-Extensions")


async def test_clients_with_and_without_compression_receive_the_same(
    node: Node, haproxy: Callable[..., LoadBalancer], connect: Connect, api: Callable[[Node], Api]
) -> None:
    front = haproxy([node])
    clients = [await connect(front, compression="deflate") for _ in range(5)] + [await connect(front)]
    assert [offered(client) for client in clients] == [
        *["permessage-deflate; server_no_context_takeover; client_no_context_takeover"] * 5, None,
    ]  # fmt: skip
    await asyncio.gather(*(client.subscribe("prices") for client in clients))
    before = compressed(node)
    wanted = [PRICES, "small", PRICES[::-1], *range(50), PRICES]
    await api(node).publish_all([{"topic": "prices", "data": data} for data in wanted])
    for client in clients:
        await client.hear(type="DATA", data=49)
        await client.hear(start=len(client.messages) - 1, type="DATA", data=PRICES)
        assert client.data("prices") == wanted
    plain, small = (now - then for now, then in zip(compressed(node), before, strict=True))
    received = sum(len(orjson.dumps(message)) + 4 for message in clients[0].received(type="DATA"))
    assert 0.9 * received < plain < 1.1 * received, "once for the five of them"
    assert 2 * small < plain


def compressed(node: Node) -> tuple[float, float]:
    """Bytes that were compressed: before and after."""
    return node.metric("gateway_deflate_in_bytes_total"), node.metric("gateway_deflate_out_bytes_total")


async def test_what_a_client_compresses_is_handled_as_if_it_had_not(node: Node, connect: Connect) -> None:
    ann, ben = await connect(node, user="ann", compression="deflate"), await connect(node)
    await ben.subscribe("prices")
    assert (await ann.publish("prices", PRICES))["operation"] == "publish"
    assert (await ben.hear(type="DATA"))["data"] == PRICES


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([frame(1, deflated(HELLO), reserved=0x40), frame(9, b"", reserved=0x40)], 1002),
        ([frame(1, deflated(HELLO)[:4], final=False, reserved=0x40), frame(0, b"", reserved=0x40)], 1002),
        ([frame(1, deflated(HELLO), reserved=0x60)], 1002),
        ([frame(1, HELLO, reserved=0x40)], 1007),
        ([frame(1, deflated(HELLO)[:-1], reserved=0x40)], 1007),
        ([frame(1, deflated(b'{"type":"ping","timestamp":"\xff"}'), reserved=0x40)], 1007),
        ([frame(1, deflated(bytes(100_001)), reserved=0x40)], 1009),
        ([frame(1, deflated(bytes(50 << 20)), reserved=0x40)], 1009),
    ],
    ids=["control", "continuation", "two bits", "plain", "cut short", "not UTF-8", "too large", "a bomb"],
)
async def test_a_protocol_violation_closes_only_its_own_socket(
    node: Node, connect: Connect, sent: list[bytes], code: int
) -> None:
    other = await connect(node, compression="deflate")
    socket = await RawSocket.open(node, extensions=DEFLATE)
    try:
        assert (await socket.message())["action"] == "welcome"
        socket.write(*sent)
        assert await socket.close_code() == code
    finally:
        await socket.close()
    assert await other.ask(type="ping", timestamp=2) == {"type": "pong", "timestamp": 2}
