"""How many connections a user and an address have, on all nodes together.

A node counts its own connections in memory and writes the counts to a hash of its own, which lives as long as its
lease: if the node dies, its slots are free when the hash expires, and nobody has to clean up. A newcomer is let in by
one Lua step that adds up the living nodes' counts and takes the slot, so that two nodes never give the last one twice.
Newcomers that come while a step is under way share the next one; in a storm that is one round trip for hundreds.

Local memory is the truth here too. If Redis is away a node judges by its own connections alone, and lets in what
the cluster might have refused; nobody is thrown out afterwards. The counts are written when Redis is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.cluster.keys import Keys
from gateway.cluster.link import Link, Unavailable
from gateway.logs import logger

Limit = Literal["user_connections", "address_connections"]

STEPS_PER_LEASE: Final = 2  # at least; a failed one is tried again every second
# Between two steps, for each newcomer of the last: who comes meanwhile shares the next. A storm (from 200 a second on)
# waits longer and in larger groups, and costs Redis seven steps a second.
STEP_SECONDS: Final = 0.005
STORM_SECONDS: Final = 0.15
RETRY_SECONDS: Final = 1.0
STEP_ROWS: Final = 500  # counts or newcomers in one step: Redis' patience is finite. A full step waits for nobody.
MAX_CALLS: Final = 5  # of the script in one step, while it answers that there are other nodes
_Whos = tuple[str, str]  # a user and an address as they are counted; "" if not
# Answers of the script that nothing was done upon.
_LEASE_GONE, _UNKNOWN_NODES = 1, 2


@dataclass(frozen=True, slots=True)
class _Newcomer:
    whos: _Whos
    answer: asyncio.Future[Limit | None]


class Slots:
    """This node's connections by user and address, and room for more. A limit of 0 is none."""

    def __init__(
        self, link: Link, keys: Keys, node_id: str, *, lease_seconds: float, user_limit: int, address_limit: int
    ) -> None:
        self._link = link
        self._keys = keys
        self._node_id = node_id
        self._lease_seconds = lease_seconds
        self._user_limit = user_limit
        self._address_limit = address_limit
        self._script = link.script("slots")
        self._held: dict[str, int] = {}
        self._changed: set[str] = set()  # whose count Redis does not know
        self._everything = True
        self._others: list[str] = []  # nodes
        self._newcomers: list[_Newcomer] = []
        self._alone = False  # Redis is away
        self._wake = asyncio.Event()
        self._log = logger()

    async def take(self, user: str | None, address: str | None) -> Limit | None:
        """Take a slot for one connection more; None of either is not counted. The limit that has no room for it."""
        whos = self._whos(user, address)
        if not any(whos):
            return None
        if self._alone:
            return self._take_here(whos)
        newcomer = _Newcomer(whos, asyncio.get_running_loop().create_future())
        self._newcomers.append(newcomer)
        self._wake.set()
        try:
            return await newcomer.answer
        except asyncio.CancelledError:
            # It was let in, and is gone in the same turn.
            if newcomer.answer.done() and not newcomer.answer.cancelled() and newcomer.answer.result() is None:
                self._count(whos, -1)
            raise

    def release(self, user: str | None, address: str | None) -> None:
        """Give back what `take` took."""
        self._count(self._whos(user, address), -1)

    def rewrite(self) -> None:
        """Take a step now: Redis may have lost the counts."""
        self._wake.set()

    async def run(self) -> None:
        """Take steps, for ever."""
        if not self._user_limit and not self._address_limit:
            return
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease_seconds / STEPS_PER_LEASE):
                    await self._wake.wait()
            self._wake.clear()
            newcomers, self._newcomers = self._newcomers[:STEP_ROWS], self._newcomers[STEP_ROWS:]
            if self._newcomers:
                self._wake.set()
            try:
                await self._step(newcomers)
                self._alone = False
                if len(self._newcomers) < STEP_ROWS:
                    await asyncio.sleep(min(STORM_SECONDS, STEP_SECONDS * max(1, len(newcomers))))
            except Unavailable as error:
                if not self._alone:
                    self._log.warning("slots are counted by this node alone", reason=str(error))
                self._alone = True
                waiting, self._newcomers = newcomers + self._newcomers, []
                for newcomer in waiting:
                    if not newcomer.answer.done():
                        newcomer.answer.set_result(self._take_here(newcomer.whos))
                await asyncio.sleep(RETRY_SECONDS)

    async def leave(self) -> None:
        """Give back all slots.

        Raises:
            Unavailable: Redis is away; they are free when the lease ends.
        """
        await self._link.ask_all(
            [("UNLINK", self._keys.node_slots(self._node_id)), ("ZREM", self._keys.slots, self._node_id)]
        )

    # ---- one step

    async def _step(self, newcomers: Sequence[_Newcomer]) -> None:
        whole, changed = self._everything, set(self._held) if self._everything else self._changed
        self._everything, self._changed = False, set()
        try:
            answers = await self._write(changed, newcomers, whole)
        except BaseException:
            # What of it was done is not known: all of it is written again, as it is then.
            self._everything |= whole
            self._changed |= changed.union(*(filter(None, newcomer.whos) for newcomer in newcomers))
            raise
        for newcomer, answer in zip(newcomers, answers, strict=True):
            if newcomer.answer.done():  # it is gone; a slot was taken in vain
                self._changed.update(filter(None, newcomer.whos))
                self._wake.set()
            elif answer == 0:
                self._count(newcomer.whos, 1, written=True)
                newcomer.answer.set_result(None)
            else:
                newcomer.answer.set_result("user_connections" if answer == 1 else "address_connections")

    async def _write(self, changed: Iterable[str], newcomers: Sequence[_Newcomer], whole: bool) -> list[int]:
        """Write the counts of `changed`; what the script answers to `newcomers`."""
        rows = list(changed)
        while len(rows) > STEP_ROWS:
            part, rows = rows[:STEP_ROWS], rows[STEP_ROWS:]
            whole = await self._call(part, (), whole) is None
            if whole:
                rows = list(self._held)
        answers = await self._call(rows, newcomers, whole)
        return answers if answers is not None else await self._write(list(self._held), newcomers, True)

    async def _call(self, rows: Sequence[str], newcomers: Sequence[_Newcomer], whole: bool) -> list[int] | None:
        """One call of the script, knowing all living nodes; None if the lease was gone."""
        for _ in range(MAX_CALLS):
            keys = [self._keys.slots, *map(self._keys.node_slots, (self._node_id, *self._others))]
            arguments: list[Any] = [
                self._node_id, int(self._lease_seconds * 1000), int(whole), self._user_limit, self._address_limit,
                len(self._others), len(rows), *self._others,
            ]  # fmt: skip
            for who in rows:
                arguments += (who, self._held.get(who, 0))
            for newcomer in newcomers:
                arguments += newcomer.whos
            verdict, *answers = await self._link.ask(*self._script(keys, arguments))
            if verdict == _UNKNOWN_NODES:
                self._others = sorted({node_id.decode("ascii") for node_id in answers} - {self._node_id})
            else:
                return None if verdict == _LEASE_GONE else answers
        raise Unavailable("nodes come and go too quickly to count their connections")

    # ---- memory

    def _whos(self, user: str | None, address: str | None) -> _Whos:
        return (
            f"user:{user}" if user is not None and self._user_limit else "",
            f"address:{address}" if address is not None and self._address_limit else "",
        )

    def _take_here(self, whos: _Whos) -> Limit | None:
        user, address = whos
        if user and self._held.get(user, 0) >= self._user_limit:
            return "user_connections"
        if address and self._held.get(address, 0) >= self._address_limit:
            return "address_connections"
        self._count(whos, 1)
        return None

    def _count(self, whos: _Whos, change: int, *, written: bool = False) -> None:
        for who in filter(None, whos):
            held = self._held.get(who, 0) + change
            if held:
                self._held[who] = held
            else:
                del self._held[who]
            if not written:
                self._changed.add(who)
                self._wake.set()
