"""Several nodes are one gateway: its receivers get each message once and in order, on every node."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
import pytest
import redis.asyncio as redis_py

from gateway import __version__
from tests.conftest import Connect
from tests.kit.client import Api, Client, Front, new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import NAMESPACE
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

ApiOf = Callable[[Front], Api]


async def everywhere(plain: Cluster, connect: Connect, *who: dict[str, str]) -> list[Client]:
    """A client for each of `who` on each node, all of whom hear ``fence``."""
    clients = await asyncio.gather(*(connect(node, **one) for one in who for node in plain))
    await asyncio.gather(*(client.subscribe("fence") for client in clients))
    return list(clients)


async def fence(api: Api, clients: list[Client]) -> None:
    """Wait until all that was published before through `api` has reached `clients`."""
    mark = f"fence {time.monotonic_ns()}"
    await api.publish("fence", mark)
    await asyncio.gather(*(client.hear(type="DATA", topic="fence", data=mark) for client in clients))


def subscribers(clients: list[Client], topic: str, data: Any) -> list[Client]:
    """The clients that received `data` on `topic`, each once for every copy."""
    return [client for client in clients for received in client.data(topic) if received == data]


async def test_two_browsers_land_on_two_nodes_and_hear_one_publish_once(
    plain: Cluster, haproxy: Callable[..., LoadBalancer], connect: Connect, api: ApiOf
) -> None:
    balancer = haproxy(plain.nodes)
    clients = [await connect(balancer, cookies={}, source=new_source()) for _ in range(2)]
    assert clients[0].node != clients[1].node
    await asyncio.gather(*(client.subscribe("main", "fence") for client in clients))
    await api(balancer).publish("main", {"once": True})
    await fence(api(balancer), clients)
    assert subscribers(clients, "main", {"once": True}) == clients


async def test_sixty_clients_from_sixty_sources_are_spread_evenly(
    plain: Cluster, haproxy: Callable[..., LoadBalancer], connect: Connect, api: ApiOf
) -> None:
    balancer = haproxy(plain.nodes)
    await eventually(lambda: no_clients(api(plain[0])))
    clients = await asyncio.gather(*(connect(balancer, source=new_source()) for _ in range(60)))
    counts = Counter(client.node for client in clients)
    assert sum(counts.values()) == 60
    assert max(counts.values()) - min(counts.values()) <= 3, counts

    async def sent() -> bool:
        return {row["name"]: row["clients"] for row in (await api(balancer).get("/api/nodes"))["nodes"]} == counts

    await eventually(sent)


async def no_clients(api: Api) -> bool:
    return not await api.clients()


# ---- whom a message is for


@pytest.mark.parametrize("at", range(3))
async def test_a_message_to_a_user_reaches_all_clients_of_that_user_only(
    plain: Cluster, connect: Connect, api: ApiOf, at: int
) -> None:
    clients = await everywhere(plain, connect, {"user": "ann"}, {"user": "bob"}, {})
    await api(plain[at]).publish("wallet", "for ann", to={"user": "ann"})
    await fence(api(plain[at]), clients)
    assert subscribers(clients, "wallet", "for ann") == clients[:3]


@pytest.mark.parametrize("at", range(3))
async def test_a_message_to_a_role_reaches_all_clients_with_that_role_only(
    plain: Cluster, connect: Connect, api: ApiOf, at: int
) -> None:
    clients = await everywhere(plain, connect, {"user": "ann", "role": "admin"}, {"user": "ann"}, {})
    await api(plain[at]).publish("audit", "for admins", to={"role": "admin"})
    await fence(api(plain[at]), clients)
    assert subscribers(clients, "audit", "for admins") == clients[:3]


@pytest.mark.parametrize("at", range(3))
async def test_a_message_to_a_client_reaches_it_alone(plain: Cluster, connect: Connect, api: ApiOf, at: int) -> None:
    clients = await everywhere(plain, connect, {"user": "ann"})
    for client in clients:
        await api(plain[at]).publish("reply", client.id, to={"client": client.id})
    await fence(api(plain[at]), clients)
    assert [client.data("reply") for client in clients] == [[client.id] for client in clients]


@pytest.mark.parametrize("at", range(3))
async def test_a_message_except_one_client_reaches_all_others(
    plain: Cluster, connect: Connect, api: ApiOf, at: int
) -> None:
    clients = await everywhere(plain, connect, {}, {})
    await asyncio.gather(*(client.subscribe("room") for client in clients))
    await api(plain[at]).publish("room", "not for the first", **{"except": clients[0].id})
    await fence(api(plain[at]), clients)
    assert subscribers(clients, "room", "not for the first") == clients[1:]


async def test_a_client_that_changes_its_user_receives_only_the_new_users_messages(
    plain: Cluster, connect: Connect, api: ApiOf
) -> None:
    (client,) = clients = [await connect(plain[1], user="before", role="admin")]
    await client.subscribe("fence")
    assert (await client.authenticate("after"))["status"] == "success"
    for target in ({"user": "before"}, {"role": "admin"}, {"user": "after"}, {"role": "user"}):
        await api(plain[0]).publish("wallet", target, to=target)
    await fence(api(plain[0]), clients)
    assert client.data("wallet") == [{"user": "after"}, {"role": "user"}]


# ---- orders


async def test_a_client_is_disconnected_wherever_it_is(plain: Cluster, connect: Connect, api: ApiOf) -> None:
    clients = await everywhere(plain, connect, {"user": "ann"})
    for client, other in zip(clients, [plain[1], plain[2], plain[0]], strict=True):
        await eventually(partial(known, api(plain[0]), client))
        assert await api(other).delete(f"/api/clients/{client.id}") == {"disconnected": [client.id]}
        assert await client.closed() == 3503
    await eventually(lambda: nobody_is(api(plain[0]), "ann"))


async def test_a_users_clients_are_disconnected_and_no_others(plain: Cluster, connect: Connect, api: ApiOf) -> None:
    clients = await everywhere(plain, connect, {"user": "gone"}, {"user": "stays"})

    async def all_listed() -> bool:
        return len(await api(plain[0]).clients(user="gone")) == 3

    await eventually(all_listed)
    answer = await api(plain[0]).delete("/api/users/gone/clients")
    assert sorted(answer["disconnected"]) == sorted(client.id for client in clients[:3])
    assert [await client.closed() for client in clients[:3]] == [3503] * 3
    await fence(api(plain[0]), clients[3:])
    assert all(client.open for client in clients[3:])


async def test_a_client_is_notified_when_a_topic_is_taken_from_it(plain: Cluster, connect: Connect, api: ApiOf) -> None:
    clients = await everywhere(plain, connect, {})
    taken = clients[2]
    await asyncio.gather(*(client.subscribe("gossip") for client in clients))
    await eventually(lambda: known(api(plain[0]), taken, "gossip"))
    await api(plain[0]).delete(f"/api/clients/{taken.id}/topics/gossip")
    sent = await taken.hear(type="SYSTEM", action="unsubscribed")
    assert sent["data"] == {"topics": ["gossip"], "reason": "by the operator"}
    await api(plain[0]).publish("gossip", "news")
    await fence(api(plain[0]), clients)
    assert subscribers(clients, "gossip", "news") == clients[:2]


async def known(api: Api, client: Client, topic: str | None = None) -> bool:
    """Whether the registry lists it, and it hears `topic`."""
    answer = await api.http.get(f"/api/clients/{client.id}")
    return answer.status_code == 200 and (topic is None or topic in answer.json()["topics"])


async def nobody_is(api: Api, user: str) -> bool:
    """Whether the registry lists no client of `user`."""
    return not await api.clients(user=user)


# ---- the original plan's channels


async def test_each_client_receives_an_original_envelope_once(plain: Cluster, connect: Connect, api: ApiOf) -> None:
    clients = await everywhere(plain, connect, {}, {})
    await asyncio.gather(*(client.subscribe("weather") for client in clients))
    envelope = {"topic": "weather", "data": {"p": 1.5}, "timestamp": 1795502108477, "sourceId": "another-program"}
    plain.redis.cli("PUBLISH", f"{NAMESPACE}ws:broadcast", orjson.dumps(envelope).decode())
    await asyncio.gather(*(client.hear(type="DATA", topic="weather") for client in clients))
    await fence(api(plain[0]), clients)
    for client in clients:
        assert client.received(type="DATA", topic="weather") == [
            {"type": "DATA", "topic": "weather", "data": {"p": 1.5}, "timestamp": "2026-11-24T06:35:08.477Z"}
        ]


@pytest.mark.parametrize("rubbish", ["", "{", "[]", "5", '{"topic":5,"data":1}', '{"topic":"weather"}', "[" * 500])
@pytest.mark.parametrize("channel", ["ws:broadcast", "ws:control", "ws:topic:weather", "ws:user:ann"])
async def test_rubbish_on_a_channel_is_dropped(
    plain: Cluster, connect: Connect, api: ApiOf, channel: str, rubbish: str
) -> None:
    client = await connect(plain[0], user="ann")
    await client.subscribe("weather", "fence")
    heard_by = plain.redis.cli("PUBLISH", NAMESPACE + channel, rubbish)
    assert heard_by >= 1
    await fence(api(plain[0]), [client])
    assert client.data("weather") == []


async def test_a_node_that_joins_announces_itself(cluster: Callable[..., Cluster], redis: Redis) -> None:
    async with redis_py.Redis(port=redis.port, decode_responses=True) as connection, connection.pubsub() as pubsub:
        await pubsub.subscribe(f"{NAMESPACE}websocket:ready")
        started = await asyncio.to_thread(cluster, 2)
        announced = []
        async with asyncio.timeout(10):
            async for message in pubsub.listen():
                if message["type"] == "message":
                    announced.append(orjson.loads(message["data"]))
                if len(announced) == 2:
                    break
    assert {one["name"] for one in announced} == {"n1", "n2"}
    assert {one["serverId"].rpartition(".")[0] for one in announced} == {"n1", "n2"}
    assert all(one["version"] == __version__ for one in announced)
    assert all(abs(one["timestamp"] / 1000 - time.time()) < 60 for one in announced)
    assert all(node.ready() for node in started)


# ---- exactly once, in order

CLIENTS, MESSAGES, TOPICS, TOPICS_A_CLIENT = 200, 2000, 10, 3


@pytest.mark.parametrize("n", [2, 4, 8])
async def test_every_client_receives_every_message_of_its_topics_once_and_in_order(
    cluster: Callable[..., Cluster], connect: Connect, api: ApiOf, n: int
) -> None:
    nodes = cluster(n)
    chance = random.Random(n)
    topics = [f"topic:{at}" for at in range(TOPICS)]
    clients = await asyncio.gather(*(connect(nodes[at % n]) for at in range(CLIENTS)))
    assert set(Counter(client.node for client in clients).values()) == {CLIENTS // n}
    heard_by = {client: chance.sample(topics, TOPICS_A_CLIENT) for client in clients}
    await asyncio.gather(*(client.subscribe(*chosen) for client, chosen in heard_by.items()))

    # Each node's API speaks in batches, and one client speaks without waiting for its acknowledgements.
    speaker = await connect(nodes[0], user="ann")
    shares: list[list[tuple[str, Any]]] = [[] for _ in range(n + 1)]
    for number in range(MESSAGES):
        who = number % (n + 1)
        shares[who].append((chance.choice(topics), [who, number]))

    async def speak_in_batches(who: int) -> None:
        messages = [{"topic": topic, "data": data} for topic, data in shares[who]]
        while messages:
            size = chance.choice([1, 2, 20, 100])
            await api(nodes[who]).publish_all(messages[:size])
            messages = messages[size:]

    async def speak_as_a_client() -> None:
        for topic, data in shares[n]:
            await speaker.send(type="PUBLISH", topic=topic, data=data)

    await asyncio.gather(speak_as_a_client(), *map(speak_in_batches, range(n)))
    await eventually(lambda: len(speaker.received(operation="publish")) == len(shares[n]), 30)
    for topic in topics:
        await api(nodes[0]).publish(topic, "the end")
    for client, chosen in heard_by.items():
        for topic in chosen:
            await client.hear(type="DATA", topic=topic, data="the end", within=30)

    order: dict[str, list[Any]] = {}
    for client, chosen in heard_by.items():
        received = [(message["topic"], message["data"]) for message in client.received(type="DATA")]
        for who, share in enumerate(shares):  # over all topics, in the order each speaker said it, none twice
            meant = [(topic, data) for topic, data in share if topic in chosen]
            assert [(topic, data) for topic, data in received if data != "the end" and data[0] == who] == meant
        for topic in chosen:  # and of several speakers, all clients hear the same order
            assert order.setdefault(topic, client.data(topic)) == client.data(topic)
        assert len(received) == sum(topic in chosen for share in shares for topic, _ in share) + len(chosen)
    assert not [message for client in clients for message in client.received(action="gap")]
