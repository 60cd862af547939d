"""Round trips of many commands on one connection of redis-py's pool, which is kept between them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.broker.errors import RedisCommand, cancellable
from gateway.broker.redis_connection import RedisConnection


class Exchange:
    """Sends commands, one call at a time. It does what redis-py's pipeline does for less.

    It takes a connection from the pool of the client when it has none, and returns it when it fails. So redis-py closes
    it with all others when it closes the client.
    """

    def __init__(self) -> None:
        self._client: Redis | None = None
        self._connection: RedisConnection | None = None
        self._count = 0  # replies that the running call waits for
        self._replies: list[Any] = []
        self._done: asyncio.Future[None] | None = None

    async def send(self, client: Redis, commands: Sequence[RedisCommand]) -> list[Any]:
        """Send `commands` to the server of `client`; their answers as Redis gives them, errors among them.

        The caller sets a deadline.

        Raises:
            RedisError, OSError: `REDIS_ERRORS`, and nothing else.
        """
        connection = self._connection
        if connection is None or connection.lost.done() or client is not self._client:
            connection = await self._open(client)
        self._count, self._replies = len(commands), []
        self._done = asyncio.get_running_loop().create_future()
        try:
            connection.write(b"".join(map(pack_command, commands)))
            await self._done
        except BaseException:
            await self._give_back()  # replies may be left on it
            raise
        return self._replies

    async def _open(self, client: Redis) -> RedisConnection:
        await self._give_back()
        pool: Any = client.connection_pool
        opened = await cancellable(pool.get_connection())
        try:
            connection = self._connection = RedisConnection(opened, self._receive)
        except BaseException:
            await pool.release(opened)
            raise
        self._client = client
        connection.lost.add_done_callback(self._lose)
        return connection

    async def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._client is not None:
            connection.close()
            await self._client.connection_pool.release(connection.opened)

    def _receive(self, replies: list[Any]) -> None:
        for reply in replies:
            # redis-py's classes for errors after which the connection is of no use: LOADING, NOAUTH, too many clients.
            if isinstance(reply, RedisConnectionError):
                raise reply
        self._replies += replies
        if len(self._replies) >= self._count and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _lose(self, lost: asyncio.Future[None]) -> None:
        if lost.cancelled() or self._connection is None or lost is not self._connection.lost:
            return
        error = lost.exception()
        if error is not None and self._done is not None and not self._done.done():
            self._done.set_exception(error)
