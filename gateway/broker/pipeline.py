"""Pipelines: queues of commands that one task per server sends in batches.

On a Redis Cluster each server has its own pipeline, so that a slow or dead server does not delay the others. A command
whose slot is being moved waits (`_wait`), so that no message is published on a server without subscribers.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from redis.exceptions import AskError, MovedError, NoScriptError, TryAgainError

from gateway.broker.errors import REDIS_ERRORS, RedisCommand, Unavailable, Unconfirmed, refusal_for, to_unavailable
from gateway.broker.exchange import Exchange
from gateway.broker.slot_map import resolve_server
from gateway.broker.topology import Topology
from gateway.metrics import Metrics

# A batch has one MULTI per slot. A larger batch would save nothing and block Redis longer.
BATCH_COMMANDS: Final = 512
# Limits of a queue; beyond them a publish is rejected.
QUEUE_COMMANDS: Final = 10_000
QUEUE_BYTES: Final = 64 << 20
# Longest pause before a command is sent again whose slot is being moved.
MOVE_SECONDS: Final = 0.05

Spawn = Callable[[Coroutine[Any, Any, None]], object]


@dataclass(frozen=True, slots=True)
class Durability:
    """Confirmations that a durable publish requires, and their deadline.

    `replicas`: number of replicas that must have it; 0: Redis alone is enough. `fsync`: Redis and each of these
    replicas must have written it to disk.
    """

    replicas: int = 0
    seconds: float = 1.0
    fsync: bool = False

    def command(self) -> RedisCommand | None:
        """The command that waits for the confirmations, on the connection of the publish; None: no wait required."""
        ms = int(self.seconds * 1000)
        if self.fsync:
            return "WAITAOF", 1, self.replicas, ms
        return ("WAIT", self.replicas, ms) if self.replicas else None

    def missing(self, answer: Any) -> str | None:
        """The reason why the answer to `command` does not confirm the publish; None: it does."""
        if isinstance(answer, Exception):
            needs = "; GATEWAY_WAIT_FSYNC needs Redis 7.2 or newer with appendonly yes" if self.fsync else ""
            return f"Redis could not confirm: {to_unavailable(answer)}{needs}"
        local, replicas = (int(answer[0]), int(answer[1])) if self.fsync else (1, int(answer))
        if not local:
            return f"not on Redis' disk within {self.seconds:g} s"
        if replicas < self.replicas:
            return f"confirmed by {replicas} of {self.replicas} replicas"
        return None


@dataclass(slots=True, eq=False)
class _Call:
    """Commands of one slot that Redis executes together or not at all."""

    slot: int
    commands: Sequence[RedisCommand]
    size: int  # of the commands, in bytes
    done: asyncio.Future[list[Any]]


class Pipelines:
    """The pipelines of all servers. They queue commands until they are started."""

    def __init__(self, topology: Topology, timeout_seconds: float, metrics: Metrics, durability: Durability) -> None:
        self._topology = topology
        self._timeout = timeout_seconds
        self._metrics = metrics
        self._durability = durability
        self._pipelines: dict[str, _Pipeline] = {}
        self._waiting: dict[int, deque[_Call]] = {}  # by slot: calls that wait until it has moved, in order
        self._deadlines: deque[tuple[float, _Call]] = deque()  # loop times until which calls may wait, in order
        self._timer: asyncio.TimerHandle | None = None  # ends at the first deadline: one timer serves all calls
        self._spawn: Spawn | None = None

    async def transact(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """As `RedisClient.transact`."""
        slot_map = self._topology.slot_map
        if not slot_map.sharded:
            return await self.submit(commands)
        slots = [slot_map.slot(command) for command in commands]
        calls: dict[int, _Call] = {}
        for slot in slots:
            if slot not in calls:
                own = [command for command, command_slot in zip(commands, slots, strict=True) if command_slot == slot]
                calls[slot] = self._call(slot, own)
        try:
            async with asyncio.timeout(2 * self._timeout):
                await self._topology.refresh()
            for call in calls.values():
                self._enqueue(call)
            if len(calls) > 1:
                await asyncio.wait([call.done for call in calls.values()])
            answers = {slot: iter(await call.done) for slot, call in calls.items()}
        except TimeoutError:
            raise Unavailable("no server of the Redis Cluster answered in time") from None
        finally:
            for call in calls.values():  # calls that are still queued need not be sent
                if not call.done.cancel() and not call.done.cancelled():
                    call.done.exception()  # mark as retrieved: only the first error is raised
        return [next(answers[slot]) for slot in slots]

    def submit(self, commands: Sequence[RedisCommand]) -> asyncio.Future[list[Any]]:
        """As `RedisClient.submit`."""
        call = self._call(0, commands)
        self._enqueue(call)
        return call.done

    def start(self, spawn: Spawn) -> None:
        """Start all pipelines, now and in future, with `spawn`."""
        self._spawn = spawn
        for pipeline in self._pipelines.values():
            spawn(pipeline.run())

    def _call(self, slot: int, commands: Sequence[RedisCommand]) -> _Call:
        """A call with a deadline. Each batch has its own; this one also limits the wait in the queue."""
        loop, deadlines = asyncio.get_running_loop(), self._deadlines
        call = _Call(slot, commands, _size(commands), loop.create_future())
        while deadlines and deadlines[0][1].done.done():
            deadlines.popleft()
        deadlines.append((loop.time() + 2 * self._timeout, call))
        if self._timer is None:
            self._timer = loop.call_at(deadlines[0][0], self._expire)
        return call

    def _expire(self) -> None:
        """Fail the calls whose deadline has come."""
        loop, deadlines = asyncio.get_running_loop(), self._deadlines
        while deadlines and (deadlines[0][1].done.done() or deadlines[0][0] <= loop.time()):
            _fail(deadlines.popleft()[1], Unavailable("Redis did not take the message in time"))
        self._timer = loop.call_at(deadlines[0][0], self._expire) if deadlines else None

    def _enqueue(self, call: _Call) -> None:
        waiting = self._waiting.get(call.slot)
        if waiting is not None:  # keep the order of the slot's calls
            waiting.append(call)
        else:
            self._pipeline_of(call.slot).enqueue(call)

    def _pipeline_of(self, slot: int) -> _Pipeline:
        server = self._topology.owner(slot)
        pipeline = self._pipelines.get(server)
        if pipeline is None:
            pipeline = self._pipelines[server] = _Pipeline(self, server)
            if self._spawn is not None:
                self._spawn(pipeline.run())
        if len(self._pipelines) > 1:
            for gone in self._pipelines.keys() - set(self._topology.slot_map.servers) - {server}:
                self._pipelines.pop(gone).finish()
        return pipeline

    def _wait_for_move(self, slot: int, calls: Sequence[_Call]) -> None:
        """Send these calls again after a moment: Redis rejected them because their slot is being moved."""
        if slot not in self._waiting:
            self._waiting[slot] = deque()
            asyncio.get_running_loop().call_later(random.uniform(0, MOVE_SECONDS), self._resume, slot)
        self._waiting[slot].extend(calls)

    def _resume(self, slot: int) -> None:
        for call in self._waiting.pop(slot):
            if call.done.done():
                continue
            try:
                self._pipeline_of(slot).enqueue(call)
            except Unavailable as error:
                call.done.set_exception(error)

    # ---- sending a batch

    async def execute(self, pipeline: _Pipeline, batch: Sequence[_Call]) -> None:
        """Send `batch` to the server of `pipeline`, and settle its calls."""
        loop, server = asyncio.get_running_loop(), pipeline.server
        started = loop.time()
        groups = _by_slot(batch) if self._topology.slot_map.sharded else [[call] for call in batch]
        try:
            answers, lack = await self._transact(pipeline, groups)
        except Unavailable as error:
            self._topology.mark_stale()
            for call in batch:
                _fail(call, type(error)(str(error)))
            return
        self._metrics.round_trip.observe(loop.time() - started)
        for calls, answer in zip(groups, answers, strict=True):
            if isinstance(answer, MovedError):
                self._topology.slot_map.move(answer.slot_id, resolve_server(answer.host, answer.port, server))
            if isinstance(answer, AskError | TryAgainError):  # MovedError is an AskError
                self._wait_for_move(calls[0].slot, [*calls, *pipeline.take_slot(calls[0].slot)])
            else:
                self._settle(calls, answer, lack)

    def _settle(self, calls: Sequence[_Call], answers: list[Any] | Exception, lack: str | None) -> None:
        if isinstance(answers, Exception):
            self._topology.mark_stale()
            for call in calls:
                _fail(call, to_unavailable(answers))
            return
        at = 0
        for call in calls:
            own, at = answers[at : at + len(call.commands)], at + len(call.commands)
            # A rejected command of one caller does not affect the others.
            refused = _first_error(own)
            if refused is not None:
                _fail(call, to_unavailable(refused))
            elif lack is not None:
                _fail(call, Unconfirmed(f"published, but {lack}"))
            elif not call.done.done():
                call.done.set_result(own)

    async def _transact(
        self, pipeline: _Pipeline, groups: Sequence[Sequence[_Call]], *, whole: bool = False
    ) -> tuple[list[list[Any] | Exception], str | None]:
        """The answers to each of `groups`, or the error that rejected it; and why durability is not confirmed, or None.

        WAIT is sent after the transactions, because it would not block inside one. It covers everything that this
        connection has written. A batch without a transaction names scripts by digest, unless `whole`. Where Redis does
        not know a script, its commands are sent again in full, so they are done after the others, in their order.
        """
        server = pipeline.server
        client = self._topology.client(server)
        whole = whole or any(len(group) > 1 or len(group[0].commands) > 1 for group in groups)
        sent: list[RedisCommand] = []
        sizes = []
        for group in groups:
            commands = [command for call in group for command in call.commands]
            sizes.append(len(commands))
            if len(commands) > 1:
                sent += [("MULTI",), *_brief_repeats(commands), ("EXEC",)]
            else:
                sent.append(commands[0] if whole else _brief(commands[0]))
        # Sent last, so that it proves the role for all commands before it
        if asks_role := self._topology.role_is_due():
            sent.append(("ROLE",))
        waiting = self._durability.command()
        if waiting is not None:
            sent.append(waiting)
        try:
            async with asyncio.timeout(self._timeout):
                answers = await pipeline.exchange.send(client, sent)
        except REDIS_ERRORS as error:
            raise to_unavailable(error) from error
        lack = self._durability.missing(answers.pop()) if waiting is not None else None
        if asks_role and self._topology.is_replica(answers.pop()):
            wrong = refusal_for("READONLY")
            await self._topology.drop_connections(server, client, str(wrong))
            raise wrong
        taken = iter(answers)
        found = [_group(taken, size) for size in sizes]
        missing = [at for at, one in enumerate(found) if isinstance(one, list) and isinstance(one[0], NoScriptError)]
        if missing:
            again, lacks = await self._transact(pipeline, [groups[at] for at in missing], whole=True)
            lack = lack or lacks
            for at, answer in zip(missing, again, strict=True):
                found[at] = answer
        each = itertools.chain.from_iterable(one if isinstance(one, list) else [one] for one in found)
        await self._topology.check_role(server, client, each)
        return found, lack


class _Pipeline:
    """The queue of one server. It sends one batch at a time, so that the order of the queue is kept."""

    def __init__(self, pipelines: Pipelines, server: str) -> None:
        self._pipelines = pipelines
        self.server = server
        self.exchange = Exchange()
        self._queue: deque[_Call] = deque()
        self._commands = 0  # of the calls in the queue and in the batch that is being sent
        self._bytes = 0
        self._wake = asyncio.Event()
        self._ended = False

    def enqueue(self, call: _Call) -> None:
        """Queue a call.

        Raises:
            Unavailable: The queue is full.
        """
        commands = len(call.commands)
        if self._commands + commands > QUEUE_COMMANDS or self._bytes + call.size > QUEUE_BYTES:
            raise Unavailable("too many publishes are waiting for Redis: retry later")
        self._commands += commands
        self._bytes += call.size
        self._queue.append(call)
        self._wake.set()

    def take_slot(self, slot: int) -> list[_Call]:
        """Remove and return the queued calls of a slot."""
        taken = [call for call in self._queue if call.slot == slot]
        if taken:
            self._queue = deque(call for call in self._queue if call.slot != slot)
            self._forget(taken)
        return taken

    def _forget(self, calls: Sequence[_Call]) -> None:
        for call in calls:
            self._commands -= len(call.commands)
            self._bytes -= call.size

    def finish(self) -> None:
        """Send the queued calls, then end: the server has no slots any more."""
        self._ended = True
        self._wake.set()

    async def run(self) -> None:
        """Send queued calls in batches until cancelled or `finish`."""
        while not self._ended or self._queue:
            await self._wake.wait()
            taken: list[_Call] = []
            commands = 0
            while self._queue and (not taken or commands + len(self._queue[0].commands) <= BATCH_COMMANDS):
                taken.append(self._queue.popleft())
                commands += len(taken[-1].commands)
            if not self._queue and not self._ended:
                self._wake.clear()
            batch = [call for call in taken if not call.done.done()]  # the callers that are still waiting
            if batch:
                await self._pipelines.execute(self, batch)
            self._forget(taken)


def _by_slot(batch: Sequence[_Call]) -> list[list[_Call]]:
    groups: dict[int, list[_Call]] = {}
    for call in batch:
        groups.setdefault(call.slot, []).append(call)
    return list(groups.values())


def _brief(command: RedisCommand) -> RedisCommand:
    """`command`, with its script by digest: Redis need not read the source, nor hash it."""
    return ("EVALSHA", _digest(command[1]), *command[2:]) if command[0] == "EVAL" else command


def _brief_repeats(commands: Iterable[RedisCommand]) -> Iterator[RedisCommand]:
    """The commands of a transaction, each script in full once: after that, Redis knows it for the rest."""
    known: set[str] = set()
    for command in commands:
        if command[0] == "EVAL" and command[1] in known:
            yield _brief(command)
        else:
            known.add(command[1])
            yield command


@lru_cache
def _digest(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def _group(answers: Any, size: int) -> list[Any] | Exception:
    """The answers to the next `size` commands, or the error that rejected all of them."""
    if size == 1:
        answer = next(answers)
        return answer if isinstance(answer, AskError | TryAgainError) else [answer]
    queued = [next(answers) for _ in range(size + 1)]
    done = next(answers)
    if isinstance(done, Exception):  # the rejected command has the reason
        return _first_error(queued) or done
    found: list[Any] = done
    return found


def _size(commands: Iterable[RedisCommand]) -> int:
    """The size of `commands` in bytes, without their texts and numbers, which are small."""
    size = 0
    for command in commands:
        for part in command:
            if type(part) is bytes:
                size += len(part)
    return size


def _first_error(answers: Sequence[Any]) -> Exception | None:
    for answer in answers:
        if isinstance(answer, Exception):
            return answer
    return None


def _fail(call: _Call, error: Unavailable) -> None:
    if not call.done.done():
        call.done.set_exception(error)
