"""The hot path of redis-py for less: a pipeline that is sent and answered without metrics, retries and hooks.

Connections and their pools stay redis-py's, and so does what a failure does to them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import hiredis
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import BlockingConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.broker import topology


@contextmanager
def quick_redis() -> Iterator[None]:
    """Within it, redis-py's pipelines are these, and connections do not introduce their library."""
    with mock.patch.object(Pipeline, "execute", _execute), mock.patch.object(topology, "DRIVER", None):
        yield


async def _execute(self: Any, raise_on_error: bool = True) -> list[Any]:
    """As `Pipeline.execute`, without transactions."""
    commands, self.command_stack = self.command_stack, []
    pool = self.connection_pool
    connection = await _take(pool)
    try:
        answers = await _exchange(connection, [command for command, _ in commands])
    finally:
        await _give(pool, connection)
    for at, (command, _) in enumerate(commands):
        if isinstance(answers[at], Exception):
            if raise_on_error:
                raise answers[at]
        elif (callback := self.response_callbacks.get(command[0])) is not None:
            answers[at] = callback(answers[at])
    return answers


async def _take(pool: Any) -> Any:
    if pool._available_connections:
        connection = pool._available_connections[-1]
        if connection.is_connected and not await connection.can_read():
            pool._in_use_connections.add(pool._available_connections.pop())
            return connection
    assert isinstance(pool, BlockingConnectionPool)
    return await pool.get_connection()  # type: ignore[no-untyped-call]


async def _give(pool: Any, connection: Any) -> None:
    if pool._condition._waiters or pool._condition.locked() or connection.should_reconnect():
        await asyncio.shield(pool.release(connection))
    else:
        pool._in_use_connections.remove(connection)
        pool._available_connections.append(connection)


async def _exchange(connection: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    answers = []
    try:
        async with asyncio.timeout(connection.socket_timeout):
            connection._writer.write(b"".join(map(hiredis.pack_command, commands)))
            parser = connection._parser
            for _ in commands:
                while (answer := parser._reader.gets()) is NOT_ENOUGH_DATA:
                    await parser.read_from_socket()
                answers.append(answer)
    except TimeoutError as error:
        await connection.disconnect(nowait=True)
        raise RedisTimeoutError("no answer in time") from error
    except OSError as error:
        await connection.disconnect(nowait=True)
        raise RedisConnectionError(str(error)) from error
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return answers
