"""A Redis that rejects writes, and an address that leads to another Redis server."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.broker.client import Impaired, RedisClient, Unavailable
from gateway.broker.errors import WrongServer
from gateway.broker.keys import Keys
from gateway.broker.slot_map import ONLY_SERVER
from gateway.broker.topology import MOVED_LOOKUPS
from gateway.metrics import Metrics
from tests.conftest import Connect
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.node import NAMESPACE, Node
from tests.kit.process import Closing
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

KEYS = Keys(NAMESPACE)
IMPAIRED = "Redis impaired, node stays ready"
LEASE_SECONDS = 2.0


@pytest.fixture
def redis(folder: Path) -> Iterator[Redis]:
    """One whose folder can be taken away."""
    with Redis(folder, more={"enable-protected-configs": "yes"}) as server:
        yield server


def fill_memory(redis: Redis, _folder: Path) -> Callable[[], None]:
    """OOM."""
    redis.cli("CONFIG", "SET", "maxmemory", 1)
    return lambda: redis.cli("CONFIG", "SET", "maxmemory", 0)


def fill_disk(redis: Redis, folder: Path) -> Callable[[], None]:
    """MISCONF: it is to save, and cannot."""
    gone = folder / "gone"
    gone.mkdir()
    redis.cli("CONFIG", "SET", "dir", str(gone))
    redis.cli("CONFIG", "SET", "save", "3600 1000000")
    shutil.rmtree(gone)
    with suppress(Exception):  # it may find out at once
        redis.cli("BGSAVE")
    until(lambda: "err" in str(redis.cli("INFO", "persistence")["rdb_last_bgsave_status"]), 10, "the save has failed")
    return lambda: redis.cli("CONFIG", "SET", "save", "")


def take_replicas(redis: Redis, _folder: Path) -> Callable[[], None]:
    """NOREPLICAS."""
    redis.cli("CONFIG", "SET", "min-replicas-to-write", 1)
    return lambda: redis.cli("CONFIG", "SET", "min-replicas-to-write", 0)


@pytest.mark.parametrize(
    ("impair", "code"), [(fill_memory, "OOM"), (fill_disk, "MISCONF"), (take_replicas, "NOREPLICAS")]
)
async def test_a_redis_that_refuses_writes_makes_no_node_unready_and_plain_topics_go_on(
    cluster: Callable[..., Cluster], redis: Redis, folder: Path, connect: Connect, api: Callable[[Front], Api],
    impair: Callable[[Redis, Path], Callable[[], None]], code: str,
) -> None:  # fmt: skip
    nodes = cluster(2, lease_seconds=LEASE_SECONDS, open=1)
    subscriber, speaker = await connect(nodes[1]), await connect(nodes[0], user="ann")
    await subscriber.subscribe("plain")
    unready: list[list[str]] = []
    ids = await _ids(api(nodes[0]))
    assert all(redis.cli("EXISTS", KEYS.node(node)) for node in ids)
    restore = await asyncio.to_thread(impair, redis, folder)
    leases = [KEYS.node(node) for node in ids]
    assert len(leases) == 2

    async def over() -> bool:
        unready.extend(reasons for node in nodes if (reasons := node.reasons()))
        return not any(redis.cli("EXISTS", lease) for lease in leases)

    await eventually(over, 20, "the leases have ended")
    http = api(nodes[0]).http
    assert (await http.post("/api/publish", json={"topic": "plain", "data": "http"})).status_code == 200
    assert (await speaker.publish("plain", "socket"))["type"] == "ACKNOWLEDGMENT"
    await subscriber.hear(type="DATA", topic="plain", data="http")
    await subscriber.hear(type="DATA", topic="plain", data="socket")
    newcomer = await connect(nodes[0])
    assert (await newcomer.subscribe("plain"))["status"] == "success"
    # What takes a write is refused, with the reason, and for now.
    answer = await http.post("/api/publish", json={"topic": "contest-chat", "data": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert code in answer.json()["error"]["message"] and "retry-after" in answer.headers
    refused = await speaker.publish("contest-chat", 1)
    assert (refused["code"], refused["temporary"]) == (5030, True) and code in refused["message"]
    # It is reported.
    status_of = (await http.get("/readyz")).json()
    assert status_of["ready"] and any(code in reason for reason in status_of["impaired"])
    assert nodes[0].metric("gateway_redis_impaired") == 1
    await nodes[0].logged(IMPAIRED)
    nodes[0].finish_log()
    assert len(nodes[0].events(IMPAIRED)) == 1, "once, however long it lasts"
    assert unready == [] and all(node.ready() for node in nodes)
    restore()
    await eventually(lambda: _listed(api(nodes[0]), 2), 20, "all rows are written again")
    await eventually(lambda: nodes[0].metric("gateway_redis_impaired") == 0)
    assert (await http.post("/api/publish", json={"topic": "contest-chat", "data": 2})).status_code == 200


async def _ids(api: Api) -> list[str]:
    return [node["id"] for node in (await api.http.get("/api/nodes")).json()["nodes"]]


async def _listed(api: Api, number: int) -> bool:
    answer = await api.http.get("/api/nodes")
    return answer.status_code == 200 and len(answer.json()["nodes"]) == number


# ---- a name that leads to another server by now


class Name(Closing):
    """A host name of Redis: new connections reach the server that is the target at that moment, old ones stay."""

    def __init__(self, target: Redis) -> None:
        self.target = target
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                far = socket.create_connection(("127.0.0.1", self.target.port))
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        for each in (self._socket, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Pair(Closing):
    """A server that fails over to another, under one name."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        places = [folder / "old", folder / "new"]
        for place in places:
            place.mkdir()
        self.old, self.new = (self._stack.enter_context(Redis(place)) for place in places)
        self.name = self._stack.enter_context(Name(self.old))

    def fail_over(self) -> None:
        """The old master goes on as a replica, and the name leads to the new one."""
        self.new.cli("REPLICAOF", "127.0.0.1", self.old.port)
        until(lambda: self.new.cli("ROLE")[3] == "connected", 20, "the replica has all")
        self.new.cli("REPLICAOF", "NO", "ONE")
        self.name.target = self.new
        self.old.cli("REPLICAOF", "127.0.0.1", self.new.port)
        until(lambda: self.old.cli("ROLE")[3] == "connected", 20, "the old master follows")

    def close(self) -> None:
        """End all."""
        self._stack.close()


