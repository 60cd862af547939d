"""Presence of several nodes under random interleavings: in the end each presence set has the connected members."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.broker.client import Unavailable
from gateway.broker.envelope import Envelope
from gateway.broker.keys import node_of
from gateway.cluster.presence_store import PresenceStore, presence_envelope
from gateway.core.presence_set import ClientChanges, Member
from gateway.delivery.presence import PresenceTracker
from tests.unit.virtual_time import VirtualLoop

TOPICS = ("a", "b")
NODES = 3
GRACE = 1.0
LEASE = 3.0
DELAY = 0.3  # s, at most, of anything under way


class Redis:
    """Rows by node and topic, leases, and a channel for each topic whose messages take their time, in order."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.rows: defaultdict[tuple[str, str], dict[str, Member]] = defaultdict(dict)
        self.leases: dict[str, float] = {}
        self.nodes: list[Node] = []
        self.away = False

    async def travel(self) -> None:
        await asyncio.sleep(self.chance.uniform(0, DELAY))
        if self.away:
            raise Unavailable("away")

    def living(self) -> set[str]:
        now = asyncio.get_running_loop().time()
        return {node_id for node_id, ends in self.leases.items() if ends > now}

    def publish(self, topic: str, message: Envelope) -> None:
        for node in self.nodes:
            node.deliver(topic, message)

    def reap(self) -> None:
        for key in [key for key in self.rows if key[0] not in self.living()]:
            left = self.rows.pop(key)
            self.publish(key[1], presence_envelope((), left, 0, dead=True))


class Rows:
    """Stands for `PresenceStore`: one Lua step writes and publishes, under the lease."""

    def __init__(self, redis: Redis, node_id: str) -> None:
        self.redis = redis
        self.node_id = node_id

    async def write(
        self, topic: str, joined: Sequence[Member], left: Sequence[str], _now: int, *, drop_first: bool
    ) -> bool:
        await self.redis.travel()
        written = self.node_id in self.redis.living()
        if written:
            rows = self.redis.rows[self.node_id, topic]
            if drop_first:
                rows.clear()
            rows.update({one.client_id: one for one in joined})
            for client_id in left:
                rows.pop(client_id, None)
            self.redis.publish(topic, presence_envelope(joined, left, 0))
        await self.redis.travel()
        return written

    async def read(self, topic: str) -> list[Member]:
        await self.redis.travel()
        found = [one for node in self.redis.living() for one in self.redis.rows[node, topic].values()]
        await self.redis.travel()
        return found

    async def live_nodes(self) -> set[str]:
        await self.redis.travel()
        return self.redis.living()

    async def count(self, topics: Sequence[str], nodes: Collection[str]) -> list[int | None]:
        await self.redis.travel()
        return [sum(len(self.redis.rows[node, topic]) for node in nodes) for topic in topics]


