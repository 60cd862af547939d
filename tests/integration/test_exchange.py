"""gateway.broker.exchange: round trips on a connection of redis-py's pool, on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as Client
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from gateway.broker.errors import REDIS_ERRORS
from gateway.broker.exchange import Exchange
from tests.kit.redis import Redis
from tests.kit.waiting import eventually


@pytest.fixture
async def client(redis: Redis) -> AsyncIterator[Client]:
    """A client with one connection at most."""
    pool = BlockingConnectionPool(host="127.0.0.1", port=redis.port, max_connections=1, timeout=5, protocol=2)
    yield Client(connection_pool=pool)
    await pool.aclose()


async def test_answers_come_in_order_and_errors_stand_among_them(client: Client) -> None:
    exchange = Exchange()
    commands = [("SET", "a", "é"), ("LPUSH", "a", 1), ("GET", b"a"), ("NO SUCH", 1.5), ("PING",)]
    first, wrong, got, unknown, pong = await exchange.send(client, commands)
    assert (first, got, pong) == (b"OK", "é".encode(), b"PONG")
    assert isinstance(wrong, ResponseError) and "WRONGTYPE" in str(wrong)
    assert isinstance(unknown, ResponseError)
    assert await exchange.send(client, [("ECHO", "x" * 1_000_000)]) == [b"x" * 1_000_000]


async def test_the_answer_for_a_cancelled_caller_reaches_no_other_caller(client: Client) -> None:
    exchange = Exchange()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await exchange.send(client, [("BLPOP", "empty", 0)])
    assert await exchange.send(client, [("ECHO", "mine")]) == [b"mine"]


async def test_a_connection_that_was_closed_meanwhile_is_made_anew(client: Client, redis: Redis) -> None:
    exchange = Exchange()
    [number] = await exchange.send(client, [("CLIENT", "ID")])
    connection = exchange._connection
    assert connection is not None
    redis.cli("CLIENT", "KILL", "ID", str(number))
    await eventually(connection.lost.done)
    assert await exchange.send(client, [("ECHO", "again")]) == [b"again"]


async def test_a_redis_that_is_gone_is_a_redis_error(client: Client, redis: Redis) -> None:
    exchange = Exchange()
    await exchange.send(client, [("PING",)])
    redis.process.kill()
    with pytest.raises(REDIS_ERRORS):
        await exchange.send(client, [("PING",)])


async def test_a_connection_that_redis_closes_fails_the_call_that_waits(client: Client, redis: Redis) -> None:
    exchange = Exchange()
    [number] = await exchange.send(client, [("CLIENT", "ID")])
    waiting = asyncio.create_task(exchange.send(client, [("BLPOP", "empty", 0)]))
    await eventually(lambda: "cmd=blpop" in redis.cli("CLIENT", "LIST"))
    redis.cli("CLIENT", "KILL", "ID", str(number))
    with pytest.raises(RedisConnectionError, match="closed by server"):
        await waiting


async def test_it_ends_with_its_client_and_is_made_anew_for_another(client: Client, redis: Redis) -> None:
    exchange = Exchange()
    [first] = await exchange.send(client, [("CLIENT", "ID")])
    await client.connection_pool.aclose()
    await eventually(lambda: f"id={first} " not in redis.cli("CLIENT", "LIST"))
    other = Client(host="127.0.0.1", port=redis.port, protocol=2)
    [second] = await exchange.send(other, [("CLIENT", "ID")])
    assert second != first
    await other.aclose()


async def test_an_error_of_the_whole_server_fails_the_call(client: Client) -> None:
    exchange = Exchange()
    loading = ("EVAL", "return redis.error_reply('LOADING Redis is loading the dataset in memory')", 0)
    with pytest.raises(RedisConnectionError, match="loading the dataset"):
        await exchange.send(client, [loading, ("PING",)])
    assert await exchange.send(client, [("PING",)]) == [b"PONG"]
