"""The Redis client of a node: commands, publishing and connections for subscribers, on one server or a cluster.

Every round trip has a deadline, and the client never retries by itself: a PUBLISH that is sent twice is delivered
twice. Failures raise `Unavailable`. On a Redis Cluster, a server that answers MOVED has done nothing, so sending the
command to the named server is not a retry.

Publishes that must reach replicas or the disk before they are acknowledged use pipelines of their own, so that a slow
replica or disk does not delay the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ResponseError, TryAgainError

from gateway.broker.errors import (
    REDIS_ERRORS,
    CommandRefused,
    Impaired,
    RedisCommand,
    Unavailable,
    Unconfirmed,
    WrongType,
    cancellable,
    explain,
    to_unavailable,
)  # fmt: skip
from gateway.broker.pipeline import MOVE_SECONDS, Durability, Pipelines
from gateway.broker.read_batch import ReadBatch
from gateway.broker.rows import RowDecoder
from gateway.broker.slot_map import ONLY_SERVER, resolve_server
from gateway.broker.topology import Topology
from gateway.metrics import Metrics

# Enough for one publisher, one registry writer, one heartbeat, and API requests in parallel.
POOL_CONNECTIONS: Final = 16


_COMMENT: Final = re.compile(r"^\s*(--.*)?\n|^\s+", re.MULTILINE)  # whole lines of Lua, and indents


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script that Redis runs as one atomic step."""

    source: str
    digest: str

    def __call__(self, keys: Sequence[str | bytes], arguments: Sequence[Any]) -> RedisCommand:
        """The EVALSHA command, for `RedisClient.execute`, which loads a missing script."""
        return "EVALSHA", self.digest, len(keys), *keys, *arguments

    def with_source(self, keys: Sequence[str | bytes], arguments: Sequence[Any]) -> RedisCommand:
        """The EVAL command, for `RedisClient.transact`: inside a transaction, a missing script could not be loaded."""
        return "EVAL", self.source, len(keys), *keys, *arguments


@cache
def _script(name: str) -> Script:
    """The script ``lua/{name}.lua``, read from disk once."""
    source = resources.files("gateway.broker").joinpath("lua", f"{name}.lua").read_text()
    source = _COMMENT.sub("", source)  # each publish carries the source, and Redis hashes all of it
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


