"""Lists of the topics and clients of all nodes, read in parts, so that none blocks the event loop or fills memory."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

from gateway.broker import rows
from gateway.broker.client import RedisClient, WrongType
from gateway.broker.hash_reader import HashReader
from gateway.broker.keys import Keys, node_of

MAX_COUNT_BYTES: Final = 20  # size of a topic's subscriber count
MAX_CLIENT_BYTES: Final = 4 << 20  # size of a client's row: names and up to 5,000 topics take 1 MB
TURN_NAMES: Final = 500  # client ids decoded and sorted in one turn: about a millisecond
READ_ROWS: Final = 100  # client rows per round trip
TURN_BYTES: Final = 128 << 10  # client rows decoded in one turn; a longer row takes its own turn


class Listings:
    """Reads lists of topics and clients. `living` gives the ids of the living nodes, sorted."""

    def __init__(self, redis: RedisClient, keys: Keys, living: Callable[[], Awaitable[list[str]]]) -> None:
        self._redis = redis
        self._keys = keys
        self._living = living
        self._counts = HashReader(redis, "topic", MAX_COUNT_BYTES)

    async def topics(self, limit: int, *, after: str = "", contains: str = "") -> dict[str, Any]:
        """A page of the topics that have subscribers: at most `limit` topics after the name `after`, sorted by name.

        `contains`: only topics with this text in their name. In the result, `next` is the `after` of the next page, or
        None on the last; `nodes` has the number of topics of each node, so a topic on two nodes counts twice.

        The nodes' hashes are not sorted, so each page reads all of them, `PAGE_FIELDS` fields a turn. Memory holds at
        most about twice `limit` names and one page of fields.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        ids = await self._living()
        totals = await self._redis.execute_each([("HLEN", self._keys.topics(node_id)) for node_id in ids])
        first, part = after.encode(), contains.encode()
        last: bytes | None = None  # later names are not on this page
        found: dict[bytes, dict[str, int]] = {}
        for node_id in ids:
            key = self._keys.topics(node_id)
            async for _, flat in self._counts.pages([key]):
                for name, value in zip(flat[::2], flat[1::2], strict=True):
                    # UTF-8 bytes sort in the same order as the text.
                    if name <= first or (last is not None and name > last) or part not in name:
                        continue
                    count = self._redis.rows.decode("topic", key, partial(_count, name, value))
                    if count is not None:
                        found.setdefault(name, {})[node_id] = count
                if len(found) > 2 * limit:
                    found, last = _first(found, limit + 1)
        found, _ = _first(found, limit + 1)
        listed = [topic_row(name.decode(), counts) for name, counts in found.items()]
        return {
            "topics": listed[:limit],
            "next": listed[limit - 1]["topic"] if len(listed) > limit else None,
            "nodes": {i: total for i, total in zip(ids, totals, strict=True) if isinstance(total, int)},
        }

    async def clients(
        self, *, user: str | None = None, ip: str | None = None, topic: str | None = None, node: str | None = None,
        after: str | None = None,
    ) -> AsyncIterator[dict[str, Any]]:  # fmt: skip
        """The matching clients, by node and then in the order they connected; with `after`, those after this client.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        ids = [i for i in await self._living() if node is None or node in (i, i.rpartition(".")[0])]
        after_node = node_of(after) if after else ""
        for node_id in ids:
            if after and node_id < after_node:
                continue
            key = self._keys.clients(node_id)
            members = await self._members(key, after if after and node_id == after_node else None)
            size = 0
            while page := list(itertools.islice(members, READ_ROWS)):
                for client_id, row in zip(page, await self._redis.execute("HMGET", key, *page), strict=True):
                    if row is None:
                        continue
                    size += len(row)
                    if size > TURN_BYTES:
                        await asyncio.sleep(0)
                        size = len(row)
                    client = self.client(client_id, row)
                    if client is None or (user is not None and client["user"] != user):
                        continue
                    if ip is not None and client["ip"] != ip:
                        continue
                    if topic is None or topic in client["topics"]:
                        yield client

    async def _members(self, key: str, after: str | None) -> Iterator[str]:
        """Ids of the clients of one node in the order they connected; with `after`, those after this client."""
        try:
            names = await self._redis.execute("HKEYS", key)
        except WrongType as error:
            self._redis.rows.skip("client", key, error)
            return iter(())
        runs = []
        for at in range(0, len(names), TURN_NAMES):
            some = self._redis.rows.decode_each("client", key, names[at : at + TURN_NAMES], rows.client_id)
            runs.append(sorted((_order(i), i) for i in some if after is None or _order(i) > _order(after)))
            await asyncio.sleep(0)
        return (client_id for _, client_id in heapq.merge(*runs))

    def client(self, client_id: str, row: object) -> dict[str, Any] | None:
        """Decode the row of a client; None, counted and logged, if the row is malformed."""
        key = self._keys.clients(node_of(client_id))
        return self._redis.rows.decode("client", key, lambda: _client_row(client_id, row))


def topic_row(topic: str, counts: dict[str, int]) -> dict[str, Any]:
    """A topic in the format of the API; `counts`: its subscribers by node id."""
    return {"topic": topic, "subscribers": sum(counts.values()), "nodes": counts}


def _first(found: dict[bytes, dict[str, int]], number: int) -> tuple[dict[bytes, dict[str, int]], bytes | None]:
    """The first `number` of `found`, sorted by name, and the last of these names; None if there are fewer."""
    names = sorted(found)[:number]
    return {name: found[name] for name in names}, names[-1] if len(names) == number else None


def _count(name: bytes, value: bytes) -> int:
    rows.text(name)  # raises ValueError
    return rows.integer(value)


def _order(client_id: str) -> int:
    return int(client_id.rpartition(".")[2])


def _client_row(client_id: str, row: object) -> dict[str, Any]:
    found = rows.json_object(row, MAX_CLIENT_BYTES)
    for name in ("connectedAt", "ip", "userAgent", "user", "role"):
        if not isinstance(found[name], str | None):
            raise ValueError(f"{name} is not text")  # noqa: TRY004  the type of input
    if not isinstance(found["topics"], list) or not all(isinstance(topic, str) for topic in found["topics"]):
        raise ValueError("topics is not a list of names")
    return {"id": client_id, "node": node_of(client_id), **found}
