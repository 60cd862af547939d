"""What every way to Redis shares: commands, and what may come of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

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


class Impaired(Refused):
    """No node could have this done now: Redis refuses writes, or no server has the slot. The node stays ready."""


class WrongServer(Refused):
    """The server is not the master (any more). Its connections are dropped, and its name is resolved anew."""


# What Redis' error codes mean: the kind of failure, and a sentence for publishers and operators. Codes that are not
# here concern one command alone. MOVED, ASK and TRYAGAIN are followed (link.py, lane.py) and never come here.
FAULTS: Final[dict[str, tuple[type[Refused], str]]] = {
    "READONLY": (WrongServer, "the server is a replica, not the master"),
    "MASTERDOWN": (WrongServer, "the server is a replica that has lost its master"),
    "OOM": (Impaired, "Redis refuses writes, because its memory is full"),
    "MISCONF": (Impaired, "Redis refuses writes, because it cannot write to its disk"),
    "NOREPLICAS": (Impaired, "Redis refuses writes, because too few replicas are connected"),
    "CLUSTERDOWN": (Impaired, "the Redis Cluster has no server for this slot"),
    "LOADING": (Refused, "Redis is loading its data"),
    "BUSY": (Refused, "Redis is busy with a script"),
    "UNKILLABLE": (Refused, "Redis is busy with a script"),
    "NOAUTH": (Refused, "Redis asks for a password: put it into the Redis URL"),
    "WRONGPASS": (Refused, "Redis refuses the user or password of the Redis URL"),
    "NOPERM": (Refused, "the user of the Redis URL lacks a permission, which ACL LOG names"),
}
# The code begins the answer; within a script of Redis 6 and in an aborted EXEC it follows.
_FAULT: Final = re.compile(rf"(?:^|because of: |: -)({'|'.join(FAULTS)})(?= |$)")


def failure(error: BaseException) -> Unavailable:
    """What an error of the way to Redis, or an error that Redis answered with, is raised as."""
    # redis-py takes the codes that it knows from the text.
    match = _FAULT.search(f"{getattr(error, 'status_code', None) or ''} {error}".strip())
    if match is not None:
        return fault(match[1])
    if not isinstance(error, ResponseError):
        return Unavailable(explain(error))
    return (WrongType if "WRONGTYPE" in str(error) else Refused)(explain(error))


def fault(code: str) -> Refused:
    """The failure that the error code `code`, one of `FAULTS`, stands for."""
    kind, sentence = FAULTS[code]
    return kind(f"{code}: {sentence}")


def explain(error: BaseException) -> str:
    """An error of the way to Redis in one short line, without the names of classes and the numbers of errors."""
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "no answer in time"
    text = re.sub(r"^Error -?\d+ connecting to (\S+?)\.? ", r"\1: ", str(error))
    text = re.sub(r"\[Errno -?\d+\] ", "", text)
    return text or "the connection was lost"


async def exchange(client: Redis, commands: Sequence[Command]) -> list[Any]:
    """Send `commands` on one connection of `client`; their answers as Redis gives them, errors among them.

    It does what redis-py's pipeline does for less, but does not convert the answers. The caller sets a deadline.

    Raises:
        RedisError, OSError: `REDIS_ERRORS`, and nothing else.
    """
    return await heeding(_exchange(client.connection_pool, b"".join(map(pack_command, commands)), len(commands)))


async def _exchange(pool: Any, packed: bytes, count: int) -> list[Any]:
    connection: AbstractConnection = await pool.get_connection()
    try:
        await connection.send_packed_command(packed, check_health=False)
        answers: list[Any] = []
        for _ in range(count):
            try:
                answers.append(await connection.read_response())
            except ResponseError as error:
                answers.append(error)
        return answers
    finally:
        # If this has failed, redis-py has disconnected it, so that no answer is left for the next caller.
        await pool.release(connection)


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
