"""Lists of many topics and clients: their pages, and the bound of work in one turn of the event loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from gateway.broker.client import RedisClient
from gateway.broker.hash_reader import PAGE_FIELDS
from gateway.broker.keys import Keys
from gateway.cluster import listings
from gateway.cluster.listings import READ_ROWS, TURN_NAMES, Listings
from gateway.metrics import Metrics
from tests.kit.redis import Redis

NODES = ["n1.a", "n2.b"]


@pytest.fixture
async def redis_client(redis: Redis) -> AsyncIterator[RedisClient]:
    """A link to a Redis of its own."""
    redis_client = RedisClient(redis.url, timeout_seconds=10, name="lists", metrics=Metrics())
    yield redis_client
    await redis_client.close()


@pytest.fixture
def lists(redis_client: RedisClient) -> Listings:
    """The lists of two nodes that live."""

    async def living() -> list[str]:
        return NODES

    return Listings(redis_client, Keys("gw:"), living)


async def put(redis_client: RedisClient, key: str, rows: dict[str, Any]) -> None:
    """Write a hash."""
    fields = list(rows.items())
    for at in range(0, len(fields), 1000):
        await redis_client.execute("HSET", key, *(part for field in fields[at : at + 1000] for part in field))


async def in_pages(lists: Listings, limit: int, **about: str) -> list[dict[str, Any]]:
    """All topics, by pages; each page is full, but for the last."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = await lists.topics(limit, after=after, **about)
        found += page["topics"]
        after = page["next"]
        assert after is None or (len(page["topics"]) == limit and after == found[-1]["topic"])
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 500, 4000])
async def test_pages_have_every_topic_once_by_name_with_the_counts_of_all_nodes(
    redis_client: RedisClient, lists: Listings, limit: int
) -> None:
    names = [f"t{at}" for at in range(7 if limit < 5 else 3000)] + ["a/b", "Z", "é", "\U0001f600"]
    random.Random(limit).shuffle(names)
    counts = {name: {node: at + 1 for at, node in enumerate(NODES) if (len(name) + at) % 3} for name in names}
    for node in NODES:
        await put(redis_client, Keys("gw:").topics(node), {n: by[node] for n, by in counts.items() if node in by})
    received = {name: by for name, by in counts.items() if by}
    expected: list[dict[str, Any]] = [
        {"topic": n, "subscribers": sum(received[n].values()), "nodes": received[n]} for n in sorted(received)
    ]
    assert await in_pages(lists, limit) == expected
    assert await in_pages(lists, limit, contains="1") == [row for row in expected if "1" in row["topic"]]
    totals = (await lists.topics(limit))["nodes"]
    assert totals == {node: sum(node in by for by in counts.values()) for node in NODES}


async def test_a_page_of_many_topics_keeps_few_of_them_and_handles_a_piece_a_turn(
    redis_client: RedisClient, lists: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(redis_client, Keys("gw:").topics(NODES[0]), {f"topic:{at}": 1 for at in range(20_000)})
    kept: list[int] = []
    real = listings._first

    def first(found: dict[bytes, dict[str, int]], number: int) -> Any:
        kept.append(len(found))
        return real(found, number)

    monkeypatch.setattr(listings, "_first", first)
    pieces = await turns_of(lists._redis.rows, "decode", lambda: lists.topics(100), monkeypatch)
    assert len(kept) > 1  # it was sorted out meanwhile
    assert max(kept) <= 2 * 100 + 3 * PAGE_FIELDS  # HSCAN may give somewhat more than was asked for
    assert max(pieces) <= 3 * PAGE_FIELDS


async def test_clients_are_sorted_and_decoded_a_piece_a_turn(
    redis_client: RedisClient, lists: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    row: dict[str, Any] = {"connectedAt": "x", "ip": "i", "userAgent": "", "user": "ann", "role": None, "topics": []}
    ids = [f"n1.a.{at}" for at in range(1, 6001)]
    random.Random(1).shuffle(ids)
    await put(redis_client, Keys("gw:").clients("n1.a"), dict.fromkeys(ids, orjson.dumps(row)))
    found: list[str] = []

    async def read(**about: str) -> None:
        found[:] = [client["id"] async for client in lists.clients(**about)]

    ordered = sorted(ids, key=lambda client_id: int(client_id.rpartition(".")[2]))
    decoded = await turns_of(listings, "_client_row", read, monkeypatch)
    assert (found, sum(decoded)) == (ordered, len(ids))
    assert max(decoded) <= READ_ROWS
    judged = await turns_of(listings, "_order", lambda: read(user="bob", after="n1.a.10"), monkeypatch)
    assert not found
    assert max(judged) <= 3 * TURN_NAMES
    await read(after="n1.a.5990")
    assert found == ordered[5990:]


async def test_long_rows_of_clients_are_decoded_one_a_turn(
    redis_client: RedisClient, lists: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = [f"topic:{at:030}" for at in range(5000)]
    row: dict[str, Any] = {
        "connectedAt": "x",
        "ip": "i",
        "userAgent": "",
        "user": "ann",
        "role": None,
        "topics": topics,
    }
    await put(redis_client, Keys("gw:").clients("n2.b"), {f"n2.b.{at}": orjson.dumps(row) for at in range(1, 21)})

    async def read() -> None:
        assert len([client async for client in lists.clients(topic=topics[-1])]) == 20

    decoded = await turns_of(listings, "_client_row", read, monkeypatch)
    assert (sum(decoded), max(decoded)) == (20, 1)


async def turns_of(owner: object, name: str, work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often `work` calls the function `name` of `owner` in each turn of the event loop in which it does."""
    real, calls, turns = getattr(owner, name), 0, [0]

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*args)

    async def count() -> None:
        nonlocal calls
        while True:
            turns.append(calls)
            calls = 0
            await asyncio.sleep(0)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, counted)
        counter = asyncio.create_task(count())
        await work()
        await asyncio.sleep(0)
        counter.cancel()
    assert sum(turns) > 0
    return [number for number in turns if number]
