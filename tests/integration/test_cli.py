"""The command line against a running cluster, called from a terminal and from scripts."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson
import pytest

from gateway import __version__
from tests.conftest import Connect
from tests.integration.test_redis_acl import restricted
from tests.kit.client import Front
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, JWT_SECRET
from tests.kit.process import clean_environment, free_port
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

SECONDS = 60.0  # the longest a command may take


class Outcome(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        """Its output, which is one JSON document; it went well."""
        assert (self.code, self.err) == (0, ""), self
        return orjson.loads(self.out)

    def table(self) -> list[list[str]]:
        """The words of each line of its output, without the titles; it went well."""
        assert self.code == 0, self
        return [line.split() for line in self.out.splitlines()[1:]]

    def complaint(self) -> str:
        """The one sentence that it failed with."""
        assert (self.code, self.out) == (1, ""), self
        assert self.err.count("\n") == 1, self
        return self.err


async def gateway(front: Front | str, *words: str, stdin: bytes = b"", **env: str) -> Outcome:
    """Run ``gateway`` with these words, for the cluster at `front`."""
    url = front if isinstance(front, str) else front.api_url
    values = {"GATEWAY_URL": url, "GATEWAY_API_KEY": API_KEY, "GATEWAY_JWT_SECRET": JWT_SECRET, **env}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=clean_environment() | values,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


async def until_it_shows(wanted: Callable[[Any], bool], ask: Callable[[], Awaitable[Outcome]]) -> Any:
    """The document of a command, once it is as wanted: the registry is a fifth of a second behind."""

    documents: list[Any] = []

    async def holds() -> bool:
        documents.append((await ask()).document())
        return wanted(documents[-1])

    await eventually(holds, 30)
    return documents[-1]


# ---- publish


async def test_published_messages_arrive_through_the_balancer(
    plain: Cluster, front: LoadBalancer, connect: Connect
) -> None:
    clients = [await connect(node) for node in plain]
    await asyncio.gather(*(client.subscribe("cli") for client in clients))
    assert (await gateway(front, "publish", "cli", '{"n": 1}', "--json")).document() == {"results": [{"topic": "cli"}]}
    assert (await gateway(front, "publish", "cli", "-", stdin='["ß"]\n'.encode())).out == "Published on cli.\n"
    assert (await gateway(front, "publish", "cli", "--text", "plain", "--action", "a", "--priority", "5")).code == 0
    assert (await gateway(front, "publish", "cli", "all but one", "--text", "--except", clients[1].id)).code == 0
    assert (await gateway(front, "publish", "cli", "one", "--text", "--client", clients[1].id)).code == 0
    last = await clients[1].hear(type="DATA", data="one")
    assert last["topic"] == "cli"
    assert clients[1].data("cli") == [{"n": 1}, ["ß"], "plain", "one"]
    for client in (clients[0], clients[2]):
        assert (await client.hear(type="DATA", action="a"))["priority"] == 5
        await client.hear(type="DATA", data="all but one")
        assert client.data("cli") == [{"n": 1}, ["ß"], "plain", "all but one"]


async def test_a_message_larger_than_the_balancer_lets_through_is_one_sentence(front: LoadBalancer) -> None:
    done = await gateway(front, "publish", "cli", "--text", "-", stdin=b"x" * (3 << 20))
    assert "larger than the limit" in done.complaint()
    done = await gateway(front, "publish", "cli", "--text", "-", stdin=b"x" * ((1 << 20) + 1))
    assert "bytes; the limit is 1048576" in done.complaint()


# ---- seeing and directing


async def test_nodes_clients_and_topics_are_shown(plain: Cluster, connect: Connect) -> None:
    clients = [await connect(plain[at % 3], user=f"u/{at % 2}") for at in range(7)]
    await asyncio.gather(*(client.subscribe("seen", "a/b:c") for client in clients))
    found = await until_it_shows(
        lambda document: sum(len(row["topics"]) for row in document["clients"]) == 14,
        lambda: gateway(plain[0], "clients", "--topic", "seen", "--json"),
    )
    ids = [row["id"] for row in found["clients"]]
    assert sorted(ids) == sorted(client.id for client in clients)
    assert [row[:3] for row in (await gateway(plain[0], "clients")).table()] == [
        [row["id"], row["user"], "2"] for row in found["clients"]
    ]

    some = (await gateway(plain[1], "clients", "--limit", "4", "--json")).document()
    assert [row["id"] for row in some["clients"]] == ids[:4]
    rest = (await gateway(plain[1], "clients", "--limit", "4", "--cursor", some["next"], "--json")).document()
    assert ([row["id"] for row in rest["clients"]], rest["next"]) == (ids[4:], None)
    assert len((await gateway(plain[1], "clients", "--user", "u/1", "--node", "n2")).table()) == 1

    one = (await gateway(plain[2], "clients", ids[0], "--json")).document()
    assert one == found["clients"][0]
    assert f"id           {ids[0]}" in (await gateway(plain[2], "clients", ids[0])).out

    nodes = (await gateway(plain[0], "nodes", "--json")).document()["nodes"]
    assert [(node["name"], node["clients"]) for node in nodes] == [("n1", 3), ("n2", 2), ("n3", 2)]
    assert [row[:4] for row in (await gateway(plain[0], "nodes")).table()] == [
        [node["id"], "ready", str(node["clients"]), "2"] for node in nodes
    ]

    assert (await gateway(plain[0], "topics")).table() == [["a/b:c", "7", "3"], ["seen", "7", "3"]]
    assert (await gateway(plain[0], "topics", "a/b:c")).table() == [
        [node["id"], str(node["clients"])] for node in nodes
    ]
    unheard = (await gateway(plain[0], "topics", "..", "--json")).document()
    assert unheard == {"topic": "..", "subscribers": 0, "nodes": {}}


async def test_clients_are_directed_wherever_they_are(plain: Cluster, connect: Connect) -> None:
    ann, bob, other = await connect(plain[0], user="a/nn"), await connect(plain[1], user="bob"), await connect(plain[2])
    await asyncio.gather(*(client.subscribe("x/y") for client in (ann, bob, other)))
    await until_it_shows(lambda topic: topic["subscribers"] == 3, lambda: gateway(plain[0], "topics", "x/y", "--json"))
    assert (await gateway(plain[0], "unsubscribe", other.id, "x/y", "--json")).document() == {"unsubscribed": ["x/y"]}
    values = await other.hear(type="SYSTEM", action="unsubscribed")
    assert values["data"]["topics"] == ["x/y"]
    assert (await gateway(plain[2], "disconnect", "--user", "a/nn", "--json")).document() == {"disconnected": [ann.id]}
    assert (await gateway(plain[2], "disconnect", "--client", bob.id)).out == f"Disconnected {bob.id}.\n"
    assert await ann.closed() == await bob.closed() == 3503
    assert other.open
    assert "No client" in (await gateway(plain[2], "disconnect", "--client", "n1.0.1")).complaint()


async def test_a_pipe_that_closes_early_causes_no_error_output(plain: Cluster) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = clean_environment() | {"GATEWAY_URL": plain[0].api_url, "GATEWAY_API_KEY": API_KEY}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "nodes", stdout=writing, stderr=asyncio.subprocess.PIPE, env=env
    )
    os.close(writing)
    async with asyncio.timeout(SECONDS):
        _, err = await process.communicate()
    assert err == b""


# ---- tokens


async def test_a_token_is_taken_by_a_node_and_explained(plain: Cluster, connect: Connect) -> None:
    made = (await gateway("http://unused", "token", "issue", "ann", "--role", "admin")).out.strip()
    client = await connect(plain[0], cookies={"session": made})
    assert (await client.subscribe("admin"))["type"] == "ACKNOWLEDGMENT"
    explained = (await gateway("http://unused", "token", "explain", "-", "--json", stdin=made.encode())).document()
    assert (explained["valid"], explained["claims"]["wallet_address"]) == (True, "ann")
    forged = await gateway("http://unused", "token", "explain", made, GATEWAY_JWT_SECRET="another" * 6)
    assert (forged.code, forged.err) == (1, "")


# ---- is everything well?


async def test_all_is_well_by_the_balancer_and_by_a_node(plain: Cluster, front: LoadBalancer, redis: Redis) -> None:
    for name, value in (("maxmemory", "100mb"), ("appendonly", "yes")):
        redis.cli("CONFIG", "SET", name, value)
    for where in (front, plain[0]):
        document = (await gateway(where, "check", "--json", GATEWAY_REDIS_URL=redis.url)).document()
        assert document["ok"] is True
        assert all(one["ok"] for one in document["checks"])
        assert [one["check"].split(".")[0] for one in document["checks"]] == [
            "settings", "Redis from here", "Redis version", "Redis role", "Redis memory", "Redis persistence",
            "Redis replicas", "Redis rights", "API", "key", "Redis", "node n1", "node n2", "node n3",
            "topic rules",
        ]  # fmt: skip
    assert f"version {__version__}" in (await gateway(front, "check")).out


async def test_each_weakness_of_redis_is_one_sentence_with_its_remedy(front: LoadBalancer, redis: Redis) -> None:
    url = restricted([redis], redis.url).url  # the user of deploy/redis/users.acl
    redis.cli("ACL", "SETUSER", "gateway", "-xadd", "-evalsha")
    document = orjson.loads((await gateway(front, "check", "--json", GATEWAY_REDIS_URL=url)).out)
    weak = {one["check"]: (one["found"], one["todo"]) for one in document["checks"] if one["ok"] is False}
    assert weak.pop("Redis memory")[1] == "set maxmemory to at most half of the machine's memory"
    assert weak == {
        "Redis persistence": ("appendonly is no: a restart of Redis loses messages", "set appendonly yes"),
        "Redis rights": ("the user of the URL lacks +evalsha +xadd", "add them with ACL SETUSER"),
    }
    assert redis.cli("DBSIZE") == 0  # the commands were queued and not executed


async def failed(front: Front | str, **env: str) -> list[str]:
    """What `check` finds wrong."""
    done = await gateway(front, "check", "--json", stdin=b"", **env)
    document = orjson.loads(done.out)
    assert (done.code, done.err, document["ok"]) == (1, "", False)
    return [one["check"] for one in document["checks"] if one["ok"] is False]


async def test_what_is_wrong_is_named(cluster: Callable[..., Cluster], redis: Redis) -> None:
    (node,) = cluster(1, redis_timeout_seconds=1)
    assert await failed(f"http://127.0.0.1:{free_port()}") == ["API"]
    assert await failed(redis.url.replace("redis://", "http://").removesuffix("/0")) == ["API"]
    assert await failed(node, GATEWAY_API_KEY="wrong") == ["key"]
    assert await failed(node, GATEWAY_PRT="1") == ["settings"]
    redis.stop()
    assert await failed(node) == ["Redis"]
    assert await failed(node, GATEWAY_REDIS_URL=redis.url) == ["Redis from here", "Redis"]
    redis.start()
    redis.freeze()
    try:
        frozen = {"GATEWAY_REDIS_URL": redis.url, "GATEWAY_REDIS_TIMEOUT_SECONDS": "0.5"}
        assert await failed(node, **frozen) == ["Redis from here", "Redis"]
    finally:
        redis.thaw()


async def test_a_balancer_without_nodes_is_distinguished_from_a_cluster(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], redis: Redis
) -> None:
    nodes = cluster(1)
    balancer = haproxy(nodes.nodes)
    nodes[0].kill()
    await eventually(lambda: not balancer.up(nodes[0]), 20)
    assert "no node is ready" in (await gateway(balancer, "nodes")).complaint()
    assert await failed(balancer) == ["API"]


# ---- when something is wrong


async def test_what_fails_is_one_sentence(cluster: Callable[..., Cluster], redis: Redis) -> None:
    (node,) = cluster(1)
    nowhere = f"http://127.0.0.1:{free_port()}"
    complaints = [
        ("Connection refused", gateway(nowhere, "nodes", "--json")),
        ("rejects this key", gateway(node, "nodes", "--json", GATEWAY_API_KEY="wrong")),
        ("needs a key", gateway(node, "topics", GATEWAY_API_KEY="")),
        ("No client 'n1.0.1'", gateway(node, "clients", "n1.0.1")),
        ("is not a topic", gateway(node, "topics", "no topic")),
        ("topic must be", gateway(node, "publish", "no topic", "1")),
    ]
    for (word, _), done in zip(complaints, await asyncio.gather(*(done for _, done in complaints)), strict=True):
        assert word in done.complaint()
    redis.stop()
    commands = [["publish", "t", "1"], ["nodes"], ["clients"], ["topics"], ["disconnect", "--user", "ann"]]
    for done in await asyncio.gather(*(gateway(node, *words) for words in commands)):
        assert "Redis is not available" in done.complaint()


async def test_the_error_for_a_node_without_a_key_names_the_setting(cluster: Callable[..., Cluster]) -> None:
    (node,) = cluster(1, api_key="")
    assert "is off" in (await gateway(node, "nodes")).complaint()
    assert await failed(node) == ["key"]


@pytest.mark.parametrize(
    ("variable", "value", "word"),
    [
        ("GATEWAY_PRT", "1", "GATEWAY_PORT"), ("GATEWAY_PORT", "many", "GATEWAY_PORT"),
        ("GATEWAY_REDIS_URL", "http://x", "GATEWAY_REDIS_URL"),
    ],
)  # fmt: skip
async def test_a_bad_setting_stops_the_start_with_one_sentence(variable: str, value: str, word: str) -> None:
    done = await gateway("http://unused", "serve", stdin=b"", **{variable: value})
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert word in done.err
