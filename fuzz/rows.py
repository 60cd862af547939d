"""Writes arbitrary values to the keys that a running node reads: unexpected types, bytes and sizes.

The node must stay ready, the API must answer, and a topic without changed keys must work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, Final

import httpx
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from fuzz.live import ANSWER_SECONDS, Found, Watch
from fuzz.pure import dumps, value
from gateway.broker.keys import Keys
from tests.kit.client import Client
from tests.kit.node import API_KEY, NAMESPACE
from tests.kit.waiting import eventually

KEYS: Final = Keys(NAMESPACE)
TOPICS: Final = ("contest-1", "contest-chat-1", "market-data")  # history; history and presence; last value
UNTOUCHED: Final = "plain"
# The error that the node should log when a stream has lost messages.
EXPECTED: Final = "stream lost messages, renewing its epoch"
PATHS: Final = (
    "/api/nodes", "/api/clients", "/api/topics", "/api/services", "/api/services/gateway.bus", "/api/cache/a",
    *(f"/api/topics/{topic}{what}" for topic in TOPICS for what in ("", "/history", "/presence")),
)  # fmt: skip

Write = Callable[[Redis, str, Random, str], Coroutine[Any, Any, object]]


def keys(random: Random, node_id: str) -> str:
    """A random key that the node reads."""
    other = random.choice([node_id, "other.00000000"])
    topic = random.choice(TOPICS)
    service = random.choice(["gateway.bus", "gateway.registry", "gateway.announcer", "feed"])
    return random.choice(
        [
            KEYS.nodes,
            KEYS.node(other),
            KEYS.clients(other),
            KEYS.topics(other),
            KEYS.presence(other, topic),
            KEYS.history(topic),
            KEYS.history_meta(topic),
            KEYS.publish_answer(topic, "key"),
            KEYS.snapshot(topic),
            KEYS.connection_nodes,
            KEYS.node_connections(other),
            KEYS.cache_value("a"),
            KEYS.cache_lock("a"),
            KEYS.quota("ann"),
            KEYS.revoked,
            KEYS.revoked_users,
            KEYS.revoked_version,
            KEYS.rules,
            KEYS.services,
            KEYS.service(service),
            KEYS.leader(service),
            KEYS.fence(service),
        ]
    )


def channels(random: Random, node_id: str) -> str:
    """A channel of the node, except the control channel, whose valid messages the node would execute."""
    topics = [KEYS.audience(f"topic:{topic}") for topic in TOPICS]
    return random.choice([*topics, KEYS.node_channel(node_id), KEYS.ingest, KEYS.cache_changes, KEYS.service_updates])


def blob(random: Random) -> bytes:
    """A random value."""
    return random.choice([
        b"", b"\xff\xfe", b"0", b"-1", b"1", b"1.5", b"nan", b"inf", b"1e309", b"9" * random.choice([16, 19, 400]),
        b"{}", b"[1", b'{"user":1}', b'{"version":1e300,"leaseEnds":1e300,"status":"active"}', b"1 other", b"\n" * 9,
        b"2 1 - H e 5 5 4\n{}", b"1 1 - e 5\n{}", b"2 1 ~ N\n{}", dumps(value(random)),
        random.randbytes(random.randrange(200)), b"x" * random.choice([1000, 100_000, 3_000_000]),
    ])  # fmt: skip


def name(random: Random, node_id: str) -> bytes:
    """A random field or member."""
    return random.choice([
        b"v", b"m", b"epoch", b"top", b"mark", b"bytes", b"offset", b"ready", b"name", b"started", b"token:x",
        b"user:mallory", b"gateway.bus", b"plain", b"other.00000000", b"other.00000000.1", f"{node_id}.1".encode(),
        b"address:10.0.0.1", b"fence:x", *([blob(random)] * 12),
    ])  # fmt: skip


async def _string(redis: Redis, key: str, random: Random, _node_id: str) -> object:
    return await redis.set(key, blob(random), px=random.choice([None, 60_000]))


async def _list(redis: Redis, key: str, random: Random, _node_id: str) -> object:
    return await redis.rpush(key, blob(random))


async def _set(redis: Redis, key: str, random: Random, _node_id: str) -> object:
    return await redis.sadd(key, blob(random))


async def _sorted_set(redis: Redis, key: str, random: Random, node_id: str) -> object:
    scores = ["-inf", "0", "1", "1.5", "4e12", "1e300", "inf"]
    pairs = [part for _ in range(random.randrange(1, 30)) for part in (random.choice(scores), name(random, node_id))]
    return await redis.execute_command(  # type: ignore[no-untyped-call]
        "ZADD", key, *pairs
    )


async def _hash(redis: Redis, key: str, random: Random, node_id: str) -> object:
    fields = [part for _ in range(random.randrange(1, 30)) for part in (name(random, node_id), blob(random))]
    return await redis.execute_command(  # type: ignore[no-untyped-call]
        "HSET", key, *fields
    )


async def _stream(redis: Redis, key: str, random: Random, node_id: str) -> object:
    identity = random.choice(["*", "1-0", "7-0", "7-7", "1000000-0", "18446744073709551615-1"])
    fields = [part for _ in range(random.randrange(1, 4)) for part in (name(random, node_id), blob(random))]
    return await redis.execute_command(  # type: ignore[no-untyped-call]
        "XADD", key, identity, *fields
    )


WRITES: Final[tuple[Write, ...]] = (_string, _list, _set, _sorted_set, _hash, _hash, _stream)


async def rows(random: Random, watch: Watch) -> int:
    """Writes some values, then uses the node: only operations on these keys may fail, with a clear error."""
    node_id = watch.client.id.rpartition(".")[0]
    touched: list[str] = []
    watch.expected.add(EXPECTED)
    async with Redis.from_url(watch.node.redis_url) as redis:
        for _ in range(random.randrange(1, 5)):
            if random.random() < 0.25:
                await redis.publish(channels(random, node_id), blob(random))
                continue
            key = keys(random, node_id)
            touched.append(key)
            if random.random() < 0.5:
                await redis.delete(key)
            try:
                await random.choice(WRITES)(redis, key, random, node_id)
            except ResponseError:
                await redis.delete(key)  # the key has another type, or does not accept the value
        try:
            await _use(random, watch)
        except Exception as found:
            raise Found(f"after writes to {touched}: {type(found).__name__}: {found}") from found
        if touched and random.random() < 0.5:
            await redis.delete(*touched)
    return len(touched)


async def _use(random: Random, watch: Watch) -> None:
    """Makes the node read the values, and use a topic without changed keys."""
    client, other = await Client.connect(watch.node), await Client.connect(watch.node)
    headers = {"authorization": f"Bearer {API_KEY}"}
    try:
        await other.send(type="SUBSCRIBE", topics=random.sample(TOPICS, 2), requestId="touched")
        async with httpx.AsyncClient(
            base_url=watch.node.api_url, headers=headers, trust_env=False, timeout=ANSWER_SECONDS
        ) as http:
            messages = [{"topic": random.choice(TOPICS), "data": 1}]
            answers = [await http.get(path) for path in random.sample(PATHS, 4)]
            answers.append(await http.post("/api/publish", json={"messages": messages}))
            answers.append(await http.post("/api/publish", json={"topic": UNTOUCHED, "data": 0}))
            for answer in answers:
                if answer.status_code not in (200, 404, 502, 503):
                    raise Found(f"{answer.request.url.path} got status {answer.status_code}: {answer.text[:300]}")
            if answers[-1].status_code != 200:
                raise Found(f"publish on {UNTOUCHED} failed: {answers[-1].text[:300]}")
            await client.subscribe(UNTOUCHED)
            await http.post("/api/publish", json={"topic": UNTOUCHED, "data": 1})
            await client.hear(type="DATA", topic=UNTOUCHED, data=1, within=ANSWER_SECONDS)
        await eventually(watch.node.ready, ANSWER_SECONDS, "the node is ready")
    finally:
        await asyncio.gather(client.leave(), other.leave())
