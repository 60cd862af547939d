"""What `gateway check` finds about Redis: version, role, memory, persistence, replicas, and missing rights."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.settings import Settings

MIN_VERSION: Final = (6, 2)
FSYNC_VERSION: Final = (7, 2)  # WAITAOF, which GATEWAY_WAIT_FSYNC needs
FULL: Final = 0.8  # part of maxmemory; above it nodes store no client messages
MAX_LAG_SECONDS: Final = 10

# One call of each command that nodes use, for the key or channel `K`. They are queued and never executed. The user
# `gateway` of deploy/redis/users.acl has the rights for exactly these; a test compares the two.
PROBES: Final[tuple[str, ...]] = (
    "CLIENT SETNAME n", "DEL K", "EVAL s 0", "EVALSHA s 0", "EXISTS K", "EXPIREAT K 1", "GET K",
    "GETRANGE K 0 0", "HDEL K f", "HGET K f", "HINCRBY K f 1", "HKEYS K", "HLEN K", "HMGET K f", "HRANDFIELD K",
    "HSCAN K 0", "HSET K f v", "HSETNX K f v", "HSTRLEN K f", "INFO", "PEXPIRE K 1", "PING", "PTTL K", "PUBLISH K m",
    "ROLE", "SCAN 0", "SET K v", "STRLEN K", "SUBSCRIBE K", "TIME", "TYPE K", "UNLINK K",
    "UNSUBSCRIBE K", "XADD K * f v", "XDEL K 1", "XRANGE K - +", "XREVRANGE K + -", "XTRIM K MAXLEN 1",
    "ZADD K 1 m", "ZCARD K", "ZRANGE K 0 0", "ZRANGEBYSCORE K 0 1", "ZREM K m", "ZREMRANGEBYSCORE K 0 1",
    "ZMSCORE K m", "ZREVRANGE K 0 0", "ZREVRANGEBYSCORE K 1 0", "ZSCORE K m",
)  # fmt: skip
WAIT_PROBES: Final = ("WAIT 1 1", "WAITAOF 1 1 1")  # only if settings ask for confirmations
CLUSTER_PROBES: Final = ("SPUBLISH K m", "SSUBSCRIBE K", "SUNSUBSCRIBE K")  # only on a Redis Cluster


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about a server: what was found, and the remedy unless it is as it should be."""

    about: str
    found: str
    todo: str = ""


def findings(info: Mapping[str, Any], *, wait_replicas: int = 0, wait_fsync: bool = False) -> Iterator[Finding]:
    """Judge a server's answer to INFO. `wait_replicas` and `wait_fsync` are the settings of the nodes.  (pure)"""
    yield _version(info, FSYNC_VERSION if wait_fsync else MIN_VERSION)
    role = str(info.get("role", "unknown"))
    if role == "master":
        yield Finding("role", "master")
    else:
        yield Finding("role", f"{role}, but nodes need a master", "name the master, or use redis+sentinel:// URLs")
    yield _memory(info)
    yield _persistence(info, wait_fsync)
    yield _replicas(info, wait_replicas)


def _version(info: Mapping[str, Any], least: tuple[int, int]) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", "unknown"))
    parts = re.match(r"(\d+)\.(\d+)", version)
    needed = f"{least[0]}.{least[1]}"
    if parts is None or (int(parts[1]), int(parts[2])) < least:
        return Finding("version", f"{name} {version}, but {needed} is the least", f"upgrade it to {needed} or newer")
    return Finding("version", f"{name} {version}")


def _memory(info: Mapping[str, Any]) -> Finding:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        return Finding(
            "memory", f"maxmemory-policy is {policy}, with which a full Redis deletes messages and rows of nodes",
            "set maxmemory-policy noeviction",
        )  # fmt: skip
    if not most:
        return Finding(
            "memory", f"{used >> 20} MiB used, and maxmemory is not set: Redis grows until the kernel ends it",
            "set maxmemory to at most half of the machine's memory",
        )  # fmt: skip
    share = f"{used >> 20} of {most >> 20} MiB used"
    if used >= FULL * most:
        return Finding(
            "memory", f"{share}, more than {FULL:.0%}", "raise maxmemory, or lower history in the topic rules"
        )
    return Finding("memory", f"{share}, {policy}")


