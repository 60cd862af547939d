"""Commands to Redis, and what errors of Redis and of the connection mean."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.broker.failures import ERROR_CODES as ERROR_CODES
from gateway.broker.failures import CommandRefused as CommandRefused
from gateway.broker.failures import Impaired as Impaired
from gateway.broker.failures import Unavailable as Unavailable
from gateway.broker.failures import Unconfirmed as Unconfirmed
from gateway.broker.failures import WrongServer as WrongServer
from gateway.broker.failures import WrongType as WrongType

# Errors of Redis and of the connection to it. `TimeoutError` is an `OSError`.
REDIS_ERRORS: Final = (RedisError, OSError)

RedisCommand = tuple[Any, ...]  # a Redis command and its arguments, the last of them the largest
T = TypeVar("T")


# The code begins the answer; within a script of Redis 6 and in an aborted EXEC it follows.
_ERROR_CODE: Final = re.compile(rf"(?:^|because of: |: -)({'|'.join(ERROR_CODES)})(?= |$)")


def to_unavailable(error: BaseException) -> Unavailable:
    """The exception to raise for an error of the connection, or for an error answer of Redis."""
    # redis-py takes the codes that it knows from the text.
    match = _ERROR_CODE.search(f"{getattr(error, 'status_code', None) or ''} {error}".strip())
    if match is not None:
        return refusal_for(match[1])
    if not isinstance(error, ResponseError):
        return Unavailable(explain(error))
    return (WrongType if "WRONGTYPE" in str(error) else CommandRefused)(explain(error))


def refusal_for(code: str) -> CommandRefused:
    """The failure that the error code `code`, one of `ERROR_CODES`, stands for."""
    kind, sentence = ERROR_CODES[code]
    return kind(f"{code}: {sentence}")


def explain(error: BaseException) -> str:
    """A connection error as one short line, without class names and error numbers."""
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "no answer in time"
    text = re.sub(r"^Error -?\d+ connecting to (\S+?)\.? ", r"\1: ", str(error))
    text = re.sub(r"\[Errno -?\d+\] ", "", text)
    return text or "the connection was lost"


def retrieve(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a shared task, as its done callback: all of its callers may be cancelled before it ends.

    The event loop would report it as never retrieved.
    """
    if not task.cancelled():
        task.exception()


async def cancellable(work: Awaitable[T]) -> T:
    """Await `work` of redis-py; return its result, or raise a cancellation that redis-py lost.

    redis-py writes under `asyncio.wait_for`. In Python 3.11 that loses a cancellation that arrives in the turn in which
    the write completes. The cancelled task would then run on.

    When a task writes to a closed connection, uvloop raises a `RuntimeError` instead of the `OSError` of asyncio's own
    loop. It is converted, so that it counts as a lost connection.

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
