"""A cluster under virtual time: real nodes, a Redis that runs the real Lua, clients, and what can break.

`run` carries out the steps of a history, calms everything down, and checks all promises. The same seed and steps give
the same history.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final
from unittest import mock

import jwt

from gateway.broker import history
from gateway.broker.client import Unavailable
from gateway.core.publication import Publication
from gateway.node.node import Node
from tests.simulation.client import SimulatedClient
from tests.simulation.histories import CLIENTS, LOSSLESS, NODES, TOPICS, Step
from tests.simulation.members import OTHER_RULES, RULES, SECRET, Member
from tests.simulation.network import Network, SimulatedLoop
from tests.simulation.oracle import Broken, Feed, Watch
from tests.simulation.redis_client import quick_redis
from tests.simulation.redis_server import RedisServer

EPOCH: Final = 1_795_000_000.0  # seconds since 1970 at which a simulation begins
# Instead of a day: a history is long enough to see what happens when it ends. But nodes renew it every second when less
# than half is left, and it must not end while a client is away for a moment, even twice.
META_MS: Final = 8000
STARTED: Final = 2  # of the nodes; the others start in a step
SETTLE_SECONDS: Final = 16.0  # after the last fault all promises hold: leases end, retries succeed, gaps are repaired
LOOK_SECONDS: Final = 1.5  # between two looks whether they do


@cache
def _token(user: str) -> str:
    return jwt.encode({"sub": user, "role": "user", "exp": 4_000_000_000}, SECRET, "HS256")


class World:
    """The whole: `now` gives seconds since 1970."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        assert isinstance(self.loop, SimulatedLoop)
        self.slow = 1.0  # how much longer messages take than usual
        self.network = self.loop.network = Network(self.delay)
        self.members = [Member(self, index) for index in range(NODES)]
        self.redis = RedisServer(
            self.network, [member.address for member in self.members], lambda: int(self.now() * 1_000_000)
        )
        self.redis.published = self._published
        self.feeds = {
            topic: Feed(topic, numbered=topic[0] in "hsr", conflated=topic.startswith("conflated")) for topic in TOPICS
        }
        self.clients = [SimulatedClient(f"c{index}", self, stream=index % 3 == 2) for index in range(CLIENTS)]
        self.lossless = False  # in this history nothing can be lost
        self.trace: list[str] = []
        self._numbers = itertools.count(1)
        self._excluded: dict[int, str] = {}
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._faulty_until = 0.0  # loop time

    # ---- what nodes and clients ask

    def now(self) -> float:
        """Seconds since 1970."""
        return EPOCH + self.loop.time()

    def delay(self) -> float:
        """Seconds that a message takes."""
        return self.random.choice((0.0002, 0.001, 0.004)) * self.slow

    def watch(self, client: str, topic: str) -> Watch:
        """A new view of a topic."""
        return Watch(client, self.feeds[topic])

    def changed(self, client: SimulatedClient) -> None:
        """A client's connection was lost: it connects again."""
        if not client.gone:
            self._later(client.away + self.random.uniform(0.05, 0.5), partial(self._reconnect, client))
            client.away = 0.0

    def broken(self, promise: Broken) -> None:
        """A promise was broken."""
        self._failure = self._failure or promise

    def fail(self, node: Node | None) -> None:
        """A task of a node has died."""
        cause = node.lifecycle.failure if node is not None else None
        self._failure = self._failure or cause or Broken("a node ended")

    def _published(self, channel: bytes, payload: bytes) -> None:
        name = channel.decode().rpartition("topic:")[2].strip("}")
        found = re.search(rb'"n":(\d+)', payload)
        if found is not None and name in self.feeds:
            number = int(found[1])
            self.feeds[name].add(number, self._excluded.get(number), numbered=b'"offset":' in payload)

    def _reconnect(self, client: SimulatedClient) -> None:
        living = [member.node for member in self.members if member.node is not None]
        if client.connected or client.gone:
            return
        if living:
            client.connect(self.random.choice(living))
        else:
            self.changed(client)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()

    # ---- what happens

    async def step(self, step: Step) -> None:
        """Carry out one step."""
        await asyncio.sleep(step.seconds)
        self.trace.append(f"{self.loop.time():.3f} {step.verb} {step.arguments}")
        await getattr(self, f"do_{step.verb}")(*step.arguments)
        if self._failure is not None:
            raise self._failure

    def _later(self, seconds: float, end: Callable[[], object]) -> None:
        """Have a fault end."""
        self._faulty_until = max(self._faulty_until, self.loop.time() + seconds)
        self.loop.call_later(seconds, end)

    async def do_publish(self, topic: str, at: int, exclude: int | None = None) -> None:
        """A publisher asks a node to publish the next message."""
        member = self.members[at]
        if member.node is None:
            return
        number = next(self._numbers)
        skipped = self.clients[exclude].client_id if exclude is not None else None
        if skipped is not None:
            self._excluded[number] = skipped
        publication = Publication(topic, {"n": number}, except_client=skipped)

        async def publish(node: Node) -> None:
            with suppress(Unavailable):  # it may have been published or not: Redis knows
                await node.publisher.publish([publication])

        self._spawn(publish(member.node))

    async def do_subscribe(self, client: int, topics: tuple[str, ...]) -> None:
        """A client subscribes, or subscribes again."""
        self.clients[client].subscribe(topics)

    async def do_unsubscribe(self, client: int, topic: str) -> None:
        """A client unsubscribes."""
        self.clients[client].unsubscribe(topic)

    async def do_cut(self, client: int, seconds: float = 0.0) -> None:
        """A client's connection is cut; it comes back `seconds` later, and a moment."""
        if self.clients[client].connected:
            self.clients[client].away = seconds
        self.clients[client].disconnect()

    async def do_ask(self, client: int, topic: str, action: str) -> None:
        """A client asks for a topic's history or presence."""
        self.clients[client].ask({"type": "REQUEST", "topic": topic, "action": action})

    async def do_login(self, client: int, user: str) -> None:
        """A client proves to be a user."""
        self.clients[client].login(user, _token(user))

    async def do_newer(self, topic: str) -> None:
        """A newer gateway publishes an envelope that these nodes cannot read."""
        channel = f"gw:ws:topic:{topic}".encode()
        # Nodes report such a loss at once, and further ones of the topic some seconds later: too late for the check.
        if channel not in self.redis.channels or self.feeds[topic].has_newer:
            return
        self.feeds[topic].add(-next(self._numbers), None, numbered=False)
        self.redis.publish(channel, b'9 1 - P 0\n{"type":"DATA"}')

    async def do_kill(self, at: int) -> None:
        """kill -9 a node."""
        await self.members[at].stop(kill=True)

    async def do_leave(self, at: int) -> None:
        """A node ends in order."""
        await self.members[at].stop(kill=False)

    async def do_start(self, at: int, rules: str | None = None) -> None:
        """A node starts, perhaps with other rules."""
        await self.members[at].start({"other": OTHER_RULES, "same": RULES, None: None}[rules])

    async def do_isolate(self, at: int, seconds: float) -> None:
        """A node's way to Redis is cut off without a sign, for `seconds`."""
        address = self.members[at].address
        self.network.hold(address, held=True)
        self._later(seconds, lambda: self.network.hold(address, held=False))

    async def do_disconnect(self, at: int) -> None:
        """A node's connections to Redis are reset."""
        self.network.cut(self.members[at].address)

    async def do_save(self) -> None:
        """Redis writes everything to disk."""
        self.redis.save()

    async def do_restart(self, seconds: float, lose_tail: bool) -> None:
        """Redis ends, without its last moments perhaps, and starts again after `seconds`."""
        self.redis.stop(lose_tail=lose_tail)
        self._later(seconds, self.redis.start)

    async def do_freeze(self, seconds: float) -> None:
        """Redis does not run for `seconds`."""
        self.redis.freeze(frozen=True)
        self._later(seconds, lambda: self.redis.freeze(frozen=False))

    async def do_flush(self) -> None:
        """Redis loses everything, on disk too: no restart brings it back."""
        self.redis.run([b"FLUSHALL"])
        self.redis.save()

    async def do_refuse(self, error: str, seconds: float) -> None:
        """Redis refuses writes for `seconds`."""
        self.redis.refuse_writes = error
        self._later(seconds, lambda: setattr(self.redis, "refuse_writes", None))

    async def do_slow(self, factor: float, seconds: float) -> None:
        """Everything takes longer for `seconds`."""
        self.slow = factor
        self._later(seconds, lambda: setattr(self, "slow", 1.0))

    # ---- a whole history

    async def run(self, steps: Sequence[Step]) -> None:
        """Start everything, carry out `steps`, calm down, and check.

        Raises:
            Broken: A promise was broken.
        """
        self.lossless = all(step.verb in LOSSLESS and step.arguments[1:] != ("other",) for step in steps)
        try:
            for member in self.members[:STARTED]:
                await member.start()
            await asyncio.sleep(0.1)
            for client in self.clients:
                self._reconnect(client)
            await asyncio.sleep(0.05)
            for step in steps:
                await self.step(step)
            await self._calm_down()
        finally:
            for client in self.clients:
                client.gone = True
            self.redis.stop(lose_tail=False)
            for member in self.members:
                await member.stop(kill=True)
            for task in self._tasks:
                task.cancel()

    async def _calm_down(self) -> None:
        """Wait until all promises hold: at once where nothing was lost, else at most for `SETTLE_SECONDS`."""
        await asyncio.sleep(max(0.0, self._faulty_until - self.loop.time()))
        if all(member.node is None for member in self.members):
            await self.members[0].start()
        ends = self.loop.time() + SETTLE_SECONDS
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except (Broken, Unavailable):  # a connection that was lost long ago may be noticed only now
                if self.lossless or self._failure is not None or self.loop.time() > ends:
                    raise
            else:
                return

    async def _look(self) -> None:
        """Publish once more, and see whether all promises hold.

        Raises:
            Broken: One does not.
        """
        if self.lossless:
            for client in self.clients:
                client.check_values()
        at = next(at for at, member in enumerate(self.members) if member.node is not None)
        for topic in sorted({topic for client in self.clients for topic in client.subscriptions}):
            await self.do_publish(topic, at)
        await asyncio.sleep(0.3)
        if self._failure is not None:
            raise self._failure
        self._check_clients()
        await self._check_projection()
        if self.redis.commands.unknown:
            raise Broken(f"the simulated Redis has no command {', '.join(self.redis.commands.unknown)}")

    def _check_clients(self) -> None:
        for client in self.clients:
            if not client.connected or not client.welcomed:
                raise Broken(f"{client.name} has no connection, though all is calm")
            if client.unanswered:
                raise Broken(f"{client.name}: no answer to {next(iter(client.unanswered.values()))!r}")
            for subscription in client.subscriptions.values():
                subscription.watch.complete()

    async def _check_projection(self) -> None:
        """Redis and every node say the same of who is there."""
        nodes = [member.node for member in self.members if member.node is not None]
        truth = {client.client_id: sorted(client.subscriptions) for client in self.clients}
        for node in nodes[:1]:  # the others would read the same of Redis
            listed = {row["id"]: row["topics"] async for row in node.registry.listings.clients()}
            if listed != truth:
                raise Broken(f"the registry lists {listed}, but there are {truth}")
        for node in nodes:
            held = {connection.client_id for connection in node.open_connections}
            theirs = {client.client_id for client in self.clients if client.node is node}
            if held != theirs:
                raise Broken(f"{node.id} holds {held}, but its clients are {theirs}")
            people = {member.person for member in (await node.presence.members("room1")).members()}
            there = {client.person for client in self.clients if "room1" in client.subscriptions}
            if people != there:
                raise Broken(f"{node.id} sees {people} in room1, but there are {there}")
            for client in self.clients:
                shown = client.subscriptions["room1"].people if "room1" in client.subscriptions else None
                if shown is not None and shown != len(there):
                    raise Broken(f"{client.name} was shown {shown} people in room1, but there are {there}")
        counts = {row["topic"]: row["subscribers"] for row in (await nodes[0].registry.listings.topics(1000))["topics"]}
        expected: dict[str, int] = {}
        for client in self.clients:
            for topic in client.subscriptions:
                expected[topic] = expected.get(topic, 0) + 1
        if counts != expected:
            raise Broken(f"topics are listed with {counts} subscribers, but there are {expected}")


def run_history(seed: int, steps: Sequence[Step]) -> list[str]:
    """Run a history from the beginning; what happened, a line each.

    Raises:
        Broken: A promise was broken.
    """
    numbers = random.Random(seed)
    trace: list[str] = []

    async def whole() -> None:
        world = World(seed)
        trace.append("")
        world.trace = trace
        await world.run(steps)

    random.seed(seed)
    failures: list[dict[str, Any]] = []
    with (
        quick_redis(),
        asyncio.Runner(loop_factory=SimulatedLoop) as runner,
        mock.patch.object(history, "META_MS", META_MS),
        mock.patch.object(secrets, "token_hex", lambda size=16: numbers.randbytes(size).hex()),
    ):
        runner.get_loop().set_exception_handler(lambda _loop, context: failures.append(context))
        runner.run(whole())
    if failures:
        raise Broken(f"the loop reports {failures[0]}")
    return trace
