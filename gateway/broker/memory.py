"""Memory use of Redis, read periodically, so that clients cannot fill it.

When Redis is nearly full, the node rejects client publishes that Redis would store. Publishes with API keys and the
cluster's own writes go on until Redis itself rejects them.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.broker.client import RedisClient
from gateway.logging import logger
from gateway.metrics import Metrics

CHECK_SECONDS: Final = 10.0
# The default limit, as a part of `maxmemory`, or of half of the machine's memory if `maxmemory` is not set.
SHARE: Final = 0.8
# Below this part of the limit Redis is no longer full; the gap keeps the state from changing with each message.
ENOUGH: Final = 0.95


class RedisMemory:
    """Memory of the fullest Redis server, compared with `limit` bytes; 0: `SHARE` of the server's maximum."""

    def __init__(self, redis: RedisClient, metrics: Metrics, limit: int) -> None:
        self._redis = redis
        self._limit = limit
        self._log = logger()
        self.full = False  # at the last successful check
        self.used = 0  # bytes
        self.limit = limit
        metrics.read(
            {"gateway_redis_used_bytes": lambda: self.used, "gateway_redis_limit_bytes": lambda: self.limit}, {}
        )

    async def check(self) -> None:
        """Read how much memory each server uses.

        Raises:
            Unavailable: A server did not answer in time; the last values stay.
        """
        await self._redis.refresh_topology()
        servers = self._redis.slot_map.servers
        found = [self._measured(await self._redis.execute_at(server, "INFO", "memory")) for server in servers]
        self.used, self.limit = max(found, key=lambda pair: pair[0] / pair[1])
        was, self.full = self.full, self.used >= self.limit * (ENOUGH if self.full else 1)
        if self.full and not was:
            self._log.warning("Redis nearly full, storing client messages rejected", used=self.used, limit=self.limit)
        elif was and not self.full:
            self._log.info("Redis no longer nearly full", used=self.used, limit=self.limit)

    def _measured(self, info: Any) -> tuple[int, int]:
        """Used bytes and the limit, from a server's INFO; a server that does not report them is never full."""
        numbers = {name: int(value) for name, value in info_fields(info).items() if str(value).isdecimal()}
        most = numbers.get("maxmemory") or numbers.get("total_system_memory", 0) // 2
        return numbers.get("used_memory", 0), self._limit or int(SHARE * most) or 1 << 62


def info_fields(info: Any) -> dict[str, Any]:
    """The fields of an answer to INFO."""
    if isinstance(info, dict):  # redis-py has read it
        return info
    lines = bytes(info).decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
