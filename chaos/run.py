"""Runs one fault after another during a stream of numbered messages, and checks the ledgers after each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import reduce
from operator import add

import httpx
from redis.exceptions import RedisError

from chaos.centrifugo_listener import CentrifugoListener
from chaos.faults import FAULTS, Fault, Outage
from chaos.ledger import Account
from chaos.listener import GatewayListener, Listener
from chaos.plan import Plan, keeps
from chaos.publisher import Publisher
from chaos.report import Failover, Phase
from chaos.stack import Stack

PHASE_SECONDS = 180.0  # for a fault and its consequences
SETTLE_SECONDS = 60.0  # until every client is connected, listed and has received everything
LONGEST_PHASE_SECONDS = PHASE_SECONDS + 4 * SETTLE_SECONDS
CALM_SECONDS = 1.0  # how long the cluster must list exactly the connected clients
POLL_SECONDS = 0.2
CONNECT_AT_ONCE = 20


async def run(plan: Plan, stack: Stack, show: Callable[[str], None]) -> list[Phase]:
    """Runs all phases of the plan; calls `show` with a line about each.

    Raises:
        TimeoutError: The run exceeds the sum of its parts' deadlines.
    """
    rng = random.Random(plan.seed)
    phases: list[Phase] = []
    allowed = SETTLE_SECONDS + 60 * plan.minutes + LONGEST_PHASE_SECONDS * (1 if plan.minutes else len(plan.faults))
    try:
        async with asyncio.timeout(allowed):
            await _run(plan, stack, show, rng, phases)
    except TimeoutError:
        raise TimeoutError(f"the run did not end within {allowed:g} s") from None
    return phases


async def _run(plan: Plan, stack: Stack, show: Callable[[str], None], rng: random.Random, phases: list[Phase]) -> None:
    async with (
        Publisher.running([balancer.api_url for balancer in stack.balancers], plan, rng) as publisher,
        _audience(plan, stack, publisher) as listeners,
    ):
        show(f"{len(listeners)} clients on {plan.nodes} nodes")
        publisher.go()
        for name in _faults(plan, rng):
            show(f"{FAULTS[name].about} …")
            conductor = _Conductor(plan, stack, publisher, listeners, rng)
            phases.append(await conductor.phase(FAULTS[name]))
            for sentence in phases[-1].broken():
                show(f"BROKEN {sentence}")


def _faults(plan: Plan, rng: random.Random) -> Sequence[str] | _Random:
    return plan.faults if not plan.minutes else _Random(plan, rng)


class _Random:
    """Random faults until the plan's time is over."""

    def __init__(self, plan: Plan, rng: random.Random) -> None:
        self._plan = plan
        self._rng = rng
        self._until = time.monotonic() + 60 * plan.minutes

    def __iter__(self) -> _Random:
        return self

    def __next__(self) -> str:
        if time.monotonic() > self._until:
            raise StopIteration
        return self._rng.choice(self._plan.faults)


@asynccontextmanager
async def _audience(plan: Plan, stack: Stack, publisher: Publisher) -> AsyncIterator[list[Listener]]:
    at_once = asyncio.Semaphore(CONNECT_AT_ONCE)
    async with AsyncExitStack() as exits:

        async def come(at: int) -> Listener:
            async with at_once:
                ways, source = stack.ways(at), stack.source(at)
                kind = CentrifugoListener if plan.client == "centrifugo" else GatewayListener
                listening = kind.listening(ways, source, publisher.topics, restless=at < restless)
                return await exits.enter_async_context(listening)

        restless = round(plan.clients * plan.restless)

        # One after the other: the task that enters a task group must leave it.
        yield [await come(at) for at in range(plan.clients)]


