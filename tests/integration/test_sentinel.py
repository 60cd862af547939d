"""Redis behind Sentinels: nodes follow the master and use no other server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.slot_map import ONLY_SERVER
from gateway.metrics import Metrics
from tests.conftest import Connect
from tests.kit.client import Api
from tests.kit.cluster import Cluster
from tests.kit.sentinel import Sentinels
from tests.kit.waiting import eventually, until

RESUME_SECONDS = 2.0  # beyond what the Sentinels take themselves


@pytest.fixture
def sentinels(folder: Path) -> Iterator[Sentinels]:
    """A master, two replicas, three Sentinels."""
    with Sentinels(folder) as running:
        yield running


async def test_delivery_goes_on_when_the_sentinels_have_agreed_upon_a_new_master(
    sentinels: Sentinels, folder: Path, connect: Connect
) -> None:
    with Cluster(2, folder, sentinels) as nodes:
        subscriber, api = await connect(nodes[0]), Api(nodes[1])
        await subscriber.subscribe("contest")
        await api.publish("contest", 0)
        await subscriber.hear(type="DATA", data=0)

        killed = await asyncio.to_thread(sentinels.fail_over)
        switched = time.monotonic()
        number = 0
        while not any(data > 0 for data in subscriber.data("contest")):
            assert time.monotonic() - switched < 10 * RESUME_SECONDS, "delivery did not resume"
            number += 1
            await api.http.post(
                "/api/publish", json={"topic": "contest", "data": number, "idempotencyKey": f"k{number}"}
            )
            await asyncio.sleep(0.02)
        resumed = time.monotonic() - switched
        assert resumed < RESUME_SECONDS, f"delivery resumed {resumed:.1f} s after the fail-over"
        await asyncio.to_thread(killed.start)
        await asyncio.to_thread(sentinels.until_whole)
        await asyncio.to_thread(until, lambda: all(node.ready() for node in nodes), 10, "the nodes are ready")
        await api.publish("contest", "after")
        await subscriber.hear(type="DATA", data="after")
        await api.close()


async def test_a_replica_is_not_used_even_if_the_sentinels_name_it(sentinels: Sentinels) -> None:
    redis_client = RedisClient(sentinels.url, timeout_seconds=2.0, name="test", metrics=Metrics())
    connection = await redis_client.connect_subscriber(ONLY_SERVER)
    await connection.disconnect()
    replica = next(server for server in sentinels.servers if server.port != sentinels.master().port)

    async def outdated(_service: str) -> tuple[str, int]:
        return "127.0.0.1", replica.port

    pool: Any = redis_client._topology.client(ONLY_SERVER).connection_pool
    pool.sentinel_manager.discover_master = outdated
    try:
        with pytest.raises(Unavailable, match=f"127.0.0.1:{replica.port} is a replica"):
            await redis_client.connect_subscriber(ONLY_SERVER)
    finally:
        await redis_client.close()


async def test_a_subscriber_s_server_is_compared_with_what_the_sentinels_say(sentinels: Sentinels) -> None:
    redis_client = RedisClient(sentinels.url, timeout_seconds=2.0, name="test", metrics=Metrics())
    connection = await redis_client.connect_subscriber(ONLY_SERVER)
    try:
        assert not await redis_client.is_moved(ONLY_SERVER, connection)
        await asyncio.to_thread(sentinels.promote)
        await eventually(lambda: redis_client.is_moved(ONLY_SERVER, connection), 5)
        for watcher in sentinels.watchers:
            watcher.kill()
        assert not await redis_client.is_moved(ONLY_SERVER, connection), "a master stays if no Sentinel names another"
    finally:
        await connection.disconnect()
        await redis_client.close()


async def test_a_frozen_sentinel_hides_no_master(sentinels: Sentinels) -> None:
    redis_client = RedisClient(sentinels.url, timeout_seconds=2.0, name="test", metrics=Metrics())
    sentinels.watchers[0].freeze()
    try:
        await (await redis_client.connect_subscriber(ONLY_SERVER)).disconnect()
        assert await redis_client.execute("PING")
    finally:
        sentinels.watchers[0].thaw()
        await redis_client.close()


async def test_connections_made_side_by_side_forget_no_sentinel(sentinels: Sentinels) -> None:
    redis_client = RedisClient(sentinels.url, timeout_seconds=5.0, name="test", metrics=Metrics())
    pool: Any = redis_client._topology.client(ONLY_SERVER).connection_pool
    known = set(pool.sentinel_manager.sentinels)
    assert len(known) == 3
    try:
        for watcher in sentinels.watchers[:2]:
            watcher.freeze()
            for connection in await asyncio.gather(*(redis_client.connect_subscriber(ONLY_SERVER) for _ in range(8))):
                await connection.disconnect()
            watcher.thaw()
        assert len(pool.sentinel_manager.sentinels) == 3
        assert set(pool.sentinel_manager.sentinels) == known
    finally:
        await redis_client.close()


async def test_the_reason_states_that_no_sentinel_answers(sentinels: Sentinels) -> None:
    for watcher in sentinels.watchers:
        watcher.kill()
    redis_client = RedisClient(sentinels.url, timeout_seconds=2.0, name="test", metrics=Metrics())
    try:
        with pytest.raises(Unavailable, match="No master found for 'gateway'"):
            await redis_client.connect_subscriber(ONLY_SERVER)
    finally:
        await redis_client.close()
