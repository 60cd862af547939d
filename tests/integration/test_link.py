"""The way to a real Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop

from gateway.cluster.answers import REDIS_ERRORS, heeding
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


def test_a_write_on_a_connection_that_is_gone_is_a_loss_of_redis_on_uvloop_too(redis: Redis) -> None:
    """uvloop says it otherwise than asyncio: a node took it for a fault of its own, and ended."""

    async def write() -> None:
        link = Link(redis.url, timeout_seconds=2, name="test", metrics=Metrics())
        connection = await link.subscriber(ONLY)
        writer: Any = connection._writer
        writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="handler is closed"):
            writer.writelines([b"PING"])
        with pytest.raises(REDIS_ERRORS):
            await heeding(connection.send_packed_command([b"PING"], check_health=False))
        await link.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write())
