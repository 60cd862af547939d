"""The servers of Redis: the one at a URL, the master that Sentinels name, or the masters of a cluster.

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
from redis.driver_info import DriverInfo
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.broker.errors import REDIS_ERRORS, cancellable, explain, retrieve, to_unavailable
from gateway.broker.failures import Impaired, Unavailable, WrongServer
from gateway.broker.slot_map import SlotMap, server_name
from gateway.core.urls import REDIS_PORT, RedisUrl, parse_redis
from gateway.logging import logger
from gateway.settings import SettingsError

ROLE_SECONDS: Final = 0.25  # a publish asks for the server's role if the last answer is older than this
MOVED_LOOKUPS: Final = 3  # lookups in a row without the server's address after which the host name counts as moved
LEARN_SECONDS: Final = 0.1  # shortest interval between two reads of a cluster's slot map
DRIVER: Final = DriverInfo()  # without it, redis-py reads its version from disk for each new connection
_FAILING: Final = re.compile(rb"cluster_slots_p?fail:[1-9]")  # in CLUSTER INFO


class Topology:
    """Connection pools for all servers that a URL leads to, by server name. The constructor opens no connection.

    `options` are passed to the pools and connections of redis-py.

    Raises:
        UrlError: `url` is not a Redis URL.
        SettingsError: A file that its TLS options name cannot be used.
    """

    def __init__(self, url: str, *, timeout_seconds: float, **options: Any) -> None:
        self._place = place = parse_redis(url)
        self.on_left: Callable[[str], Awaitable[None]] | None = None  # called after all connections were closed
        self._role_asked = -math.inf  # loop time when a server last answered ROLE as master
        self._knows_role = place.kind != "cluster"  # a cluster answers MOVED instead; some proxies do not know ROLE
        self._moved_lookups = 0  # lookups in a row without the server's address
        self._lookup: asyncio.Future[Any] | None = None
        self._timeout = timeout_seconds
        self._options = options | {f"{wait}timeout": timeout_seconds for wait in ("", "socket_connect_")}
        # Each caller has a deadline for its whole round trip. redis-py's own would be a task at each write and a timer
        # at each answer.
        self._options["socket_timeout"] = None
        self._options["retry"] = Retry(NoBackoff(), 0)  # the caller decides how to react to a failure
        self._options["driver_info"] = DRIVER
        self._options |= {"username": place.user, "password": place.password, **place.tls_options}
        if place.tls:
            _check_tls(place)
        self._clients: dict[str, Redis] = {}
        self._seeds: list[str] = []
        self.slot_map = SlotMap(sharded=place.kind == "cluster")
        self._learn_lock = asyncio.Lock()
        self._learned = -1.0  # loop time
        self._stale = self.slot_map.sharded  # the slot map may be outdated
        if self.slot_map.sharded:
            self._options["connection_class"] = SSLConnection if place.tls else Connection
            self._seeds = [server_name(*host) for host in place.hosts]
        else:
            self._clients[self.slot_map.servers[0]] = Redis(connection_pool=_make_pool(place, **self._options))

    def client(self, server: str) -> Redis:
        """The client for one server."""
        client = self._clients.get(server)
        if client is None:
            host, port = _host(server, REDIS_PORT)
            made = BlockingConnectionPool(host=host, port=port, **self._options)
            client = self._clients[server] = Redis(connection_pool=made)
        return client

    def connection(self, server: str) -> AbstractConnection:
        """A new connection to the server, outside the pool and not connected yet."""
        connections: ConnectionPool = self.client(server).connection_pool
        connection: AbstractConnection = connections.make_connection()  # type: ignore[no-untyped-call]
        return connection

    # ---- the master, if there is no cluster

    def role_is_due(self) -> bool:
        """Whether the next publishes should also ask the server for its role (see `is_replica`)."""
        return self._knows_role and asyncio.get_running_loop().time() - self._role_asked >= ROLE_SECONDS

    def is_replica(self, role: Any) -> bool:
        """Whether the answer `role` to ROLE is that of a replica.

        A message published on a replica reaches only that replica's subscribers, so it does not count as published.
        """
        if isinstance(role, Exception):  # the server does not permit or know ROLE
            self._knows_role = False
            return False
        self._role_asked = asyncio.get_running_loop().time()
        return _is_replica(role)

    async def is_moved(self, server: str, connection: AbstractConnection) -> bool:
        """Whether the master is now another server than the one that `connection`, a subscriber's, leads to.

        True if the Sentinels name another server; if the server answers that it is a replica (it is not asked again
        within `ROLE_SECONDS`); or if the host name resolved to other addresses at the last `MOVED_LOOKUPS` calls.
        If a check fails, its last result stays.
        """
        if self.slot_map.sharded:
            return False
        client = self.client(server)
        pool = client.connection_pool
        try:
            if isinstance(pool, _MasterPool):
                assert isinstance(connection, _MasterConnection)
                named = await cancellable(pool.get_master_address())  # type: ignore[no-untyped-call]
                if (connection.host, connection.port) != named:
                    return True
            if self.role_is_due():
                async with client.pipeline(transaction=False) as pipeline:
                    pipeline.execute_command("ROLE")
                    [role] = await cancellable(pipeline.execute(raise_on_error=False))
                if self.is_replica(role):
                    return True
        except REDIS_ERRORS:
            return False
        self._moved_lookups = self._moved_lookups + 1 if await self._name_moved(connection) else 0
        return self._moved_lookups >= MOVED_LOOKUPS

    async def _name_moved(self, connection: AbstractConnection) -> bool:
        """Whether the URL's host name now resolves to other addresses than that of `connection`."""
        if self._place.kind != "single" or (self._lookup is not None and not self._lookup.done()):
            return False  # one lookup at a time: the resolver may hang
        writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)
        peer = writer.get_extra_info("peername") if writer is not None else None
        [(host, port)] = self._place.hosts
        if not peer or host == peer[0]:
            return False
        loop = asyncio.get_running_loop()
        self._lookup = loop.create_task(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        self._lookup.add_done_callback(retrieve)
        try:
            async with asyncio.timeout(self._timeout):
                found = await asyncio.shield(self._lookup)
        except OSError:  # includes TimeoutError
            return False
        return peer[0] not in {address[0] for *_, address in found}

    async def check_role(self, server: str, client: Redis, answers: Iterable[Any]) -> None:
        """Leave `server` if one of its `answers` to `client` shows that it is not the master."""
        for answer in answers:
            if isinstance(answer, Exception) and isinstance(wrong := to_unavailable(answer), WrongServer):
                await self.drop_connections(server, client, str(wrong))
                return

    async def drop_connections(self, server: str, client: Redis, reason: str) -> None:
        """Close all connections of `client` and of the subscribers, because `server` is not the master.

        New connections resolve the name again and reject a replica. This happens once per client object: a later
        failure on its old connections says nothing about the new ones.
        """
        if self.slot_map.sharded or self._clients.get(server) is not client:
            self.mark_stale()
            return
        self._clients[server] = Redis(connection_pool=_make_pool(self._place, **self._options))
        self._role_asked, self._moved_lookups = -math.inf, 0
        logger().warning("left a server that is not the master", reason=reason)
        if self.on_left is not None:
            await self.on_left(reason)
        await _close(client)

    # ---- a cluster's map

    def mark_stale(self) -> None:
        """Read the slot map again before the next use: a server failed."""
        self._stale = self.slot_map.sharded

    def owner(self, slot: int) -> str:
        """The server that has `slot`.

        Raises:
            Impaired: No known server has it, or the cluster has marked its server as failed.
        """
        server = self.slot_map.owner(slot)
        if server is None or server in self.slot_map.failed:
            self.mark_stale()
            failed = "" if server is None else f": its master {server} has failed"
            raise Impaired(f"slot {slot} of the Redis Cluster has no server{failed}")
        return server

    async def refresh(self, *, force: bool = False) -> None:
        """Read the slot map of a cluster if it may be outdated, or always with `force`.

        Raises:
            Unavailable: No server answered.
        """
        if not self.slot_map.sharded or not (force or self._stale):
            return
        async with self._learn_lock:
            now = asyncio.get_running_loop().time()
            if self.slot_map.servers and now < self._learned + LEARN_SECONDS:
                return
            await self._refresh()
            self._stale, self._learned = False, asyncio.get_running_loop().time()
            for server in self._clients.keys() - set(self.slot_map.servers):
                await _close(self._clients.pop(server))

    async def _refresh(self) -> None:
        masters = list(self.slot_map.servers)
        random.shuffle(masters)  # spread the nodes over the servers
        reason: BaseException = TimeoutError("no server of the cluster answered")
        outdated: tuple[Any, str, str] | None = None
        for server in dict.fromkeys([*masters, *self._seeds]):
            pipeline = self.client(server).pipeline(transaction=False)
            pipeline.execute_command("CLUSTER", "INFO")
            pipeline.execute_command("CLUSTER", "SLOTS")
            try:
                # Servers are asked in turn, each with half the time, so that a frozen one leaves time for the next.
                async with asyncio.timeout(self._timeout / 2):
                    info, rows = await cancellable(pipeline.execute())
                    nodes = await self._nodes(server) if _FAILING.search(info) else ""
            except REDIS_ERRORS as error:
                reason = error
                continue
            # A server that is cut off from the others still answers with an old map.
            if b"cluster_state:ok" in info:
                self.slot_map.update(rows, server, nodes)
                return
            outdated = outdated or (rows, server, nodes)
        if outdated is None:
            raise Unavailable(explain(reason)) from reason
        self.slot_map.update(*outdated)

    async def _nodes(self, server: str) -> str:
        """The answer of `server` to CLUSTER NODES."""
        pipeline = self.client(server).pipeline(transaction=False)
        pipeline.execute_command("CLUSTER", "NODES")
        [answer] = await cancellable(pipeline.execute())
        return answer.decode(errors="replace") if isinstance(answer, bytes) else ""

    async def close(self) -> None:
        """Close all pools."""
        while self._clients:
            _, client = self._clients.popitem()
            await _close(client)


def _make_pool(place: RedisUrl, **options: Any) -> ConnectionPool:
    """A pool for the one server at `place`, or for the master that its Sentinels name."""
    options = dict(options)
    if place.kind == "unix":
        options |= {"connection_class": _RoleUnixConnection, "path": place.path}
        del options["socket_connect_timeout"]
        return BlockingConnectionPool(db=place.database, **options)
    if place.kind == "single":
        [(host, port)] = place.hosts
        options["connection_class"] = _RoleSSLConnection if place.tls else _RoleConnection
        return BlockingConnectionPool(host=host, port=port, db=place.database, **options)
    # Sentinels are asked in turn, each with half the time, so that a frozen one leaves time for the next.
    sentinels = _SentinelList(  # type: ignore[no-untyped-call]
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
    """Read the files that the TLS options name, so that a missing file fails the start and not each connection.

    Raises:
        SettingsError: A file cannot be used.
    """
    options: dict[str, Any] = dict(place.tls_options)
    try:
        SSLConnection(**options).ssl_context.get()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = ", ".join(sorted(name for name in place.tls_options if name != "ssl_password"))
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SettingsError(f"The Redis URL's TLS files ({names}) cannot be used: {reason}") from None


def describe(url: str) -> str:
    """`url` without user, password and options, for logs and messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is not an address: use host:port")
    return parts.hostname, parts.port or default_port


async def _close(client: Redis) -> None:
    await client.aclose()
    await client.connection_pool.aclose()


class _SentinelList(Sentinel):
    """The Sentinel client of redis-py with a safe update of its list of Sentinels.

    The Sentinel that answers moves to the front of the list. redis-py swaps two entries by an index that it took before
    it waited. If two calls do that at once, one Sentinel is in the list twice and another is lost. A node that is left
    with one Sentinel fails when that Sentinel does.
    """

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the master, from the first Sentinel that reports a healthy one."""
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
    """A Sentinel pool that waits for a free connection, as the pool of a single Redis does; redis-py's raises."""

    async def aclose(self) -> None:
        """Close the pool and the connections to the Sentinels."""
        await super().aclose()
        await self.sentinel_manager.aclose()


class _MasterOnly(AbstractConnection):
    """A connection that accepts only a master.

    A Sentinel that was cut off, or a cached DNS answer, leads to the old server, which may be a replica by now. A
    replica accepts PUBLISH, but only its own subscribers receive the message. So the node also asks the server for its
    role, as the Redis guidelines for clients require.
    """

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in, then ask the server for its role."""
        await super().on_connect_check_health(check_health=check_health)
        await self.send_command("ROLE", check_health=False)
        try:
            role = await self.read_response()
        except ResponseError:  # the server does not permit or know ROLE
            return
        if _is_replica(role):
            pieces: list[tuple[str, Any]] = self.repr_pieces()  # type: ignore[no-untyped-call]
            place = ":".join(str(value) for name, value in pieces if name in ("host", "port", "path"))
            raise RedisConnectionError(f"{place} is a replica, not the master")


class _RoleConnection(_MasterOnly, Connection):
    pass


class _RoleSSLConnection(_MasterOnly, SSLConnection):
    pass


class _RoleUnixConnection(_MasterOnly, UnixDomainSocketConnection):
    pass


class _MasterConnection(_MasterOnly, SentinelManagedConnection):
    pass


class _MasterSSLConnection(_MasterConnection, SSLConnection):
    pass


def _is_replica(role: Any) -> bool:
    return isinstance(role, list) and bool(role) and role[0] in (b"slave", "slave", b"sentinel", "sentinel")
