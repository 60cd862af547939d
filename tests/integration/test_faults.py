"""Faults: the cluster recovers by itself, and repairs or reports each loss."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from gateway.cluster.registry import FLUSH_SECONDS
from tests.conftest import Connect
from tests.kit.client import Api, Client, Front, new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import NAMESPACE, Node, token
from tests.kit.raw import RawSocket
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

ApiOf = Callable[[Front], Api]
Clusters = Callable[..., Cluster]


async def listed(api: Api, clients: list[Client]) -> bool:
    """Whether the registry lists exactly `clients`."""
    return sorted(row["id"] for row in await api.clients()) == sorted(client.id for client in clients)


async def checked(nodes: Iterable[Node], times: int = 2) -> None:
    """Wait until each node's self-check has come back so many times more."""

    def count(node: Node) -> float:
        return node.metric("gateway_self_check_seconds_count")

    enough = {node: count(node) + times for node in nodes}
    await eventually(lambda: all(count(node) >= wanted for node, wanted in enough.items()), 30)


def rows_of(redis: Redis, node_id: str) -> list[str]:
    """The keys that Redis holds of a node."""
    keys: list[str] = redis.cli("KEYS", f"{NAMESPACE}ws:node:{{{node_id}}}*")
    return keys


def id_of(client: Client) -> str:
    """The id of the node that a client is on."""
    return client.id.rpartition(".")[0]


def unready_for(node: Node, why: str) -> bool:
    """Whether it gives a reason that begins with `why`."""
    return any(reason.startswith(why) for reason in node.reasons())


def reaps(nodes: Sequence[Node]) -> int:
    """How often a dead node was reaped, by the logs of these nodes, which live."""
    for node in nodes:
        node.finish_log()
    return sum(len(node.events("dead node reaped")) for node in nodes)


# ---- nodes


async def test_a_killed_node_is_forgotten_and_its_clients_find_another_at_once(
    cluster: Clusters, haproxy: Callable[..., LoadBalancer], connect: Connect, api: ApiOf, redis: Redis
) -> None:
    nodes = cluster(3)
    balancer = haproxy(nodes.nodes)
    sources = [new_source() for _ in range(30)]
    clients = {source: await connect(balancer, source=source) for source in sources}
    await eventually(lambda: listed(api(nodes[1]), list(clients.values())))
    lost = {source: client for source, client in clients.items() if client.node == "n1"}
    assert len(lost) >= 8

    nodes[0].kill()
    killed_at = time.monotonic()
    assert {await client.closed(within=2) for client in lost.values()} == {1006}
    for source in lost:
        started = time.monotonic()
        clients[source] = await connect(balancer, source=source)
        assert time.monotonic() - started < 1, "it had to wait for HAProxy to notice"
    assert {client.node for client in clients.values()} == {"n2", "n3"}

    await eventually(lambda: listed(api(nodes[1]), list(clients.values())), killed_at + 10.2 - time.monotonic())
    assert {row["name"] for row in (await api(nodes[2]).get("/api/nodes"))["nodes"]} == {"n2", "n3"}
    await eventually(lambda: not rows_of(redis, id_of(next(iter(lost.values())))), 10)
    await checked(nodes[1:])
    await eventually(lambda: reaps(nodes[1:]))
    assert reaps(nodes[1:]) == 1


