"""The examples of docs/how-to/publish.md, run unchanged; subscribers on two nodes receive each message once."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.broker.keys import IDEMPOTENCY_MS, Keys
from gateway.publisher import ProtocolError, Publisher
from gateway.sync_publisher import SyncPublisher
from tests.conftest import Connect
from tests.kit.client import Api, Client
from tests.kit.cluster import Cluster
from tests.kit.node import API_KEY, NAMESPACE
from tests.kit.process import ROOT, clean_environment
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

DOCUMENT = ROOT / "docs" / "how-to" / "publish.md"


def example(language: str, at: int = 0) -> str:
    """One of the page's examples in this language."""
    codes = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert len(codes) == (2 if language == "python" else 1)
    return str(codes[at])


async def run(*command: str, folder: Path, **env: str) -> str:
    """What the command printed; it must go well within two minutes."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=clean_environment() | env, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(120):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, (out + err).decode()
    return out.decode()


async def two_subscribers(nodes: Cluster, connect: Connect, *topics: str) -> list[Client]:
    """A subscriber on each of two nodes."""
    subscribers = [await connect(nodes[0]), await connect(nodes[1])]
    for subscriber in subscribers:
        await subscriber.subscribe(*topics)
    return subscribers


async def received_once(subscribers: list[Client], topic: str, expected: list[Any]) -> None:
    """Each hears just this, on `topic`."""
    await eventually(lambda: all(len(subscriber.data(topic)) >= len(expected) for subscriber in subscribers))
    # A duplicate would have arrived before the answer to this request.
    for subscriber in subscribers:
        await subscriber.ask(type="REQUEST", topic="system", action="getStatus", requestId="after")
        assert subscriber.data(topic) == expected


async def test_curl(cluster: Callable[..., Cluster], connect: Connect, folder: Path) -> None:
    nodes = cluster(2)
    subscribers = await two_subscribers(nodes, connect, "contest")
    for _ in range(2):  # the idempotency key makes it one
        printed = await run("sh", "-c", example("sh"), folder=folder, GATEWAY_URL=nodes[0].url, GATEWAY_API_KEY=API_KEY)
        assert re.fullmatch(r'\{"results":\[\{"topic":"contest","epoch":"\w+","offset":1,"mark":\d+\}\]\}', printed)
    await received_once(subscribers, "contest", [{"leader": "ann"}])


async def test_python(cluster: Callable[..., Cluster], connect: Connect, redis: Redis, folder: Path) -> None:
    nodes = cluster(2)
    subscribers = await two_subscribers(nodes, connect, "contest", "token:price:ABC")
    (folder / "publish.py").write_text(example("python"))
    printed = await run(sys.executable, "publish.py", folder=folder, REDIS_URL=redis.url)
    assert re.fullmatch(r"Position\(epoch='\w+', offset=1, mark=\d+\)\n", printed)
    await received_once(subscribers, "contest", [{"leader": "bob"}])
    assert subscribers[0].received(topic="contest")[-1]["action"] == "LEADER"
    await received_once(subscribers, "token:price:ABC", [41, 42])


async def test_python_without_an_event_loop(
    cluster: Callable[..., Cluster], connect: Connect, redis: Redis, folder: Path
) -> None:
    nodes = cluster(2)
    subscribers = await two_subscribers(nodes, connect, "contest")
    (folder / "publish.py").write_text(example("python", 1))
    printed = await run(sys.executable, "publish.py", folder=folder, REDIS_URL=redis.url)
    assert re.fullmatch(r"(\[Position\(epoch='\w+', offset=[234], mark=\d+\)\]\n){3}", printed)
    await received_once(subscribers, "contest", [{"leader": "dan"}, *({"round": number} for number in range(3))])


async def test_node_js(cluster: Callable[..., Cluster], connect: Connect, redis: Redis, folder: Path) -> None:
    nodes = cluster(2, namespace="")
    subscribers = await two_subscribers(nodes, connect, "contest")
    npm = shutil.which("npm")
    assert npm, "npm is not installed, and the test needs it"
    await run(npm, "install", "--no-audit", "--no-fund", "--prefer-offline", "redis@6", folder=folder)
    (folder / "publish.mjs").write_text(example("js"))
    assert await run("node", "publish.mjs", folder=folder, REDIS_URL=redis.url) == "2 nodes received it\n"
    await received_once(subscribers, "contest", [{"leader": "cid"}])


def test_the_original_plans_publish_is_unchanged() -> None:
    """Word for word: what a program has today goes on working."""
    code = example("js")
    for part in (
        "if (!this.publisher) this.initializePubSub();",
        "return this.publisher.publish(\n      channel,\n"
        "      typeof message === 'string' ? message : JSON.stringify(message)\n    );",
        "sourceId: process.pid",
    ):
        assert part in code


async def test_no_way_in_publishes_on_the_gateways_own_topics(
    cluster: Callable[..., Cluster], connect: Connect, redis: Redis, folder: Path
) -> None:
    rules = folder / "open.toml"
    rules.write_text('[[topic]]\npattern = "*"\npublish = "anyone"\nsubscribe = "anyone"\n')
    (node,) = cluster(1, topics=rules)
    subscriber, admin = await connect(node), await connect(node, user="root", role="admin")
    await subscriber.subscribe("system", "chat")
    assert (await subscriber.call(type="SUBSCRIBE", topics=["gateway:figures"]))["code"] == 4010
    await admin.subscribe("service", "circuit-breaker", "gateway:x")
    forged = {"data": {"forged": True}, "action": "shutdown"}
    own = ["system", "service", "circuit-breaker", "gateway:figures", "gateway:x"]
    for topic in own:
        assert (await admin.call(type="PUBLISH", topic=topic, **forged))["code"] == 4403
        redis.cli("PUBLISH", f"{NAMESPACE}ws:broadcast", orjson.dumps({"topic": topic, **forged}).decode())
    async with Publisher(redis.url, namespace=NAMESPACE) as publisher:
        for topic in own:
            for more in ({}, {"to": {"user": "root"}}):
                with pytest.raises(ProtocolError, match="is reserved"):
                    await publisher.publish(topic, **forged, **more)
        await publisher.publish("chat", "last")
    await subscriber.hear(type="DATA", topic="chat")
    await subscriber.ask(type="REQUEST", topic="system", action="getStatus", requestId="after")
    for client in (subscriber, admin):
        assert not [said for said in client.messages if said.get("data") == {"forged": True}]
    assert node.metric("gateway_messages_relayed_total", kind="refused") == len(own)


async def test_an_idempotency_key_is_refused_where_it_would_have_no_effect(
    plain: Cluster, connect: Connect, api: Callable[..., Api]
) -> None:
    http = api(plain[0]).http
    subscriber = await connect(plain[1], user="ann")
    await subscriber.subscribe("plain", "contest-keys")
    kept = {"topic": "contest-keys", "data": "kept", "idempotencyKey": "k"}
    addressed = {**kept, "to": {"user": "ann"}}
    for body in (addressed, {"messages": [kept, addressed]}):
        answer = await http.post("/api/publish", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
        assert "no effect with to" in answer.json()["error"]["message"]
    async with Publisher(plain.redis.url, namespace=NAMESPACE) as publisher:
        with pytest.raises(ProtocolError, match="no effect with to"):
            await publisher.publish_all([kept, addressed])
    refusal = await subscriber.call(type="PUBLISH", **kept)
    assert (refusal["type"], refusal["code"]) == ("ERROR", 4016)
    assert (await http.post("/api/publish", json={"topic": "plain", "data": "last"})).is_success
    await subscriber.hear(type="DATA", topic="plain")
    assert subscriber.data() == ["last"]  # no rejected message, not even from a batch


@pytest.mark.parametrize("topic", ["plain", "market-data"])
async def test_a_key_makes_two_publishes_one_on_a_topic_without_history(
    plain: Cluster, connect: Connect, api: Callable[..., Api], topic: str
) -> None:
    subscriber = await connect(plain[1], user="ann")
    await subscriber.subscribe(topic)
    once = {"topic": topic, "data": "once", "idempotencyKey": "k"}
    for node in plain[:2]:
        for body in (once, {"messages": [once, {"topic": topic, "data": "by all"}]}):
            answer = await api(node).post("/api/publish", body)
            assert {result["topic"] for result in answer["results"]} == {topic}
    async with Publisher(plain.redis.url, namespace=NAMESPACE) as publisher:
        assert await publisher.publish(topic, "once", idempotencyKey="k") is None
        await publisher.publish(topic, "other", idempotencyKey="l")
    with SyncPublisher(plain.redis.url, namespace=NAMESPACE) as synchronous:
        synchronous.publish(topic, "other", idempotencyKey="l")
    await api(plain[0]).publish(topic, "last")
    await subscriber.hear(type="DATA", topic=topic, data="last")
    assert subscriber.data(topic) == ["once", "by all", "by all", "other", "last"]
    left = plain.redis.cli("PTTL", Keys(NAMESPACE).publish_answer(topic, "k"))
    assert 0 < left <= IDEMPOTENCY_MS


async def test_a_broadcast_is_one_message_on_each_topic(
    plain: Cluster, connect: Connect, api: Callable[..., Api]
) -> None:
    subscriber = await connect(plain[1])
    await subscriber.subscribe("room:1", "room:2", "contest-chat")
    said = {"topics": ["room:1", "room:2", "contest-chat"], "data": {"text": "hi"}, "action": "A"}
    results = (await api(plain[0]).post("/api/broadcast", said))["results"]
    assert [result["topic"] for result in results] == said["topics"]
    async with Publisher(plain.redis.url, namespace=NAMESPACE) as publisher:
        positions = await publisher.broadcast(["room:1", "contest-chat"], 2, idempotencyKey="b")
        assert await publisher.broadcast(["room:1", "contest-chat"], 2, idempotencyKey="b") == positions
    with SyncPublisher(plain.redis.url, namespace=NAMESPACE) as synchronous:
        assert synchronous.broadcast(["room:1", "contest-chat"], 2, idempotencyKey="b") == positions
    await api(plain[0]).publish("room:1", "last")
    await subscriber.hear(type="DATA", data="last")
    assert subscriber.data("room:1") == [{"text": "hi"}, 2, "last"]
    assert subscriber.data("room:2") == [{"text": "hi"}]
    assert {m["action"] for m in subscriber.received(type="DATA", data={"text": "hi"})} == {"A"}
    http = api(plain[0]).http
    for body, status in (
        ({"topics": ["a", "system"], "data": 1}, 403), ({"topics": ["a", "a"], "data": 1}, 400),
        ({"topics": [str(n) for n in range(1000)], "data": "x" * 17_000}, 413),
    ):  # fmt: skip
        assert (await http.post("/api/broadcast", json=body)).status_code == status


async def test_a_publisher_deletes_the_history_of_a_topic(
    plain: Cluster, connect: Connect, api: Callable[..., Api]
) -> None:
    subscriber = await connect(plain[1])
    await subscriber.subscribe("contest-gone")
    url = "/api/topics/contest-gone/history"
    with SyncPublisher(plain.redis.url, namespace=NAMESPACE) as synchronous:
        first = synchronous.publish("contest-gone", 1)
        synchronous.publish("contest-gone", 2)
        assert first is not None
        assert synchronous.delete_history("contest-gone")
        assert not synchronous.delete_history("contest-gone")
        with pytest.raises(ProtocolError, match="reserved"):
            synchronous.delete_history("gateway:figures")
    assert (await api(plain[0]).get(url))["messages"] == []

    async def forgotten() -> bool:
        back = await connect(plain[1])
        recover = {"contest-gone": {"epoch": first.epoch, "offset": first.offset}}
        positions = (await back.subscribe("contest-gone", recover=recover))["positions"]
        return positions["contest-gone"]["recovered"] is False

    await eventually(forgotten)
    await api(plain[0]).publish("contest-gone", 3)
    assert (await subscriber.hear(type="DATA", data=3))["offset"] == 3