@pytest.fixture
def pair(folder: Path) -> Iterator[Pair]:
    """Two servers."""
    with Pair(folder) as running:
        yield running


async def test_nodes_leave_a_master_that_became_a_replica_and_lose_no_acknowledged_publish(
    pair: Pair, folder: Path, connect: Connect
) -> None:
    with ExitStack() as stack:
        redis: Any = _At(pair)
        nodes = [stack.enter_context(Node(f"n{n}", folder, redis, lease_seconds=LEASE_SECONDS, open=1)) for n in (1, 2)]
        for node in nodes:
            await asyncio.to_thread(until, node.ready, 60, "the node is ready")
        api = Api(nodes[0])
        await api.publish("plain", 0)
        assert "name=gateway-n" in pair.old.cli("CLIENT", "LIST")
        await asyncio.to_thread(pair.fail_over)
        late = stack.enter_context(Node("n3", folder, redis, lease_seconds=LEASE_SECONDS, open=1))
        await asyncio.to_thread(until, late.ready, 60, "the new node is ready")
        subscriber = await connect(late)  # it has never seen the old server
        await subscriber.subscribe("plain")
        taken = []
        for number in range(1, 41):
            with suppress(httpx.HTTPStatusError, AssertionError):
                answer = await api.http.post("/api/publish", json={"topic": "plain", "data": number})
                if answer.status_code == 200:
                    taken.append(number)
            await asyncio.sleep(0.05)
        assert taken and taken[-1] == 40
        await subscriber.hear(type="DATA", topic="plain", data=40)
        assert subscriber.data("plain") == taken, "all subscribers received the acknowledged messages"
        await asyncio.to_thread(until, lambda: all(node.ready() for node in nodes), 20, "all are ready")

        def left() -> bool:
            return "name=gateway-n" not in str(pair.old.cli("CLIENT", "LIST"))

        await asyncio.to_thread(until, left, 20, "no connection of any kind is left to the old server")
        await api.close()


class _At:
    """The name of a pair, as a node's Redis."""

    def __init__(self, pair: Pair) -> None:
        self.url = pair.name.url