def _persistence(info: Mapping[str, Any], wait_fsync: bool) -> Finding:
    if str(info.get("loading", 0)) != "0":
        return Finding("persistence", "it is still loading its data", "wait until it has started, then check again")
    if str(info.get("aof_enabled", 0)) == "0":
        why = ", which GATEWAY_WAIT_FSYNC needs" if wait_fsync else ": a restart of Redis loses messages"
        return Finding("persistence", f"appendonly is no{why}", "set appendonly yes")
    for name, what in (
        ("aof_last_write_status", "the last write to the AOF"), ("aof_last_bgrewrite_status", "the last AOF rewrite"),
        ("rdb_last_bgsave_status", "the last snapshot"),
    ):  # fmt: skip
        if info.get(name, "ok") != "ok":
            return Finding("persistence", f"{what} failed", "free disk space, and read the log of Redis")
    return Finding("persistence", "appendonly is yes, and the last write succeeded")


def _replicas(info: Mapping[str, Any], wait_replicas: int) -> Finding:
    replicas = [_replica(value) for name, value in info.items() if re.fullmatch(r"slave\d+", name)]
    online = [one for one in replicas if one.get("state") == "online"]
    late = [one for one in online if int(one.get("lag", 0)) > MAX_LAG_SECONDS]
    if len(online) < wait_replicas:
        return Finding(
            "replicas", f"{len(online)} online, but GATEWAY_WAIT_REPLICAS is {wait_replicas}",
            "start replicas, or lower GATEWAY_WAIT_REPLICAS: publishes with history get 503",
        )  # fmt: skip
    for one in replicas:
        if one not in online or one in late:
            where = f"{one.get('ip')}:{one.get('port')}"
            state = f"{one.get('lag')} s behind" if one in late else str(one.get("state"))
            return Finding("replicas", f"{where} is {state}", "check its network, disk and log")
    return Finding(
        "replicas", f"{len(online)} online" if online else "none: if this server is lost, so are its messages"
    )


def _replica(value: Any) -> Mapping[str, Any]:
    return (
        value if isinstance(value, dict) else dict(part.split("=", 1) for part in str(value).split(",") if "=" in part)
    )


def denied(probes: Sequence[str], answers: Sequence[Any]) -> tuple[list[str], bool, bool]:
    """What the answers to queued `probes` say: the denied commands, and whether keys or channels are denied.  (pure)"""
    commands, keys, channels = [], False, False
    for probe, answer in zip(probes, answers, strict=True):
        says = str(answer).lower()
        if not isinstance(answer, Exception) or ("noperm" not in says and "no permissions" not in says):
            continue
        if "channel" in says:
            channels = True
        elif re.search(r"\bkeys?\b", says):
            keys = True
        else:
            commands.append(" ".join(re.findall(r"^(?:CLIENT )?\S+", probe)).lower().replace(" ", "|"))
    return commands, keys, channels


def rights(namespace: str, commands: Sequence[str], keys: bool, channels: bool) -> Finding:
    """The finding about missing rights.  (pure)"""
    missing = [f"+{command}" for command in commands]
    missing += [f"~{namespace}*"] * keys + [f"&{namespace}*"] * channels
    if missing:
        return Finding("rights", f"the user of the URL lacks {' '.join(missing)}", "add them with ACL SETUSER")
    return Finding("rights", "the user of the URL has all that nodes need")


async def check_server(redis: Any, server: str, settings: Settings) -> list[Finding]:
    """Ask one server. `redis` is a `RedisClient`.

    Raises:
        Unavailable: It did not answer.
    """
    from gateway.broker.memory import info_fields

    info = info_fields(await redis.execute_at(server, "INFO"))
    probes = [*PROBES]
    if settings.wait_replicas or settings.wait_fsync:
        probes += WAIT_PROBES
    if redis.sharded:
        probes += CLUSTER_PROBES
    missing = denied(probes, await _queue(redis, server, settings.namespace, probes))
    judged = findings(info, wait_replicas=settings.wait_replicas, wait_fsync=settings.wait_fsync)
    return [*judged, rights(settings.namespace, *missing)]


async def _queue(redis: Any, server: str, namespace: str, probes: Sequence[str]) -> list[Any]:
    """Queue `probes` in a transaction, whose rights Redis checks at once, and drop it with the connection."""
    connection = await redis.connect_subscriber(server)
    try:
        async with asyncio.timeout(redis.timeout_seconds):
            await connection.send_command("MULTI")
            await connection.read_response()
            answers: list[Any] = []
            for probe in probes:
                await connection.send_command(*(f"{namespace}check" if w == "K" else w for w in probe.split(" ")))
                answers.append(await _answer(connection))
            return answers
    finally:
        await connection.disconnect(nowait=True)


async def _answer(connection: Any) -> Any:
    from redis.exceptions import ResponseError

    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
