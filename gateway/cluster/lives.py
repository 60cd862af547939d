"""The life of a Redis server: a name that changes whenever the server may have lost keys.

A topic without messages has no key, so nothing in the keyspace tells whether it had messages that are lost. What Redis
says of itself does (life.lua).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Final

from gateway.cluster.link import Link, Refused

LIFE_BYTES: Final = 6  # of the name


class Lives:
    """Asks servers for their lives. Callers that ask the same server at the same time share one question."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._life = link.script("life")
        self._next: dict[str | None, asyncio.Task[str]] = {}  # by server: a question that is not yet on its way

    async def of(self, key: str) -> str:
        """The life of the server that has `key` in 12 hexadecimal digits, asked after the call.

        If the server does not tell it, a name that nothing equals: then nothing can be compared.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        server = self._link.shards.server(key)
        asking = self._next.get(server)
        if asking is None:
            asking = self._next[server] = asyncio.get_running_loop().create_task(self._ask(server, key))
        return await asyncio.shield(asking)

    async def _ask(self, server: str | None, key: str) -> str:
        await asyncio.sleep(0)  # callers of the same turn of the loop share the question
        del self._next[server]
        try:
            life: bytes = await self._link.ask(*self._life([key], []))
        except Refused:  # by an ACL, or a proxy that has no INFO
            return secrets.token_hex(LIFE_BYTES)
        return hashlib.sha256(life).hexdigest()[: 2 * LIFE_BYTES]
