"""Revoked tokens: each node keeps all revocations in memory and synchronises them with Redis.

A control message spreads a revocation at once. The version in Redis covers lost control messages: each heartbeat
compares it, and reads all revocations if it has changed. If Redis has lost revocations that a node knows, the node
writes them again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

import orjson

from gateway.broker import rows
from gateway.broker.client import CommandRefused, RedisClient, RedisCommand, WrongType
from gateway.broker.keys import Keys
from gateway.broker.rows import MAX_TEXT_BYTES
from gateway.core.identity import IsRevoked
from gateway.core.revocations import AHEAD_SECONDS, MAX_REVOCATIONS, Kind, Revocation, Revocations, parse
from gateway.logging import StateLog

PAGE: Final = 1000  # revocations in one round trip
MAX_PAGES: Final = 2 * MAX_REVOCATIONS // PAGE  # pages to read at most, even if another program wrote more
VERSION_BYTES: Final = 100
CLOCK_CHECKS: Final = 5  # Redis' time is read at every fifth check, and at the first check after a control message


class TooManyRevocations(Exception):
    """The limit of revocations is reached."""


class RevocationStore:
    """The revocations in this node's memory, synchronised with Redis. `now` gives seconds since 1970.

    All nodes use Redis' time. `leeway_seconds`: how far the clock of a token issuer may be ahead of it.
    """

    def __init__(self, redis: RedisClient, keys: Keys, now: Callable[[], float], leeway_seconds: float = 0.0) -> None:
        self.book = Revocations()
        self.known = False  # the revocations in Redis were read at least once
        self._redis = redis
        self._keys = keys
        self._now = now
        self._ahead = 0.0  # seconds by which the clock of Redis was ahead of this node's, at the last read
        self._clock_due = 0  # checks until the clock is read again
        self._leeway = leeway_seconds
        self._script, self._page_sorted_set = redis.script("revoke_tokens"), redis.script("page_sorted_set")
        self._full = StateLog("revocations not written", over="revocations written again")
        self._version: bytes | None = None  # the version in Redis at the last full read
        self._received = False  # revocations arrived since then, so the next check reads all of Redis

    def clock(self) -> float:
        """Redis' time in seconds since 1970, estimated from the last read."""
        return self._now() + self._ahead

    def is_revoked(self, token_id: str | None, user: str | None, issued: float | None) -> bool:
        """Whether the token with this id, of this user, issued at `issued`, is revoked."""
        return self._is_revoked(token_id, user, issued, self.clock() + self._leeway)

    def effect_of(self, revocations: Iterable[Revocation]) -> IsRevoked:
        """A function that decides whether `revocations` revoke a token that is in use.

        A token in use was issued before its revocation, even if its `iat` is slightly in the future.
        """
        users = {one.name for one in revocations if one.kind == "user"}
        return lambda token_id, user, issued: self._is_revoked(
            token_id, user, issued, self.clock() + (0.0 if user in users else self._leeway)
        )

    def _is_revoked(self, token_id: str | None, user: str | None, issued: float | None, latest: float) -> bool:
        if not self.book.is_revoked(token_id, user, issued, latest):
            return False
        # A token with an `iat` slightly in the future must not become valid when that time comes.
        if user is not None and issued is not None and latest < issued <= latest + AHEAD_SECONDS:
            self._received |= self.book.extend(user, issued)
        return True

    async def revoke(self, kind: Kind, name: str, until: float) -> Revocation:
        """Revoke a token, or all tokens issued to a user until now by Redis' time; notify every node, this one too.

        Raises:
            ValueError: `name` is invalid.
            TooManyRevocations: The limit of revocations is reached.
            Unavailable: Redis did not confirm.
        """
        revocation = parse({"kind": kind, "name": name, "until": until, "before": 0})
        # The script inserts the time between these two parts: `about` ends with it.
        head, tail = orjson.dumps({"op": "revoke", "revocations": [revocation.as_dict()]}).rsplit(b"0.0", 1)
        rows = [f"{kind}:{name}", repr(until), "now" if kind == "user" else "0"]
        return replace(revocation, before=await self._write_rows(rows, head, tail))

    def receive(self, revocations: Iterable[Revocation]) -> bool:
        """Add the revocations of a control message; True if one of them is new here."""
        self._received = True
        return self.book.add(revocations)

    async def refresh(self) -> bool:
        """Synchronise with Redis in both directions; True if a revocation is new here.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        commands: list[RedisCommand] = [("GETRANGE", self._keys.revoked_version, 0, VERSION_BYTES)]
        if self._received or self._clock_due <= 0:
            commands.append(("TIME",))
        version, *times = await self._redis.execute_each(commands)
        await self._check_type(self._keys.revoked_version, version)
        version = version or None  # GETRANGE answers b"" if the key does not exist
        for time in times:
            if isinstance(time, CommandRefused):
                raise time
            self._ahead = int(time[0]) + int(time[1]) / 1e6 - self._now()
            self._clock_due = CLOCK_CHECKS
        self._clock_due -= 1
        self.book.expire(self.clock())
        if version == self._version and not self._received:
            self.known = True
            return False
        self._received = False
        found = await self._read_all()
        changed = self.book.add(found.values())
        lost = [one for one in self.book if one != found.get((one.kind, one.name))]
        try:
            for at in range(0, len(lost), PAGE):
                await self._write_rows([part for one in lost[at : at + PAGE] for part in _row(one)])
        except TooManyRevocations as error:  # this node keeps using those in its memory
            self._full.begin(str(error))
        else:
            self._full.end()
        self._version = version
        self.known = True
        return changed

    async def _write_rows(self, rows: Sequence[str], head: bytes = b"", tail: bytes = b"") -> float:
        """Write `rows`; return the time that the script put between `head` and `tail`, in seconds since 1970."""
        keys = [self._keys.revoked, self._keys.revoked_users, self._keys.revoked_version]
        version = secrets.token_hex(8)
        written = await self._redis.execute(
            *self._script(keys, [version, MAX_REVOCATIONS, self._keys.control, head, tail, *rows])
        )
        if not written:
            raise TooManyRevocations(f"the limit of {MAX_REVOCATIONS} revocations is reached: wait until some expire")
        return float(written)

    async def _check_type(self, key: str, answer: object) -> None:
        """Delete `key` if `answer` shows that it has another type: the nodes write it again from memory."""
        if isinstance(answer, WrongType):
            self._redis.rows.skip("revocation", key, answer)
            await self._redis.execute("UNLINK", key)
        elif isinstance(answer, CommandRefused):
            raise answer

    async def _read_all(self) -> dict[tuple[Kind, str], Revocation]:
        found: dict[tuple[Kind, str], Revocation] = {}
        key = self._keys.revoked
        for page in range(MAX_PAGES):
            places = [page * PAGE, (page + 1) * PAGE - 1]
            [answer] = await self._redis.execute_each(
                [self._page_sorted_set([key], ["ZRANGE", *places, MAX_TEXT_BYTES])]
            )
            if isinstance(answer, CommandRefused):
                await self._check_type(key, answer)
                return found
            looked_at, flat = answer
            if not looked_at:
                return found
            if looked_at > len(flat) // 2:
                self._redis.rows.skip("revocation", key, "a name is too long", looked_at - len(flat) // 2)
            members = flat[::2]
            if not members:
                continue
            [befores] = await self._redis.execute_each([("ZMSCORE", self._keys.revoked_users, *members)])
            if isinstance(befores, CommandRefused):
                await self._check_type(self._keys.revoked_users, befores)
                befores = [None] * len(members)
            page_rows = zip(members, flat[1::2], befores, strict=True)
            for one in self._redis.rows.decode_each("revocation", key, page_rows, _revocation):
                found[one.kind, one.name] = one
        self._redis.rows.skip("revocation", key, f"more than {MAX_PAGES * PAGE} revocations")
        return found


def _revocation(row: tuple[bytes, bytes, bytes | None]) -> Revocation:
    member, until, before = row
    kind, _, name = rows.text(member).partition(":")
    return parse({"kind": kind, "name": name, "until": rows.seconds(until), "before": rows.seconds(before or 0)})


def _row(one: Revocation) -> tuple[str, str, str]:
    return f"{one.kind}:{one.name}", repr(one.until), repr(one.before) if one.before else "0"
