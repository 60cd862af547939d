"""How full Redis is: read now and then, so that clients cannot fill it.

What a node refuses by it is what clients have Redis keep. Publishes by API keys and everything that runs the cluster go
on until Redis itself refuses them.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.cluster.link import Link
from gateway.logs import logger
from gateway.metrics import Metrics

CHECK_SECONDS: Final = 10.0
# Where no limit is set: of `maxmemory`, or of half of the machine's memory where Redis has no maximum.
SHARE: Final = 0.8
# Of the limit: from full to no longer full, so that the state does not change with each message.
ENOUGH: Final = 0.95


class RedisMemory:
    """The fullest server of Redis, against `limit` bytes; 0: a share of what the server may use. `check` reads it."""

    def __init__(self, link: Link, metrics: Metrics, limit: int) -> None:
        self._link = link
        self._limit = limit
        self._log = logger()
        self.full = False  # as of the last check that succeeded
        self.used = 0  # bytes
        self.limit = limit
        metrics.read(
            {"gateway_redis_used_bytes": lambda: self.used, "gateway_redis_limit_bytes": lambda: self.limit}, {}
        )

    async def check(self) -> None:
        """Read how much memory each server uses.

        Raises:
            Unavailable: A server did not answer in time; what is known stays.
        """
        await self._link.learn()
        servers = self._link.shards.servers
        found = [self._measured(await self._link.ask_at(server, "INFO", "memory")) for server in servers]
        self.used, self.limit = max(found, key=lambda pair: pair[0] / pair[1])
        was, self.full = self.full, self.used >= self.limit * (ENOUGH if self.full else 1)
        if self.full and not was:
            self._log.warning("Redis is nearly full, clients store nothing", used=self.used, limit=self.limit)
        elif was and not self.full:
            self._log.info("Redis has room again", used=self.used, limit=self.limit)

    def _measured(self, info: Any) -> tuple[int, int]:
        """Used bytes and the limit, of a server's INFO; a server that does not say is never full."""
        told = {name: int(value) for name, value in _fields(info).items() if str(value).isdecimal()}
        most = told.get("maxmemory") or told.get("total_system_memory", 0) // 2
        return told.get("used_memory", 0), self._limit or int(SHARE * most) or 1 << 62


def _fields(info: Any) -> dict[str, Any]:
    if isinstance(info, dict):  # redis-py has read it
        return info
    lines = bytes(info).decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
