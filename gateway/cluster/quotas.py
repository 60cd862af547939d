"""Limits per user over all nodes: publishes per second, and bytes that Redis stores.

One Redis round trip for each publish would double its cost. A fixed share per node would reject a user whose clients
are all on one node. So a node fetches tokens in batches as large as what it has just spent (`TokenBucket`): the first
publish after a pause asks Redis, and in a steady stream only one in many does.

The buckets belong to no node and no lease: a bucket expires when it is full again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from gateway.broker.client import Impaired, RedisClient, RedisCommand
from gateway.broker.keys import Keys
from gateway.core.rate_limits import BURST_SECONDS, RateLimit, TokenBucket

ALLOWANCE_SECONDS: Final = 86_400  # a day: time in which an empty allowance fills up
STREAM_BYTES: Final = 4608  # Redis allocates 4 KiB for the first messages of a stream
# A node fetches at most this part (1/5, 1/128) of a second's tokens, or of an allowance, in advance.
TOKENS_SHARE: Final = 5
ALLOWANCE_SHARE: Final = 128
# How long, and for how many streams, the node remembers that a stream exists.
KNOWN_SECONDS: Final = 60.0
MAX_KNOWN: Final = 10_000
INTO_DEBT: Final = -1  # argument of quota.lua: take all tokens, even if they are not there


class StorageQuota:
    """Bytes of Redis memory for each user's messages: a bucket of `size` that fills up in a day; 0: no limit.

    The topic rule decides how long Redis keeps a message, so Redis stores at most `size` x (1 + that time in days) for
    a user, plus what each node has fetched in advance.
    """

    def __init__(self, redis: RedisClient, keys: Keys, size: int) -> None:
        self._redis = redis
        self._keys = keys
        self._size = size
        self._script = redis.script("take_tokens")
        self._buckets = _TokenBuckets(size // ALLOWANCE_SHARE)
        self._known: dict[str, float] = {}  # streams that exist -> loop time to look again; oldest first

    def charge_now(self, owner: str, size: int, streams: Sequence[str]) -> bool:
        """Take `size` bytes from what this node has fetched. False, and none is taken: `charge` has to ask Redis."""
        if not self._size:
            return True
        now = asyncio.get_running_loop().time()
        return not self._unknown(streams, now) and self._buckets.spend(owner, min(size, self._size), now)

    async def charge(self, owner: str, size: int, streams: Sequence[str]) -> bool:
        """Take `size` bytes from the allowance of `owner`, at most a full one. False: too few bytes are left.

        Each of `streams` (keys) that does not exist yet costs `STREAM_BYTES` more, if necessary as debt.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if not self._size:
            return True
        size = min(size, self._size)

        async def fetch(wanted: int) -> int:
            try:
                return int(await self._redis.execute(*self._charge_command(owner, wanted, size)))
            except Impaired:  # Redis cannot count: it rejects writes, or only the slot of this user is down
                return size

        if not await self._buckets.take(owner, size, fetch):
            return False
        now = asyncio.get_running_loop().time()
        unknown = self._unknown(streams, now)
        with suppress(Impaired):
            if unknown:
                made = (await self._redis.execute_all([("EXISTS", stream) for stream in unknown])).count(0)
                self._remember(unknown, now)
                if made:
                    await self._redis.execute(*self._charge_command(owner, made * STREAM_BYTES, INTO_DEBT))
        return True

    def _unknown(self, streams: Iterable[str], now: float) -> list[str]:
        return [stream for stream in streams if self._known.get(stream, now) <= now]

    def _charge_command(self, owner: str, size: int, least: int) -> RedisCommand:
        arguments = [self._size / ALLOWANCE_SECONDS, ALLOWANCE_SECONDS, min(size, self._size), least]
        return self._script([self._keys.allowance(owner)], arguments)

    def _remember(self, streams: Iterable[str], now: float) -> None:
        for stream in streams:
            self._known.pop(stream, None)
            self._known[stream] = now + KNOWN_SECONDS
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]


class PublishQuota:
    """Publish rate limit per user; `per_second` 0: no limit."""

    def __init__(self, redis: RedisClient, keys: Keys, per_second: int) -> None:
        self._redis = redis
        self._keys = keys
        self._rate = RateLimit(per_second) if per_second else None
        self._script = redis.script("take_tokens")
        self._buckets = _TokenBuckets(max(1, per_second // TOKENS_SHARE))

    def charge_now(self, user: str) -> bool:
        """Take one token of those that this node has fetched. False, and none is taken: `charge` has to ask Redis."""
        return self._rate is None or self._buckets.spend(user, 1, asyncio.get_running_loop().time())

    async def charge(self, user: str) -> bool:
        """Take one token of the user. False: none is left.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if self._rate is None:
            return True
        rate = self._rate

        async def fetch(wanted: int) -> int:
            try:
                arguments = [rate.per_second, BURST_SECONDS, wanted, 1]
                return int(await self._redis.execute(*self._script([self._keys.quota(user)], arguments)))
            except Impaired:
                return 1  # Redis cannot count; the message limit of the client still applies

        return await self._buckets.take(user, 1, fetch)


class _TokenBuckets:
    """The token buckets of users and addresses that publish on this node. Each fetches at most `most` in advance."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._buckets: dict[str, TokenBucket] = {}  # least recently used first
        self._fetches: dict[str, asyncio.Future[None]] = {}  # under way, by owner

    def spend(self, owner: str, count: int, now: float) -> bool:
        """Spend `count` tokens of `owner`. False, and none is spent, if fewer are here. `now`: loop time."""
        return self._of(owner, now).spend(now, count)

    async def take(self, owner: str, count: int, fetch: Callable[[int], Awaitable[int]]) -> bool:
        """Spend `count` tokens of `owner`; `fetch` gets so many from Redis and returns how many were granted.

        One fetch at a time serves all who wait for tokens of the same owner. False: Redis granted too few.

        Raises:
            Exception: What `fetch` raised, also to those who waited for it.
        """
        time = asyncio.get_running_loop().time
        bucket = self._of(owner, time())
        while not bucket.spend(time(), count):
            running = self._fetches.get(owner)
            if running is not None:
                await asyncio.shield(running)
                continue
            wanted = bucket.ask(time(), count)
            if not wanted:
                return False
            await self._fetch(owner, bucket, count, fetch(wanted))
        return True

    async def _fetch(self, owner: str, bucket: TokenBucket, count: int, granted_soon: Awaitable[int]) -> None:
        done = self._fetches[owner] = asyncio.get_running_loop().create_future()
        granted = needed = 0  # an error is no refusal: the next use asks Redis again
        try:
            granted, needed = await granted_soon, count
        except Exception as error:
            done.set_exception(error)
            done.exception()  # marks it as retrieved, also if no other use waits
            raise
        finally:
            del self._fetches[owner]
            bucket.fetched(granted, asyncio.get_running_loop().time(), needed)
            if not done.done():
                done.set_result(None)

    def _of(self, owner: str, now: float) -> TokenBucket:
        bucket = self._buckets.pop(owner, None) or TokenBucket(self._most)
        self._buckets[owner] = bucket
        # Each use adds at most one bucket and removes up to two idle ones, so idle buckets do not accumulate.
        for other in list(itertools.islice(self._buckets, 2)):
            if other != owner and self._buckets[other].idle(now):
                del self._buckets[other]
        return bucket
