"""gateway.outages: what clients are told of an outage of Redis, in which order, and how much of it a turn does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, cast

import orjson
import pytest

from gateway.core import hub
from gateway.core.events import Event
from gateway.core.hub import Audiences, Hub
from gateway.outages import Outages
from gateway.protocols.native import encoder
from gateway.protocols.native.protocol import NATIVE
from gateway.transport.connection import Connection, Stage
from gateway.turns import TURN_ITEMS, InOrder
from tests.unit.test_memberships import Client as Simple
from tests.unit.virtual_time import in_virtual_time, quiet


class Client(Simple):
    """A client of which the actions of SYSTEM messages, and their topics, are kept."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.client_id = f"n.b.{at}"
        self.protocol = NATIVE
        self.audiences = Audiences()
        self.told: list[tuple[str, list[str]]] = []


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
        self.outages = Outages(lambda: list(self.clients), self.hub, as_any, as_any, as_any)

    def subscribe(self, client: Client, topics: Iterable[str]) -> None:
        for topic in topics:
            self.hub.join(client, hub.of_topic(topic))

    # ---- as the relay

    def audience_of(self, channel: str) -> str:
        self.turns[-1] += 1
        return channel

    def lost(self, channels: list[str]) -> None:
        self.turns[-1] += len(channels)
        self.distrusted += channels

    def missed(self, topics: list[str]) -> list[str]:
        self.asked += topics
        return [topic for topic in topics if not topic.startswith("kept")]

    # ---- as the outbox

    def reply(self, connection: Client, event: Event) -> None:
        self.turns[-1] += 1
        message = orjson.loads(encoder.text(event, 0))
        if connection.stage is Stage.OPEN:
            connection.told.append((message["action"], message["data"].get("topics", [])))

    # ---- as the memberships

    def degrade(self) -> None:
        self.degraded = True

    def go_on(self, connection: Connection) -> None:
        self.released.append(connection)

    async def rest(self) -> None:
        """Turns, until nothing is done any more."""
        idle = 0
        while idle < 3:
            self.turns.append(0)
            await asyncio.sleep(0)
            idle = 0 if self.turns[-1] else idle + 1


@in_virtual_time
async def test_an_outage_is_told_in_order_a_few_at_a_time_and_nobody_is_forgotten() -> None:
    world = World(3 * TURN_ITEMS + 7)
    topics = [f"t{at}" for at in range(2 * TURN_ITEMS + 3)]
    for at, client in enumerate(world.clients):
        world.subscribe(client, ["all", topics[at % len(topics)], "kept"])
    channels = [*map(hub.of_topic, topics), hub.of_topic("all"), hub.of_topic("kept")]
    world.outages.bus_lost("away", channels)
    world.outages.bus_missed(channels)
    world.outages.bus_resumed()
    await world.rest()
    for at, client in enumerate(world.clients):
        gap = sorted([topics[at % len(topics)], "all"])
        assert [(action, sorted(named)) for action, named in client.told] == [
            ("degraded", []), ("gap", gap), ("restored", []),
        ]  # fmt: skip
    assert max(world.turns) <= 2 * TURN_ITEMS
    assert world.asked == [*topics, "all", "kept"]
    assert world.distrusted == channels
    assert world.released == world.clients


@in_virtual_time
async def test_a_channel_of_very_many_clients_takes_many_turns() -> None:
    world = World(20 * TURN_ITEMS)
    for client in world.clients:
        world.subscribe(client, ["all"])
    world.outages.bus_missed([hub.of_topic("all")])
    turns = 0
    while not any(client.told for client in world.clients):
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 15
    await world.rest()
    assert max(world.turns) <= TURN_ITEMS + 1
    assert all(client.told == [("gap", ["all"])] for client in world.clients)


@in_virtual_time
async def test_a_small_loss_is_told_at_once() -> None:
    world = World(3)
    world.subscribe(world.clients[0], ["a", "b"])
    world.hub.join(world.clients[1], hub.of_user("ann"))
    world.outages.bus_missed([hub.of_topic("a"), hub.of_topic("b"), hub.of_user("ann")])
    assert [client.told for client in world.clients] == [[("gap", ["a", "b"])], [("gap", [])], []]


@in_virtual_time
async def test_clients_that_come_leave_or_unsubscribe_meanwhile_are_told_what_is_true_of_them() -> None:
    world = World(4)
    gone, left, moved, there = world.clients
    for client in world.clients:
        world.subscribe(client, ["first", "last"])
    channels = [hub.of_topic("first"), *(hub.of_topic(f"empty{at}") for at in range(2 * TURN_ITEMS))]
    world.outages.bus_missed([*channels, hub.of_topic("last")])
    world.outages.bus_resumed()  # nobody was told that Redis is away
    assert not any(client.told for client in world.clients)
    gone.stage = Stage.CLOSED
    world.hub.remove(gone)
    world.hub.leave(left, hub.of_topic("first"))
    for topic in ("first", "last"):
        world.hub.leave(moved, hub.of_topic(topic))
    come = Client(9)
    world.clients.append(come)
    world.subscribe(come, ["fine"])
    await world.rest()
    assert [client.told for client in (gone, left, moved, there, come)] == [
        [], [("gap", ["last"])], [], [("gap", ["first", "last"])], [],
    ]  # fmt: skip


@in_virtual_time
async def test_works_are_done_in_order_and_one_that_fails_holds_up_no_other() -> None:
    works = InOrder()
    done: list[str] = []

    def work(name: str, parts: int, *, fails: bool = False) -> Iterator[None]:
        for part in range(parts):
            done.append(f"{name}{part}")
            yield
        if fails:
            raise ValueError(name)

    with pytest.raises(ValueError, match="a"):
        works.begin(work("a", 0, fails=True))
    works.begin(work("b", 2))
    works.begin(work("c", 1))
    assert done == ["b0"]
    await quiet()
    assert done == ["b0", "b1", "c0"]
    works.begin(work("d", 0))
    works.begin(work("e", 1))
    assert done[-1] == "e0"
