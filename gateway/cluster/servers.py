"""Where Redis is: the one at a URL, whichever server Sentinels call the master now, or the masters of a cluster.

redis://host:port/db, rediss:// (TLS), unix://path
redis+sentinel://user:password@host:port,host:port/service/db, rediss+sentinel:// (TLS to the servers)
redis+cluster://user:password@host:port,host:port, rediss+cluster:// (TLS): any servers of it, to ask for the others
"""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, Sentinel
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.cluster.answers import REDIS_ERRORS, Unavailable, explain, heeding
from gateway.cluster.shards import Shards, address

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
LEARN_SECONDS: Final = 0.1  # no sooner is a cluster asked again who has what, however many ask for it

_SENTINELS: Final = re.compile(r"(rediss?)\+sentinel://(?:([^@/]*)@)?([^@/?#]+)/([^/?#]+)(?:/(\d+))?")
_CLUSTER: Final = re.compile(r"(rediss?)\+cluster://(?:([^@/]*)@)?([^@/?#]+)/?")


class Servers:
    """Connections to all servers that a URL leads to, by the servers' names; none is opened yet.

    `options` as redis-py's pools and connections have.

    Raises:
        ValueError: `url` is none of those above.
    """

    def __init__(self, url: str, *, timeout_seconds: float, **options: Any) -> None:
        self._timeout = timeout_seconds
        self._options = options | {f"{wait}timeout": timeout_seconds for wait in ("", "socket_", "socket_connect_")}
        self._options["retry"] = Retry(NoBackoff(), 0)  # whoever asks decides what becomes of a failure
        self._clients: dict[str, Redis] = {}
        self._seeds: list[str] = []
        match = _CLUSTER.fullmatch(url) if "+cluster:" in url else None
        self.shards = Shards(sharded=match is not None)
        self._url = url
        self._learning = asyncio.Lock()
        self._learned = -1.0  # loop time
        self._doubted = match is not None  # what is known of the cluster may be old
        if match is not None:
            scheme, login, hosts = match.groups()
            user, password = _login(login)
            self._options |= {"username": user, "password": password}
            self._options["connection_class"] = Connection if scheme == "redis" else SSLConnection
            self._seeds = [address(*_host(host, REDIS_PORT)) for host in hosts.split(",")]
        elif "+cluster:" in url:
            raise ValueError("must be redis+cluster://host:port,host:port")
        else:
            self._clients[self.shards.servers[0]] = Redis(connection_pool=pool(url, **self._options))

    def at(self, server: str) -> Redis:
        """The client for one server."""
        client = self._clients.get(server)
        if client is None:
            host, port = _host(server, REDIS_PORT)
            made = BlockingConnectionPool(host=host, port=port, **self._options)
            client = self._clients[server] = Redis(connection_pool=made)
        return client

    def connection(self, server: str) -> AbstractConnection:
        """A connection to it beside those of its client, not yet connected."""
        connections: ConnectionPool = self.at(server).connection_pool
        connection: AbstractConnection = connections.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def moved(self, server: str, connection: AbstractConnection) -> bool:
        """Whether the Sentinels name another server than `connection` leads to. Then what rests in the pool is closed.

        Without Sentinels, or if none answers, it is where it was.
        """
        connections = self.at(server).connection_pool
        if not isinstance(connections, _MasterPool):
            return False
        assert isinstance(connection, _MasterConnection)
        try:
            host, port = await heeding(connections.get_master_address())  # type: ignore[no-untyped-call]
        except REDIS_ERRORS:
            return False
        return (connection.host, connection.port) != (host, port)

    # ---- a cluster's map

    def doubt(self) -> None:
        """A server failed: who has its slots is to be asked."""
        self._doubted = self.shards.sharded

    async def learn(self, *, anew: bool = False) -> None:
        """Know which server has which slot, if that is in doubt; in any case, if `anew`.

        Raises:
            Unavailable: No server could tell.
        """
        if not self.shards.sharded or not (anew or self._doubted):
            return
        async with self._learning:
            now = asyncio.get_running_loop().time()
            if self.shards.servers and now < self._learned + LEARN_SECONDS:
                return
            await self._learn()
            self._doubted, self._learned = False, asyncio.get_running_loop().time()
            for server in self._clients.keys() - set(self.shards.servers):
                await _close(self._clients.pop(server))

    async def _learn(self) -> None:
        masters = list(self.shards.servers)
        random.shuffle(masters)  # nodes do not all ask the same
        reason: BaseException = TimeoutError("no server of the cluster answered")
        unsure: tuple[Any, str] | None = None
        for server in dict.fromkeys([*masters, *self._seeds]):
            pipeline = self.at(server).pipeline(transaction=False)
            pipeline.execute_command("CLUSTER", "INFO")
            pipeline.execute_command("CLUSTER", "SLOTS")
            try:
                # They are asked one after the other: half the time for one, so that a frozen one hides no other.
                async with asyncio.timeout(self._timeout / 2):
                    info, rows = await heeding(pipeline.execute())
            except REDIS_ERRORS as error:
                reason = error
                continue
            # One that was cut off from the others still tells of the world before.
            if b"cluster_state:ok" in info:
                self.shards.learn(rows, server)
                return
            unsure = unsure or (rows, server)
        if unsure is None:
            raise Unavailable(explain(reason)) from reason
        self.shards.learn(*unsure)

    async def close(self) -> None:
        """Close all connections that rest in the pools."""
        while self._clients:
            _, client = self._clients.popitem()
            await _close(client)


