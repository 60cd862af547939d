"""The way to a real Redis."""

from __future__ import annotations

import asyncio

from gateway.cluster.link import Link
from gateway.cluster.shards import ONLY
from gateway.metrics import Metrics
from tests.cluster import Redis


async def test_a_publisher_that_is_ended_amid_a_write_ends(redis: Redis) -> None:
    """redis-py loses a cancellation that meets the end of its write; a node would hang at its own."""
    for turns in range(60):
        link = Link(redis.url, timeout_seconds=2, name="test", metrics=Metrics())
        running = asyncio.create_task(link.run())
        asked = asyncio.create_task(link.publish("channel", b"text"))
        for _ in range(turns % 20):
            await asyncio.sleep(0)
        running.cancel()
        ended, _ = await asyncio.wait([running], timeout=5)
        assert ended, f"cancelled after {turns % 20} turns of the loop, it goes on"
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await link.close()


async def test_a_subscriber_that_is_ended_as_it_connects_ends(redis: Redis) -> None:
    """The same of the bus, which would go on with its new connection."""
    link = Link(redis.url, timeout_seconds=2, name="test", metrics=Metrics())
    cancelled = 0
    for turns in range(200):
        connecting = asyncio.create_task(link.subscriber(ONLY))
        for _ in range(turns % 50):
            await asyncio.sleep(0)
        if connecting.done():
            await (await connecting).disconnect()
            continue
        connecting.cancel()
        await asyncio.wait([connecting], timeout=5)
        assert connecting.cancelled(), f"cancelled after {turns % 50} turns of the loop, it goes on"
        cancelled += 1
    assert cancelled
    await link.close()