async def test_a_flushed_redis_has_its_rows_back_within_two_beats(
    cluster: Clusters, connect: Connect, api: ApiOf, redis: Redis
) -> None:
    nodes = cluster(3)
    clients = [await connect(node, user="ann") for node in nodes for _ in range(5)]
    await asyncio.gather(*(client.subscribe("prices", "news") for client in clients))
    everything = ["/api/clients", "/api/topics"]

    async def seen() -> list[Any]:
        return [await api(nodes[0]).get(path) for path in everything]

    async def written() -> bool:
        # A client's row is written when it comes, and again with what it hears.
        return [row["topics"] for row in await api(nodes[0]).clients()] == 15 * [["news", "prices"]]

    await eventually(written)
    before = await seen()
    assert [row["subscribers"] for row in before[1]["topics"]] == [15, 15]

    redis.flush()
    two_beats = 2 * 10 / 5
    await api(nodes[1]).publish("prices", 1)  # the bus needs no rows
    await asyncio.gather(*(client.hear(type="DATA", data=1, within=1) for client in clients))

    async def healed() -> bool:
        return await seen() == before and len((await api(nodes[0]).get("/api/nodes"))["nodes"]) == 3

    await eventually(healed, two_beats)
    assert all(node.ready() for node in nodes)


async def test_a_frozen_node_is_reaped_once_and_heals_when_it_thaws(
    cluster: Clusters, connect: Connect, api: ApiOf, redis: Redis
) -> None:
    nodes = cluster(3, lease_seconds=3)
    clients = [await connect(node) for node in nodes]
    await asyncio.gather(*(client.subscribe("prices") for client in clients))
    await eventually(lambda: listed(api(nodes[1]), clients))
    frozen, others = clients[0], clients[1:]

    nodes[0].freeze()
    await eventually(lambda: listed(api(nodes[1]), others), 5)
    await eventually(lambda: reaps(nodes[1:]) == 1 and not rows_of(redis, id_of(frozen)))
    await api(nodes[1]).publish("prices", "while it slept")
    await asyncio.gather(*(client.hear(type="DATA", data="while it slept") for client in others))
    await checked(nodes[1:], 5)  # it sleeps long past its lease
    assert reaps(nodes[1:]) == 1

    nodes[0].thaw()
    await eventually(lambda: listed(api(nodes[1]), clients))
    await eventually(nodes[0].ready)
    assert (await frozen.ask(type="ping", timestamp=1))["type"]
    await api(nodes[1]).publish("prices", "afterwards")
    await asyncio.gather(*(client.hear(type="DATA", data="afterwards") for client in clients))
    assert [client.data() for client in others] == [["while it slept", "afterwards"]] * 2
    assert frozen.data() == ["while it slept", "afterwards"] or frozen.received(action="gap")
    assert reaps(nodes.nodes) == 1


async def test_a_client_that_left_while_the_node_was_frozen_does_not_reappear(
    cluster: Clusters, connect: Connect, redis: Redis
) -> None:
    [node] = cluster(1, lease_seconds=1)
    gone, here = await connect(node), await connect(node)
    lease = f"{NAMESPACE}ws:node:{{{gone.id.rpartition('.')[0]}}}"

    def seen() -> set[str]:
        """Whom anybody finds there: rows, if the lease lives."""
        both = "if redis.call('EXISTS', KEYS[1]) == 0 then return {} end return redis.call('HKEYS', KEYS[2])"
        return set(redis.cli("EVAL", both, 2, lease, f"{lease}:clients"))

    await eventually(lambda: seen() == {gone.id, here.id})
    node.freeze()
    gone.socket.transport.abort()
    await eventually(lambda: not seen())
    node.thaw()

    def is_back() -> bool:
        found = seen()
        assert gone.id not in found, "a ghost"
        return here.id in found

    await eventually(is_back)


