"""The life of a Redis server: a name that changes whenever the server may have lost keys.

A topic without messages has no key, so the keyspace does not show whether it had messages that are lost. The name is
derived from what INFO reports about the server (server_life.lua).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Final

from gateway.broker.client import CommandRefused, RedisClient
from gateway.broker.errors import retrieve

LIFE_BYTES: Final = 6  # of the name


class ServerLife:
    """Asks servers for their life. Callers that ask the same server in one turn of the loop share one command."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._server_life = redis.script("server_life")
        self._next: dict[str | None, asyncio.Task[str]] = {}  # by server: a command that is not sent yet

    async def of(self, key: str) -> str:
        """The life of the server that has `key`, as 12 hexadecimal digits, read after this call.

        If the server does not report it, a random name that equals no other, so that no position can be compared.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        server = self._redis.slot_map.server(key)
        asking = self._next.get(server)
        if asking is None:
            asking = self._next[server] = asyncio.get_running_loop().create_task(self._ask(server, key))
            asking.add_done_callback(retrieve)
        return await asyncio.shield(asking)

    async def _ask(self, server: str | None, key: str) -> str:
        await asyncio.sleep(0)  # callers in the same turn of the loop share the command
        del self._next[server]
        try:
            life: bytes = await self._redis.execute(*self._server_life([key], []))
        except CommandRefused:  # an ACL forbids INFO, or a proxy does not know it
            return secrets.token_hex(LIFE_BYTES)
        return hashlib.sha256(life).hexdigest()[: 2 * LIFE_BYTES]
