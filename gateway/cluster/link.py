"""The connections to Redis: the one place that opens them, and the publisher.

Every round trip has a deadline and none is retried behind the caller's back: a PUBLISH sent twice would be
heard twice. What fails, fails as `Unavailable`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
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
BATCH_MESSAGES: Final = 512
# What may wait for Redis before publishers are turned away.
QUEUE_MESSAGES: Final = 10_000
QUEUE_BYTES: Final = 64 << 20

Message = tuple[str, bytes]  # channel, payload


class Unavailable(Exception):
    """Redis did not do it, or did not confirm in time; nothing is known to have happened."""


def explain(error: BaseException) -> str:
    """An error of the way to Redis in one short line."""
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
        self._queue: deque[tuple[Sequence[Message], asyncio.Future[None]]] = deque()
        self._queued_messages = 0
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

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publish all of `messages`, or none. What is asked for meanwhile shares one round trip.

        Raises:
            Unavailable: Redis is away or slow, or too much is waiting for it.
        """
        size = sum(len(payload) for _, payload in messages)
        if self._queued_messages + len(messages) > QUEUE_MESSAGES or self._queued_bytes + size > QUEUE_BYTES:
            raise Unavailable("too many publishes are waiting for Redis")
        self._queued_messages += len(messages)
        self._queued_bytes += size
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((messages, done))
        self._wake.set()
        try:
            # The publisher has its own deadline for each batch; this one bounds the wait in the queue too.
            async with asyncio.timeout(2 * self.timeout_seconds):
                await done
        except TimeoutError:
            raise Unavailable("Redis did not take the message in time") from None
        finally:
            self._queued_messages -= len(messages)
            self._queued_bytes -= size

    async def run(self) -> None:
        """The publisher: takes what waits, sends it in one transaction, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            batch: list[tuple[Sequence[Message], asyncio.Future[None]]] = []
            taken = 0
            while self._queue and (not batch or taken + len(self._queue[0][0]) <= BATCH_MESSAGES):
                messages, done = self._queue.popleft()
                if not done.done():  # its caller has not given up
                    batch.append((messages, done))
                    taken += len(messages)
            if not self._queue:
                self._wake.clear()
            if not batch:
                continue
            started = loop.time()
            error: Exception | None = None
            try:
                await self._send([message for messages, _ in batch for message in messages])
            except REDIS_ERRORS as failure:
                error = Unavailable(explain(failure))
            else:
                self._metrics.round_trip.observe(loop.time() - started)
            for _, done in batch:
                if done.done():
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

    async def _send(self, messages: Sequence[Message]) -> None:
        async with asyncio.timeout(self.timeout_seconds):
            if len(messages) == 1:
                await self.redis.publish(*messages[0])
                return
            pipeline = self.redis.pipeline(transaction=True)
            for channel, payload in messages:
                pipeline.publish(channel, payload)
            await pipeline.execute()

    async def close(self) -> None:
        """Close all connections that rest in the pool."""
        await self.redis.aclose()
        await self._pool.disconnect()
