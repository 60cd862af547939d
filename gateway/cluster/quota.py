"""How often each user may publish, and how many bytes Redis keeps for it, on all nodes together.

To ask Redis at each publish would double what a publish costs. To let each node allow its share would refuse a user
whose clients are all on one. So nodes fetch tokens in batches, as large as what they have just spent (`Purse`): the
first publish after a pause asks, and in a steady stream one in many does.

The bucket is nobody's row and hangs under no lease: it expires by itself when it is full again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from gateway.cluster.keys import Keys
from gateway.cluster.link import Command, Impaired, Link
from gateway.core.rates import BURST_SECONDS, Purse, Rate

ALLOWANCE_SECONDS: Final = 86_400  # a day: in which a used up allowance is full again
STREAM_BYTES: Final = 4608  # Redis allocates 4 KiB for a stream's first messages
# Of a second's tokens, and of an allowance, a node fetches one part in so many ahead of its use, at most.
TOKENS_SHARE: Final = 5
ALLOWANCE_SHARE: Final = 128
# A stream that exists is not looked for again for so long; so many streams are remembered.
KNOWN_SECONDS: Final = 60.0
MAX_KNOWN: Final = 10_000
INTO_DEBT: Final = -1  # the least that quota.lua takes: all, whatever there is


class Allowance:
    """Bytes that each user's messages may take in Redis: `size` at once, and `size` more a day; 0: any number.

    How long a message is kept is part of its topic's rule, so at most `size` x (1 + that time in days) is kept for a
    user, and what each node fetches ahead.
    """

    def __init__(self, link: Link, keys: Keys, size: int) -> None:
        self._link = link
        self._keys = keys
        self._size = size
        self._script = link.script("quota")
        self._purses = _Purses(size // ALLOWANCE_SHARE)
        self._known: dict[str, float] = {}  # streams that exist -> loop time to look again; oldest first

    async def take(self, who: str, size: int, streams: Sequence[str]) -> bool:
        """Take `size` bytes of the allowance of `who`, all of it if they are more. False: there are not so many left.

        For each of the `streams` (keys) that does not exist it is charged `STREAM_BYTES` more, into debt if need be.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if not self._size:
            return True
        loop, size = asyncio.get_running_loop(), min(size, self._size)
        now = loop.time()
        purse = self._purses.of(who, now)
        wanted = 0
        if not purse.spend(now, size):
            wanted = purse.ask(now, size)
            if not wanted:
                return False
        unknown = [stream for stream in streams if self._known.get(stream, now) <= now]
        if not wanted and not unknown:
            return True
        try:
            granted, made = 0, 0
            try:
                charge = [self._charge(who, wanted, size)] if wanted else []
                answers = await self._link.ask_all([*charge, *(("EXISTS", stream) for stream in unknown)])
                granted = answers.pop(0) if wanted else 0
                made = answers.count(0)
            finally:
                if wanted:
                    purse.fetched(granted, loop.time(), size)
            if wanted and not purse.spend(loop.time(), size):
                return False
            self._remember(unknown, now)
            if made:
                await self._link.ask(*self._charge(who, made * STREAM_BYTES, INTO_DEBT))
        except Impaired:
            pass  # nothing can be counted: either nothing can be kept now, or only this user's slot is away
        return True

    def _charge(self, who: str, size: int, least: int) -> Command:
        arguments = [self._size / ALLOWANCE_SECONDS, ALLOWANCE_SECONDS, min(size, self._size), least]
        return self._script([self._keys.allowance(who)], arguments)

    def _remember(self, streams: Iterable[str], now: float) -> None:
        for stream in streams:
            self._known.pop(stream, None)
            self._known[stream] = now + KNOWN_SECONDS
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]


class Quota:
    """Tokens of all users; `per_second` 0: as many as anybody wants."""

    def __init__(self, link: Link, keys: Keys, per_second: int) -> None:
        self._link = link
        self._keys = keys
        self._rate = Rate(per_second) if per_second else None
        self._script = link.script("quota")
        self._purses = _Purses(max(1, per_second // TOKENS_SHARE))

    async def take(self, user: str) -> bool:
        """Take one of the user's tokens. False: there is none left.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        if self._rate is None:
            return True
        loop = asyncio.get_running_loop()
        now = loop.time()
        purse = self._purses.of(user, now)
        if purse.spend(now):
            return True
        wanted = purse.ask(now)
        if not wanted:
            return False
        granted = 0
        try:
            arguments = [self._rate.per_second, BURST_SECONDS, wanted, 1]
            granted = await self._link.ask(*self._script([self._keys.quota(user)], arguments))
        except Impaired:
            return True  # nothing can be counted; the limit of the client's messages holds
        finally:
            purse.fetched(granted, loop.time())
        return purse.spend(loop.time())


class _Purses:
    """The purses of those that publish by this node, each with at most `most` tokens fetched ahead at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._purses: dict[str, Purse] = {}  # the longest unused first

    def of(self, who: str, now: float) -> Purse:
        """The purse of `who`."""
        purse = self._purses.pop(who, None) or Purse(self._most)
        self._purses[who] = purse
        # Two at each use, and each use adds one at most: so the idle do not pile up.
        for other in list(itertools.islice(self._purses, 2)):
            if other != who and self._purses[other].idle(now):
                del self._purses[other]
        return purse