async def test_a_terminated_node_sends_its_clients_away_and_leaves_nothing(
    cluster: Clusters, connect: Connect, api: ApiOf, redis: Redis
) -> None:
    nodes = cluster(2, drain_seconds=2)
    leaver, stayer = nodes
    clients = await asyncio.gather(*(connect(leaver) for _ in range(40)))
    other = await connect(stayer)
    await asyncio.gather(*(client.subscribe("prices") for client in [*clients, other]))
    await eventually(lambda: listed(api(stayer), [*clients, other]))

    leaver.terminate()
    for _ in range(2):  # as a load balancer would, twice
        await eventually(lambda: leaver.reasons() == ["draining"])
    ends: list[float] = []

    async def end(client: Client) -> int:
        code = await client.closed()
        ends.append(time.monotonic())
        return code

    assert set(await asyncio.gather(*map(end, clients))) == {3001}
    assert max(ends) - min(ends) > 1, "all at the same time: they would all come back at the same time"
    for client in clients:
        (sent,) = client.received(action="shutdown")
        assert sent["data"].keys() == {"message", "code", "reconnectMs"}
        assert sent["data"]["code"] == 1001
        assert client.messages[-1] is sent
    assert await asyncio.to_thread(leaver.process.exit_code) == 0
    assert await listed(api(stayer), [other])
    assert [row["name"] for row in (await api(stayer).get("/api/nodes"))["nodes"]] == ["n2"]
    assert not rows_of(redis, id_of(clients[0]))
    assert len(redis.cli("ZRANGE", f"{NAMESPACE}ws:nodes", 0, -1)) == 1


async def test_a_node_that_starts_without_redis_is_alive_and_ready_once_redis_is_there(
    cluster: Clusters, redis: Redis, folder: Path, connect: Connect
) -> None:
    redis.stop()
    with Node("early", folder, redis) as node:
        await eventually(lambda: alive(node))
        assert unready_for(node, "bus: ")
        client = await connect(node)
        await client.send(type="SUBSCRIBE", topics=["prices"], requestId="s")
        assert (await client.ask(type="ping"))["type"] == "pong"
        redis.start()
        await eventually(node.ready)
        assert (await client.hear(requestId="s"))["topics"] == ["prices"]


async def test_after_an_outage_a_node_is_ready_long_before_its_next_beat(cluster: Clusters, redis: Redis) -> None:
    [node] = cluster(1, lease_seconds=50)  # it beats every ten seconds
    redis.freeze()
    try:
        await eventually(lambda: unready_for(node, "lease not renewed"), 20)
    finally:
        redis.thaw()
    await eventually(node.ready, 5)


async def test_an_authentication_amid_an_outage_forgets_no_subscription_that_waits(
    cluster: Clusters, connect: Connect, redis: Redis
) -> None:
    (node,) = cluster(1)
    client = await connect(node)
    redis.stop()
    await client.hear(type="SYSTEM", action="degraded")
    await client.send(type="SUBSCRIBE", topics=["contest-chat"], requestId="s")
    await client.send(type="AUTH", authToken=token("ann"))
    redis.start()
    await client.hear(operation="authenticate")
    assert (await client.hear(requestId="s"))["topics"] == ["contest-chat"]


