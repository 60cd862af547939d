"""Limits per user over all nodes: publishes per second, and bytes that Redis stores.

One Redis round trip for each publish would double its cost. A fixed share per node would reject a user whose clients
are all on one node. So a node fetches tokens in batches as large as what it has just spent (`TokenBucket`): the first
publish after a pause asks Redis, and in a steady stream only one in many does.

The buckets belong to no node and no lease: a bucket expires when it is full again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
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

    async def charge(self, owner: str, size: int, streams: Sequence[str]) -> bool:
        """Take `size` bytes from the allowance of `owner`, at most a full one. False: too few bytes are left.

        Each of `streams` (keys) that does not exist yet costs `STREAM_BYTES` more, if necessary as debt.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if not self._size:
            return True
        loop, size = asyncio.get_running_loop(), min(size, self._size)
        now = loop.time()
        tokens = self._buckets.of(owner, now)
        wanted = 0
        if not tokens.spend(now, size):
            wanted = tokens.ask(now, size)
            if not wanted:
                return False
        unknown = [stream for stream in streams if self._known.get(stream, now) <= now]
        if not wanted and not unknown:
            return True
        try:
            granted, made = 0, 0
            try:
                charge = [self._charge_command(owner, wanted, size)] if wanted else []
                answers = await self._redis.execute_all([*charge, *(("EXISTS", stream) for stream in unknown)])
                granted = answers.pop(0) if wanted else 0
                made = answers.count(0)
            except Impaired:
                granted = size  # so that the next use is not refused either
                raise
            finally:
                if wanted:
                    tokens.fetched(granted, loop.time(), size)
            if wanted and not tokens.spend(loop.time(), size):
                return False
            self._remember(unknown, now)
            if made:
                await self._redis.execute(*self._charge_command(owner, made * STREAM_BYTES, INTO_DEBT))
        except Impaired:
            pass  # Redis cannot count: it rejects writes, or only the slot of this user is down
        return True

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

    async def charge(self, user: str) -> bool:
        """Take one token of the user. False: none is left.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if self._rate is None:
            return True
        loop = asyncio.get_running_loop()
        now = loop.time()
        tokens = self._buckets.of(user, now)
        if tokens.spend(now):
            return True
        wanted = tokens.ask(now)
        if not wanted:
            return False
        granted = 0
        try:
            arguments = [self._rate.per_second, BURST_SECONDS, wanted, 1]
            granted = await self._redis.execute(*self._script([self._keys.quota(user)], arguments))
        except Impaired:
            granted = 1  # Redis cannot count; the message limit of the client still applies
        finally:
            tokens.fetched(granted, loop.time())
        return tokens.spend(loop.time())


class _TokenBuckets:
    """The token buckets of users and addresses that publish on this node. Each fetches at most `most` in advance."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tokenss: dict[str, TokenBucket] = {}  # least recently used first

    def of(self, owner: str, now: float) -> TokenBucket:
        """The token bucket of `owner`."""
        tokens = self._tokenss.pop(owner, None) or TokenBucket(self._most)
        self._tokenss[owner] = tokens
        # Each use adds at most one bucket and removes up to two idle ones, so idle buckets do not accumulate.
        for other in list(itertools.islice(self._tokenss, 2)):
            if other != owner and self._tokenss[other].idle(now):
                del self._tokenss[other]
        return tokens