class Node:
    """A node with its clients. Stands for `House`."""

    def __init__(self, redis: Redis, name: str) -> None:
        self.id = f"{name}.b"
        self.redis = redis
        self.clients: dict[str, tuple[str | None, set[str]]] = {}  # id -> user, topics
        self.presence = PresenceTracker(
            cast(PresenceStore, Rows(redis, self.id)), grace_seconds=GRACE, now_ms=lambda: 0
        )
        self.alive = True
        self.frozen = False
        self.loses = 0  # messages that will not arrive
        self._due = 0.0
        redis.nodes.append(self)
        spawn = asyncio.get_running_loop().create_task
        self.tasks = [spawn(self.presence.run(self)), spawn(self._check()), spawn(self._beat())]
        for topic in TOPICS:
            self.tasks.append(spawn(self._open(topic)))

    async def _open(self, topic: str) -> None:
        while not self.presence.is_ready(topic):
            try:
                await self.presence.prepare(topic)
            except Unavailable:
                await asyncio.sleep(0.1)

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(LEASE)
            try:
                await self.presence.check()
            except Unavailable:
                continue

    async def _beat(self) -> None:
        while True:
            if not self.frozen and not self.redis.away:
                kept = self.id in self.redis.living()
                self.redis.leases[self.id] = asyncio.get_running_loop().time() + LEASE
                if not kept:
                    self.presence.rewrite()
                self.redis.reap()
            await asyncio.sleep(LEASE / 5)

    def deliver(self, topic: str, message: Envelope) -> None:
        if self.loses or not self.alive:
            self.loses = max(0, self.loses - 1)
            return
        loop = asyncio.get_running_loop()
        self._due = max(self._due + 1e-6, loop.time() + self.redis.chance.uniform(0, DELAY))
        loop.call_at(self._due, self._receive, topic, message)

    def _receive(self, topic: str, message: Envelope) -> None:
        if self.alive:
            self.presence.word_received(topic, message)

    def kill(self) -> None:
        self.alive = False
        for task in self.tasks:
            task.cancel()

    # ---- House

    def topic_members(self, topic: str) -> list[Member]:
        return [Member(client_id, user) for client_id, (user, topics) in self.clients.items() if topic in topics]

    def topic_member(self, topic: str, client_id: str) -> Member | None:
        return next((one for one in self.topic_members(topic) if one.client_id == client_id), None)

    def send_presence(self, topic: str, about: dict[str, Any]) -> None:
        """What is shown is the roster's own concern."""

    def send_client_changes(self, topic: str, changes: ClientChanges) -> None:
        """The same."""


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, NODES - 1), st.sampled_from([None, "ann", "bob"])),
        st.tuples(st.just("leave"), st.integers(0, 9), st.none()),
        st.tuples(st.just("login"), st.integers(0, 9), st.sampled_from(["ann", "bob"])),
        st.tuples(st.just("kill"), st.integers(0, NODES - 1), st.none()),
        st.tuples(st.just("freeze"), st.integers(0, NODES - 1), st.booleans()),
        st.tuples(st.just("lose"), st.integers(0, NODES - 1), st.none()),
        st.tuples(st.just("doubt"), st.integers(0, NODES - 1), st.none()),
        st.tuples(st.just("away"), st.just(0), st.booleans()),
        st.tuples(st.just("wait"), st.just(0), st.sampled_from([0.05, 0.15])),
        st.tuples(st.just("wait"), st.just(0), st.sampled_from([0.4, 1.5, 4.0])),
    ),
    min_size=5,
    max_size=40,
)


@settings(deadline=None, max_examples=120)
@given(STEPS, st.integers(0, 1000))
def test_in_the_end_every_roster_is_who_is_there(steps: list[tuple[str, int, Any]], seed: int) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(_run(steps, random.Random(seed)))


async def _run(steps: list[tuple[str, int, Any]], chance: random.Random) -> None:
    redis = Redis(chance)
    nodes = [Node(redis, f"n{number}") for number in range(NODES)]
    counter = itertools.count(1)
    await asyncio.sleep(2)  # they have opened their topics
    for step, which, what in steps:
        node = nodes[which % NODES]
        clients = [(one, client_id) for one in nodes if one.alive for client_id in one.clients]
        match step:
            case "join" if node.alive:
                client_id, topic = f"{node.id}.{next(counter)}", chance.choice(TOPICS)
                node.clients[client_id] = what, {topic}
                node.presence.touch(topic, client_id)
            case "leave" if clients:
                home, client_id = clients[which % len(clients)]
                for topic in home.clients.pop(client_id)[1]:
                    home.presence.touch(topic, client_id)
            case "login" if clients:
                home, client_id = clients[which % len(clients)]
                home.clients[client_id] = what, home.clients[client_id][1]
                for topic in home.clients[client_id][1]:
                    home.presence.touch(topic, client_id)
            case "kill" if sum(one.alive for one in nodes) > 1:
                node.kill()
            case "freeze":
                node.frozen = what
            case "lose":
                node.loses += 1
            case "doubt":
                node.presence.mark_stale(chance.choice(TOPICS))
            case "away":
                redis.away = what
            case "wait":
                await asyncio.sleep(what)
    redis.away = False
    for node in nodes:
        node.frozen = False
    await asyncio.sleep(12 * LEASE)
    for topic in TOPICS:
        there = {one for node in nodes if node.alive for one in node.topic_members(topic)}
        people = {one.person for one in there}
        for node in nodes:
            if node.alive:
                presence_set = await node.presence.members(topic)
                assert {one.person for one in presence_set.members()} == people
                assert set(presence_set.clients) == {one.client_id for one in there}
        rows = {one for (node_id, name), found in redis.rows.items() if name == topic for one in found.values()}
        assert rows == there, "Redis has exactly the present members"
        assert all(node_of(one.client_id) in redis.living() for one in rows)
    for node in nodes:
        node.kill()
