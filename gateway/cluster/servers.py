"""Where Redis is: the one at a URL, whichever server Sentinels call the master now, or the masters of a cluster.

`gateway.core.urls` describes the URLs.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, Sentinel
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.cluster.answers import REDIS_ERRORS, Impaired, Unavailable, WrongServer, explain, failure, heeding
from gateway.cluster.shards import Shards, address
from gateway.core.urls import REDIS_PORT, RedisUrl, parse_redis
from gateway.logs import logger
from gateway.settings import SettingsError

ROLE_SECONDS: Final = 0.25  # publishes are confirmed by the server's role when the last confirmation is older
STRAY_LOOKS: Final = 3  # a name leads elsewhere when so many lookups in a row have not brought the server's address
LEARN_SECONDS: Final = 0.1  # no sooner is a cluster asked again who has what, however many ask for it
_FAILING: Final = re.compile(rb"cluster_slots_p?fail:[1-9]")  # in CLUSTER INFO


class Servers:
    """Connections to all servers that a URL leads to, by the servers' names; none is opened yet.

    `options` as redis-py's pools and connections have.

    Raises:
        UrlError: `url` is not a URL of Redis.
        SettingsError: A file that its TLS options name cannot be used.
    """

    def __init__(self, url: str, *, timeout_seconds: float, **options: Any) -> None:
        self._place = place = parse_redis(url)
        self.on_left: Callable[[str], Awaitable[None]] | None = None  # called when all connections were dropped
        self._role_asked = -math.inf  # loop time at which a server last said that it is the master
        self._says_role = place.kind != "cluster"  # a cluster says MOVED; some proxies do not know the command
        self._strays = 0  # lookups in a row without the server's address
        self._lookup: asyncio.Future[Any] | None = None
        self._timeout = timeout_seconds
        self._options = options | {f"{wait}timeout": timeout_seconds for wait in ("", "socket_", "socket_connect_")}
        self._options["retry"] = Retry(NoBackoff(), 0)  # the caller decides what a failure leads to
        self._options |= {"username": place.user, "password": place.password, **place.tls_options}
        if place.tls:
            _check_tls(place)
        self._clients: dict[str, Redis] = {}
        self._seeds: list[str] = []
        self.shards = Shards(sharded=place.kind == "cluster")
        self._learning = asyncio.Lock()
        self._learned = -1.0  # loop time
        self._doubted = self.shards.sharded  # what is known of the cluster may be old
        if self.shards.sharded:
            self._options["connection_class"] = SSLConnection if place.tls else Connection
            self._seeds = [address(*host) for host in place.hosts]
        else:
            self._clients[self.shards.servers[0]] = Redis(connection_pool=_pool(place, **self._options))

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

    # ---- the master, if there is no cluster

    def role_is_due(self) -> bool:
        """Whether the next publishes should be confirmed by the role of the server that takes them (`is_replica`)."""
        return self._says_role and asyncio.get_running_loop().time() - self._role_asked >= ROLE_SECONDS

    def is_replica(self, role: Any) -> bool:
        """Whether the answer `role` to ROLE is a replica's. Then what the server publishes reaches its own subscribers
        alone, so it must not count as published.
        """
        if isinstance(role, Exception):  # not permitted or not known: it cannot be asked
            self._says_role = False
            return False
        self._role_asked = asyncio.get_running_loop().time()
        return _is_replica(role)

    async def moved(self, server: str, connection: AbstractConnection) -> bool:
        """Whether the master is elsewhere now than where `connection`, a subscriber's, leads.

        The Sentinels name another server; or the server says that it is a replica (it is not asked within
        `ROLE_SECONDS` of its last answer); or its name has led elsewhere at the last `STRAY_LOOKS` calls. What cannot
        be found out is as it was.
        """
        if self.shards.sharded:
            return False
        client = self.at(server)
        pool = client.connection_pool
        try:
            if isinstance(pool, _MasterPool):
                assert isinstance(connection, _MasterConnection)
                named = await heeding(pool.get_master_address())  # type: ignore[no-untyped-call]
                if (connection.host, connection.port) != named:
                    return True
            if self.role_is_due():
                async with client.pipeline(transaction=False) as pipeline:
                    pipeline.execute_command("ROLE")
                    [role] = await heeding(pipeline.execute(raise_on_error=False))
                if self.is_replica(role):
                    return True
        except REDIS_ERRORS:
            return False
        self._strays = self._strays + 1 if await self._strays_from(connection) else 0
        return self._strays >= STRAY_LOOKS

    async def _strays_from(self, connection: AbstractConnection) -> bool:
        """Whether the URL's host name does not lead to the server of `connection` at this moment."""
        if self._place.kind != "single" or (self._lookup is not None and not self._lookup.done()):
            return False  # a resolver that does not answer is not asked again meanwhile
        writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)
        peer = writer.get_extra_info("peername") if writer is not None else None
        [(host, port)] = self._place.hosts
        if not peer or host == peer[0]:
            return False
        loop = asyncio.get_running_loop()
        self._lookup = loop.create_task(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        try:
            async with asyncio.timeout(self._timeout):
                found = await asyncio.shield(self._lookup)
        except OSError:  # TimeoutError, too
            return False
        return peer[0] not in {address[0] for *_, address in found}

    async def judge(self, server: str, client: Redis, answers: Iterable[Any]) -> None:
        """Leave `server` if one of its `answers` to `client` says that it is not the master."""
        for answer in answers:
            if isinstance(answer, Exception) and isinstance(wrong := failure(answer), WrongServer):
                await self.leave(server, client, str(wrong))
                return

    async def leave(self, server: str, client: Redis, reason: str) -> None:
        """Drop all connections of `client` and of the subscribers, because `server` is not the master.

        Those that are made from now on resolve the name anew, and are refused by a replica. Once a client: what fails
        on its other connections says nothing about those made since.
        """
        if self.shards.sharded or self._clients.get(server) is not client:
            self.doubt()
            return
        self._clients[server] = Redis(connection_pool=_pool(self._place, **self._options))
        self._role_asked, self._strays = -math.inf, 0
        logger().warning("left a server that is not the master", reason=reason)
        if self.on_left is not None:
            await self.on_left(reason)
        await _close(client)

    # ---- a cluster's map

    def doubt(self) -> None:
        """A server failed: who has its slots is to be asked."""
        self._doubted = self.shards.sharded

    def owner(self, slot: int) -> str:
        """The server that has `slot`.

        Raises:
            Impaired: None is known to have it, or the one that has it has failed in the eyes of the cluster.
        """
        server = self.shards.owner(slot)
        if server is None or server in self.shards.failed:
            self.doubt()
            failed = "" if server is None else f": its master {server} has failed"
            raise Impaired(f"slot {slot} of the Redis Cluster has no server{failed}")
        return server

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
        unsure: tuple[Any, str, str] | None = None
        for server in dict.fromkeys([*masters, *self._seeds]):
            pipeline = self.at(server).pipeline(transaction=False)
            pipeline.execute_command("CLUSTER", "INFO")
            pipeline.execute_command("CLUSTER", "SLOTS")
            try:
                # They are asked one after the other: half the time for one, so that a frozen one hides no other.
                async with asyncio.timeout(self._timeout / 2):
                    info, rows = await heeding(pipeline.execute())
                    nodes = await self._nodes(server) if _FAILING.search(info) else ""
            except REDIS_ERRORS as error:
                reason = error
                continue
            # One that was cut off from the others still tells of the world before.
            if b"cluster_state:ok" in info:
                self.shards.learn(rows, server, nodes)
                return
            unsure = unsure or (rows, server, nodes)
        if unsure is None:
            raise Unavailable(explain(reason)) from reason
        self.shards.learn(*unsure)

    async def _nodes(self, server: str) -> str:
        """What `server` says of each server of the cluster."""
        pipeline = self.at(server).pipeline(transaction=False)
        pipeline.execute_command("CLUSTER", "NODES")
        [answer] = await heeding(pipeline.execute())
        return answer.decode(errors="replace") if isinstance(answer, bytes) else ""

    async def close(self) -> None:
        """Close all connections that rest in the pools."""
        while self._clients:
            _, client = self._clients.popitem()
            await _close(client)


def _pool(place: RedisUrl, **options: Any) -> ConnectionPool:
    """Connections to the one server at `place`, or to the master that its Sentinels name."""
    options = dict(options)
    if place.kind == "unix":
        options |= {"connection_class": _RoleUnixConnection, "path": place.path}
        del options["socket_connect_timeout"]
        return BlockingConnectionPool(db=place.database, **options)
    if place.kind == "single":
        [(host, port)] = place.hosts
        options["connection_class"] = _RoleSSLConnection if place.tls else _RoleConnection
        return BlockingConnectionPool(host=host, port=port, db=place.database, **options)
    # They are asked one after the other: half the time for the first, so that one which is frozen hides no other.
    sentinels = _Sentinels(  # type: ignore[no-untyped-call]
        place.hosts,
        sentinel_kwargs={
            "socket_timeout": options["timeout"] / 2, "socket_connect_timeout": options["timeout"] / 2,
            "retry": options["retry"],
        },
    )  # fmt: skip
    return _MasterPool(  # type: ignore[no-untyped-call]
        place.service, sentinels, connection_class=_MasterSSLConnection if place.tls else _MasterConnection,
        db=place.database, **options,
    )  # fmt: skip


def _check_tls(place: RedisUrl) -> None:
    """Read the files that the TLS options name: a missing one stops the start, instead of every connection.

    Raises:
        SettingsError: One cannot be used.
    """
    options: dict[str, Any] = dict(place.tls_options)
    try:
        SSLConnection(**options).ssl_context.get()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = ", ".join(sorted(name for name in place.tls_options if name != "ssl_password"))
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SettingsError(f"The Redis URL's TLS files ({names}) cannot be used: {reason}") from None


def describe(url: str) -> str:
    """`url`, which `Servers` takes, without user, password and options, for people."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


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


class _AsksRole(AbstractConnection):
    """A connection to a master, and to nothing else.

    A Sentinel that was cut off, or a name that is resolved from a cache, leads to the old server, which may be a
    replica by now. That would take our PUBLISH, and only its own subscribers would receive it. So the server is asked
    too, as Redis' guidelines for clients want.
    """

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in, then ask the server for its role."""
        await super().on_connect_check_health(check_health=check_health)
        await self.send_command("ROLE", check_health=False)
        try:
            role = await self.read_response()
        except ResponseError:  # not permitted or not known: it cannot be asked
            return
        if _is_replica(role):
            pieces: list[tuple[str, Any]] = self.repr_pieces()  # type: ignore[no-untyped-call]
            place = ":".join(str(value) for name, value in pieces if name in ("host", "port", "path"))
            raise RedisConnectionError(f"{place} is a replica, not the master")


class _RoleConnection(_AsksRole, Connection):
    pass


class _RoleSSLConnection(_AsksRole, SSLConnection):
    pass


class _RoleUnixConnection(_AsksRole, UnixDomainSocketConnection):
    pass


class _MasterConnection(_AsksRole, SentinelManagedConnection):
    pass


class _MasterSSLConnection(_MasterConnection, SSLConnection):
    pass


def _is_replica(role: Any) -> bool:
    return isinstance(role, list) and bool(role) and role[0] in (b"slave", "slave", b"sentinel", "sentinel")
