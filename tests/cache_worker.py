"""A process of its own that uses the cache: `python -m tests.cache_worker URL KEY CALLERS LOAD_MS LOAD_SECONDS`.

Waits for a word on the Redis list `go`; so many callers then ask for the key at once. Each load adds 1 to `loads`.
What the callers were given ends in the list `answers`, as the set of it.
"""

from __future__ import annotations

import asyncio
import sys

import orjson
from redis.asyncio import Redis

from gateway.cache import cache


async def main(url: str, key: str, callers: int, load_ms: int, load_seconds: float) -> None:
    """Ask, as the file says."""
    redis = Redis.from_url(url, socket_timeout=None)  # the start message comes after the last worker has started

    async def load() -> dict[str, int]:
        number = await redis.incr("loads")
        await asyncio.sleep(load_ms / 1000)
        return {"load": number}

    async with cache.connect(url) as shared:
        await redis.incr("ready")
        await redis.blpop(["go"])
        asked = (shared.get_or_set(key, load, load_seconds=load_seconds) for _ in range(callers))
        answers = await asyncio.gather(*asked)
        await redis.rpush(
            "answers", orjson.dumps([len(answers), *{orjson.dumps(answer).decode() for answer in answers}])
        )
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