def alive(node: Node) -> bool:
    """Whether it answers at all."""
    try:
        return httpx.get(f"{node.url}/healthz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


# ---- Redis


async def test_redis_stopped_and_started_again(cluster: Clusters, connect: Connect, api: ApiOf, redis: Redis) -> None:
    nodes = cluster(2)
    subscribers = [await connect(node) for node in nodes for _ in range(3)]
    await asyncio.gather(*(client.subscribe("prices", "news") for client in subscribers))
    quiet = [await connect(node) for node in nodes]
    speaker = await connect(nodes[1], user="ann")
    clients = [*subscribers, *quiet, speaker]
    await api(nodes[0]).publish("prices", "before")
    await asyncio.gather(*(client.hear(type="DATA", data="before") for client in subscribers))

    redis.stop()
    stopped_at = time.monotonic()
    await asyncio.gather(*(client.hear(type="SYSTEM", action="degraded", within=5) for client in clients))
    for node in nodes:
        assert unready_for(node, "bus: ")
        answer = await api(node).http.post("/api/publish", json={"topic": "prices", "data": "lost"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unavailable"
        assert answer.headers["retry-after"] == "1"
        assert (await api(node).http.get("/api/clients")).status_code == 503
    refusal = await speaker.publish("prices", "lost")
    assert (refusal["code"], refusal["temporary"]) == (5030, True)
    late = subscribers[0]
    await late.send(type="SUBSCRIBE", topics=["late"], requestId="late")
    assert (await late.ask(type="ping", timestamp="not held up"))["timestamp"] == "not held up"
    for node in nodes:
        await eventually(partial(unready_for, node, "lease"))
    newcomer = await connect(nodes[0])
    await eventually(lambda: time.monotonic() - stopped_at > 10, 15, "an outage as long as the lease")
    assert all(client.open for client in clients)
    assert not late.received(requestId="late"), "acknowledged without Redis"
    assert all(alive(node) for node in nodes)

    redis.start()
    assert (await late.hear(requestId="late", within=10))["operation"] == "subscribe"
    await asyncio.gather(*(client.hear(type="SYSTEM", action="restored") for client in [*clients, newcomer]))
    for node in nodes:
        await eventually(node.ready, 5)
    await api(nodes[1]).publish_all([{"topic": topic, "data": "after"} for topic in ("prices", "late")])
    await asyncio.gather(*(client.hear(type="DATA", topic="prices", data="after") for client in subscribers))
    await late.hear(type="DATA", topic="late", data="after")
    await eventually(lambda: listed(api(nodes[0]), [*clients, newcomer]))
    await checked(nodes, 3)
    for client in subscribers:
        assert client.data("prices") == ["before", "after"]
        (gap,) = client.received(action="gap")
        assert gap["data"] == {"topics": ["news", "prices"]}
    for client in clients:
        assert len(client.received(action="degraded")) == len(client.received(action="restored")) == 1
    assert not [client for client in quiet if client.received(action="gap")]


async def test_a_frozen_redis_is_noticed_within_five_seconds_and_heals(
    cluster: Clusters, connect: Connect, api: ApiOf, redis: Redis
) -> None:
    nodes = cluster(2)
    clients = [await connect(node) for node in nodes]
    await asyncio.gather(*(client.subscribe("prices") for client in clients))
    await checked(nodes, 1)

    redis.freeze()
    frozen_at = time.monotonic()
    for node in nodes:
        await eventually(node.reasons, frozen_at + 5 - time.monotonic())
    answer = await api(nodes[0]).http.post("/api/publish", json={"topic": "prices", "data": "doubtful"})
    assert answer.status_code == 503
    await asyncio.gather(*(client.hear(type="SYSTEM", action="degraded") for client in clients))

    redis.thaw()
    for node in nodes:
        await eventually(node.ready)
    await asyncio.gather(*(client.hear(type="SYSTEM", action="restored") for client in clients))
    await api(nodes[0]).publish("prices", "after")
    await asyncio.gather(*(client.hear(type="DATA", data="after") for client in clients))
    await checked(nodes, 3)
    for client in clients:
        assert client.data().count("after") == 1
        assert len(client.received(action="gap")) == 1


async def test_a_redis_that_stays_frozen_costs_no_connections(
    cluster: Clusters, connect: Connect, api: ApiOf, redis: Redis
) -> None:
    """Each command that is given up must give its connection back, or the pool is empty when Redis is there again."""
    (node,) = cluster(1, lease_seconds=1, redis_timeout_seconds=0.2)
    client = await connect(node)
    await eventually(lambda: listed(api(node), [client]))
    redis.freeze()
    await eventually(lambda: node.metric("gateway_housekeeping_failures_total", step="self-check") > 20, 40)
    node.finish_log()
    assert len(node.events("housekeeping step fails")) < 20, "one line for each step, not for each failure"
    newcomer = await connect(node)
    redis.thaw()
    await eventually(node.ready)
    await eventually(lambda: listed(api(node), [client, newcomer]))
    await api(node).publish("prices", 1)


async def test_cut_subscribers_tell_of_one_gap_and_of_no_outage(
    cluster: Clusters, connect: Connect, api: ApiOf, redis: Redis
) -> None:
    nodes = cluster(2)
    clients = [await connect(node) for node in nodes for _ in range(3)]
    await asyncio.gather(*(client.subscribe("prices", "news") for client in clients))
    assert redis.kill_pubsub() == 2
    await asyncio.gather(*(client.hear(action="gap", within=5) for client in clients))
    await api(nodes[0]).publish("prices", "after")
    await asyncio.gather(*(client.hear(type="DATA", data="after") for client in clients))
    await checked(nodes, 3)
    for client in clients:
        (gap,) = client.received(action="gap")
        assert gap["data"] == {"topics": ["news", "prices"]}
        assert not client.received(action="degraded")
        assert not client.received(action="restored")
        assert client.data() == ["after"]
    assert [node.metric("gateway_bus_reconnects_total") for node in nodes] == [1, 1]


async def test_cut_publishers_fail_no_publish(cluster: Clusters, connect: Connect, api: ApiOf, redis: Redis) -> None:
    (node,) = cluster(1)
    client = await connect(node)
    await client.subscribe("prices")
    for number in range(20):
        redis.cli("CLIENT", "KILL", "TYPE", "normal")
        await api(node).publish("prices", number)
    await client.hear(type="DATA", data=19)
    assert client.data() == list(range(20))
    assert not client.received(action="gap")


async def test_an_acknowledged_subscription_misses_no_message_without_a_gap_during_repeated_cuts(
    cluster: Clusters, connect: Connect, api: ApiOf, redis: Redis
) -> None:
    nodes = cluster(2)
    clients = [await connect(node) for node in nodes for _ in range(5)]

    async def come_and_go(client: Client, topic: str) -> None:
        for number in range(20):
            ack = await client.subscribe(topic)
            assert ack["operation"] == "subscribe"
            since = client.messages.index(ack)
            data = f"{client.id} {number}"
            await api(nodes[1]).publish(topic, data)
            await eventually(partial(heard_or_told, client, since, topic, data))
            await client.unsubscribe(topic)
            assert client.data().count(data) <= 1

    async def cut() -> None:
        while True:  # in a thread: questions that block would keep the clients from listening
            await asyncio.to_thread(until, lambda: all(node.ready() for node in nodes), 30)
            await asyncio.to_thread(redis.kill_pubsub)

    cutting = asyncio.create_task(cut())
    try:
        await asyncio.gather(*(come_and_go(client, f"t{at % 4}") for at, client in enumerate(clients)))
    finally:
        cutting.cancel()
    assert all(node.metric("gateway_bus_reconnects_total") > 3 for node in nodes)
    await eventually(lambda: all(node.ready() for node in nodes))


def heard_or_told(client: Client, since: int, topic: str, data: str) -> bool:
    """Whether the client received `data`, or a gap for `topic`, after its message number `since`."""
    return any(
        message.get("data") == data or (message.get("action") == "gap" and topic in message["data"]["topics"])
        for message in client.messages[since:]
    )


# ---- a storm


async def test_a_storm_of_connects_costs_redis_few_round_trips(cluster: Clusters, api: ApiOf) -> None:
    (node,) = cluster(1)
    storm = 1500
    trips = node.metric("gateway_registry_writes_total", kind="round_trip")
    rows = node.metric("gateway_registry_writes_total", kind="row")
    started = time.monotonic()
    sockets: list[RawSocket] = []
    try:
        for _ in range(storm // 100):
            sockets += await asyncio.gather(*(RawSocket.open(node) for _ in range(100)))

        async def all_listed() -> bool:
            return len(await api(node).clients(limit=10_000)) == storm

        await eventually(all_listed)
        seconds = time.monotonic() - started
        trips = node.metric("gateway_registry_writes_total", kind="round_trip") - trips
        rows = node.metric("gateway_registry_writes_total", kind="row") - rows
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))
    assert rows >= storm
    assert trips <= seconds / FLUSH_SECONDS + 5, "more than one round trip for each time of waiting"
    assert rows / trips >= 10

    async def none_listed() -> bool:
        return not await api(node).clients()

    await eventually(none_listed)
