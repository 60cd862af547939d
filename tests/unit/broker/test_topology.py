"""What a URL says about where Redis is."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelConnectionPool

from gateway.broker import topology
from gateway.broker.slot_map import ONLY_SERVER
from gateway.broker.topology import Topology
from gateway.core.urls import REDIS_PORT, SENTINEL_PORT


def pool(url: str) -> Any:
    """Connections to what `url` names."""
    return Topology(url, timeout_seconds=2.0, max_connections=5).client(ONLY_SERVER).connection_pool


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/1", "rediss://h/0", "unix:///run/redis.sock"])
def test_one_server_is_waited_for_when_all_connections_are_busy(url: str) -> None:
    assert type(pool(url)) is BlockingConnectionPool
    assert pool(url).timeout == 2.0


def test_sentinels_are_asked_for_the_master() -> None:
    found = pool("redis+sentinel://ann:p%40ss@a:1,b,[::1]:3/live/7")
    assert isinstance(found, SentinelConnectionPool) and isinstance(found, BlockingConnectionPool)
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in found.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in asked] == [("a", 1), ("b", SENTINEL_PORT), ("::1", 3)]
    assert found.service_name == "live"
    options = found.connection_kwargs
    assert (options["username"], options["password"], options["db"]) == ("ann", "p@ss", 7)


def test_one_sentinel_that_does_not_answer_leaves_time_for_another() -> None:
    found = pool("redis+sentinel://a,b/live")
    for sentinel in found.sentinel_manager.sentinels:
        assert sentinel.connection_pool.connection_kwargs["socket_timeout"] == 1.0
    assert found.connection_kwargs["socket_connect_timeout"] == 2.0


def test_a_new_connection_does_not_look_up_the_version_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redis.utils.get_lib_version", lambda: pytest.fail("read from disk"))
    assert Topology("redis://127.0.0.1/0", timeout_seconds=1.0).connection(ONLY_SERVER).driver_info is topology.DRIVER


def test_tls_is_spoken_with_the_servers() -> None:
    assert issubclass(pool("rediss+sentinel://a/live").connection_class, SSLConnection)
    assert not issubclass(pool("redis+sentinel://a/live").connection_class, SSLConnection)


@pytest.mark.parametrize(
    "url", ["redis+sentinel://", "redis+sentinel://a", "redis+sentinel://a/b/c", "redis+sentinel://:1/b"]
)
def test_a_url_that_names_no_sentinels_and_service_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        pool(url)


def test_a_cluster_s_servers_are_connected_with_one_login() -> None:
    topology = Topology("rediss+cluster://ann:p%40ss@a:1,b,[::1]:3", timeout_seconds=2.0, max_connections=5)
    assert topology.slot_map.sharded and topology._seeds == ["a:1", f"b:{REDIS_PORT}", "[::1]:3"]
    client: Any = topology.client("[::1]:3")
    options = client.connection_pool.connection_kwargs
    assert (options["host"], options["port"], options["username"], options["password"]) == ("::1", 3, "ann", "p@ss")
    assert type(client.connection_pool) is BlockingConnectionPool
    assert issubclass(client.connection_pool.connection_class, SSLConnection)


@pytest.mark.parametrize("url", ["redis+cluster://", "redis+cluster://a/0/1", "redis+cluster://:1"])
def test_a_url_that_names_no_servers_of_a_cluster_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Topology(url, timeout_seconds=2.0)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:secret@h:6380/1", "redis://h:6380/1"),
        ("redis://h", "redis://h"),
        ("redis+sentinel://:secret@a:1,b:2/live", "redis+sentinel://a:1,b:2/live"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert topology.describe(url) == shown


@pytest.mark.parametrize("replica", [False, True])
async def test_a_servers_role_is_not_queried_again_at_once(replica: bool) -> None:
    asked: list[str] = []

    class Pipeline:
        async def __aenter__(self) -> Pipeline:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        def execute_command(self, command: str) -> None:
            asked.append(command)

        async def execute(self, **_: bool) -> list[Any]:
            return [[b"slave" if replica else b"master", b"", 0]]

    place = Topology("redis://127.0.0.1:1", timeout_seconds=2.0, max_connections=5)
    place.client(ONLY_SERVER).pipeline = lambda **_: Pipeline()  # type: ignore[assignment, method-assign]
    assert await place.is_moved(ONLY_SERVER, place.connection(ONLY_SERVER)) is replica
    assert asked == ["ROLE"]
    assert not place.is_replica([b"master", 0, []])  # its answer behind a publish
    assert not await place.is_moved(ONLY_SERVER, place.connection(ONLY_SERVER))
    assert asked == ["ROLE"]
    place._role_asked -= topology.ROLE_SECONDS
    assert await place.is_moved(ONLY_SERVER, place.connection(ONLY_SERVER)) is replica
    assert asked == ["ROLE", "ROLE"]