def pool(url: str, **options: Any) -> ConnectionPool:
    """Connections to the one server at `url`, or to the master that its Sentinels name.

    Raises:
        ValueError: `url` names none.
    """
    if "+sentinel:" not in url:
        return BlockingConnectionPool.from_url(url, **options)
    match = _SENTINELS.fullmatch(url)
    if match is None:
        raise ValueError("must be redis+sentinel://host:port,host:port/service/db")
    scheme, login, hosts, service, database = match.groups()
    user, password = _login(login)
    # They are asked one after the other: half the time for the first, so that one which is frozen hides no other.
    sentinels = _Sentinels(  # type: ignore[no-untyped-call]
        [_host(host, SENTINEL_PORT) for host in hosts.split(",")],
        sentinel_kwargs={
            "socket_timeout": options["timeout"] / 2, "socket_connect_timeout": options["timeout"] / 2,
            "retry": options["retry"],
        },
    )  # fmt: skip
    return _MasterPool(  # type: ignore[no-untyped-call]
        unquote(service), sentinels, connection_class=_MasterConnection if scheme == "redis" else _MasterSSLConnection,
        db=int(database or 0), username=user, password=password, **options,
    )  # fmt: skip


def describe(url: str) -> str:
    """`url` without its password, for people."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _login(text: str | None) -> tuple[str | None, str | None]:
    user, _, password = (text or "").rpartition(":")
    return unquote(user) or None, unquote(password) or None


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no host:port")
    return parts.hostname, parts.port or default_port


async def _close(client: Redis) -> None:
    await client.aclose()
    await client.connection_pool.aclose()


class _Sentinels(Sentinel):
    """redis-py's, but for the list of them, which all that connects at once shares.

    Whoever answers is asked first the next time. redis-py exchanges two places for that, by a number from before it
    waited; when two do so side by side, one Sentinel is in the list twice and another no more. A node that knew but one
    in the end was lost when that one was cut off.
    """

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Where the master is, by the first Sentinel that knows one which is well."""
        for sentinel in tuple(self.sentinels):
            try:
                masters: Any = await sentinel.sentinel_masters()
            except (RedisConnectionError, RedisTimeoutError):
                continue
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels.remove(sentinel)
                self.sentinels.insert(0, sentinel)
                return state["ip"], state["port"]
        raise MasterNotFoundError(f"No master found for {service_name!r}")


class _MasterPool(SentinelConnectionPool, BlockingConnectionPool):
    """redis-py's pool for Sentinel refuses when it is exhausted; ours waits, as with a single Redis."""

    async def aclose(self) -> None:
        """Close what rests here, and the connections to the Sentinels."""
        await super().aclose()
        await self.sentinel_manager.aclose()


class _MasterConnection(SentinelManagedConnection):
    """A connection to a master, and to nothing else.

    A Sentinel that was cut off names the old one, which may be a replica by now. That would take our PUBLISH, and
    nobody but its own subscribers would hear it. So the server is asked too, as Redis' guidelines for clients want.
    """

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in, then look who answers."""
        await super().on_connect_check_health(check_health=check_health)
        await self.send_command("ROLE", check_health=False)
        role = await self.read_response()
        if role[0] != b"master":
            raise RedisConnectionError(f"{self.host}:{self.port} is a replica, not the master")


class _MasterSSLConnection(_MasterConnection, SSLConnection):
    pass