class _Conductor:
    """Runs one phase."""

    def __init__(
        self, plan: Plan, stack: Stack, publisher: Publisher, listeners: Sequence[Listener], rng: random.Random
    ) -> None:
        self._plan = plan
        self._stack = stack
        self._publisher = publisher
        self._listeners = listeners
        self._rng = rng
        self._wrong_at = 0.0  # loop time at which the cluster's list of clients was last wrong
        self._seen: dict[str, float] = {}  # client id -> loop time at which it was last connected
        self._late: list[tuple[float, float]] = []  # loop time, and this test's own delay
        self._ghost_seconds = 0.0  # the longest time that a disconnected client was listed

    async def phase(self, fault: Fault) -> Phase:
        """Runs the fault, waits until the cluster is calm, and checks the ledgers."""
        loop = asyncio.get_running_loop()
        publisher, wrong = self._publisher, []
        for listener in self._listeners:
            listener.reconnects.clear()
            listener.silences.clear()
        before = dict(publisher.published)
        at_masters, outages = await asyncio.to_thread(self._stack.publishes), None
        await asyncio.sleep(self._plan.calm_seconds)
        self._wrong_at = loop.time()
        churn = asyncio.create_task(self._churn())
        watches = [asyncio.create_task(self._watch()), asyncio.create_task(self._watch_ourselves())]
        try:
            try:
                async with asyncio.timeout(PHASE_SECONDS):
                    outages = await fault.act(self._stack, self._plan, self._rng)
                await asyncio.sleep(self._plan.calm_seconds)
                churn.cancel()
                async with asyncio.timeout(SETTLE_SECONDS):
                    await publisher.pause()
                    await self._until(lambda: all(listener.connected for listener in self._listeners))
                    await publisher.close_phase()
            except (TimeoutError, AssertionError) as error:
                wrong.append(str(error).partition("\n")[0] or "the cluster did not settle in time")
            except (httpx.HTTPError, RedisError) as error:  # a server that the fault used did not answer
                wrong.append(f"{type(error).__name__}: {error}")
            listed = await self._settled()
        finally:
            for task in (*watches, churn):
                task.cancel()
        wrong += [f"{node.name} exited by itself" for node in self._stack.nodes if not node.process.alive]
        phase = replace(
            self._close(fault, before, wrong, listed),
            failovers=[self._failover(outage) for outage in outages or ()],
            publishes=_grown(at_masters, await asyncio.to_thread(self._stack.publishes)),
        )
        publisher.go()
        return phase

    async def _settled(self) -> bool:
        """Waits until all clients have received everything and the cluster's list is right. False if it is not."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._until(lambda: loop.time() - self._wrong_at > CALM_SECONDS + 2 * POLL_SECONDS)
        except TimeoutError:
            return False
        finally:
            try:
                async with asyncio.timeout(SETTLE_SECONDS):
                    await self._until(self._all_had_all)
            except TimeoutError:
                pass  # the ledgers will show it
        return True

    def _failover(self, outage: Outage) -> Failover:
        began, ended = outage
        silences = [silence for one in self._listeners if not one.restless for silence in one.silences]
        resumed = max((end for begin, end in silences if begin < ended < end), default=ended)
        late = max((seconds for at, seconds in self._late if ended < at < resumed), default=0.0)
        return Failover(ended - began, resumed - ended, late)

    async def _watch_ourselves(self) -> None:
        """Records this test's own delays: a busy machine delays the test as a fault delays the cluster."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + POLL_SECONDS
            await asyncio.sleep(POLL_SECONDS)
            self._late.append((loop.time(), loop.time() - due))

    def _all_had_all(self) -> bool:
        return all(
            listener.ledgers[topic].last >= number
            for topic, number in self._publisher.published.items()
            for listener in self._listeners
        )

    @staticmethod
    async def _until(holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110  the condition has no event
            await asyncio.sleep(POLL_SECONDS / 4)

    async def _watch(self) -> None:
        """Compares the cluster's list of clients with the real one, continuously."""
        loop = asyncio.get_running_loop()
        quiet = {listener.source for listener in self._listeners if not listener.restless}
        while True:
            truth = self._connected()
            asked = loop.time()
            self._seen.update((one.client_id or "", asked) for one in self._listeners if one.connected)
            listed = await self._publisher.clients()
            if listed is None:
                # While Redis is down no row can be removed, so this time does not count.
                self._seen = dict.fromkeys(self._seen, loop.time())
            for client_id in listed or ():
                self._ghost_seconds = max(self._ghost_seconds, asked - self._seen.setdefault(client_id, asked))
            if listed is not None:
                listed = {client_id: source for client_id, source in listed.items() if source in quiet}
            if listed is None or listed != truth or truth != self._connected() or len(truth) < len(quiet):
                self._wrong_at = loop.time() if listed is None else asked
            await asyncio.sleep(POLL_SECONDS)

    def _connected(self) -> dict[str, str]:
        """Ids and addresses of the connected clients that do not cut their own connection."""
        quiet = [listener for listener in self._listeners if listener.connected and not listener.restless]
        return {listener.client_id or "": listener.source for listener in quiet}

    async def _churn(self) -> None:
        """Makes the restless clients reconnect, so that some client recovers at every moment of a fault."""
        restless = [listener for listener in self._listeners if listener.restless]
        while restless:
            await asyncio.sleep(self._plan.restless_seconds / len(restless))
            self._rng.choice(restless).cut()

    def _close(self, fault: Fault, before: dict[str, int], wrong: list[str], listed: bool) -> Phase:
        publisher = self._publisher
        accounts: dict[str, list[Account]] = {"h": [], "p": []}
        unnotified = 0
        for listener in self._listeners:
            notified = True
            for topic, ledger in listener.ledgers.items():
                account = ledger.close(publisher.published[topic], publisher.unsure[topic])
                accounts[topic[0]].append(account)
                notified &= account.notices > 0 or not keeps(topic)
            unnotified += fault.forgets and not notified
        for unsure in publisher.unsure.values():
            unsure.clear()
        return Phase(
            fault.about, fault.keeps_history or (self._plan.wait_replicas > 0 and not fault.forks),
            sum(number - before[topic] for topic, number in publisher.published.items()),
            reduce(add, accounts["h"], Account()), reduce(add, accounts["p"], Account()), unnotified,
            [seconds for one in self._listeners if not one.restless for seconds in one.reconnects],
            self._ghost_seconds, self._plan.ghost_seconds, listed, wrong,
        )  # fmt: skip


def _grown(before: dict[int, int], after: dict[int, int]) -> list[int]:
    """How much each counter has grown; empty if the servers changed, or a counter restarted."""
    if before.keys() != after.keys() or any(after[name] < count for name, count in before.items()):
        return []
    return [after[name] - count for name, count in before.items()]
