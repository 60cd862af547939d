"""Limits of connections per user and per address, over all nodes.

A node counts its own connections in memory and writes the counts to its own hash, which has the TTL of a lease: if the
node dies, its counts expire and no cleanup is needed. One Lua step adds up the counts of the living nodes and admits a
new connection, so two nodes never give away the last place twice. New connections that arrive during a step share the
next one; under heavy load that is one round trip for hundreds.

Local memory is the truth here too. If Redis is unreachable, the node checks only its own connections and may admit more
than the cluster would; it does not close them afterwards. It writes the counts when Redis is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.keys import Keys
from gateway.logging import logger

ConnectionLimit = Literal["user_connections", "address_connections"]

STEPS_PER_LEASE: Final = 2  # at least; a failed step is retried every second
# Pause after a step, for each connection in it; connections that arrive meanwhile share the next step. Under heavy load
# (from 200 a second on) the groups are larger, and Redis runs seven steps a second.
STEP_SECONDS: Final = 0.005
STORM_SECONDS: Final = 0.15
RETRY_SECONDS: Final = 1.0
STEP_ROWS: Final = 500  # counts or new connections in one step, to keep it short; no pause follows a full step
MAX_CALLS: Final = 5  # calls of the script in one step, repeated while it answers that other nodes exist
Answer = asyncio.Future[ConnectionLimit | None]  # the limit that rejects a connection, or None
_Names = tuple[str, str]  # names of the counts of a user and an address; "" if not counted
# Answers of the script after which nothing was done.
_LEASE_LOST, _UNKNOWN_NODES = 1, 2


@dataclass(frozen=True, slots=True)
class _NewConnection:
    names: _Names
    answer: Answer


class ConnectionLimits:
    """Admits connections of this node within the limits. A limit of 0 means no limit."""

    def __init__(
        self, redis: RedisClient, keys: Keys, node_id: str, *, lease_seconds: float, user_limit: int, address_limit: int
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._node_id = node_id
        self._lease_seconds = lease_seconds
        self._user_limit = user_limit
        self._address_limit = address_limit
        self._script = redis.script("count_connections")
        self._held: dict[str, int] = {}
        self._changed: set[str] = set()  # names whose new count is not in Redis yet
        self._everything = True
        self._others: list[str] = []  # ids of the other nodes
        self._queue: list[_NewConnection] = []
        self._redis_away = False  # Redis is unreachable
        self._wake = asyncio.Event()
        self._log = logger()

    def request_slot(self, user: str | None, address: str | None) -> Answer | None:
        """Count one more connection, without a user or address of None; the future has the limit that rejects it.

        None: it is admitted, for no limit applies to it. A caller that no longer needs the answer cancels the future,
        or releases the connection if it was admitted.
        """
        names = self._names_of(user, address)
        if not any(names):
            return None
        answer: Answer = asyncio.get_running_loop().create_future()
        if self._redis_away:
            answer.set_result(self._acquire_here(names))
        else:
            self._queue.append(_NewConnection(names, answer))
            self._wake.set()
        return answer

    async def acquire(self, user: str | None, address: str | None) -> ConnectionLimit | None:
        """Count one more connection, without a user or address of None. Returns the limit that rejects it, or None."""
        answer = self.request_slot(user, address)
        if answer is None:
            return None
        try:
            return await answer
        except asyncio.CancelledError:
            # It was admitted and cancelled in the same turn.
            if answer.done() and not answer.cancelled() and answer.result() is None:
                self.release(user, address)
            raise

    def release(self, user: str | None, address: str | None) -> None:
        """Uncount a connection that `acquire` counted."""
        self._count(self._names_of(user, address), -1)

    def rewrite(self) -> None:
        """Run a step now: Redis may have lost the counts."""
        self._wake.set()

    async def run(self) -> None:
        """Run steps until cancelled."""
        if not self._user_limit and not self._address_limit:
            return
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease_seconds / STEPS_PER_LEASE):
                    await self._wake.wait()
            self._wake.clear()
            connections, self._queue = self._queue[:STEP_ROWS], self._queue[STEP_ROWS:]
            if self._queue:
                self._wake.set()
            try:
                await self._step(connections)
                self._redis_away = False
                if len(self._queue) < STEP_ROWS:
                    await asyncio.sleep(min(STORM_SECONDS, STEP_SECONDS * max(1, len(connections))))
            except Unavailable as error:
                if not self._redis_away:
                    self._log.warning("connection limits checked by this node alone", reason=str(error))
                self._redis_away = True
                waiting, self._queue = connections + self._queue, []
                for connection in waiting:
                    if not connection.answer.done():
                        connection.answer.set_result(self._acquire_here(connection.names))
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()  # retry also if no connection came or went

    async def release_all(self) -> None:
        """Delete this node's counts.

        Raises:
            Unavailable: Redis is unreachable; the counts expire.
        """
        await self._redis.execute_all(
            [
                ("UNLINK", self._keys.node_connections(self._node_id)),
                ("ZREM", self._keys.connection_nodes, self._node_id),
            ]
        )

    # ---- one step

    async def _step(self, connections: Sequence[_NewConnection]) -> None:
        whole, changed = self._everything, set(self._held) if self._everything else self._changed
        self._everything, self._changed = False, set()
        try:
            answers = await self._write(changed, connections, whole)
        except BaseException:
            # The outcome is unknown: the next step writes the counts of all these again.
            self._everything |= whole
            self._changed |= changed.union(*(filter(None, connection.names) for connection in connections))
            raise
        for connection, answer in zip(connections, answers, strict=True):
            if connection.answer.done():  # the caller is gone: correct the count that the script added
                self._changed.update(filter(None, connection.names))
                self._wake.set()
            elif answer == 0:
                self._count(connection.names, 1, written=True)
                connection.answer.set_result(None)
            else:
                connection.answer.set_result("user_connections" if answer == 1 else "address_connections")

    async def _write(self, changed: Iterable[str], connections: Sequence[_NewConnection], whole: bool) -> list[int]:
        """Write the counts of `changed`; return the script's answers to `connections`."""
        rows = list(changed)
        while len(rows) > STEP_ROWS:
            part, rows = rows[:STEP_ROWS], rows[STEP_ROWS:]
            whole = await self._call(part, (), whole) is None
            if whole:
                rows = list(self._held)
        answers = await self._call(rows, connections, whole)
        return answers if answers is not None else await self._write(list(self._held), connections, True)

    async def _call(self, rows: Sequence[str], connections: Sequence[_NewConnection], whole: bool) -> list[int] | None:
        """Call the script until all living nodes are known; None if the counts had expired."""
        for _ in range(MAX_CALLS):
            keys = [self._keys.connection_nodes, *map(self._keys.node_connections, (self._node_id, *self._others))]
            arguments: list[Any] = [
                self._node_id, int(self._lease_seconds * 1000), int(whole), self._user_limit, self._address_limit,
                len(self._others), len(rows), *self._others,
            ]  # fmt: skip
            for name in rows:
                arguments += (name, self._held.get(name, 0))
            for connection in connections:
                arguments += connection.names
            verdict, *answers = await self._redis.execute(*self._script(keys, arguments))
            if verdict == _UNKNOWN_NODES:
                self._others = sorted({node_id.decode("ascii") for node_id in answers} - {self._node_id})
            else:
                return None if verdict == _LEASE_LOST else answers
        raise Unavailable(f"the set of nodes changed during each of {MAX_CALLS} attempts to count connections")

    # ---- memory

    def _names_of(self, user: str | None, address: str | None) -> _Names:
        return (
            f"user:{user}" if user is not None and self._user_limit else "",
            f"address:{address}" if address is not None and self._address_limit else "",
        )

    def _acquire_here(self, names: _Names) -> ConnectionLimit | None:
        user, address = names
        if user and self._held.get(user, 0) >= self._user_limit:
            return "user_connections"
        if address and self._held.get(address, 0) >= self._address_limit:
            return "address_connections"
        self._count(names, 1)
        return None

    def _count(self, names: _Names, change: int, *, written: bool = False) -> None:
        for name in filter(None, names):
            held = self._held.get(name, 0) + change
            if held:
                self._held[name] = held
            else:
                del self._held[name]
            if not written:
                self._changed.add(name)
                self._wake.set()
