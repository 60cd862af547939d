"""gateway.broker.server_life: callers share a command, and one that is cancelled leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from gateway.broker.client import Unavailable
from gateway.broker.server_life import ServerLife
from tests.unit.memory_redis import MemoryRedis
from tests.unit.virtual_time import in_virtual_time, later


@in_virtual_time
async def test_callers_in_the_same_turn_share_one_command() -> None:
    redis = MemoryRedis()
    life = ServerLife(redis.client)
    first, second = await asyncio.gather(life.of("a"), life.of("b"))
    assert first == second == await life.of("a")
    assert len(redis.trips) == 2


@in_virtual_time
async def test_an_error_that_no_caller_waits_for_is_not_reported() -> None:
    redis = MemoryRedis()
    redis.away = True
    life = ServerLife(redis.client)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    caller = asyncio.create_task(life.of("a"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await later(1)
    gc.collect()
    assert not reported
    with pytest.raises(Unavailable):
        await life.of("a")
