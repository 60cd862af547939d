"""Revoked tokens, known on every node: read from Redis at the start and after every loss, told by order in between.

The order makes it quick, the version makes it certain: each beat compares it, and reads all if it has changed unheard.
A node that finds Redis without what it knows writes it again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import orjson

from gateway.cluster.keys import Keys
from gateway.cluster.link import Link
from gateway.core.revocations import MAX_REVOCATIONS, Kind, Revocation, Revocations

PAGE: Final = 1000  # revocations in one round trip


class Full(Exception):
    """There are as many revocations as there may be."""


class Revoked:
    """This node's book of them, and Redis'. `now` gives seconds since 1970."""

    def __init__(self, link: Link, keys: Keys, now: Callable[[], float]) -> None:
        self.book = Revocations()
        self.known = False  # Redis' was read at least once
        self._link = link
        self._keys = keys
        self._now = now
        self._script = link.script("revoke")
        self._version: bytes | None = None  # of Redis', when its whole was last read
        self._heard = False  # of more since then: what Redis has of it is to be seen

    async def revoke(self, revocation: Revocation) -> None:
        """Write it, and tell every node, ours among them.

        Raises:
            Full: Too many are kept already.
            Unavailable: Redis did not confirm.
        """
        order = orjson.dumps({"op": "revoke", "revocations": [revocation.about()]})
        await self._write([revocation], order)

    def hear(self, revocations: Iterable[Revocation]) -> bool:
        """Take in what an order tells; True if that revokes anything here."""
        self._heard = True
        return self.book.add(revocations)

    async def check(self) -> bool:
        """Know what Redis knows, and the other way round; True if that revokes anything here.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        self.book.expire(self._now())
        version = await self._link.ask("GET", self._keys.revoked_version)
        if version == self._version and not self._heard:
            self.known = True
            return False
        self._heard = False
        found = await self._read()
        news = self.book.add(found.values())
        lost = [one for one in self.book if one != found.get((one.kind, one.name))]
        for at in range(0, len(lost), PAGE):
            await self._write(lost[at : at + PAGE], b"")
        self._version = version
        self.known = True
        return news

    async def _write(self, revocations: Sequence[Revocation], order: bytes) -> None:
        keys = [self._keys.revoked, self._keys.revoked_users, self._keys.revoked_version]
        rows = [part for one in revocations for part in (f"{one.kind}:{one.name}", repr(one.until), _score(one.before))]
        version = secrets.token_hex(8)
        written = await self._link.ask(
            *self._script(keys, [version, MAX_REVOCATIONS, self._keys.control, order, *rows])
        )
        if not written:
            raise Full(f"{MAX_REVOCATIONS} revocations are kept, and no more can be")

    async def _read(self) -> dict[tuple[Kind, str], Revocation]:
        found: dict[tuple[Kind, str], Revocation] = {}
        after = 0
        while True:
            flat = await self._link.ask("ZRANGE", self._keys.revoked, after, after + PAGE - 1, "WITHSCORES")
            page = [(member, float(until)) for member, until in zip(flat[::2], flat[1::2], strict=True)]
            if not page:
                return found
            after += len(page)
            befores = await self._link.ask("ZMSCORE", self._keys.revoked_users, *(member for member, _ in page))
            for (member, until), before in zip(page, befores, strict=True):
                kind, _, name = member.decode().partition(":")
                found[kind, name] = Revocation(kind, name, until, float(before or 0))


def _score(before: float) -> str:
    return repr(before) if before else "0"
