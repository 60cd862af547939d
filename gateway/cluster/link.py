"""The connections to Redis: the one place that opens them, and the publisher.

Every round trip has a deadline and none is retried behind the caller's back: a PUBLISH sent twice would be
heard twice. What fails, fails as `Unavailable`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.metrics import Metrics

# What Redis or the way to it can fail with. `TimeoutError` is an `OSError`.
REDIS_ERRORS: Final = (RedisError, OSError)

# Enough for one publisher, one registry writer, one beat, and API requests side by side.
POOL_CONNECTIONS: Final = 16
# A batch is one MULTI; past this size a larger one saves nothing and holds Redis longer.
BATCH_COMMANDS: Final = 512
# What may wait for Redis before publishers are turned away.
QUEUE_COMMANDS: Final = 10_000
QUEUE_BYTES: Final = 64 << 20

Command = tuple[Any, ...]  # a Redis command and its arguments, the last of them the largest


class Unavailable(Exception):
    """Redis did not do it, or did not confirm in time; nothing is known to have happened."""


def explain(error: BaseException) -> str:
    """An error of the way to Redis in one short line."""
    if isinstance(error, BaseExceptionGroup):
        return explain(error.exceptions[0])
    return str(error) or type(error).__name__


class Link:
    """Connections to the Redis at `url`, each round trip within `timeout_seconds`."""

    def __init__(self, url: str, *, timeout_seconds: float, name: str, metrics: Metrics) -> None:
        self.timeout_seconds = timeout_seconds
        self._metrics = metrics
        # RESP2: its pub/sub costs a third less than RESP3's, and we need nothing of the newer protocol.
        self._pool = BlockingConnectionPool.from_url(
            url, max_connections=POOL_CONNECTIONS, timeout=timeout_seconds, protocol=2,
            socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0), client_name=name,
        )  # fmt: skip
        self.redis: Redis = Redis(connection_pool=self._pool)
        self._queue: deque[tuple[Sequence[Command], asyncio.Future[list[Any]]]] = deque()
        self._queued_commands = 0
        self._queued_bytes = 0
        self._wake = asyncio.Event()

    @staticmethod
    def describe(url: str) -> str:
        """`url` without its password, for people."""
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"

    def script(self, name: str) -> Any:
        """The Lua step ``lua/{name}.lua``, to be called with keys and args."""
        source = resources.files("gateway.cluster").joinpath("lua", f"{name}.lua").read_text()
        return self.redis.register_script(source)

    async def subscriber(self) -> AbstractConnection:
        """A connected connection of its own for pub/sub; the caller disconnects it.

        Raises:
            Unavailable: Redis cannot be reached, or refuses the login.
        """
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await connection.connect()  # type: ignore[no-untyped-call]
        except REDIS_ERRORS as error:
            await connection.disconnect(nowait=True)
            raise Unavailable(explain(error)) from error
        return connection

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish one payload.

        Raises:
            Unavailable: as `send`.
        """
        await self.send([("PUBLISH", channel, payload)])

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Have Redis do all of `commands` in one transaction; their answers. What waits shares the round trip.

        Raises:
            Unavailable: Redis is away or slow, refused one, or too much is waiting for it.
        """
        size = sum(len(part) for command in commands for part in command if isinstance(part, bytes))
        if self._queued_commands + len(commands) > QUEUE_COMMANDS or self._queued_bytes + size > QUEUE_BYTES:
            raise Unavailable("too many publishes are waiting for Redis")
        self._queued_commands += len(commands)
        self._queued_bytes += size
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._queue.append((commands, done))
        self._wake.set()
        try:
            # The publisher has its own deadline for each batch; this one bounds the wait in the queue too.
            async with asyncio.timeout(2 * self.timeout_seconds):
                return await done
        except TimeoutError:
            raise Unavailable("Redis did not take the message in time") from None
        finally:
            self._queued_commands -= len(commands)
            self._queued_bytes -= size

    async def ask(self, command: Awaitable[Any]) -> Any:
        """The answer of one command or pipeline, within the deadline.

        Raises:
            Unavailable: Redis is away, slow, or refused it.
        """
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await command
        except REDIS_ERRORS as error:
            raise Unavailable(explain(error)) from error

    async def run(self) -> None:
        """The publisher: takes what waits, sends it in one transaction, for ever."""
        while True:
            await self._wake.wait()
            batch: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]] = []
            taken = 0
            while self._queue and (not batch or taken + len(self._queue[0][0]) <= BATCH_COMMANDS):
                commands, done = self._queue.popleft()
                if not done.done():  # its caller has not given up
                    batch.append((commands, done))
                    taken += len(commands)
            if not self._queue:
                self._wake.clear()
            if batch:
                await self._execute(batch)

    async def _execute(self, batch: Sequence[tuple[Sequence[Command], asyncio.Future[list[Any]]]]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        pipeline = self.redis.pipeline(transaction=sum(len(commands) for commands, _ in batch) > 1)
        for commands, _ in batch:
            for command in commands:
                pipeline.execute_command(*command)
        try:
            # One caller's refused command is not the others' failure.
            answers = await self.ask(pipeline.execute(raise_on_error=False))
        except Unavailable as error:
            for _, done in batch:
                if not done.done():
                    done.set_exception(Unavailable(str(error)))
            return
        self._metrics.round_trip.observe(loop.time() - started)
        at = 0
        for commands, done in batch:
            own, at = answers[at : at + len(commands)], at + len(commands)
            if done.done():
                continue
            refused = next((answer for answer in own if isinstance(answer, Exception)), None)
            if refused is None:
                done.set_result(own)
            else:
                done.set_exception(Unavailable(explain(refused)))

    async def close(self) -> None:
        """Close all connections that rest in the pool."""
        await self.redis.aclose()
        await self._pool.disconnect()
