"""A `RedisClient` to a Redis in memory, which runs the real Lua steps: for units that are mostly what they ask of
Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from redis.exceptions import ResponseError

from gateway.broker.client import RedisClient
from gateway.broker.errors import CommandRefused, RedisCommand, Unavailable, to_unavailable
from gateway.broker.rows import RowDecoder
from gateway.broker.slot_map import SlotMap
from gateway.metrics import Metrics
from tests.simulation.network import Network
from tests.simulation.redis_data import RedisError
from tests.simulation.redis_server import RedisServer


class MemoryRedis:
    """Its time, in ms, stands still until the test moves it."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.rows = RowDecoder(self.metrics)
        self.sharded = False
        self.slot_map = SlotMap(sharded=False)
        self.now_ms = 1_700_000_000_000
        self.redis = RedisServer(cast(Network, None), [], lambda: 1000 * self.now_ms)
        self.redis.published = lambda channel, payload: self.published.append((channel.decode(), payload))
        self.published: list[tuple[str, bytes]] = []
        self.away = False
        self.trips: list[list[str]] = []  # names of the commands of each round trip
        self._scripts = RedisClient("redis://127.0.0.1:1", timeout_seconds=1, name="test", metrics=self.metrics)

    @property
    def client(self) -> RedisClient:
        """Itself, to the code."""
        return cast(RedisClient, self)

    def script(self, name: str) -> Any:
        """The real step, loaded."""
        step = self._scripts.script(name)
        self.redis.scripts[step.digest.encode()] = step.source.encode()
        return step

    async def execute(self, *command: Any) -> Any:
        """As `RedisClient.execute`."""
        return (await self.execute_all([command]))[0]

    async def execute_at(self, _server: str, *command: Any) -> Any:
        """There is one server."""
        answer = await self.execute(*command)
        return [int(answer[0]), answer[1]] if command[0] == "SCAN" else answer  # as redis-py does

    async def execute_all(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """As `RedisClient.execute_all`."""
        answers = await self.execute_each(commands)
        for answer in answers:
            if isinstance(answer, CommandRefused):
                raise answer
        return answers

    async def execute_each(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """As `RedisClient.execute_each`."""
        self.trips.append([str(command[0]) for command in commands])
        if self.away:
            raise Unavailable("away")
        return [self.run(*command) for command in commands]

    async def transact(self, commands: Sequence[RedisCommand], *, durable: bool = False) -> list[Any]:
        """As `RedisClient.transact`."""
        return await self.execute_all(commands)

    def submit(self, commands: Sequence[RedisCommand], *, durable: bool = False) -> asyncio.Future[list[Any]]:
        """As `RedisClient.submit`."""
        return asyncio.ensure_future(self.transact(commands, durable=durable))

    def publish_command(self, _channel: str) -> str:
        """It is no cluster."""
        return "PUBLISH"

    async def publish(self, channel: str, payload: bytes) -> None:
        """As `RedisClient.publish`."""
        await self.execute("PUBLISH", channel, payload)

    @property
    def read_batch(self) -> Any:
        """Reads that share a round trip: here each has its own."""
        return self

    async def refresh_topology(self) -> None:
        """There is nothing to learn."""

    def run(self, *command: Any) -> Any:
        """The answer to one command, at once."""
        if command[0] == "HRANDFIELD":  # any fields will do
            found = self.run("HKEYS", command[1])
            return found[: command[2]] if isinstance(found, list) else found
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
        answer = self.redis.run(parts)
        return to_unavailable(ResponseError(str(answer))) if isinstance(answer, RedisError) else answer

    def ttl_ms(self, key: str) -> int:
        """PTTL."""
        return int(self.run("PTTL", key))
