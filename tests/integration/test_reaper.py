"""A surviving node removes all rows of a dead node, and announces each leave once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from redis.asyncio import Redis as Client

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.envelope import Envelope
from gateway.broker.keys import Keys
from gateway.cluster.presence_store import parse_presence
from gateway.cluster.registry import LocalState, Registry
from gateway.metrics import Metrics
from gateway.node.reaper import BATCH_MEMBERS, BATCH_TOPICS, Reaper
from tests.kit.redis import Redis

KEYS = Keys("gw:")
DEAD = "n9.00000000"


class Survivor:
    """A living node's part in it."""

    def __init__(self, redis: Redis, node_id: str) -> None:
        self.metrics = Metrics()
        self.redis_client = RedisClient(redis.url, timeout_seconds=5, name="test", metrics=self.metrics)
        local_state = LocalState(
            node_row=lambda: {"name": "n"},
            client_row=lambda _: None,
            client_ids=list,
            subscriber_count=lambda _: 0,
            topics=list,
        )
        self.registry = Registry(
            self.redis_client, KEYS, node_id, lease_seconds=60, local_state=local_state, metrics=self.metrics
        )
        self.found = 0
        self.reaper = Reaper(self.redis_client, KEYS, self.registry, found=self._find, now_ms=lambda: 1)

    def _find(self) -> None:
        self.found += 1

    def malformed(self, kind: str) -> float:
        return self.metrics.registry.get_sample_value("gateway_malformed_total", {"kind": kind}) or 0


@pytest.fixture
async def survivors(redis: Redis) -> AsyncIterator[list[Survivor]]:
    """Two of them."""
    both = [Survivor(redis, f"n{number}.0000000{number}") for number in (1, 2)]
    for one in both:
        await one.registry.renew_lease()
        await one.reaper.enroll()
    yield both
    for one in both:
        await one.redis_client.close()


@pytest.fixture
async def raw(redis: Redis) -> AsyncIterator[Client]:
    """Redis, asked by a stranger."""
    async with Client.from_url(redis.url) as client:
        yield client


async def die(raw: Client, topics: int, people: int = 1, node_id: str = DEAD) -> dict[str, set[str]]:
    """A node whose lease has ended, with so many topics and people on each; those, by topic."""
    there = {f"chat-{topic}": {f"{node_id}.{topic * people + one}" for one in range(people)} for topic in range(topics)}
    pipeline = raw.pipeline(transaction=False)
    pipeline.zadd(KEYS.nodes, {node_id: 1})
    for topic, ids in there.items():
        pipeline.hset(KEYS.topics(node_id), topic, str(people))
        pipeline.hset(KEYS.presence(node_id, topic), mapping=dict.fromkeys(ids, b'{"user":null}'))
        pipeline.hset(KEYS.clients(node_id), mapping=dict.fromkeys(ids, "{}"))
    await pipeline.execute()
    return there


async def gone(raw: Client, node_id: str = DEAD) -> bool:
    """Whether nothing of the node is left."""
    return not await raw.keys(f"*{node_id}*") and await raw.zscore(KEYS.nodes, node_id) is None


class Announcements:
    """Leaves that were announced on topics' channels, in order."""

    def __init__(self, raw: Client) -> None:
        self._pubsub = raw.pubsub()

    async def __aenter__(self) -> Announcements:
        await self._pubsub.psubscribe("gw:ws:topic:*")
        assert await self._pubsub.get_message(timeout=5)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]

    async def read(self) -> list[tuple[str, list[str]]]:
        """All that have come."""
        found = []
        while message := await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=0.3):
            joined, left, dead = parse_presence(Envelope.unpack(message["data"]))
            assert (joined, dead) == ([], True)
            found.append((message["channel"].decode().removeprefix("gw:ws:topic:"), left))
        return found


async def test_more_topics_than_lua_unpacks_are_reaped_and_each_leave_is_announced_once(
    survivors: list[Survivor], raw: Client
) -> None:
    there = await die(raw, 9000)
    async with Announcements(raw) as announcements:
        for survivor in survivors:
            await survivor.reaper.enroll()
        await asyncio.gather(*(survivor.reaper.reap() for survivor in survivors))
        announced = await announcements.read()
    assert sorted(announced) == sorted((topic, sorted(ids)) for topic, ids in there.items())
    assert await gone(raw)
    assert [survivor.found for survivor in survivors] == [1, 1]
    await survivors[0].reaper.enroll()
    assert survivors[0].found == 1


async def test_more_people_than_one_step_takes_are_announced_in_parts(survivors: list[Survivor], raw: Client) -> None:
    there = await die(raw, 3, people=BATCH_MEMBERS + 500)
    async with Announcements(raw) as announcements:
        await survivors[0].reaper.enroll()
        await survivors[0].reaper.reap()
        announced = await announcements.read()
    assert max(len(left) for _, left in announced) <= BATCH_MEMBERS
    assert sorted(one for _, left in announced for one in left) == sorted(one for ids in there.values() for one in ids)
    assert await gone(raw)


