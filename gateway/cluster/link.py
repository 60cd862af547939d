"""The way to Redis: commands, publishers and subscribers' connections, on one server or on a cluster of them.

Every round trip has a deadline and none is retried behind the caller's back: a PUBLISH sent twice would be
heard twice. What fails, fails as `Unavailable`. On a Redis Cluster a server that says "not mine" has done nothing, so
that is no retry: whoever has the slot is asked instead.

What must reach replicas or the disk before it is acknowledged has publishers of its own: one that is slow holds up
nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ResponseError, TryAgainError

from gateway.cluster.answers import (
    REDIS_ERRORS,
    Command,
    Impaired,
    Refused,
    Unavailable,
    Unconfirmed,
    WrongType,
    explain,
    failure,
    heeding,
)  # fmt: skip
from gateway.cluster.lane import MOVE_SECONDS, Durability, Lanes
from gateway.cluster.reads import Reads
from gateway.cluster.rows import Rows
from gateway.cluster.servers import Servers
from gateway.cluster.shards import ONLY, named
from gateway.metrics import Metrics

# Enough for one publisher, one registry writer, one beat, and API requests side by side.
POOL_CONNECTIONS: Final = 16


_COMMENT: Final = re.compile(r"^\s*(--.*)?\n|^\s+", re.MULTILINE)  # whole lines of Lua, and indents


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua step."""

    source: str
    digest: str

    def __call__(self, keys: Sequence[str | bytes], arguments: Sequence[Any]) -> Command:
        """The command that takes it, for `Link.ask`."""
        return "EVALSHA", self.digest, len(keys), *keys, *arguments

    def whole(self, keys: Sequence[str | bytes], arguments: Sequence[Any]) -> Command:
        """The same for `Link.send`: within a transaction, a script that is missing could not be made good."""
        return "EVAL", self.source, len(keys), *keys, *arguments


