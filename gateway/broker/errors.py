"""Commands to Redis, and the errors that they can end with."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

# Errors of Redis and of the connection to it. `TimeoutError` is an `OSError`.
REDIS_ERRORS: Final = (RedisError, OSError)

RedisCommand = tuple[Any, ...]  # a Redis command and its arguments, the last of them the largest
T = TypeVar("T")


class Unavailable(Exception):
    """Redis did not execute the command, or did not confirm it in time, so that its effect is unknown."""


class Unconfirmed(Unavailable):
    """Redis executed the command, but too few replicas confirmed it: if this Redis fails now, the change is lost."""


class CommandRefused(Unavailable):
    """Redis rejected this command with an error. Other commands on the same connection are not affected."""


class WrongType(CommandRefused):
    """A key has another type than the command expects: another program has written it."""


class Impaired(CommandRefused):
    """The command would fail on every node: Redis rejects writes, or no server has the slot. The node stays ready."""


class WrongServer(CommandRefused):
    """The server is not the master. The node closes its connections and resolves its name again."""


# Redis error codes: the kind of failure, and a sentence for publishers and operators. Codes that are not listed concern
# one command only. MOVED, ASK and TRYAGAIN are followed (link.py, lane.py) and never arrive here.
ERROR_CODES: Final[dict[str, tuple[type[CommandRefused], str]]] = {
    "READONLY": (WrongServer, "the server is a replica, not the master"),
    "MASTERDOWN": (WrongServer, "the server is a replica that has lost its master"),
    "OOM": (Impaired, "Redis refuses writes, because its memory is full"),
    "MISCONF": (Impaired, "Redis refuses writes, because it cannot write to its disk"),
    "NOREPLICAS": (Impaired, "Redis refuses writes, because too few replicas are connected"),
    "CLUSTERDOWN": (Impaired, "the Redis Cluster has no server for this slot"),
    "LOADING": (CommandRefused, "Redis is loading its data"),
    "BUSY": (CommandRefused, "Redis is busy with a script"),
    "UNKILLABLE": (CommandRefused, "Redis is busy with a script"),
    "NOAUTH": (CommandRefused, "Redis asks for a password: put it into the Redis URL"),
    "WRONGPASS": (CommandRefused, "Redis refuses the user or password of the Redis URL"),
    "NOPERM": (CommandRefused, "the user of the Redis URL lacks a permission, which ACL LOG names"),
}
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
