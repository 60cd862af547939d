"""Topic rules and keys change while the nodes run: on all of them or on none, and no message is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import tokens
from gateway.auth import api_keys
from tests.conftest import Connect
from tests.kit.client import Client
from tests.kit.cluster import Cluster
from tests.kit.node import API_KEY, JWT_SECRET, Node
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

RULES = """
[[topic]]
pattern = "kept"
history = 1000

[[topic]]
pattern = "news"
"""
NEW_SECRET = "another secret that only the tests know, also long enough"


# Runs a command in a session with a terminal of its own, which stays open as long as the command runs.
class Files:
    """The files of a cluster: one copy for all nodes."""

    def __init__(self, folder: Path) -> None:
        self.topics, self.keys, self.secret = (folder / name for name in ("topics.toml", "keys.toml", "jwt-secret"))
        self.topics.write_text(RULES)
        self.secret.write_text(f"{JWT_SECRET}\n")
        self.key, table = api_keys.new("feed", ["publish"])
        self.keys.write_text(table)

    def settings(self) -> dict[str, object]:
        return {"topics": self.topics, "api_keys": self.keys, "jwt_secret": "", "jwt_secret_file": self.secret}


@pytest.fixture
def files(folder: Path) -> Files:
    return Files(folder)


def request(node: Node, path: str, key: str, body: Any = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{node.url}/api/{path}", json=body, headers=headers, timeout=20, trust_env=False)


async def reload(node: Node) -> httpx.Response:
    return await asyncio.to_thread(request, node, "reload", API_KEY)


def publish(node: Node, key: str, data: int = 0) -> int:
    return request(node, "publish", key, {"topic": "kept", "data": data}).status_code


async def test_a_removed_key_is_refused_on_every_node_and_nothing_is_lost_under_load(
    cluster: Callable[..., Cluster], connect: Connect, files: Files
) -> None:
    nodes = cluster(3, **files.settings())
    new, table = api_keys.new("feed-2", ["publish"])
    reader = await connect(nodes[1])
    await reader.subscribe("kept", "news")
    sent = 0
    done = asyncio.Event()

    async def feed() -> None:
        nonlocal sent
        while not done.is_set():
            assert await asyncio.to_thread(publish, nodes[2], API_KEY, sent) == 200
            sent += 1

    feeding = asyncio.create_task(feed())
    assert {publish(node, files.key) for node in nodes} == {200}
    files.keys.write_text(table)
    answer = await reload(nodes[0])
    assert (answer.status_code, len(answer.json()["reloaded"])) == (200, 3)
    # The answer comes after the change on every node.
    assert [publish(node, files.key) for node in nodes] == [401] * 3
    assert [publish(node, new) for node in nodes] == [200] * 3
    done.set()
    await feeding
    await reader.hear(type="DATA", topic="kept", data=sent - 1)
    received = [m["data"] for m in reader.received(type="DATA", topic="kept")]
    assert sorted(set(received) - {0}) == list(range(1, sent))
    for node in nodes:
        [line] = await node.logged("configuration reloaded")
        assert (line["keys_added"], line["keys_removed"], line["clients_reconnect"]) == (["feed-2"], ["feed"], 0)
    [audit] = await nodes[0].logged("audit", act="reload")
    assert (audit["key"], audit["status"]) == ("GATEWAY_API_KEY", 200)


async def test_one_invalid_or_different_file_changes_no_node(
    cluster: Callable[..., Cluster], files: Files, folder: Path
) -> None:
    nodes = cluster(2, **files.settings())
    other = folder / "other.toml"
    other.write_text(RULES)
    nodes_settings = files.settings() | {"topics": other}
    with Node("n3", folder, nodes.redis, **nodes_settings) as third:
        await asyncio.to_thread(until, third.ready, 60, "n3 is ready")
        files.keys.write_text("")
        other.write_text("[[topic]]\npattern = 7\n")
        answer = await reload(nodes[0])
        says = answer.json()["error"]["message"]
        assert answer.status_code == 409
        assert f"{other}, line 1: pattern must be" in says and says.endswith("nothing has changed")
        other.write_text(RULES + '\n[[topic]]\npattern = "more"\n')
        answer = await reload(third)
        assert answer.status_code == 409
        assert "the nodes read different topic rules or API keys" in answer.json()["error"]["message"]
        assert {publish(node, files.key) for node in (*nodes, third)} == {200}


async def test_clients_reconnect_if_the_terms_of_a_subscription_change_and_others_stay(
    cluster: Callable[..., Cluster], connect: Connect, files: Files
) -> None:
    nodes = cluster(2, **files.settings())
    reader, other = await connect(nodes[0]), await connect(nodes[0])
    await reader.subscribe("news")
    await other.subscribe("kept")
    files.topics.write_text(RULES.replace('"news"', '"news"\nsubscribe = "role:admin"'))
    answer = await reload(nodes[1])
    assert answer.status_code == 200
    await reader.hear(action="move")
    assert await reader.closed() == 3011
    again = await connect(nodes[0])
    await again.send(type="SUBSCRIBE", topics=["news"])
    assert (await again.hear(type="ERROR"))["code"] == 4010
    assert publish(nodes[1], API_KEY, 7) == 200
    await other.hear(type="DATA", data=7)
    assert answer.json()["rules"] == {row["rules"] for row in await rows(nodes[0], 2)}.pop()


async def rows(node: Node, n: int) -> list[dict[str, Any]]:
    """The nodes' rows, once all have the same rules."""

    def found() -> list[dict[str, Any]]:
        headers = {"authorization": f"Bearer {API_KEY}"}
        listed: list[dict[str, Any]] = httpx.get(f"{node.url}/api/nodes", headers=headers, trust_env=False).json()[
            "nodes"
        ]
        return listed

    await eventually(lambda: len(found()) == n and len({row["rules"] for row in found()}) == 1)
    return found()


async def test_a_topic_gains_history_while_it_has_subscribers(
    cluster: Callable[..., Cluster], connect: Connect, files: Files
) -> None:
    [node] = cluster(1, **files.settings())
    before = await connect(node)
    await before.subscribe("news")
    files.topics.write_text(RULES.replace('"news"', '"news"\nhistory = 10'))
    assert (await reload(node)).status_code == 200
    assert await before.closed() == 3011
    after = await connect(node)
    await after.subscribe("news")
    assert request(node, "publish", API_KEY, {"topic": "news", "data": 1}).status_code == 200
    assert "offset" in await after.hear(type="DATA", topic="news")


async def logs_in(client: Client, secret: str) -> str:
    answer = await client.ask(type="AUTH", authToken=tokens.issue(secret, "ann", "user", 60, time.time()))
    return str(answer["type"])


async def test_a_signal_reloads_one_node_and_a_wrong_file_is_logged(
    connect: Connect, files: Files, folder: Path, redis: Redis
) -> None:
    with Node("n1", folder, redis, **files.settings()) as node:
        await asyncio.to_thread(until, node.ready, 60, "n1 is ready")
        client = await connect(node)
        assert await logs_in(client, NEW_SECRET) == "ERROR"
        files.secret.write_text("")
        node.process.signal(signal.SIGUSR1)
        [line] = await node.logged("configuration not reloaded")
        assert line["reason"] == f"GATEWAY_JWT_SECRET_FILE: {files.secret} is empty; write the secret into it"
        files.secret.write_text(NEW_SECRET)
        node.process.signal(signal.SIGUSR1)
        await node.logged("configuration reloaded")
        assert await logs_in(client, NEW_SECRET) != "ERROR"
        assert not node.events("draining")
