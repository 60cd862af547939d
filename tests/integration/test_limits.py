"""Every limit, at a real node: a request over it gets an error, and other clients do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import httpx
from websockets.exceptions import InvalidStatus

from tests.conftest import Connect
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.node import Node
from tests.kit.raw import RawSocket, frame, text
from tests.kit.waiting import eventually

Clusters = Callable[..., Cluster]
BURST = 10  # seconds' worth that may come at once


# ---- at the door


async def test_a_full_node_rejects_sockets_and_still_answers_health_checks(cluster: Clusters) -> None:
    (node,) = cluster(1, max_connections=30)
    sockets: list[RawSocket] = []
    try:
        async with httpx.AsyncClient(base_url=node.url, trust_env=False) as monitor:
            await monitor.get("/healthz")  # its connection stays, and counts
            while (socket := await RawSocket.open(node)).status == 101:
                sockets.append(socket)
            assert len(sockets) == 29
            assert b"503 Service Unavailable" in socket.answer and b"retry-after: 5" in socket.answer
            assert await socket.ended()
            await socket.close()
            assert (await monitor.get("/readyz")).status_code == 200
            limited = node.metric("gateway_limited_total", limit="connections")  # by a connection of its own
            assert limited == node.metric("gateway_refusals_total", status="503") >= 1
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(30):  # they say nothing
                    await stack.enter_async_context(wire(node))
                assert (await monitor.get("/readyz")).status_code == 200
                reader, writer = await stack.enter_async_context(wire(node))
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    assert await reader.read(1) == b"", "beyond the spare connections, the node serves none"
            await sockets.pop().close()

        async def let_in() -> bool:
            sockets.append(await RawSocket.open(node))
            return sockets[-1].status == 101

        await eventually(let_in)
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))


@contextlib.asynccontextmanager
async def wire(node: Node) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which nothing has been said yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_burst_of_connects_is_accepted_and_a_steady_rate_is_limited(
    cluster: Clusters, connect: Connect
) -> None:
    (node,) = cluster(1, connects_per_second=10)
    started = time.monotonic()
    sockets = await asyncio.gather(*(RawSocket.open(node) for _ in range(10 * BURST + 60)))
    seconds = time.monotonic() - started
    await asyncio.gather(*(socket.close() for socket in sockets))
    let_in = [socket for socket in sockets if socket.status == 101]
    assert 10 * BURST <= len(let_in) <= 10 * (BURST + seconds) + 1
    assert {socket.status for socket in sockets} <= {101, 503}
    assert node.metric("gateway_limited_total", limit="connects") == len(sockets) - len(let_in)

    async def comes_back() -> bool:
        with contextlib.suppress(InvalidStatus):
            return (await connect(node)).open
        return False

    await eventually(comes_back)


# ---- what one client may say


async def test_a_client_over_its_message_rate_gets_4029_and_then_3013(cluster: Clusters, connect: Connect) -> None:
    (node,) = cluster(1, client_messages_per_second=20)
    bystander: Client = await connect(node)
    socket = await RawSocket.open(node)
    await socket.message()
    allowed = 20 * BURST
    socket.write(
        *(text({"type": "REQUEST", "topic": "system", "action": "ping", "requestId": at}) for at in range(3 * allowed))
    )
    answers = []
    while (received := await socket.frame())[0] == 1:
        answers.append(received[1])
    assert (received[0], int.from_bytes(received[1][:2], "big")) == (8, 3013)
    sent = [answer for answer in answers if b"4029" in answer]
    assert allowed <= len(answers) - len(sent) <= allowed * 1.5
    assert allowed * 0.9 <= len(sent) <= allowed * 1.5
    # A front end that is given the requestId with this code would send again at once.
    assert all(
        b'"temporary":true' in answer and b'"inReplyTo"' in answer and b'"requestId"' not in answer for answer in sent
    )
    assert node.metric("gateway_limited_total", limit="messages") == len(sent) + 1
    assert (await bystander.ask(type="ping"))["type"] == "pong"
    await socket.close()


async def test_pings_and_pongs_of_the_protocol_layer_count_too(cluster: Clusters) -> None:
    (node,) = cluster(1, client_messages_per_second=5)
    for opcode in (9, 10):
        socket = await RawSocket.open(node)
        socket.write(*(frame(opcode, b"") for _ in range(1000)))
        assert await socket.close_code() == 3013
        await socket.close()


async def test_a_client_over_its_topic_rate_gets_4029_and_succeeds_later(cluster: Clusters, connect: Connect) -> None:
    (node,) = cluster(1, client_subscriptions_per_second=100, max_client_topics=2000)
    client: Client = await connect(node)
    assert (await client.subscribe(*(f"a:{at}" for at in range(100 * BURST))))["status"] == "success"
    refused = await client.subscribe(*(f"b:{at}" for at in range(300)))
    assert (refused["type"], refused["code"], refused["temporary"]) == ("ERROR", 4029, True)
    assert (await client.ask(type="ping"))["type"] == "pong"

    async def let_in() -> bool:
        return (await client.subscribe("c")).get("status") == "success"

    await eventually(let_in)


# ---- what one user may publish, on all nodes together


async def test_a_users_publishes_are_counted_over_all_nodes(
    cluster: Clusters, connect: Connect, api: Callable[[Front], Api]
) -> None:
    nodes = cluster(3, user_publishes_per_second=10, open=1)
    allowed = 10 * BURST
    subscriber: Client = await connect(nodes[0])
    await subscriber.subscribe("t")
    clients = [await connect(node, user="ann") for node in nodes]
    started = time.monotonic()
    for client in clients:  # one after the other: what the first has used up the others do not have
        answers = await asyncio.gather(*(client.publish("t", at) for at in range(allowed // 2)))
        assert {answer.get("code") for answer in answers} <= {None, 4029}
    seconds = time.monotonic() - started
    taken = sum(len(client.received(operation="publish")) for client in clients)
    # A node loses at most a fifth of a second's worth in each second.
    assert allowed - 2 * 3 * (seconds + 2) <= taken <= allowed + 10 * seconds
    refused = [answer for client in clients for answer in client.received(code=4029)]
    assert all(answer["temporary"] and "inReplyTo" in answer and "requestId" not in answer for answer in refused)
    assert sum(node.metric("gateway_limited_total", limit="publishes") for node in nodes) == len(refused)
    await eventually(lambda: len(subscriber.data("t")) == taken)
    # The limit does not affect other users, anonymous clients and back ends.
    for client in (await connect(nodes[1], user="bob"), await connect(nodes[1])):
        assert (await client.publish("t", "other"))["type"] == "ACKNOWLEDGMENT"
    await api(nodes[0]).publish("t", "back end")


async def test_log_lines_are_written_at_a_bounded_rate_over_all_frames(cluster: Clusters, connect: Connect) -> None:
    (node,) = cluster(1, client_log_lines_per_second=2)
    client: Client = await connect(node)
    answers = [await client.ask(type="LOGS", logs=[{"message": str(at)}] * 5) for at in range(10)]
    node.finish_log()
    written = len(node.events("browser log"))
    assert 2 * BURST <= written <= 2 * BURST + 10
    assert answers[0]["count"] == 5
    assert (answers[-1]["code"], answers[-1]["temporary"]) == (4029, True)
    assert node.metric("gateway_limited_total", limit="log_lines") == 50 - written


# ---- what a node holds for all its clients


async def test_the_slow_clients_with_the_largest_buffers_are_closed_first(
    cluster: Clusters, connect: Connect, api: Callable[[Front], Api]
) -> None:
    (node,) = cluster(1, buffer_bytes=12 << 20)  # 4 MiB for each: no client reaches its own limit
    reader: Client = await connect(node)
    slow = [await RawSocket.open(node, read_bytes=1 << 12) for _ in range(8)]
    try:
        for at, socket in enumerate(slow):
            await socket.message()
            socket.write(text({"type": "SUBSCRIBE", "topics": ["all", f"only-{at % 2}"]}))
            await socket.message()
        await reader.subscribe("all", "only-0", "only-1")
        message = "x" * (60 << 10)

        async def flood(topic: str, times: int) -> None:
            for _ in range(times):
                await api(node).publish_all([{"topic": topic, "data": message}] * 10)

        await flood("only-0", 4)  # more for the even ones
        while not node.metric("gateway_limited_total", limit="buffered_bytes"):
            assert node.metric("gateway_buffered_bytes") <= (12 << 20) * 9 / 8
            await flood("all", 1)
        closed = node.metric("gateway_limited_total", limit="buffered_bytes")
        assert closed <= 4
        await eventually(lambda: node.metric("gateway_closes_total", code="3008") == closed)
        assert node.metric("gateway_buffered_bytes") <= (12 << 20) * 9 / 8
        await eventually(lambda: node.metric("gateway_connections") == 9 - closed)
        for socket in slow[1::2]:  # these hold less, and still hear
            while (await socket.message()).get("topic") != "all":
                pass
        await eventually(lambda: len(reader.data("all")) >= 10)
    finally:
        await asyncio.gather(*(socket.close() for socket in slow))
    await eventually(lambda: node.metric("gateway_buffered_bytes") == 0)


async def test_incomplete_messages_count_for_the_memory_limit(cluster: Clusters, connect: Connect) -> None:
    (node,) = cluster(1, buffer_bytes=4 << 20)
    half = frame(1, b"[" * (1 << 20))[: 900 << 10]
    sockets = [await RawSocket.open(node) for _ in range(12)]
    try:
        for socket in sockets:
            socket.write(half)
            await socket.writer.drain()
        await eventually(lambda: node.metric("gateway_limited_total", limit="buffered_bytes") >= 12 - 5)
        assert node.metric("gateway_buffered_bytes") <= 4 << 20
        assert (await (await connect(node)).ask(type="ping"))["type"] == "pong"
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))