async def test_readonly_from_within_a_script_drops_all_connections(pair: Pair) -> None:
    redis_client = RedisClient(pair.name.url, timeout_seconds=5, name="test", metrics=Metrics())
    left: list[str] = []
    redis_client.on_left = left.append
    try:
        assert await redis_client.execute("SET", "a", 1)
        subscriber = await redis_client.connect_subscriber(ONLY_SERVER)
        assert not await redis_client.is_moved(ONLY_SERVER, subscriber)
        await asyncio.to_thread(pair.fail_over)
        with pytest.raises(WrongServer, match="READONLY: the server is a replica"):
            await redis_client.execute("EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "a")
        assert len(left) == 1
        assert await redis_client.execute("EVAL", "return redis.call('INCR', KEYS[1])", 1, "a") == 2
        assert pair.new.cli("GET", "a") == "2"
        await subscriber.disconnect()
    finally:
        await redis_client.close()


async def test_a_replica_is_refused_when_it_is_connected(pair: Pair) -> None:
    await asyncio.to_thread(pair.fail_over)
    redis_client = RedisClient(pair.old.url, timeout_seconds=5, name="test", metrics=Metrics())
    try:
        with pytest.raises(Unavailable, match=f"{pair.old.port} is a replica, not the master"):
            await redis_client.execute("PING")
    finally:
        await redis_client.close()


async def test_a_role_that_may_not_be_asked_is_no_reason_to_stay_away(redis: Redis) -> None:
    redis.cli("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", "-role")
    url = redis.url.replace("redis://", "redis://limited:pw@")
    redis_client = RedisClient(url, timeout_seconds=5, name="test", metrics=Metrics())
    running = asyncio.create_task(redis_client.run())
    try:
        assert await redis_client.execute("PING")
        assert await redis_client.transact([("PUBLISH", "a", b"1")]) == [0]
        subscriber = await redis_client.connect_subscriber(ONLY_SERVER)
        assert not await redis_client.is_moved(ONLY_SERVER, subscriber)
        await subscriber.disconnect()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await redis_client.close()


async def test_rejected_writes_are_distinguished_from_other_errors(redis: Redis) -> None:
    redis_client = RedisClient(redis.url, timeout_seconds=5, name="test", metrics=Metrics())
    running = asyncio.create_task(redis_client.run())
    try:
        redis.cli("CONFIG", "SET", "maxmemory", 1)
        for asked in (
            redis_client.execute("SET", "a", 1),
            redis_client.execute("EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "a"),
            redis_client.transact([("SET", "a", 1)]),
            redis_client.transact([("SET", "a", 1), ("SET", "b", 1)]),
            redis_client.transact([("EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "a"), ("PUBLISH", "c", b"1")]),
        ):
            with pytest.raises(Impaired, match="OOM: Redis refuses writes, because its memory is full"):
                await asked
        assert await redis_client.transact([("PUBLISH", "c", b"1")]) == [0]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await redis_client.close()


async def test_a_name_that_leads_elsewhere_again_and_again_is_followed(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, status_of = asyncio.get_running_loop(), ["127.0.0.1"]

    async def resolve(_host: str, port: int, **_more: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in status_of]

    redis_client = RedisClient(
        f"redis://redis.internal:{redis.port}/0", timeout_seconds=5, name="test", metrics=Metrics()
    )
    left: list[str] = []
    redis_client.on_left = left.append
    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    try:
        assert await redis_client.execute("PING")
        subscriber = await redis_client.connect_subscriber(ONLY_SERVER)
        status_of[:] = ["127.0.0.2", "127.0.0.1"]
        assert not any([await redis_client.is_moved(ONLY_SERVER, subscriber) for _ in range(2 * MOVED_LOOKUPS)]), (
            "one of several"
        )
        status_of[:] = ["127.0.0.2"]
        assert [await redis_client.is_moved(ONLY_SERVER, subscriber) for _ in range(MOVED_LOOKUPS)] == [False] * (
            MOVED_LOOKUPS - 1
        ) + [True]
        assert left == ["Redis has another master now"]
        with pytest.raises(Unavailable, match=r"redis\.internal"):
            await redis_client.execute("PING")  # at the new address there is nothing
        status_of[:] = ["127.0.0.1"]
        assert await redis_client.execute("PING")
        await subscriber.disconnect()
    finally:
        await redis_client.close()
