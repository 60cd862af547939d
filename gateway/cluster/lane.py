"""Publishers: queues of commands, each with one who sends them, a batch at a time.

On a Redis Cluster there is a lane for each server: one that is slow or dead holds up nobody else. A command whose slot
is just being moved waits for that (`_wait`): it is not done where nobody would hear what it publishes.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import AskError, MovedError, TryAgainError

from gateway.cluster.answers import (
    REDIS_ERRORS,
    Command,
    Unavailable,
    Unconfirmed,
    exchange,
    failure,
    fault,
)
from gateway.cluster.servers import Servers
from gateway.cluster.shards import named
from gateway.metrics import Metrics

# A batch is one MULTI a slot; past this size a larger one saves nothing and holds Redis longer.
BATCH_COMMANDS: Final = 512
# What may wait for Redis before publishers are turned away.
QUEUE_COMMANDS: Final = 10_000
QUEUE_BYTES: Final = 64 << 20
# Before a command is sent again whose slot is being moved: at most.
MOVE_SECONDS: Final = 0.05

Spawn = Callable[[Coroutine[Any, Any, None]], object]


@dataclass(frozen=True, slots=True)
class Durability:
    """What must confirm a durable publish, and how long that may take.

    `replicas`: that many must have it; 0: Redis alone is enough. `fsync`: Redis must have written it to its disk, and
    each of those replicas to its own.
    """

    replicas: int = 0
    seconds: float = 1.0
    fsync: bool = False

    def command(self) -> Command | None:
        """The command that waits for it on the connection of the publish; None: there is nothing to wait for."""
        ms = int(self.seconds * 1000)
        if self.fsync:
            return "WAITAOF", 1, self.replicas, ms
        return ("WAIT", self.replicas, ms) if self.replicas else None

    def lack(self, answer: Any) -> str | None:
        """What the answer to `command` lacks; None: it confirms."""
        if isinstance(answer, Exception):
            needs = "; GATEWAY_WAIT_FSYNC needs Redis 7.2 or newer with appendonly yes" if self.fsync else ""
            return f"Redis could not confirm: {failure(answer)}{needs}"
        local, replicas = (int(answer[0]), int(answer[1])) if self.fsync else (1, int(answer))
        if not local:
            return f"not on Redis' disk within {self.seconds:g} s"
        if replicas < self.replicas:
            return f"confirmed by {replicas} of {self.replicas} replicas"
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """Commands of one slot that are done together, or not at all."""

    slot: int
    commands: Sequence[Command]
    done: asyncio.Future[list[Any]]


class Lanes:
    """All lanes of one kind. They stand still until they are run."""

    def __init__(self, servers: Servers, timeout_seconds: float, metrics: Metrics, durability: Durability) -> None:
        self._servers = servers
        self._timeout = timeout_seconds
        self._metrics = metrics
        self._durability = durability
        self._lanes: dict[str, _Lane] = {}
        self._waiting: dict[int, deque[_Call]] = {}  # by slot: those that wait until it was moved, in order
        self._spawn: Spawn | None = None

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """As `Link.send`."""
        shards, loop = self._servers.shards, asyncio.get_running_loop()
        slots = [shards.slot(command) for command in commands]
        calls: dict[int, _Call] = {}
        for slot in slots:
            if slot not in calls:
                own = [command for command, its in zip(commands, slots, strict=True) if its == slot]
                calls[slot] = _Call(slot, own, loop.create_future())
        try:
            # Each batch has a deadline of its own; this one bounds the wait in the queue too.
            async with asyncio.timeout(2 * self._timeout):
                await self._servers.learn()
                for call in calls.values():
                    self._enqueue(call)
                if len(calls) > 1:
                    await asyncio.wait([call.done for call in calls.values()])
                answers = {slot: iter(await call.done) for slot, call in calls.items()}
        except TimeoutError:
            raise Unavailable("Redis did not take the message in time") from None
        finally:
            for call in calls.values():  # whoever has one still need not do it
                if not call.done.cancel() and not call.done.cancelled():
                    call.done.exception()  # that of the first is raised, and no other must be
        return [next(answers[slot]) for slot in slots]

    def start(self, spawn: Spawn) -> None:
        """Have all lanes run, each by `spawn`."""
        self._spawn = spawn
        for lane in self._lanes.values():
            spawn(lane.run())

    def _enqueue(self, call: _Call) -> None:
        waiting = self._waiting.get(call.slot)
        if waiting is not None:  # not past those that came before it
            waiting.append(call)
        else:
            self._lane_of(call.slot).add(call)

    def _lane_of(self, slot: int) -> _Lane:
        server = self._servers.owner(slot)
        lane = self._lanes.get(server)
        if lane is None:
            lane = self._lanes[server] = _Lane(self, server)
            if self._spawn is not None:
                self._spawn(lane.run())
        for gone in self._lanes.keys() - set(self._servers.shards.servers) - {server}:
            self._lanes.pop(gone).end()
        return lane

    def _wait(self, slot: int, calls: Sequence[_Call]) -> None:
        """These were not done, since their slot is being moved. They are sent again in a moment."""
        if slot not in self._waiting:
            self._waiting[slot] = deque()
            asyncio.get_running_loop().call_later(random.uniform(0, MOVE_SECONDS), self._go_on, slot)
        self._waiting[slot].extend(calls)

    def _go_on(self, slot: int) -> None:
        for call in self._waiting.pop(slot):
            if call.done.done():
                continue
            try:
                self._lane_of(slot).add(call)
            except Unavailable as error:
                call.done.set_exception(error)

    # ---- what a lane does

    async def execute(self, lane: _Lane, batch: Sequence[_Call]) -> None:
        """Have the lane's server do `batch`."""
        loop, server = asyncio.get_running_loop(), lane.server
        started = loop.time()
        groups: dict[int, list[_Call]] = {}
        for call in batch:
            groups.setdefault(call.slot, []).append(call)
        try:
            answers, lack = await self._transact(server, list(groups.values()))
        except Unavailable as error:
            self._servers.mark_stale()
            for call in batch:
                _fail(call, type(error)(str(error)))
            return
        self._metrics.round_trip.observe(loop.time() - started)
        for calls, answer in zip(groups.values(), answers, strict=True):
            if isinstance(answer, MovedError):
                self._servers.shards.move(answer.slot_id, named(answer.host, answer.port, server))
            if isinstance(answer, AskError | TryAgainError):  # or moved, which is a kind of the first
                self._wait(calls[0].slot, [*calls, *lane.take(calls[0].slot)])
            else:
                self._settle(calls, answer, lack)

    def _settle(self, calls: Sequence[_Call], answers: list[Any] | Exception, lack: str | None) -> None:
        if isinstance(answers, Exception):
            self._servers.mark_stale()
            for call in calls:
                _fail(call, failure(answers))
            return
        at = 0
        for call in calls:
            own, at = answers[at : at + len(call.commands)], at + len(call.commands)
            # One caller's refused command is not the others' failure.
            refused = next((answer for answer in own if isinstance(answer, Exception)), None)
            if refused is not None:
                _fail(call, failure(refused))
            elif lack is not None:
                _fail(call, Unconfirmed(f"published, but {lack}"))
            elif not call.done.done():
                call.done.set_result(own)

    async def _transact(
        self, server: str, groups: Sequence[Sequence[_Call]]
    ) -> tuple[list[list[Any] | Exception], str | None]:
        """The answers to each of `groups`, or why nothing of it was done; and what their durability lacks.

        WAIT is no part of the transactions (it would not block in one), but of the connection: replicas, and the disk,
        confirm what this connection has written.
        """
        client = self._servers.at(server)
        sent: list[Command] = []
        sizes = []
        for group in groups:
            commands = [command for call in group for command in call.commands]
            sizes.append(len(commands))
            sent += [("MULTI",), *commands, ("EXEC",)] if len(commands) > 1 else commands
        if asks_role := self._servers.role_is_due():  # behind the commands: the server was the master for all of them
            sent.append(("ROLE",))
        waiting = self._durability.command()
        if waiting is not None:
            sent.append(waiting)
        try:
            async with asyncio.timeout(self._timeout):
                answers = await exchange(client, sent)
        except REDIS_ERRORS as error:
            raise failure(error) from error
        lack = self._durability.lack(answers.pop()) if waiting is not None else None
        if asks_role and self._servers.is_replica(answers.pop()):
            wrong = fault("READONLY")
            await self._servers.leave(server, client, str(wrong))
            raise wrong
        taken = iter(answers)
        found = [_group(taken, size) for size in sizes]
        each = itertools.chain.from_iterable(one if isinstance(one, list) else [one] for one in found)
        await self._servers.judge(server, client, each)
        return found, lack


