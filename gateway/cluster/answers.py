"""What every way to Redis shares: commands, and what may come of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

# What Redis or the way to it can fail with. `TimeoutError` is an `OSError`.
REDIS_ERRORS: Final = (RedisError, OSError)

Command = tuple[Any, ...]  # a Redis command and its arguments, the last of them the largest
T = TypeVar("T")


class Unavailable(Exception):
    """Redis did not do it, or did not confirm in time; nothing is known to have happened."""


class Unconfirmed(Unavailable):
    """Redis did it, but too few replicas have confirmed it: it is lost if this Redis is, now."""


class Refused(Unavailable):
    """Redis answered with an error: this command was not done. Others on the same connection were."""


class WrongType(Refused):
    """A key holds another type than the command works on: some other program has written it."""


def failure(error: BaseException) -> Unavailable:
    """What an error of the way to Redis, or an error that Redis answered with, is raised as."""
    if not isinstance(error, ResponseError):
        return Unavailable(explain(error))
    return (WrongType if "WRONGTYPE" in str(error) else Refused)(explain(error))


def explain(error: BaseException) -> str:
    """An error of the way to Redis in one short line."""
    return str(error) or type(error).__name__


async def heeding(work: Awaitable[T]) -> T:
    """What `work` of redis-py gives, or the cancellation that it has lost.

    It writes under `asyncio.wait_for`, which in Python 3.11 loses a cancellation that comes in the turn in which the
    write is done. Who is to end would go on for ever.

    And it does not know how uvloop says that a connection is gone which one writes on: no `OSError`, as asyncio's own
    loop has it by then, but a `RuntimeError`, which nobody takes for a loss of Redis.

    Raises:
        RedisError, OSError: `REDIS_ERRORS`, and nothing else.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled = task.cancelling()
    try:
        answer = await work
    except RuntimeError as error:
        if "handler is closed" not in str(error):
            raise
        raise RedisConnectionError("the connection is closed") from error
    if task.cancelling() > cancelled:
        raise asyncio.CancelledError
    return answer
