"""gateway.cluster.answers.exchange: a round trip on one of redis-py's connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as Client
from redis.exceptions import ResponseError

from gateway.cluster.answers import REDIS_ERRORS, exchange
from tests.cluster import Redis
from tests.deadlines import eventually


@pytest.fixture
async def client(redis: Redis) -> AsyncIterator[Client]:
    """A client with one connection at most."""
    pool = BlockingConnectionPool(host="127.0.0.1", port=redis.port, max_connections=1, timeout=5, protocol=2)
    yield Client(connection_pool=pool)
    await pool.aclose()


async def test_answers_come_in_order_and_errors_stand_among_them(client: Client) -> None:
    commands = [("SET", "a", "é"), ("LPUSH", "a", 1), ("GET", b"a"), ("NO SUCH", 1.5), ("PING",)]
    first, wrong, got, unknown, pong = await exchange(client, commands)
    assert (first, got, pong) == (b"OK", "é".encode(), b"PONG")
    assert isinstance(wrong, ResponseError) and "WRONGTYPE" in str(wrong)
    assert isinstance(unknown, ResponseError)
    assert await exchange(client, [("ECHO", "x" * 1_000_000)]) == [b"x" * 1_000_000]


async def test_the_answer_that_a_cancelled_caller_left_is_nobody_elses(client: Client) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await exchange(client, [("BLPOP", "empty", 0)])
    assert await exchange(client, [("ECHO", "mine")]) == [b"mine"]


async def test_a_connection_that_was_closed_meanwhile_is_made_anew(client: Client, redis: Redis) -> None:
    [number] = await exchange(client, [("CLIENT", "ID")])
    [connection] = client.connection_pool._available_connections
    reader = connection._reader
    assert reader is not None
    redis.cli("CLIENT", "KILL", "ID", str(number))
    await eventually(reader.at_eof)
    assert await exchange(client, [("ECHO", "again")]) == [b"again"]


async def test_a_redis_that_is_gone_is_a_redis_error(client: Client, redis: Redis) -> None:
    await exchange(client, [("PING",)])
    redis.process.kill()
    with pytest.raises(REDIS_ERRORS):
        await exchange(client, [("PING",)])
