"""A client that does not read costs the node its byte budget, and does not affect other clients."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Connect
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.raw import RawSocket, text
from tests.kit.waiting import eventually

SLOW = 6
MESSAGE = "x" * (60 << 10)  # bytes
BATCH = 20  # messages: about as much as a request may carry
MIB = 1 << 20
BUDGET = 4 * MIB  # GATEWAY_CLIENT_BUFFER_BYTES' default
TOPICS = [f"flood:{at}" for at in range(SLOW)]  # one each: what several clients wait for is held once for all


async def test_clients_that_stop_reading_are_closed_without_effect_on_others(
    cluster: Callable[..., Cluster], connect: Connect, api: Callable[[Front], Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    # malloc keeps what is freed between blocks in use; large ones it now gives back at once, so that the resident set
    # shows what the node itself holds on to.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(32 << 10))
    (node,) = cluster(1)
    back_end = api(node)
    readers: list[Client] = [await connect(node) for _ in range(2)]
    bystanders: list[Client] = [await connect(node) for _ in range(10)]
    await asyncio.gather(*(client.subscribe(*TOPICS) for client in readers))
    await asyncio.gather(*(client.subscribe("calm") for client in bystanders))
    sent: dict[str, list[int]] = {topic: [] for topic in TOPICS}
    numbers = itertools.count()

    async def flood(topic: str) -> None:
        batch = [next(numbers) for _ in range(BATCH)]
        sent[topic] += batch
        await back_end.publish_all([{"topic": topic, "data": [number, MESSAGE]} for number in batch])

    for topic in TOPICS:
        await flood(topic)  # what the flood itself costs is no leak
    before = node.memory_bytes()

    slow = [await RawSocket.open(node, read_bytes=1 << 12) for _ in range(SLOW)]
    try:
        for socket, topic in zip(slow, TOPICS, strict=True):
            await socket.message()
            socket.write(text({"type": "SUBSCRIBE", "topics": [topic]}))
            assert (await socket.message())["operation"] == "subscribe"

        delays: list[float] = []
        most = before
        deadline = time.monotonic() + 60
        for topic in itertools.cycle(TOPICS):
            await flood(topic)
            started = time.monotonic()
            await back_end.publish("calm", started)
            await asyncio.gather(*(client.hear(type="DATA", data=started) for client in bystanders))
            delays.append(time.monotonic() - started)
            most = max(most, node.memory_bytes())
            if node.metric("gateway_slow_consumers_total") == SLOW:
                break
            assert time.monotonic() < deadline, "they are still open"

        # Closed without a close frame: they would never have read it.
        assert all(await asyncio.gather(*(socket.ended() for socket in slow)))
        await eventually(lambda: node.metric("gateway_closes_total", code="3008") == SLOW)
        assert len(await node.logged("slow consumer closed", SLOW)) == SLOW
        await eventually(lambda: node.metric("gateway_connections") == len(readers) + len(bystanders))
    finally:
        await asyncio.gather(*(socket.close() for socket in slow))

    assert 2 * BUDGET < most - before < 2 * SLOW * BUDGET
    await eventually(lambda: node.memory_bytes() - before < 2 * BUDGET, 10, "the memory returns")
    await asyncio.gather(*(back_end.publish(topic, ["the end"]) for topic in TOPICS))
    for reader in readers:
        for topic in TOPICS:
            await reader.hear(type="DATA", topic=topic, data=["the end"], within=30)
            assert [data[0] for data in reader.data(topic)] == [*sent[topic], "the end"]
    delays.sort()
    assert delays[len(delays) * 99 // 100] < 1, "the others waited"


async def test_a_client_that_missed_more_than_its_budget_recovers_at_its_own_pace(
    cluster: Callable[..., Cluster], api: Callable[[Front], Api], tmp_path: Path
) -> None:
    rules = tmp_path / "topics.toml"
    rules.write_text('[[topic]]\npattern = "kept"\nhistory = 500\nhistory_bytes = 100000000\n')
    (node,) = cluster(1, topics=rules)
    count = 4 * BUDGET // len(MESSAGE)
    for at in range(0, count, BATCH):
        await api(node).publish_all([{"topic": "kept", "data": MESSAGE} for _ in range(at, min(count, at + BATCH))])
    place = await api(node).get("/api/topics/kept/history?limit=1")
    socket = await RawSocket.open(node, read_bytes=1 << 12)
    try:
        recover = {"kept": {"epoch": place["epoch"], "offset": 0}}
        socket.write(text({"type": "SUBSCRIBE", "topics": ["kept"], "requestId": "r", "recover": recover}))
        await eventually(lambda: node.metric("gateway_buffered_bytes") > 0)
        await api(node).publish("kept", "live")
        assert node.metric("gateway_buffered_bytes") < 4 * len(MESSAGE)
        offsets = []
        while (message := await socket.message()).get("requestId") != "r":
            offsets += [message["offset"]] if message["type"] == "DATA" else []
        position = message["positions"]["kept"]
        assert (position["epoch"], position["offset"], position["recovered"]) == (place["epoch"], count + 1, True)
        assert offsets == list(range(1, count + 2))
        assert node.metric("gateway_slow_consumers_total") == 0
    finally:
        await socket.close()
