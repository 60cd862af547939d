"""Positions in topics with history are compared with what Redis has: no recovery is claimed that is not true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Connect
from tests.kit.client import Api, Client
from tests.kit.cluster import Cluster
from tests.kit.node import Node
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

Start = Callable[..., Cluster]
Of = Callable[..., Api]

HISTORY = '[[topic]]\npattern = "kept*"\nhistory = 5\n\n[[topic]]\npattern = "last*"\nhistory = 5\nsnapshot = true\n'


@pytest.fixture
def rules(folder: Path) -> Path:
    file = folder / "topics.toml"
    file.write_text(HISTORY)
    return file


def meta(topic: str) -> str:
    return f"gw:ws:history:{{{topic}}}:meta"


def stream(topic: str) -> str:
    return f"gw:ws:history:{{{topic}}}"


def written(redis: Redis) -> list[str]:
    """The keys of histories and last values that there are, but for the gateway's own."""
    keys = [*redis.cli("KEYS", "gw:ws:history:*"), *redis.cli("KEYS", "gw:ws:snapshot:*")]
    return sorted(key for key in keys if "{gateway:" not in key and "{service}" not in key and "{circuit" not in key)


def lose_tail(redis: Redis, topic: str, number: int) -> None:
    """What a Redis that comes back without its last moments has lost: the topic's last `number` messages."""
    tail = redis.cli("XREVRANGE", stream(topic), "+", "-", "COUNT", number)
    redis.cli("XDEL", stream(topic), *(identity for identity, _ in tail))
    last, fields = redis.cli("XREVRANGE", stream(topic), "+", "-", "COUNT", 1)[0]
    redis.cli("HSET", meta(topic), "top", last.partition("-")[0], "mark", fields["k"])
    # XADD would reject offsets that the stream already used.
    redis.cli("XSETID", stream(topic), last)


async def publish(api: Api, topic: str, *values: Any) -> list[dict[str, Any]]:
    """The positions of what is published."""
    answer = await api.post("/api/publish", {"messages": [{"topic": topic, "data": value} for value in values]})
    return [{name: result[name] for name in ("epoch", "offset", "mark")} for result in answer["results"]]


async def recovers(client: Client, topic: str, place: dict[str, Any]) -> tuple[bool, list[Any]]:
    """Whether the client recovers from `place`, and the messages that it is sent, without a last value."""
    before = len(client.messages)
    acknowledged = await client.subscribe(topic, recover={topic: place})
    news = [m["data"] for m in client.messages[before:] if m["type"] == "DATA" and "initialData" not in m]
    return acknowledged["positions"][topic]["recovered"], news


async def test_reading_a_topic_without_messages_writes_nothing_and_its_position_can_be_recovered(
    cluster: Start, rules: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules)
    client = await connect(nodes[0])
    names = [f"kept-{number}" for number in range(20)] + ["last-1"]
    positions = (await client.subscribe(*names))["positions"]
    for name in names[:3]:
        asked = await client.ask(type="REQUEST", topic=name, action="history", requestId="q")
        assert (asked["data"]["messages"], asked["data"]["offset"]) == ([], 0)
        found = await api(nodes[1]).get(f"/api/topics/{name}/history")
        assert found["messages"] == []
        # What any node says of the place can be sent back to any other.
        back = await connect(nodes[1])
        for place in (positions[name], asked["data"], found):
            assert await recovers(back, name, {k: place[k] for k in ("epoch", "offset", "mark")}) == (True, [])
    assert written(redis) == []
    await publish(api(nodes[0]), "kept-0", 1, 2)
    await client.hear(type="DATA", data=2)
    assert client.received(action="gap") == []
    for node in nodes:
        assert await recovers(await connect(node), "kept-0", positions["kept-0"]) == (True, [1, 2])
    assert all(redis.cli("TTL", key) > 0 for key in written(redis))


async def test_a_position_from_before_the_first_message_is_not_recovered_once_redis_has_lost_messages(
    cluster: Start, rules: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules)
    here = await connect(nodes[0])
    position = (await here.subscribe("kept"))["positions"]["kept"]
    await here.close()
    await asyncio.sleep(1.5)  # until no node has the topic open
    await publish(api(nodes[0]), "kept", "lost")
    redis.flush()
    await publish(api(nodes[0]), "kept", "other")
    for node in nodes:
        assert await recovers(await connect(node), "kept", position) == (False, [])
        no_mark = {"epoch": position["epoch"], "offset": 0}
        assert await recovers(await connect(node), "kept", no_mark) == (False, [])


