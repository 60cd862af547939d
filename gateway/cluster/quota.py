"""How often each user may publish, on all nodes together: one bucket a user in Redis.

To ask Redis at each publish would double what a publish costs. To let each node allow its share would refuse a user
whose clients are all on one. So nodes fetch tokens in batches, as large as what they have just spent (`Purse`): the
first publish after a pause asks, and in a steady stream one in many does.

The bucket is nobody's row and hangs under no lease: it expires by itself when it is full again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Final

from gateway.cluster.keys import Keys
from gateway.cluster.link import Command, Impaired, Link
from gateway.core.rates import BURST_SECONDS, Purse, Rate

ALLOWANCE_SECONDS: Final = 86_400  # a day: in which a used up allowance is full again
STREAM_BYTES: Final = 4608  # Redis allocates 4 KiB for a stream's first messages
# How quota.lua takes tokens.
AS_MANY_AS_THERE_ARE, ALL_OR_NONE, IN_ANY_CASE = 0, 1, 2


class Allowance:
    """Bytes that each user's messages may take in Redis: `size` at once, and `size` more a day; 0: any number.

    How long a message is kept is part of its topic's rule, so at most `size` x (1 + that time in days) is kept for a
    user. Each publish asks Redis: only those on topics that keep messages are counted, and a share for each node would
    let a user take it once a node.
    """

    def __init__(self, link: Link, keys: Keys, size: int) -> None:
        self._link = link
        self._keys = keys
        self._size = size
        self._script = link.script("quota")

    async def take(self, who: str, size: int, streams: Sequence[str]) -> bool:
        """Take `size` bytes of the allowance of `who`, all of it if they are more. False: there are not so many left.

        For each of the `streams` (keys) that does not exist it is charged `STREAM_BYTES` more, into debt if need be.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if not self._size:
            return True
        try:
            granted, *there = await self._link.ask_all(
                [self._charge(who, size, ALL_OR_NONE), *(("EXISTS", stream) for stream in streams)]
            )
            made = there.count(0)
            if granted and made:
                await self._link.ask(*self._charge(who, made * STREAM_BYTES, IN_ANY_CASE))
        except Impaired:
            return True  # nothing can be counted: either nothing can be kept now, or only this user's slot is away
        return bool(granted)

    def _charge(self, who: str, size: int, how: int) -> Command:
        arguments = [self._size / ALLOWANCE_SECONDS, ALLOWANCE_SECONDS, min(size, self._size), how]
        return self._script([self._keys.allowance(who)], arguments)


class Quota:
    """Tokens of all users; `per_second` 0: as many as anybody wants."""

    def __init__(self, link: Link, keys: Keys, per_second: int) -> None:
        self._link = link
        self._keys = keys
        self._rate = Rate(per_second) if per_second else None
        self._script = link.script("quota")
        self._purses: dict[str, Purse] = {}  # the longest unused first

    async def take(self, user: str) -> bool:
        """Take one of the user's tokens. False: there is none left.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if self._rate is None:
            return True
        now = asyncio.get_running_loop().time()
        purse = self._purses.pop(user, None) or Purse(self._rate)
        self._purses[user] = purse
        self._sweep(now)
        if purse.spend(now):
            return True
        wanted = purse.wanted(now)
        if not wanted:
            return False
        arguments = [self._rate.per_second, BURST_SECONDS, wanted, AS_MANY_AS_THERE_ARE]
        try:
            granted = await self._link.ask(*self._script([self._keys.quota(user)], arguments))
        except Impaired:
            return True  # nothing can be counted; the limit of the client's messages holds
        now = asyncio.get_running_loop().time()
        purse.fetched(granted, now)
        return purse.spend(now)

    def _sweep(self, now: float) -> None:
        # Two at each use, and each use adds one at most: so the idle do not pile up.
        for user in list(itertools.islice(self._purses, 2)):
            if self._purses[user].idle(now):
                del self._purses[user]
