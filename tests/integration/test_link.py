"""RedisClient on a real Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop

from gateway.broker.client import RedisClient
from gateway.broker.errors import REDIS_ERRORS, cancellable
from gateway.broker.slot_map import ONLY_SERVER
from gateway.metrics import Metrics
from tests.kit.redis import Redis


async def test_a_publisher_that_is_ended_amid_a_write_ends(redis: Redis) -> None:
    """redis-py loses a cancellation that meets the end of its write; a node would hang at its own."""
    for turns in range(60):
        redis_client = RedisClient(redis.url, timeout_seconds=2, name="test", metrics=Metrics())
        running = asyncio.create_task(redis_client.run())
        asked = asyncio.create_task(redis_client.publish("channel", b"text"))
        for _ in range(turns % 20):
            await asyncio.sleep(0)
        running.cancel()
        ended, _ = await asyncio.wait([running], timeout=5)
        assert ended, f"cancelled after {turns % 20} turns of the loop, it goes on"
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await redis_client.close()


async def test_a_subscriber_that_is_ended_as_it_connects_ends(redis: Redis) -> None:
    """The same of the bus, which would go on with its new connection."""
    redis_client = RedisClient(redis.url, timeout_seconds=2, name="test", metrics=Metrics())
    cancelled = 0
    for turns in range(200):
        connecting = asyncio.create_task(redis_client.connect_subscriber(ONLY_SERVER))
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
    await redis_client.close()


def test_a_write_on_a_connection_that_is_gone_is_a_loss_of_redis_on_uvloop_too(redis: Redis) -> None:
    """uvloop says it otherwise than asyncio: a node took it for a fault of its own, and ended."""

    async def write() -> None:
        redis_client = RedisClient(redis.url, timeout_seconds=2, name="test", metrics=Metrics())
        connection = await redis_client.connect_subscriber(ONLY_SERVER)
        writer: Any = connection._writer
        writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="handler is closed"):
            writer.writelines([b"PING"])
        with pytest.raises(REDIS_ERRORS):
            await cancellable(connection.send_packed_command([b"PING"], check_health=False))
        await redis_client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(write())
