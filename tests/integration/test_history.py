"""Topics with history on a real Redis and real nodes: offsets, limits, recovery and repair."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.core import message
from tests.conftest import Connect
from tests.kit.client import Api, Client
from tests.kit.cluster import Cluster
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

Start = Callable[..., Cluster]
Of = Callable[..., Api]

RULES = """
[[topic]]
pattern = "kept*"
history = 50
snapshot = true

[[topic]]
pattern = "market-data"
aliases = ["market_data"]
snapshot = true

[[topic]]
pattern = "price:*"
conflate_ms = 300

[[topic]]
pattern = "secret"
subscribe = "role:admin"
history = 5
"""


def rules(folder: Path) -> Path:
    file = folder / "topics.toml"
    file.write_text(RULES)
    return file


async def place(client: Client, *topics: str, **more: Any) -> dict[str, Any]:
    """Subscribe; the position in the first topic."""
    position: dict[str, Any] = (await client.subscribe(*topics, **more))["positions"][topics[0]]
    return position


def slip(redis: Redis, topic: str, data: int | str) -> None:
    """Append a message that no node receives."""
    stream = f"gw:ws:history:{{{topic}}}"
    top, mark = redis.cli("HMGET", f"{stream}:meta", "top", "mark")
    offset, next_mark = int(top) + 1, int(mark) + 1
    body = message.pack(topic, data, {}, 1).decode()
    redis.cli("XADD", stream, f"{offset}-0", "t", 1, "m", body, "x", "", "k", next_mark, "p", mark)
    redis.cli("HSET", f"{stream}:meta", "top", offset, "mark", next_mark)


async def test_offsets_grow_by_one_and_are_in_every_answer(
    cluster: Start, folder: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder))
    here, there = await connect(nodes[0]), await connect(nodes[1], user="ann")
    position = await place(here, "kept")
    assert (position["offset"], position["mark"]) == (0, 0)
    await there.subscribe("kept")
    (first,) = (await api(nodes[0]).post("/api/publish", {"topic": "kept", "data": "a"}))["results"]
    assert (first["topic"], first["offset"]) == ("kept", 1)
    second = await there.publish("kept", "b")
    assert (second["epoch"], second["offset"]) == (first["epoch"], 2)
    assert second["mark"] > first["mark"] > 0
    for client in (here, there):
        message = await client.hear(type="DATA", data="b")
        assert [message[name] == second[name] for name in ("epoch", "offset", "mark")] == [True] * 3
        assert [(m["data"], m["offset"]) for m in client.received(type="DATA")] == [("a", 1), ("b", 2)]


async def test_another_node_sends_missed_messages_before_the_acknowledgement(
    cluster: Start, folder: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder))
    first = await connect(nodes[0])
    await first.subscribe("kept")
    await api(nodes[0]).publish_all([{"topic": "kept", "data": n} for n in range(5)])
    last = await first.hear(type="DATA", data=1)
    await first.close()
    again = await connect(nodes[1])
    recover = {"kept": {"epoch": last["epoch"], "offset": last["offset"]}}
    position = await place(again, "kept", recover=recover)
    assert (position["epoch"], position["offset"], position["recovered"]) == (last["epoch"], 5, True)
    assert again.data("kept") == [2, 3, 4]
    assert [m["type"] for m in again.messages][-1] == "ACKNOWLEDGMENT"
    await place(again, "kept", recover=recover)
    assert again.data("kept") == [2, 3, 4], "the same SUBSCRIBE, sent again, sends nothing twice"


async def test_recovery_is_all_or_nothing(cluster: Start, folder: Path, connect: Connect, api: Of) -> None:
    nodes = cluster(1, topics=rules(folder))
    epoch = (await place(await connect(nodes[0]), "kept"))["epoch"]
    await api(nodes[0]).publish_all([{"topic": "kept", "data": n} for n in range(60)])
    for asked, recovered in (
        ({"epoch": epoch, "offset": 10}, True),
        ({"epoch": epoch, "offset": 9}, False),
        ({"epoch": "another", "offset": 59}, False),
        ({"epoch": epoch, "offset": 61}, False),
        ({"epoch": epoch}, False),
        ("nonsense", False),
    ):
        client = await connect(nodes[0])
        position = await place(client, "kept", recover={"kept": asked})
        assert position["recovered"] is recovered, asked
        assert client.data("kept") == (list(range(10, 60)) if recovered else [59]), asked
        assert ("initialData" in client.received(type="DATA")[0]) is not recovered


async def test_the_same_idempotency_key_is_the_same_message(
    cluster: Start, folder: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder))
    client = await connect(nodes[0])
    await client.subscribe("kept")
    said = {"topic": "kept", "data": 1, "idempotencyKey": "order-1"}
    answers = [await api(node).post("/api/publish", said) for node in (nodes[0], nodes[1], nodes[0])]
    assert answers[0] == answers[1] == answers[2]
    await api(nodes[0]).publish("kept", 2)
    await client.hear(type="DATA", data=2)
    assert client.data("kept") == [1, 2]


async def test_a_node_that_was_deaf_fills_the_hole_and_no_client_notices(
    cluster: Start, folder: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder))
    clients = [await connect(node) for node in nodes]
    for client in clients:
        await client.subscribe("kept", "plain")
    for number in range(40):
        if number % 10 == 5:
            redis.kill_pubsub()
        await api(nodes[number % 2]).publish("kept", number)
    for client in clients:
        await client.hear(type="DATA", topic="kept", data=39)
        assert client.data("kept") == list(range(40))
        await client.hear(type="SYSTEM", action="gap")
        assert all(gap["data"]["topics"] == ["plain"] for gap in client.received(type="SYSTEM", action="gap"))


async def test_a_message_that_only_the_stream_has_is_found_by_itself(
    cluster: Start, folder: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, topics=rules(folder), lease_seconds=2)
    client = await connect(nodes[0])
    await client.subscribe("kept")
    await api(nodes[0]).publish("kept", "first")
    await client.hear(type="DATA", data="first")
    slip(redis, "kept", "quiet")
    await client.hear(type="DATA", data="quiet")
    assert client.received(action="gap") == []


async def test_a_client_ahead_of_its_new_node_gets_no_gap(
    cluster: Start, folder: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    """Its old node was quicker, or the new one was deaf: the stream has what the new one lacks."""
    nodes = cluster(1, topics=rules(folder))
    await (await connect(nodes[0])).subscribe("kept")
    await api(nodes[0]).publish("kept", 1)
    for number in (2, 3):
        slip(redis, "kept", number)
    epoch, mark = redis.cli("HMGET", "gw:ws:history:{kept}:meta", "epoch", "mark")
    back = await connect(nodes[0])
    recover = {"epoch": epoch, "offset": 2, "mark": int(mark) - 1}
    position = await place(back, "kept", recover={"kept": recover})
    assert position == {"epoch": epoch, "offset": 3, "mark": int(mark), "recovered": True}
    assert back.data("kept") == [3]


async def test_connected_and_returning_clients_get_a_gap_after_a_flush_of_the_history(
    cluster: Start, folder: Path, redis: Redis, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, topics=rules(folder))
    client = await connect(nodes[0])
    before = await place(client, "kept")
    await api(nodes[0]).publish_all([{"topic": "kept", "data": at} for at in range(9)])
    await client.hear(type="DATA", data=8)
    redis.flush()
    await api(nodes[0]).publish_all([{"topic": "kept", "data": f"new {at}"} for at in range(3)])
    after = await client.hear(type="DATA", data="new 2")
    assert after["epoch"] != before["epoch"]
    assert client.received(action="gap")[0]["data"]["topics"] == ["kept"]
    assert client.data("kept")[9:] == ["new 0", "new 1", "new 2"], "what Redis has since is no loss"
    back = await connect(nodes[0])
    assert (await place(back, "kept", recover={"kept": {"epoch": before["epoch"], "offset": 1}}))["recovered"] is False


async def test_a_storm_of_returns_costs_a_few_reads(cluster: Start, folder: Path, connect: Connect, api: Of) -> None:
    nodes = cluster(1, topics=rules(folder))
    first = await connect(nodes[0])
    epoch = (await place(first, "kept"))["epoch"]
    await api(nodes[0]).publish_all([{"topic": "kept", "data": n} for n in range(20)])
    await first.hear(type="DATA", data=19)
    await first.close()
    before = nodes[0].metric("gateway_stream_reads_total")
    storm = await asyncio.gather(*(connect(nodes[0]) for _ in range(200)))
    places = await asyncio.gather(
        *(place(c, "kept", recover={"kept": {"epoch": epoch, "offset": n % 20}}) for n, c in enumerate(storm))
    )
    assert all(position["recovered"] for position in places)
    for number, client in enumerate(storm):
        assert client.data("kept") == list(range(number % 20, 20))
    assert nodes[0].metric("gateway_stream_reads_total") - before <= 5


async def test_history_is_read_and_deleted(cluster: Start, folder: Path, connect: Connect, api: Of) -> None:
    nodes = cluster(2, topics=rules(folder))
    client = await connect(nodes[1])
    await client.subscribe("kept")
    await api(nodes[0]).publish_all([{"topic": "kept", "data": n} for n in range(5)])
    epoch = (await client.hear(type="DATA", data=4))["epoch"]

    async def read(**parameters: Any) -> list[Any]:
        found = await api(nodes[0]).get("/api/topics/kept/history", **parameters)
        assert (found["epoch"], found["offset"]) == (epoch, 5)
        return [message["data"] for message in found["messages"]]

    assert await read() == [0, 1, 2, 3, 4]
    assert await read(limit=2) == [3, 4]
    assert await read(limit=2, since=1) == [1, 2]
    assert await read(reverse=1, limit=3) == [4, 3, 2]
    answer = await client.ask(type="REQUEST", topic="kept", action="history", since=3, requestId="q")
    assert [message["data"] for message in answer["data"]["messages"]] == [3, 4]
    assert await api(nodes[0]).delete("/api/topics/kept/history") == {"deleted": True}
    assert await read() == []

    async def forgotten() -> bool:
        back = await connect(nodes[1])
        return (await place(back, "kept", recover={"kept": {"epoch": epoch, "offset": 3}}))["recovered"] is False

    await eventually(forgotten)
    await api(nodes[0]).publish("kept", "after")
    assert (await client.hear(type="DATA", data="after"))["offset"] == 6
    assert client.received(action="gap") == []


async def test_history_is_asked_for_by_who_may_hear_it(cluster: Start, folder: Path, connect: Connect) -> None:
    nodes = cluster(1, topics=rules(folder))
    stranger, admin = await connect(nodes[0]), await connect(nodes[0], user="root", role="admin")
    request = {"type": "REQUEST", "topic": "secret", "action": "history", "requestId": "q"}
    assert (await stranger.ask(**request))["code"] == 4010
    assert (await admin.ask(**request))["data"]["messages"] == []
    assert (await stranger.ask(**{**request, "topic": "plain"}))["code"] == 4007
    assert (await admin.ask(**request, limit=0))["code"] == 4016


async def test_a_subscriber_of_an_alias_receives_messages_under_the_alias(
    cluster: Start, folder: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(2, topics=rules(folder))
    one, other = await connect(nodes[0]), await connect(nodes[1])
    await one.subscribe("market-data")
    await other.subscribe("market_data")
    await api(nodes[0]).publish("market_data", 1)
    assert (await one.hear(type="DATA"))["topic"] == "market-data"
    assert (await other.hear(type="DATA"))["topic"] == "market_data"
    late = await connect(nodes[1])
    await late.subscribe("market_data")
    assert [(m["data"], m["initialData"]) for m in late.received(type="DATA")] == [(1, True)]


async def test_of_a_conflated_topic_the_first_and_the_last_arrive(
    cluster: Start, folder: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, topics=rules(folder))
    client = await connect(nodes[0])
    await client.subscribe("price:x")
    await api(nodes[0]).publish_all([{"topic": "price:x", "data": n} for n in range(100)])
    await client.hear(type="DATA", data=99)
    assert client.data("price:x") == [0, 99]


async def test_what_excludes_a_client_does_not_overtake_what_a_conflated_topic_holds_back(
    cluster: Start, folder: Path, connect: Connect, api: Of
) -> None:
    nodes = cluster(1, topics=rules(folder))
    client, author = await connect(nodes[0]), await connect(nodes[0])
    for each in (client, author):
        await each.subscribe("price:x")
    values: list[dict[str, Any]] = [{"topic": "price:x", "data": n} for n in range(4)]
    values[3]["except"] = author.id
    await api(nodes[0]).publish_all(values)
    await client.hear(type="DATA", data=3)
    await author.hear(type="DATA", data=2)
    await api(nodes[0]).publish("price:x", "after")
    for each in (client, author):
        await each.hear(type="DATA", data="after")
    assert client.data("price:x") == [0, 3, "after"]
    assert author.data("price:x") == [0, 2, "after"]


async def test_an_envelope_of_the_original_plan_is_numbered_once(
    cluster: Start, folder: Path, redis: Redis, connect: Connect
) -> None:
    nodes = cluster(3, topics=rules(folder))
    clients = [await connect(node) for node in nodes]
    for client in clients:
        await client.subscribe("kept", "market_data")
    for topic in ("kept", "market-data"):
        for number in range(3):
            said = f'{{"topic":"{topic}","data":{number},"timestamp":179000000000{number},"sourceId":7}}'
            redis.cli("PUBLISH", "gw:ws:broadcast", said)
    for client in clients:
        await client.hear(type="DATA", topic="kept", data=2)
        await client.hear(type="DATA", topic="market_data", data=2)
        assert sorted(client.data("kept")) == sorted(client.data("market_data")) == [0, 1, 2]
        assert [m["offset"] for m in client.received(type="DATA", topic="kept")] == [1, 2, 3]
