"""gateway.connections.outages: the notices to clients about an outage of Redis, their order, and the bound of work in
each turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, cast

import orjson
import pytest

from gateway.connections.outages import OutageNotifier
from gateway.core import hub
from gateway.core.events import Event
from gateway.core.hub import Audiences, Hub
from gateway.delivery.slices import SLICE_ITEMS, SlicedQueue
from gateway.metrics import Metrics
from gateway.protocols.native import encoder
from gateway.protocols.native.protocol import NATIVE
from gateway.transports.connection import Connection, ConnectionStage
from tests.unit.delivery.test_subscriptions import Client as Simple
from tests.unit.virtual_time import in_virtual_time, quiet


class Client(Simple):
    """A client of which the actions of SYSTEM messages, and their topics, are kept."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.client_id = f"n.b.{at}"
        self.protocol = self.conversation = NATIVE
        self.audiences = Audiences()
        self.notices: list[tuple[str, list[str]]] = []


class World:
    """A node: topics named `kept…` repair themselves. It counts what is done for the outage in each turn."""

    degraded = False

    def __init__(self, clients: int) -> None:
        self.hub = Hub(lambda: None, lambda _client: None)
        self.clients = [Client(at) for at in range(clients)]
        self.turns: list[int] = [0]
        self.distrusted: list[str] = []
        self.asked: list[str] = []
        self.released: list[Connection] = []
        as_any = cast(Any, self)
        self.metrics = Metrics()
        self.outage_notifier = OutageNotifier(self.clients, self.hub, as_any, as_any, as_any, as_any, self.metrics)

    def subscribe(self, client: Client, topics: Iterable[str]) -> None:
        for topic in topics:
            self.hub.join(client, hub.topic_audience(topic))

    # ---- as the relay

    def audience_of(self, channel: str) -> str:
        self.turns[-1] += 1
        return channel

    @property
    def recovery(self) -> World:
        return self

    def invalidate(self, topics: Iterable[str]) -> None:
        self.distrusted += topics

    def repair(self, topics: list[str]) -> list[str]:
        self.asked += topics
        return [topic for topic in topics if not topic.startswith("kept")]

    # ---- as the outbox

    def reply(self, connection: Client, event: Event) -> None:
        self.turns[-1] += 1
        message = orjson.loads(encoder.text(event, 0))
        if connection.stage is ConnectionStage.OPEN:
            connection.notices.append((message["action"], message["data"].get("topics", [])))

    # ---- as the memberships

    def redis_lost(self) -> None:
        self.degraded = True

    def resume(self, connection: Connection) -> None:
        self.released.append(connection)

    async def rest(self) -> None:
        """Turns, until nothing is done any more."""
        idle = 0
        while idle < 3:
            self.turns.append(0)
            await asyncio.sleep(0)
            idle = 0 if self.turns[-1] else idle + 1


@in_virtual_time
async def test_every_client_is_notified_of_an_outage_in_order_a_few_at_a_time() -> None:
    world = World(3 * SLICE_ITEMS + 7)
    topics = [f"t{at}" for at in range(2 * SLICE_ITEMS + 3)]
    for at, client in enumerate(world.clients):
        world.subscribe(client, ["all", topics[at % len(topics)], "kept"])
    channels = [*map(hub.topic_audience, topics), hub.topic_audience("all"), hub.topic_audience("kept")]
    world.outage_notifier.pubsub_lost("away", channels)
    world.outage_notifier.pubsub_missed(channels)
    world.outage_notifier.pubsub_restored()
    await world.rest()
    for at, client in enumerate(world.clients):
        gap = sorted([topics[at % len(topics)], "all"])
        assert [(action, sorted(named)) for action, named in client.notices] == [
            ("degraded", []), ("gap", gap), ("restored", []),
        ]  # fmt: skip
    assert max(world.turns) <= 2 * SLICE_ITEMS
    assert world.asked == [*topics, "all", "kept"]
    assert world.distrusted == [*topics, "all", "kept"]
    assert world.released == world.clients


@in_virtual_time
async def test_a_channel_of_very_many_clients_takes_many_turns() -> None:
    world = World(20 * SLICE_ITEMS)
    for client in world.clients:
        world.subscribe(client, ["all"])
    world.outage_notifier.pubsub_missed([hub.topic_audience("all")])
    turns = 0
    while not any(client.notices for client in world.clients):
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 15
    await world.rest()
    assert max(world.turns) <= SLICE_ITEMS + 1
    assert all(client.notices == [("gap", ["all"])] for client in world.clients)


@in_virtual_time
async def test_a_small_loss_is_reported_at_once() -> None:
    world = World(3)
    world.subscribe(world.clients[0], ["a", "b"])
    world.hub.join(world.clients[1], hub.user_audience("ann"))
    world.outage_notifier.pubsub_missed([hub.topic_audience("a"), hub.topic_audience("b"), hub.user_audience("ann")])
    assert [client.notices for client in world.clients] == [[("gap", ["a", "b"])], [("gap", [])], []]
    assert world.metrics.gaps.labels("outage").value == 2


@in_virtual_time
async def test_clients_that_change_during_an_outage_get_notices_of_their_own_topics() -> None:
    world = World(4)
    gone, left, moved, there = world.clients
    for client in world.clients:
        world.subscribe(client, ["first", "last"])
    channels = [hub.topic_audience("first"), *(hub.topic_audience(f"empty{at}") for at in range(2 * SLICE_ITEMS))]
    world.outage_notifier.pubsub_missed([*channels, hub.topic_audience("last")])
    world.outage_notifier.pubsub_restored()  # no client was notified of the outage
    assert not any(client.notices for client in world.clients)
    gone.stage = ConnectionStage.CLOSED
    world.hub.remove(gone)
    world.hub.leave(left, hub.topic_audience("first"))
    for topic in ("first", "last"):
        world.hub.leave(moved, hub.topic_audience(topic))
    come = Client(9)
    world.clients.append(come)
    world.subscribe(come, ["fine"])
    await world.rest()
    assert [client.notices for client in (gone, left, moved, there, come)] == [
        [], [("gap", ["last"])], [], [("gap", ["first", "last"])], [],
    ]  # fmt: skip


@in_virtual_time
async def test_works_are_done_in_order_and_one_that_fails_holds_up_no_other() -> None:
    works = SlicedQueue()
    done: list[str] = []

    def work(name: str, parts: int, *, fails: bool = False) -> Iterator[None]:
        for part in range(parts):
            done.append(f"{name}{part}")
            yield
        if fails:
            raise ValueError(name)

    with pytest.raises(ValueError, match="a"):
        works.add(work("a", 0, fails=True))
    works.add(work("b", 2))
    works.add(work("c", 1))
    assert done == ["b0"]
    await quiet()
    assert done == ["b0", "b1", "c0"]
    works.add(work("d", 0))
    works.add(work("e", 1))
    assert done[-1] == "e0"
