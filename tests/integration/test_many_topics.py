"""One client with thousands of topics: the number of round trips to Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tests.conftest import Connect
from tests.kit.client import Client
from tests.kit.cluster import Cluster
from tests.kit.redis import Redis

RULES = """
[[topic]]
pattern = "history:*"
history = 5

[[topic]]
pattern = "value:*"
snapshot = true

[[topic]]
pattern = "people:*"
presence = true

[[topic]]
pattern = "all:*"
history = 5
snapshot = true
presence = true
"""
TOPICS = 1000
# Reads of hundred topics each, in one or two steps, and what the node does beside them in that time.
MOST_TRIPS = 150


class Between:
    """A way to Redis that counts what passes: a chunk from the node is a round trip, or several at once."""

    def __init__(self, redis: Redis) -> None:
        self.trips = 0
        self.port = 0
        self._redis = redis
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """While it is open."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self._redis.port)
        self._writers += (writer, forth)
        for source, target, counts in ((reader, forth, True), (back, writer, False)):
            task = asyncio.create_task(self._pass_on(source, target, counts))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, counts: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 20):
                self.trips += counts
                target.write(data)
            target.write_eof()


async def test_a_subscribe_of_a_thousand_topics_is_read_for_in_few_round_trips(
    cluster: Callable[..., Cluster], redis: Redis, connect: Connect, folder: Path
) -> None:
    rules = folder / "topics.toml"
    rules.write_text(RULES)
    between = Between(redis)
    async with between.open():
        nodes = await asyncio.to_thread(
            cluster, 1, redis_url=f"redis://127.0.0.1:{between.port}/0", topics=rules, lease_seconds=60
        )
        (node,) = nodes
        for kind in ("history", "value", "people", "all"):
            client: Client = await connect(node)
            topics = [f"{kind}:{at}" for at in range(TOPICS)]
            before = between.trips
            answer = await client.subscribe(*topics)
            trips = between.trips - before
            print(f"{kind}: {trips} round trips")
            assert answer["topics"] == topics
            assert trips < MOST_TRIPS, kind
        node.kill()