async def test_a_lost_tail_is_found_by_its_mark_though_no_node_had_the_topic_open(
    cluster: Start, rules: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    """As many messages follow as were lost, and only then a node opens the topic."""
    nodes = cluster(2, topics=rules)
    before = await publish(api(nodes[0]), "kept", 1, 2, "lost 3", "lost 4")
    lose_tail(redis, "kept", 2)
    after = await publish(api(nodes[1]), "kept", "new 3", "new 4")
    assert [place["offset"] for place in after] == [3, 4]
    assert {place["epoch"] for place in after} == {before[0]["epoch"]}, "only the offsets show the loss"
    client = await connect(nodes[0])
    assert await recovers(client, "kept", before[3]) == (False, [])
    assert await recovers(client, "kept", before[2]) == (False, [])
    assert await recovers(client, "kept", before[1]) == (True, ["new 3", "new 4"])
    assert await recovers(client, "kept", after[0]) == (True, ["new 4"])


async def test_a_position_that_was_trimmed_exactly_is_whole_if_the_next_message_names_its_mark(
    cluster: Start, rules: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, topics=rules)
    places = await publish(api(nodes[0]), "kept", *range(1, 8))
    client = await connect(nodes[0])
    assert await recovers(client, "kept", places[1]) == (True, [3, 4, 5, 6, 7])
    assert await recovers(client, "kept", places[1] | {"mark": places[1]["mark"] + 1}) == (False, [])
    assert await recovers(client, "kept", places[0]) == (False, [])


async def test_a_member_that_asks_again_gets_the_truth_again(
    cluster: Start, rules: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, topics=rules)
    places = await publish(api(nodes[0]), "kept", *range(1, 10))
    client = await connect(nodes[0])
    for _ in range(3):
        assert await recovers(client, "kept", places[0]) == (False, [])
    assert await recovers(client, "kept", places[6]) == (True, [8, 9]), "kept, and never sent on this connection"
    assert await recovers(client, "kept", places[6]) == (True, []), "the same SUBSCRIBE, sent again"
    await client.unsubscribe("kept")
    assert await recovers(client, "kept", places[6]) == (True, [8, 9])


async def test_a_topic_that_is_idle_but_subscribed_does_not_expire(
    cluster: Start, rules: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, topics=rules, lease_seconds=1)
    client = await connect(nodes[0])
    await client.subscribe("last")
    await publish(api(nodes[0]), "last", 1)
    await client.hear(type="DATA", data=1)
    for key in ("gw:ws:snapshot:{last}", meta("last")):  # the meta's TTL decides when both are renewed
        redis.cli("PEXPIRE", key, 3_600_000)
    await eventually(lambda: redis.cli("TTL", meta("last")) > 86_400)
    assert redis.cli("TTL", "gw:ws:snapshot:{last}") > 86_400
    assert client.received(action="gap") == []


async def test_a_quiet_topic_keeps_its_last_value_for_new_subscribers(
    cluster: Start, rules: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, topics=rules)
    (place,) = await publish(api(nodes[0]), "last", "value")
    redis.cli("PEXPIRE", stream("last"), 1)  # history_seconds have passed
    await eventually(lambda: redis.cli("EXISTS", stream("last")) == 0)
    client = await connect(nodes[0])
    acknowledged = await client.subscribe("last")
    assert [(m["data"], m["initialData"]) for m in client.received(type="DATA")] == [("value", True)]
    assert acknowledged["positions"]["last"] == place
    assert await recovers(await connect(nodes[0]), "last", place) == (True, [])
    assert await api(nodes[0]).delete("/api/topics/last/history") == {"deleted": True}
    assert redis.cli("EXISTS", "gw:ws:snapshot:{last}") == 0


BROKEN = [
    ("SET", meta("kept"), "text"),
    ("SET", stream("kept"), "text"),
    ("HSET", meta("kept"), "top", "many"),
    ("HSET", meta("kept"), "top", "99999999999999999999"),
    ("HSET", meta("kept"), "top", "1"),
    ("HSET", meta("kept"), "mark", "-5"),
    ("HSET", meta("kept"), "mark", "9007199254740999"),
    ("HSET", meta("kept"), "epoch", "\udcff"),
    ("HSET", meta("kept"), "epoch", '"}\n'),
    ("HDEL", meta("kept"), "top"),
    ("HDEL", meta("kept"), "epoch"),
    ("XADD", stream("kept"), "4-0", "t", "1"),
    ("XADD", stream("kept"), "4-0", "t", "x", "m", "\udcff", "x", "", "k", "x", "p", "?"),
    ("XADD", stream("kept"), "4-7", "t", "1", "m", "{}", "x", ""),
]


async def test_a_broken_topic_affects_itself_only_and_the_next_publish_heals_it(
    cluster: Start, rules: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, topics=rules, lease_seconds=1)
    for number, (command, key, *words) in enumerate(BROKEN):
        redis.cli("UNLINK", meta("kept"), stream("kept"))
        places = await publish(api(nodes[0]), "kept", 1, 2, 3)
        if command == "SET":
            redis.cli("UNLINK", key)
        redis.cli(command, key, *(word.encode(errors="surrogateescape") for word in words))  # type: ignore[arg-type]
        client = await connect(nodes[0])
        await client.subscribe("kept", f"kept-{number}")
        await recovers(await connect(nodes[0]), "kept", places[0])
        await publish(api(nodes[0]), f"kept-{number}", "fine")
        await client.hear(type="DATA", topic=f"kept-{number}", data="fine")
        await publish(api(nodes[0]), "kept", f"healed {number}")
        await client.hear(type="DATA", topic="kept", data=f"healed {number}")
        fresh = (await publish(api(nodes[0]), "kept", "next"))[0]
        assert await recovers(await connect(nodes[0]), "kept", fresh) == (True, [])
        await client.close()
    assert nodes[0].ready()
    assert nodes[0].metric("gateway_malformed_total", kind="history") > 0


async def test_nodes_with_other_topic_rules_deliver_all_and_claim_no_recovery_across_it(
    cluster: Start, folder: Path, rules: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    """A rolling restart that gives a topic history, or takes it."""
    plain = folder / "plain.toml"
    plain.write_text('[[topic]]\npattern = "other"\n')
    nodes = cluster(1, topics=rules)
    with Node("n2", folder, redis, topics=plain) as old:
        until(old.ready, 60, "n2 is ready")
        here, there = await connect(nodes[0]), await connect(old)
        for client in (here, there):
            await client.subscribe("kept")
        expected = []
        for number in range(5):
            await api(nodes[0]).publish("kept", f"numbered {number}")
            await api(old).publish("kept", f"plain {number}")
            expected += [f"numbered {number}", f"plain {number}"]
        for client in (here, there):
            await client.hear(type="DATA", data="plain 4")
            assert client.data("kept") == expected
        numbered = here.received(type="DATA", data="numbered 4")[0]
        place = {name: numbered[name] for name in ("epoch", "offset", "mark")}
        assert await recovers(await connect(nodes[0]), "kept", place) == (False, []), "a plain one came behind it"
        (latest,) = await publish(api(nodes[0]), "kept", "numbered 5")
        assert await recovers(await connect(nodes[0]), "kept", latest) == (True, [])
        found = {row["name"]: row["rules"] for row in (await api(nodes[0]).get("/api/nodes"))["nodes"]}
        assert len(set(found.values())) == 2


async def test_a_message_of_a_newer_gateway_is_reported_as_a_gap(
    cluster: Start, rules: Path, redis: Redis, connect: Connect
) -> None:
    nodes = cluster(1, topics=rules)
    client = await connect(nodes[0])
    await client.subscribe("kept", "plain")
    for topic in ("kept", "plain"):
        for _ in range(50):
            redis.cli("PUBLISH", f"gw:ws:topic:{topic}", "9 1 - X\n{}")
    await eventually(lambda: nodes[0].metric("gateway_messages_relayed_total", kind="unreadable") == 100)
    await client.send(type="ping", timestamp=1)
    await client.hear(type="pong")
    sent = [gap["data"]["topics"] for gap in client.received(action="gap")]
    assert sorted(sent) == [["kept"], ["plain"]]
