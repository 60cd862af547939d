"""Where Redis is: the one at a URL, or whichever server Sentinels call the master now.

redis://host:port/db, rediss:// (TLS), unix://path
redis+sentinel://user:password@host:port,host:port/service/db, rediss+sentinel:// (TLS to the servers)
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Sentinel
from redis.asyncio.connection import AbstractConnection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

SENTINEL_PORT: Final = 26379

_SENTINELS: Final = re.compile(r"(rediss?)\+sentinel://(?:([^@/]*)@)?([^@/?#]+)/([^/?#]+)(?:/(\d+))?")


def pool(url: str, *, timeout_seconds: float, **options: Any) -> ConnectionPool:
    """Connections to the Redis at `url`, none of them opened yet; `options` as redis-py's pools and connections have.

    Raises:
        ValueError: `url` is none of those above.
    """
    options |= {f"{wait}timeout": timeout_seconds for wait in ("", "socket_", "socket_connect_")}
    options["retry"] = Retry(NoBackoff(), 0)  # whoever asks decides what becomes of a failure
    if "+sentinel:" not in url:
        return BlockingConnectionPool.from_url(url, **options)
    match = _SENTINELS.fullmatch(url)
    if match is None:
        raise ValueError("must be redis+sentinel://host:port,host:port/service/db")
    scheme, login, hosts, service, database = match.groups()
    user, _, password = (login or "").rpartition(":")
    # They are asked one after the other: half the time for the first, so that one which is frozen hides no other.
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        [_address(host) for host in hosts.split(",")],
        sentinel_kwargs={
            "socket_timeout": timeout_seconds / 2, "socket_connect_timeout": timeout_seconds / 2,
            "retry": options["retry"],
        },
    )  # fmt: skip
    return _MasterPool(  # type: ignore[no-untyped-call]
        unquote(service), sentinels, connection_class=_MasterConnection if scheme == "redis" else _MasterSSLConnection,
        db=int(database or 0), username=unquote(user) or None, password=unquote(password) or None, **options,
    )  # fmt: skip


async def moved(connections: ConnectionPool, connection: AbstractConnection) -> bool:
    """Whether the Sentinels name another server than `connection` leads to. Then all that rests in the pool is closed.

    Without Sentinels, or if none answers, it is where it was.
    """
    if not isinstance(connections, _MasterPool):
        return False
    assert isinstance(connection, _MasterConnection)
    try:
        host, port = await connections.get_master_address()  # type: ignore[no-untyped-call]
    except (RedisError, OSError):
        return False
    return (connection.host, connection.port) != (host, port)


def describe(url: str) -> str:
    """`url` without its password, for people."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no host:port of a Sentinel")
    return parts.hostname, parts.port or SENTINEL_PORT


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