class Link:
    """Connections to the Redis at `url`, each round trip within `timeout_seconds`."""

    def __init__(
        self, url: str, *, timeout_seconds: float, name: str, metrics: Metrics, durability: Durability | None = None
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.rows = Rows(metrics)
        self.reads = Reads(self.ask_each, self._place)
        # RESP2: its pub/sub costs a third less than RESP3's, and we need nothing of the newer protocol.
        self._servers = Servers(
            url, timeout_seconds=timeout_seconds, max_connections=POOL_CONNECTIONS, protocol=2, client_name=name
        )
        self.shards = self._servers.shards
        self.sharded = self.shards.sharded  # it is a Redis Cluster
        self.on_left: Callable[[str], None] = lambda _reason: None  # called when the connections were dropped
        self.followers: list[Link] = []  # to the same Redis: they drop their connections, too
        self._servers.on_left = self._on_left
        self._scripts: dict[str, Script] = {}
        self._plain = self._durable = Lanes(self._servers, timeout_seconds, metrics, Durability())
        if durability is not None and durability.command() is not None:
            self._durable = Lanes(self._servers, timeout_seconds, metrics, durability)

    def script(self, name: str) -> Script:
        """The Lua step ``lua/{name}.lua``."""
        source = resources.files("gateway.cluster").joinpath("lua", f"{name}.lua").read_text()
        source = _COMMENT.sub("", source)  # it travels with each publish, and Redis hashes all of it
        script = Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
        self._scripts[script.digest] = script
        return script

    # ---- asking

    async def ask(self, *command: Any) -> Any:
        """The answer to one command, as redis-py makes it.

        Raises:
            Unavailable: Redis is away, slow, or refused it.
        """
        return (await self.ask_all([command]))[0]

    async def ask_all(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to several, in one round trip to each server concerned. On one server they are done in order.

        Raises:
            WrongType: A key of one of them holds another type; the other commands are done.
            Unavailable: as `ask`; some may be done.
        """
        answers = await self.ask_each(commands)
        for answer in answers:
            if isinstance(answer, Refused):
                raise answer
        return answers

    async def ask_each(self, commands: Sequence[Command]) -> list[Any]:
        """As `ask_all`, but for a command that Redis refused the answer is a `Refused`: it does not affect the others.

        Raises:
            Unavailable: Redis is away or slow; some may be done.
        """
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await self._servers.learn()
                return await self._follow(list(commands))
        except REDIS_ERRORS as error:
            self._servers.doubt()
            raise failure(error) from error

    async def leave(self, reason: str) -> None:
        """Drop all connections, and resolve the name anew: the server is not the master. Not on a Redis Cluster."""
        if not self.sharded:
            await self._servers.leave(ONLY, self._servers.at(ONLY), reason)

    async def ask_at(self, server: str, *command: Any) -> Any:
        """The answer of one server.

        Raises:
            Unavailable: as `ask`.
        """
        try:
            async with asyncio.timeout(self.timeout_seconds):
                [answer] = await self._pipe(server, [command])
        except REDIS_ERRORS as error:
            raise failure(error) from error
        if isinstance(answer, Exception):
            raise failure(answer) from answer
        return answer

    async def _follow(self, commands: list[Command]) -> list[Any]:
        """Ask, and ask on where a server names another."""
        answers: list[Any] = [None] * len(commands)
        # Which are to be asked, and where; True: there though the slot is still being moved there.
        places: dict[int, tuple[str, bool]] = {}
        for at, command in enumerate(commands):
            try:
                places[at] = self._owner(command), False
            except Impaired as error:  # a part of the cluster that is away does not affect the others
                answers[at] = error
        first = True
        while places:
            by_server: dict[str, list[int]] = {}
            for at, (server, _) in places.items():
                by_server.setdefault(server, []).append(at)
            asked = [
                self._pipe(server, [commands[at] for at in its], [places[at][1] for at in its])
                for server, its in by_server.items()
            ]
            again: dict[int, tuple[str, bool]] = {}
            for (server, its), found in zip(by_server.items(), await _all(asked), strict=True):
                for at, answer in zip(its, found, strict=True):
                    match answer:
                        case NoScriptError():
                            script = self._scripts[commands[at][1]]
                            commands[at] = ("EVAL", script.source, *commands[at][2:])
                            again[at] = places[at]
                        case MovedError():
                            again[at] = self.moved_to(answer, server), False
                        case AskError():
                            again[at] = named(answer.host, answer.port, server), True
                        case TryAgainError():
                            again[at] = self._owner(commands[at]), False
                        case ResponseError() if not isinstance(answer, ClusterDownError):
                            answers[at] = refused = failure(answer)
                            if not isinstance(refused, WrongType):  # which says nothing about the server
                                self._servers.doubt()
                        case Exception():
                            raise answer
                        case _:
                            answers[at] = answer
            if again and not first:
                await asyncio.sleep(random.uniform(0, MOVE_SECONDS))
            places, first = again, False
        return answers

    def _place(self, command: Command) -> str | None:
        """The server of a command, as far as it is known."""
        return self.shards.owner(self.shards.slot(command)) if self.sharded else None

    def _owner(self, command: Command) -> str:
        return self._servers.owner(self.shards.slot(command))

    async def _pipe(self, server: str, commands: Sequence[Command], asking: Sequence[bool] = ()) -> list[Any]:
        """What `server` answers; errors stand among the answers."""
        asking = asking or [False] * len(commands)
        client = self._servers.at(server)
        async with client.pipeline(transaction=False) as pipeline:
            for command, ask in zip(commands, asking, strict=True):
                if ask:
                    pipeline.execute_command("ASKING")
                pipeline.execute_command(*command)
            answered = await heeding(pipeline.execute(raise_on_error=False))
        await self._servers.judge(server, client, answered)
        answers = iter(answered)
        found = []
        for ask in asking:
            if ask:
                next(answers)
            found.append(next(answers))
        return found

    # ---- publishing

    def publish_command(self, channel: str) -> str:
        """How one publishes on `channel`: on a cluster, if it has a slot of its own, only to that slot's server."""
        return "SPUBLISH" if self.sharded and "{" in channel else "PUBLISH"

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish one payload.

        Raises:
            Unavailable: as `send`.
        """
        await self.send([(self.publish_command(channel), channel, payload)])

    async def send(self, commands: Sequence[Command], *, durable: bool = False) -> list[Any]:
        """Have Redis do all of `commands` in one transaction; their answers. What waits shares the round trip.

        Commands of the same kind, `durable` or not, are done in the order of the calls. On a cluster it is one
        transaction for those of each slot: of the others some may be done when this fails.

        Raises:
            Unconfirmed: They are done, but not as durable as they must be. Only if `durable`.
            Unavailable: Redis is away or slow, refused one, or too much is waiting for it.
        """
        return await (self._durable if durable else self._plain).send(commands)

    # ---- subscribing

    async def subscriber(self, server: str) -> AbstractConnection:
        """A connected connection of its own for pub/sub; the caller disconnects it.

        Raises:
            Unavailable: The server cannot be reached, or refuses the login.
        """
        connection = self._servers.connection(server)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await heeding(connection.connect())  # type: ignore[no-untyped-call]
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, REDIS_ERRORS):
                raise failure(error) from error
            raise
        return connection

    async def moved(self, server: str, connection: AbstractConnection) -> bool:
        """Whether the master is elsewhere now than where `connection`, a subscriber's, leads.

        Then all other connections have been dropped as well. A master that was cut off believes in itself until it
        meets a Sentinel, and a server that was replaced goes on to take what is published.
        """
        if not await self._servers.moved(server, connection):
            return False
        await self.leave("Redis has another master now")
        return True

    async def _on_left(self, reason: str) -> None:
        self.on_left(reason)
        for follower in self.followers:
            await follower.leave(reason)

    def moved_to(self, error: MovedError, asked: str) -> str:
        """Note where the slot is that `asked` has no more; the server's name."""
        server = named(error.host, error.port, asked)
        self.shards.move(error.slot_id, server)
        return server

    async def learn(self, *, anew: bool = False) -> None:
        """On a cluster, know which server has which slot: if a server has failed, or `anew`.

        Raises:
            Unavailable: No server could tell in time.
        """
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await self._servers.learn(anew=anew)
        except TimeoutError:
            raise Unavailable("no server of the cluster answered in time") from None

    def doubt(self) -> None:
        """A server of the cluster failed: another may have its slots."""
        self._servers.doubt()

    # ---- life

    async def run(self) -> None:
        """The publishers, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for lanes in {self._plain, self._durable}:
                lanes.start(tasks.create_task)
            await asyncio.get_running_loop().create_future()  # lanes come and go with the servers of a cluster

    async def close(self) -> None:
        """Close all connections that rest in the pools."""
        await self._servers.close()


async def _all(work: Sequence[Coroutine[Any, Any, list[Any]]]) -> list[list[Any]]:
    """What all of `work` gives, done side by side; else the first error, when all have ended."""
    if len(work) == 1:
        return [await work[0]]
    found = await asyncio.gather(*work, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if not isinstance(one, BaseException)]


__all__ = [
    "Command", "Durability", "Impaired", "Link", "Refused", "Script", "Unavailable", "Unconfirmed", "WrongType",
    "explain",
]  # fmt: skip
