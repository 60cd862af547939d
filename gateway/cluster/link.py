"""The connections to Redis: the one place that opens them, and the publisher.

Every round trip has a deadline and none is retried behind the caller's back: a PUBLISH sent twice would be
heard twice. What fails, fails as `Unavailable`.

What must reach replicas before it is acknowledged has a publisher of its own: a replica that is slow or gone holds up
nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from gateway.cluster import servers
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
_Call = tuple[Sequence[Command], asyncio.Future[list[Any]]]


class Unavailable(Exception):
    """Redis did not do it, or did not confirm in time; nothing is known to have happened."""


class Unconfirmed(Unavailable):
    """Redis did it, but too few replicas have confirmed it: it is lost if this Redis is, now."""


def explain(error: BaseException) -> str:
    """An error of the way to Redis in one short line."""
    return str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Durability:
    """How many replicas must confirm a durable publish, and how long that may take. 0: Redis alone is enough."""

    replicas: int = 0
    seconds: float = 1.0


class Link:
    """Connections to the Redis at `url`, each round trip within `timeout_seconds`."""

    def __init__(
        self, url: str, *, timeout_seconds: float, name: str, metrics: Metrics, durability: Durability | None = None
    ) -> None:
        self.timeout_seconds = timeout_seconds
        # RESP2: its pub/sub costs a third less than RESP3's, and we need nothing of the newer protocol.
        self._pool = servers.pool(
            url, timeout_seconds=timeout_seconds, max_connections=POOL_CONNECTIONS, protocol=2, client_name=name
        )
        self.redis: Redis = Redis(connection_pool=self._pool)
        self._plain = self._durable = _Publisher(self, metrics, Durability())
        if durability is not None and durability.replicas:
            self._durable = _Publisher(self, metrics, durability)

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
                await _heeding(connection.connect())  # type: ignore[no-untyped-call]
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, REDIS_ERRORS):
                raise Unavailable(explain(error)) from error
            raise
        return connection

    async def moved(self, connection: AbstractConnection) -> bool:
        """Whether Redis is elsewhere now than where `connection`, a subscriber's, leads.

        A master that was cut off believes in itself until it meets a Sentinel.
        """
        return bool(await self.ask(servers.moved(self._pool, connection)))

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish one payload.

        Raises:
            Unavailable: as `send`.
        """
        await self.send([("PUBLISH", channel, payload)])

    async def send(self, commands: Sequence[Command], *, durable: bool = False) -> list[Any]:
        """Have Redis do all of `commands` in one transaction; their answers. What waits shares the round trip.

        Commands of the same kind, `durable` or not, are done in the order of the calls.

        Raises:
            Unconfirmed: They are done, but too few replicas confirmed it. Only if `durable`.
            Unavailable: Redis is away or slow, refused one, or too much is waiting for it.
        """
        return await (self._durable if durable else self._plain).send(commands)

    async def ask(self, command: Awaitable[Any]) -> Any:
        """The answer of one command or pipeline, within the deadline.

        Raises:
            Unavailable: Redis is away, slow, or refused it.
        """
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await _heeding(command)
        except REDIS_ERRORS as error:
            raise Unavailable(explain(error)) from error

    async def execute(self, pipeline: Any, *, raise_on_error: bool = True) -> list[Any]:
        """The answers of a pipeline of `redis`, within the deadline.

        Raises:
            Unavailable: as `ask`.
        """
        async with pipeline:  # a deadline that ends while redis-py looks for scripts would leave its connection behind
            answers: list[Any] = await self.ask(pipeline.execute(raise_on_error=raise_on_error))
            return answers

    async def run(self) -> None:
        """The publishers, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for publisher in {self._plain, self._durable}:
                tasks.create_task(publisher.run())

    async def close(self) -> None:
        """Close all connections that rest in the pool."""
        await self.redis.aclose()
        await self._pool.aclose()


async def _heeding(work: Awaitable[Any]) -> Any:
    """What `work` of redis-py gives, or the cancellation that it has lost.

    It writes under `asyncio.wait_for`, which in Python 3.11 loses a cancellation that comes in the turn in which the
    write is done. Who is to end would go on for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled = task.cancelling()
    answer = await work
    if task.cancelling() > cancelled:
        raise asyncio.CancelledError
    return answer


class _Publisher:
    """A queue of commands, and who sends them: one batch at a time, so that their order is that of the calls."""

    def __init__(self, link: Link, metrics: Metrics, durability: Durability) -> None:
        self._link = link
        self._metrics = metrics
        self._durability = durability
        self._queue: deque[_Call] = deque()
        self._queued_commands = 0
        self._queued_bytes = 0
        self._wake = asyncio.Event()

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """As `Link.send`."""
        size = sum(len(part) for command in commands for part in command if isinstance(part, bytes))
        if self._queued_commands + len(commands) > QUEUE_COMMANDS or self._queued_bytes + size > QUEUE_BYTES:
            raise Unavailable("too many publishes are waiting for Redis")
        self._queued_commands += len(commands)
        self._queued_bytes += size
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._queue.append((commands, done))
        self._wake.set()
        try:
            # Each batch has a deadline of its own; this one bounds the wait in the queue too.
            async with asyncio.timeout(2 * self._link.timeout_seconds):
                return await done
        except TimeoutError:
            raise Unavailable("Redis did not take the message in time") from None
        finally:
            self._queued_commands -= len(commands)
            self._queued_bytes -= size

    async def run(self) -> None:
        """Take what waits, send it in one transaction, for ever."""
        while True:
            await self._wake.wait()
            batch: list[_Call] = []
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

    async def _execute(self, batch: Sequence[_Call]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            answers, confirmed = await self._transact([command for commands, _ in batch for command in commands])
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
            # One caller's refused command is not the others' failure.
            refused = next((answer for answer in own if isinstance(answer, Exception)), None)
            if refused is not None:
                done.set_exception(Unavailable(explain(refused)))
            elif confirmed < self._durability.replicas:
                wanted = self._durability.replicas
                done.set_exception(Unconfirmed(f"published, but confirmed by {confirmed} of {wanted} replicas"))
            else:
                done.set_result(own)

    async def _transact(self, commands: Sequence[Command]) -> tuple[list[Any], int]:
        """The answers to `commands`, and how many replicas have confirmed them (0 if it was not asked).

        WAIT is no part of the transaction (it would not block in it), but of the connection: replicas confirm what
        this connection has written.
        """
        # MULTI and EXEC by hand: redis-py's transaction would end the pipeline, and give its connection back.
        pipeline = self._link.redis.pipeline(transaction=False)
        whole = len(commands) > 1
        for command in [("MULTI",), *commands, ("EXEC",)] if whole else commands:
            pipeline.execute_command(*command)
        if self._durability.replicas:
            pipeline.execute_command("WAIT", self._durability.replicas, int(self._durability.seconds * 1000))
        answers = await self._link.ask(pipeline.execute(raise_on_error=False))
        confirmed = answers.pop() if self._durability.replicas else 0
        if isinstance(confirmed, Exception):
            confirmed = 0
        if not whole:
            return answers, confirmed
        done = answers[-1]
        if isinstance(done, Exception):  # nothing was done; why, the refused command says
            raise Unavailable(explain(next((answer for answer in answers if isinstance(answer, Exception)), done)))
        return done, confirmed