async def test_a_reaper_that_dies_midway_leaves_the_rest_to_another(survivors: list[Survivor], raw: Client) -> None:
    there = await die(raw, 3 * BATCH_TOPICS)
    first, second = survivors
    steps = 0
    ask = first.redis_client.execute

    async def die_midway(*command: object) -> object:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise Unavailable("killed")
        return await ask(*command)

    first.redis_client.execute = die_midway  # type: ignore[method-assign]
    async with Announcements(raw) as announcements:
        await first.reaper.enroll()
        with pytest.raises(Unavailable):
            await first.reaper.reap()
        partly = await announcements.read()
        assert 0 < len(partly) < len(there)
        await second.reaper.enroll()
        await second.reaper.reap()
        rest = await announcements.read()
    assert sorted(topic for topic, _ in partly + rest) == sorted(there)
    assert await gone(raw)


async def test_rows_that_no_gateway_writes_are_removed_counted_and_not_announced(
    survivors: list[Survivor], raw: Client
) -> None:
    await die(raw, 2)
    people = KEYS.presence(DEAD, "")
    await raw.hset(KEYS.topics(DEAD), mapping={b"\xff\xfe": b"\xff", "a b\n": "1", "of-a-string": "1"})
    await raw.hset(people.encode() + b"\xff\xfe", "x", "y")
    await raw.set(people + "of-a-string", "no hash")
    await raw.hset(people + "chat-0", mapping={b"\xff": "?", "n8.00000000.1": "{}", 'n9.00000000.1","x': "{}"})
    await raw.zadd(KEYS.nodes, {b"\xff\xff.00000000": 1, b"\n": 2})
    async with Announcements(raw) as announcements:
        await survivors[0].reaper.enroll()
        await survivors[0].reaper.reap()
        announced = await announcements.read()
    assert sorted(announced) == [("chat-0", [f"{DEAD}.0"]), ("chat-1", [f"{DEAD}.1"])]
    assert await gone(raw)
    assert await raw.zcard(KEYS.nodes) == 2
    assert survivors[0].malformed("node") == 2
    assert survivors[0].malformed("presence") >= 3


@pytest.mark.parametrize("what", ["topics", "clients"])
async def test_keys_of_another_type_are_removed(survivors: list[Survivor], raw: Client, what: str) -> None:
    await die(raw, 2)
    key = getattr(KEYS, what)(DEAD)
    await raw.delete(key)
    await raw.rpush(key, "a", "b")
    await survivors[0].reaper.enroll()
    await survivors[0].reaper.reap()
    assert not await raw.exists(KEYS.topics(DEAD), KEYS.clients(DEAD))
    assert await raw.zscore(KEYS.nodes, DEAD) is None


@pytest.mark.parametrize("topics", [0, 3])
async def test_a_node_that_lives_again_keeps_its_rows(survivors: list[Survivor], raw: Client, topics: int) -> None:
    there = await die(raw, topics)
    await raw.hset(KEYS.clients(DEAD), f"{DEAD}.99", "{}")
    await survivors[0].reaper.enroll()
    await raw.hset(KEYS.node(DEAD), "name", "n9")  # it took its lease again
    async with Announcements(raw) as announcements:
        await survivors[0].reaper.reap()
        assert await announcements.read() == []
    assert await raw.hlen(KEYS.topics(DEAD)) == len(there)
    assert await raw.hlen(KEYS.clients(DEAD)) == len(there) + 1
    assert await raw.zscore(KEYS.nodes, DEAD) == 1
    assert await raw.hlen(KEYS.presence(DEAD, "chat-0")) == min(topics, 1)


async def test_an_index_of_another_type_is_written_anew(survivors: list[Survivor], raw: Client) -> None:
    await raw.delete(KEYS.nodes)
    await raw.set(KEYS.nodes, "x")
    assert await survivors[0].registry.live_nodes() == []
    for survivor in survivors:
        await survivor.reaper.enroll()
    assert await survivors[1].registry.live_nodes() == ["n1.00000001", "n2.00000002"]


async def test_a_lease_of_another_type_is_taken_anew(survivors: list[Survivor], raw: Client) -> None:
    node_id = "n1.00000001"
    assert await survivors[0].registry.renew_lease()
    await raw.delete(KEYS.node(node_id))
    await raw.lpush(KEYS.node(node_id), "x")
    assert not await survivors[0].registry.renew_lease()
    assert await survivors[0].registry.renew_lease()
    assert 0 < await raw.pttl(KEYS.node(node_id)) <= 60_000


@pytest.mark.parametrize("what", ["topics", "clients"])
async def test_own_rows_of_another_type_are_written_anew(survivors: list[Survivor], raw: Client, what: str) -> None:
    registry, node_id = survivors[0].registry, "n1.00000001"
    clients: dict[str, bytes] = {f"{node_id}.1": orjson.dumps({"user": None})}
    registry._local_state = LocalState(
        node_row=lambda: {"name": "n"},
        client_row=clients.get,
        client_ids=lambda: clients,
        subscriber_count=lambda _: 1,
        topics=lambda: ["t"],
    )
    assert await registry.flush()
    for key in (KEYS.topics(node_id), KEYS.clients(node_id)):
        assert await raw.hlen(key) == 1
    key = getattr(KEYS, what)(node_id)
    await raw.delete(key)
    await raw.set(key, "x")
    registry.touch_topic("t")
    assert await registry.flush()  # removes it
    assert await registry.flush()
    for key in (KEYS.topics(node_id), KEYS.clients(node_id)):
        assert await raw.hlen(key) == 1