class RedisClient:
    """A client of the Redis at `url`. Each round trip takes at most `timeout_seconds`."""

    def __init__(
        self, url: str, *, timeout_seconds: float, name: str, metrics: Metrics, durability: Durability | None = None
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.rows = RowDecoder(metrics)
        self.read_batch = ReadBatch(self.execute_each, self._server_of)
        # RESP2: its pub/sub costs a third less than that of RESP3, and the node uses no feature of RESP3.
        self._topology = Topology(
            url, timeout_seconds=timeout_seconds, max_connections=POOL_CONNECTIONS, protocol=2, client_name=name
        )
        self.slot_map = self._topology.slot_map
        self.sharded = self.slot_map.sharded  # it is a Redis Cluster
        self.on_left: Callable[[str], None] = lambda _reason: None  # called after the connections were closed
        self.followers: list[RedisClient] = []  # clients of the same Redis that close their connections too
        self._topology.on_left = self._master_left
        self._scripts: dict[str, Script] = {}
        self._plain = self._durable = Pipelines(self._topology, timeout_seconds, metrics, Durability())
        if durability is not None and durability.command() is not None:
            self._durable = Pipelines(self._topology, timeout_seconds, metrics, durability)

    def script(self, name: str) -> Script:
        """The script ``lua/{name}.lua``, without comments."""
        script = _script(name)
        self._scripts[script.digest] = script
        return script

    # ---- asking

    async def execute(self, *command: Any) -> Any:
        """Send one command; return the answer as redis-py parses it.

        Raises:
            Unavailable: Redis is unreachable or slow, or rejected the command.
        """
        return (await self.execute_all([command]))[0]

    async def execute_all(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Send several commands, in one round trip per server; return their answers. Each server runs them in order.

        Raises:
            WrongType: A key holds another type; the other commands were executed.
            Unavailable: As `execute`; some commands may have been executed.
        """
        answers = await self.execute_each(commands)
        for answer in answers:
            if isinstance(answer, CommandRefused):
                raise answer
        return answers

    async def execute_each(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """As `execute_all`, but a command that Redis rejects gets a `CommandRefused` as its answer and does not affect
        the others.

        Raises:
            Unavailable: Redis is unreachable or slow; some commands may have been executed.
        """
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await self._topology.refresh()
                return await self._follow_redirects(list(commands))
        except REDIS_ERRORS as error:
            self._topology.mark_stale()
            raise to_unavailable(error) from error

    async def drop_connections(self, reason: str) -> None:
        """Close all connections and resolve the name again: the server is not the master. No effect on a cluster."""
        if not self.sharded:
            await self._topology.drop_connections(ONLY_SERVER, self._topology.client(ONLY_SERVER), reason)

    async def execute_at(self, server: str, *command: Any) -> Any:
        """Send one command to one server; return its answer.

        Raises:
            Unavailable: As `execute`.
        """
        try:
            async with asyncio.timeout(self.timeout_seconds):
                [answer] = await self._pipe(server, [command])
        except REDIS_ERRORS as error:
            raise to_unavailable(error) from error
        if isinstance(answer, Exception):
            raise to_unavailable(answer) from answer
        return answer

    async def _follow_redirects(self, commands: list[RedisCommand]) -> list[Any]:
        """Send the commands, and follow MOVED and ASK answers to other servers."""
        answers: list[Any] = [None] * len(commands)
        # Index of each command to send -> its server, and whether ASKING precedes it (the slot is being moved there).
        places: dict[int, tuple[str, bool]] = {}
        for at, command in enumerate(commands):
            try:
                places[at] = self._owner(command), False
            except Impaired as error:  # a part of the cluster that failed does not affect the others
                answers[at] = error
        first = True
        while places:
            by_server: dict[str, list[int]] = {}
            for at, (server, _) in places.items():
                by_server.setdefault(server, []).append(at)
            asked = [
                self._pipe(server, [commands[at] for at in indices], [places[at][1] for at in indices])
                for server, indices in by_server.items()
            ]
            again: dict[int, tuple[str, bool]] = {}
            for (server, indices), found in zip(by_server.items(), await _all(asked), strict=True):
                for at, answer in zip(indices, found, strict=True):
                    match answer:
                        case NoScriptError():
                            script = self._scripts[commands[at][1]]
                            commands[at] = ("EVAL", script.source, *commands[at][2:])
                            again[at] = places[at]
                        case MovedError():
                            again[at] = self.moved_to(answer, server), False
                        case AskError():
                            again[at] = resolve_server(answer.host, answer.port, server), True
                        case TryAgainError():
                            again[at] = self._owner(commands[at]), False
                        case ResponseError() if not isinstance(answer, ClusterDownError):
                            answers[at] = refused = to_unavailable(answer)
                            if not isinstance(refused, WrongType):  # a wrong type says nothing about the server
                                self._topology.mark_stale()
                        case Exception():
                            raise answer
                        case _:
                            answers[at] = answer
            if again and not first:
                await asyncio.sleep(random.uniform(0, MOVE_SECONDS))
            places, first = again, False
        return answers

    def _server_of(self, command: RedisCommand) -> str | None:
        """The server of a command; None: unknown, or a single Redis."""
        return self.slot_map.owner(self.slot_map.slot(command)) if self.sharded else None

    def _owner(self, command: RedisCommand) -> str:
        return self._topology.owner(self.slot_map.slot(command))

    async def _pipe(self, server: str, commands: Sequence[RedisCommand], asking: Sequence[bool] = ()) -> list[Any]:
        """Send commands to `server`; return its answers, with errors among them."""
        asking = asking or [False] * len(commands)
        client = self._topology.client(server)
        async with client.pipeline(transaction=False) as pipeline:
            for command, ask in zip(commands, asking, strict=True):
                if ask:
                    pipeline.execute_command("ASKING")
                pipeline.execute_command(*command)
            answered = await cancellable(pipeline.execute(raise_on_error=False))
        await self._topology.check_role(server, client, answered)
        answers = iter(answered)
        found = []
        for ask in asking:
            if ask:
                next(answers)
            found.append(next(answers))
        return found

    # ---- publishing

    def publish_command(self, channel: str) -> str:
        """PUBLISH, or SPUBLISH on a cluster if the channel has a hash tag and so belongs to one server."""
        return "SPUBLISH" if self.sharded and "{" in channel else "PUBLISH"

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish one payload.

        Raises:
            Unavailable: As `transact`.
        """
        await self.transact([(self.publish_command(channel), channel, payload)])

    async def transact(self, commands: Sequence[RedisCommand], *, durable: bool = False) -> list[Any]:
        """Execute `commands` in one transaction; return their answers. Waiting calls share a round trip.

        Commands of the same kind, `durable` or not, run in the order of the calls. On a cluster there is one
        transaction per slot: if one fails, those of other slots may have been executed.

        Raises:
            Unconfirmed: The commands were executed, but Redis did not confirm their durability. Only if `durable`.
            Unavailable: Redis is unreachable or slow, rejected a command, or too many commands are waiting.
        """
        return await (self._durable if durable else self._plain).transact(commands)

    def submit(self, commands: Sequence[RedisCommand], *, durable: bool = False) -> asyncio.Future[list[Any]]:
        """Queue `commands` as `transact` does, without a task; the answers, or the error. Not for a Redis Cluster.

        Raises:
            Unavailable: Too many commands are waiting; these were not queued.
        """
        return (self._durable if durable else self._plain).submit(commands)

    # ---- subscribing

    async def connect_subscriber(self, server: str) -> AbstractConnection:
        """Open a dedicated connection for pub/sub; the caller closes it.

        Raises:
            Unavailable: The server cannot be reached, or rejects the login.
        """
        connection = self._topology.connection(server)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await cancellable(connection.connect())  # type: ignore[no-untyped-call]
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, REDIS_ERRORS):
                raise to_unavailable(error) from error
            raise
        return connection

    async def is_moved(self, server: str, connection: AbstractConnection) -> bool:
        """Whether the master is now another server than the one that `connection`, a subscriber's, leads to.

        If so, all other connections have been closed too. A master that was cut off keeps its role until it reaches a
        Sentinel, and a replaced server goes on accepting publishes.
        """
        if not await self._topology.is_moved(server, connection):
            return False
        await self.drop_connections("Redis has another master now")
        return True

    async def _master_left(self, reason: str) -> None:
        self.on_left(reason)
        for follower in self.followers:
            await follower.drop_connections(reason)

    def moved_to(self, error: MovedError, asked: str) -> str:
        """Record the new server of a slot that `asked` no longer has; return the server's name."""
        server = resolve_server(error.host, error.port, asked)
        self.slot_map.move(error.slot_id, server)
        return server

    async def refresh_topology(self, *, force: bool = False) -> None:
        """Read the slot map of a cluster if it may be outdated, or always with `force`.

        Raises:
            Unavailable: No server answered in time.
        """
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await self._topology.refresh(force=force)
        except TimeoutError:
            raise Unavailable("no server of the cluster answered in time") from None

    def mark_stale(self) -> None:
        """Read the slot map again before the next use: a server failed, and another may have its slots."""
        self._topology.mark_stale()

    # ---- life

    async def run(self) -> None:
        """Run the pipelines until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for pipelines in {self._plain, self._durable}:
                pipelines.start(tasks.create_task)
            await asyncio.get_running_loop().create_future()  # pipelines start and end with the servers of a cluster

    async def close(self) -> None:
        """Close all pools."""
        await self._topology.close()


async def _all(work: Sequence[Coroutine[Any, Any, list[Any]]]) -> list[list[Any]]:
    """Run all of `work` in parallel; return the results, or raise the first error once all have ended."""
    if len(work) == 1:
        return [await work[0]]
    found = await asyncio.gather(*work, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if not isinstance(one, BaseException)]


__all__ = [
    "CommandRefused",
    "Durability",
    "Impaired",
    "RedisClient",
    "RedisCommand",
    "Script",
    "Unavailable",
    "Unconfirmed",
    "WrongType",
    "explain",
]  # fmt: skip
