"""GATEWAY_WAIT_REPLICAS: an acknowledged publish on a topic with history has reached that many replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_py

from tests.conftest import Connect
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.node import NAMESPACE
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

Start = Callable[..., Cluster]
Of = Callable[[Front], Api]

KEPT, PLAIN = "contest-chat", "portfolio"  # by the default rules
STREAM = f"{NAMESPACE}ws:history:{{{KEPT}}}"


@pytest.fixture
def replica(redis: Redis, folder: Path) -> Iterator[Redis]:
    """A replica of the test's own `redis`, in step with it."""
    home = folder / "replica"
    home.mkdir()
    with Redis(home) as server:
        server.cli("REPLICAOF", "127.0.0.1", redis.port)
        yield server


async def in_step(redis: Redis) -> None:
    """Wait until the replica confirms what is written."""

    def confirmed() -> bool:
        with redis_py.Redis(port=redis.port) as connection, connection.client() as one:
            one.set("probe", 1)
            return bool(one.wait(1, 100))  # what this connection has written

    await eventually(confirmed)


async def test_what_is_acknowledged_is_on_the_replica(
    cluster: Start, redis: Redis, replica: Redis, connect: Connect, api: Of
) -> None:
    await in_step(redis)
    nodes = cluster(1, wait_replicas=1)
    speaker = await connect(nodes[0], user="ann")
    for number in range(1, 21):
        if number % 2:
            answer = await speaker.publish(KEPT, number)
            assert answer["offset"] == number
        else:
            await api(nodes[0]).publish(KEPT, number)
        assert replica.cli("XLEN", STREAM) == number
    # Several in one request are one transaction, and confirmed together.
    await api(nodes[0]).publish_all([{"topic": KEPT, "data": number} for number in range(10)])
    assert replica.cli("XLEN", STREAM) == 30


async def test_an_unconfirmed_publish_gets_an_error_and_can_be_retried(
    cluster: Start, redis: Redis, replica: Redis, connect: Connect, api: Of
) -> None:
    await in_step(redis)
    nodes = cluster(1, wait_replicas=1, wait_seconds=1)
    subscriber, speaker = await connect(nodes[0]), await connect(nodes[0], user="ann")
    await subscriber.subscribe(KEPT)
    replica.freeze()
    message = {"topic": KEPT, "data": "once", "idempotencyKey": "k1"}
    answer = await api(nodes[0]).http.post("/api/publish", json=message)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unconfirmed"
    refused = await speaker.publish(KEPT, "by a client")
    assert (refused["type"], refused["code"], refused["temporary"]) == ("ERROR", 5030, True)
    # It is published, as the answer says.
    assert (await subscriber.hear(type="DATA", data="once"))["offset"] == 1
    # Asked again, it is neither confirmed meanwhile nor published twice; and it is, once the replica is back.
    assert (await api(nodes[0]).http.post("/api/publish", json=message)).status_code == 503
    replica.thaw()
    await in_step(redis)
    (result,) = (await api(nodes[0]).post("/api/publish", message))["results"]
    assert result["offset"] == 1
    assert replica.cli("XLEN", STREAM) == 2
    await api(nodes[0]).publish(KEPT, "the end")
    await subscriber.hear(type="DATA", data="the end")
    assert subscriber.data(KEPT) == ["once", "by a client", "the end"]


async def test_a_missing_replica_holds_up_nothing_that_needs_none(
    cluster: Start, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, wait_replicas=1, wait_seconds=1.5)
    kept = [asyncio.create_task(api(nodes[0]).http.post("/api/publish", json={"topic": KEPT, "data": 1}))]
    await eventually(lambda: redis.cli("XLEN", STREAM) == 1)  # it waits for the replica that is not there
    started = time.monotonic()
    await api(nodes[0]).publish(PLAIN, "at once")
    assert time.monotonic() - started < 1
    assert not kept[0].done()
    assert (await kept[0]).json()["error"]["code"] == "unconfirmed"
    assert nodes[0].ready()


async def test_a_publish_without_a_confirmed_fsync_reports_what_is_missing(
    cluster: Start, redis: Redis, connect: Connect, api: Of
) -> None:
    """WAITAOF came with Redis 7.2, and needs appendonly: the tests' Redis has neither, or only the first."""
    nodes = cluster(1, wait_fsync=1)
    client = await connect(nodes[0])
    await client.subscribe(KEPT)
    answer = await api(nodes[0]).http.post("/api/publish", json={"topic": KEPT, "data": 1})
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert error["code"] == "unconfirmed"
    assert "GATEWAY_WAIT_FSYNC needs Redis 7.2 or newer with appendonly yes" in error["message"]
    await client.hear(type="DATA", data=1)
    await api(nodes[0]).publish(PLAIN, "not affected")
    assert nodes[0].ready()