class _Lane:
    """A queue, and who sends what is in it to one server: one batch at a time, so that their order is the queue's."""

    def __init__(self, lanes: Lanes, server: str) -> None:
        self._lanes = lanes
        self.server = server
        self._queue: deque[_Call] = deque()
        self._commands = 0
        self._bytes = 0
        self._wake = asyncio.Event()
        self._ended = False

    def add(self, call: _Call) -> None:
        """Queue a call.

        Raises:
            Unavailable: Too much is waiting.
        """
        commands, size = _size(call)
        if self._commands + commands > QUEUE_COMMANDS or self._bytes + size > QUEUE_BYTES:
            raise Unavailable("too many publishes are waiting for Redis")
        self._commands += commands
        self._bytes += size
        call.done.add_done_callback(lambda _: self._forget(commands, size))
        self._queue.append(call)
        self._wake.set()

    def take(self, slot: int) -> list[_Call]:
        """What is queued of a slot, to be sent otherwise."""
        taken = [call for call in self._queue if call.slot == slot]
        if taken:
            self._queue = deque(call for call in self._queue if call.slot != slot)
        return taken

    def _forget(self, commands: int, size: int) -> None:
        self._commands -= commands
        self._bytes -= size

    def end(self) -> None:
        """Send what is queued, then end: the server has no slots any more."""
        self._ended = True
        self._wake.set()

    async def run(self) -> None:
        """Take what waits, send it, for ever."""
        while not self._ended or self._queue:
            await self._wake.wait()
            batch: list[_Call] = []
            taken = 0
            while self._queue and (not batch or taken + len(self._queue[0].commands) <= BATCH_COMMANDS):
                call = self._queue.popleft()
                if not call.done.done():  # its caller has not given up
                    batch.append(call)
                    taken += len(call.commands)
            if not self._queue and not self._ended:
                self._wake.clear()
            if batch:
                await self._lanes.execute(self, batch)


def _group(answers: Any, size: int) -> list[Any] | Exception:
    """What `answers` say of the next `size` commands: theirs, or why none of them was done."""
    if size == 1:
        answer = next(answers)
        return answer if isinstance(answer, AskError | TryAgainError) else [answer]
    queued = [next(answers) for _ in range(size + 1)]
    done = next(answers)
    if isinstance(done, Exception):  # why, the refused command says
        return next((answer for answer in queued if isinstance(answer, Exception)), done)
    found: list[Any] = done
    return found


def _size(call: _Call) -> tuple[int, int]:
    """Commands of `call`, and their bytes."""
    size = sum(len(part) for command in call.commands for part in command if isinstance(part, bytes))
    return len(call.commands), size


def _fail(call: _Call, error: Unavailable) -> None:
    if not call.done.done():
        call.done.set_exception(error)
