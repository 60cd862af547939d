"""What the registry writes, call by call, read as `broker/lua/write_rows.lua` reads it; the scripts themselves run on
a real Redis.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.keys import Keys
from gateway.cluster import registry as registry_module
from gateway.cluster.registry import WRITE_BYTES, WRITE_ROWS, LocalState, Registry
from gateway.metrics import Metrics
from tests.unit.virtual_time import in_virtual_time

METRICS = Metrics()
Args = Sequence[Any]


class FakeRows:
    """One node's rows, written as the script's header says. Stands for the `RedisClient`."""

    def __init__(self) -> None:
        self.leased = True
        self.trips_until_loss = -1  # never
        self.mute = False  # what is asked is done, and the answer is lost
        self.unheard = False  # so was the last beat's
        self.rows: tuple[dict[str, Any], dict[str, Any]] = ({}, {})  # clients, topics
        self.writes = 0  # under the lease
        self.largest = self.calls = 0

    async def execute(self, *command: Any) -> Any:
        return (await self.execute_all([command]))[0]

    async def execute_all(self, commands: Sequence[Args]) -> list[Any]:
        self.travel()
        answers = [self.answer(name, args) for name, args in commands]
        if self.mute:
            raise Unavailable("no answer in time")
        return answers

    def travel(self) -> None:
        """A round trip, if the way to Redis is open."""
        if self.trips_until_loss == 0:
            raise Unavailable("connection lost")
        self.trips_until_loss -= 1

    def script(self, name: str) -> Callable[[Args, Args], Args]:
        def command(keys: Args, args: Args) -> Args:
            rows = ["gw:ws:node:{n.b}", "gw:ws:node:{n.b}:clients", "gw:ws:node:{n.b}:topics"]
            assert keys == {"write_rows": rows, "renew_lease": rows, "index_node": ["gw:ws:nodes"]}[name]
            return name, args

        return command

    def answer(self, name: str, args: Args) -> Any:
        match name:
            case "write_rows":
                return self.write(args)
            case "renew_lease":
                before, self.leased = self.leased, True
                self.unheard = self.mute
                if not before:
                    self.rows, self.writes = ({}, {}), 0
                return self.writes if before else -1
            case _:
                return [[], 0]  # no other node: none whose lease has ended, none that follows

    async def pages(self, _keys: Sequence[str]) -> AsyncIterator[tuple[int, list[bytes]]]:
        """The node's topics, for `HashReader`, one a page."""
        for topic in list(self.rows[1]):
            self.travel()
            yield 0, [topic.encode(), b"1"]

    def write(self, args: Args) -> int:
        if not self.leased:
            return 0
        drop_first, *counts = args[:5]
        rest = list(args[5:])
        assert len(rest) == 2 * counts[0] + counts[1] + 2 * counts[2] + counts[3]
        assert None not in rest
        self.largest = max(self.largest, sum(counts))
        self.calls += 1
        if drop_first:
            self.rows = ({}, {})
        for table, sets, drops in ((self.rows[0], counts[0], counts[1]), (self.rows[1], counts[2], counts[3])):
            for _ in range(sets):
                name, value = rest.pop(0), rest.pop(0)
                table[name] = value
            for _ in range(drops):
                table.pop(rest.pop(0), None)
        self.writes += 1
        return self.writes

    def state(self) -> tuple[bool, int, Any]:
        """What is on disk now."""
        return self.leased, self.writes, copy.deepcopy(self.rows)

    def go_back(self, state: tuple[bool, int, Any]) -> None:
        """Redis starts again without what came later."""
        self.leased, self.writes, self.rows = state[0], state[1], copy.deepcopy(state[2])


class Node:
    """A node's memory, and the registry that projects it."""

    def __init__(self) -> None:
        self.clients: dict[str, bytes] = {}
        self.topics: dict[str, int] = {}
        self.redis = FakeRows()
        self.enrolled = False  # in the index since the lease was taken
        self.dropped: list[str] = []
        local_state = LocalState(
            rows_dropped=self.drop,
            node_row=dict,
            client_row=self.clients.get,
            client_ids=lambda: list(self.clients),
            subscriber_count=lambda topic: self.topics.get(topic, 0),
            topics=lambda: list(self.topics),
        )
        self.registry = Registry(
            cast(RedisClient, self.redis),
            Keys("gw:"),
            "n.b",
            lease_seconds=10,
            local_state=local_state,
            metrics=METRICS,
        )
        self.registry._topic_rows = cast(Any, self.redis)

    def drop(self, topics: Iterable[str]) -> None:
        """Note the topics, one page."""
        [topic] = topics
        self.dropped.append(topic)

    def change(self, client: int, topic: int, there: bool) -> None:
        """A client comes or goes, and with it a topic's only subscriber."""
        client_id, name = f"n.b.{client}", f"t{topic}"
        if there:
            self.clients[client_id] = b"row %d" % topic
            self.topics[name] = client + 1
        else:
            self.clients.pop(client_id, None)
            self.topics.pop(name, None)
        self.registry.touch_client(client_id)
        self.registry.touch_topic(name)

    async def beat(self) -> bool:
        """Renew the lease, and have the node in the index."""
        kept = await self.registry.renew_lease()
        self.enrolled &= kept
        await self.registry.enroll()
        self.enrolled = True
        return kept

    @property
    def is_projected(self) -> bool:
        return self.redis.rows == (self.clients, self.topics)


changes = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), max_size=40)
acts = st.one_of(
    changes,
    st.sampled_from(
        ["flush", "flush", "lose", "lose at once", "lease ends", "beat", "beat unheard", "save", "go back"]
    ),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(acts, max_size=15))
def test_once_all_is_written_redis_holds_what_memory_holds(sequence: list[Any]) -> None:
    @in_virtual_time
    async def scenario() -> None:
        node = Node()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(registry_module, "WRITE_ROWS", 4)
            patched.setattr(registry_module, "MAX_DIRTY", 25)
            saved, behind = node.redis.state(), False
            for act in sequence:
                match act:
                    case "save":
                        saved = node.redis.state()
                    case "go back":
                        node.redis.go_back(saved)
                        behind = True
                    case list():
                        for change in act:
                            node.change(*change)
                    case "lose" | "lose at once":
                        node.redis.trips_until_loss = 1 if act == "lose" else 0
                    case "lease ends":  # and its rows with it
                        node.redis.leased = False
                        node.redis.rows = ({}, {})
                    case "beat" | "beat unheard" | "flush":
                        node.redis.mute = act == "beat unheard"
                        try:
                            if act != "flush":
                                await node.beat()
                                behind = False
                            elif await node.registry.flush():
                                # Only a beat finds out what else can be.
                                assert (
                                    node.is_projected
                                    or not node.redis.leased
                                    or node.redis.unheard
                                    or not node.enrolled
                                    or behind
                                )
                        except Unavailable:
                            node.redis.trips_until_loss = -1
                        node.redis.mute = False
            node.redis.trips_until_loss = -1
            await node.beat()
            assert await node.registry.flush()
            assert node.is_projected
            assert node.redis.largest <= 4

    scenario()


@in_virtual_time
async def test_a_late_heartbeat_without_an_answer_loses_no_rows() -> None:
    node = Node()
    node.change(1, 1, there=True)
    await node.beat()
    await node.registry.flush()
    node.redis.leased, node.redis.mute = False, True  # Redis was frozen for longer than the lease
    with pytest.raises(Unavailable):
        await node.beat()
    node.redis.mute = False
    assert not await node.beat()
    await node.registry.flush()
    assert node.is_projected
    assert await node.beat()


@in_virtual_time
async def test_rows_that_redis_has_lost_under_a_living_lease_are_written_again() -> None:
    node = Node()
    node.change(2, 2, there=True)
    node.change(3, 3, there=True)
    await node.beat()
    await node.registry.flush()
    on_disk = node.redis.state()
    node.change(1, 1, there=True)
    node.change(2, 2, there=False)
    await node.registry.flush()
    assert await node.beat()
    node.redis.go_back(on_disk)
    assert node.redis.rows != (node.clients, node.topics)
    assert not await node.beat()
    await node.registry.flush()
    assert node.is_projected
    assert node.dropped == ["t2", "t3"], "their people must be written again too, a page a turn"
    assert await node.beat()


@in_virtual_time
async def test_a_loss_is_noticed_though_later_writes_make_up_the_number() -> None:
    node = Node()
    await node.beat()
    await node.registry.flush()
    on_disk = node.redis.state()
    node.change(1, 1, there=True)
    await node.registry.flush()
    node.redis.go_back(on_disk)
    node.change(2, 2, there=True)
    assert not await node.registry.flush()
    assert not await node.beat()
    assert await node.registry.flush()
    assert node.is_projected


@in_virtual_time
async def test_a_storm_of_clients_costs_calls_not_rows() -> None:
    node = Node()
    await node.beat()
    await node.registry.flush()
    node.redis.calls = 0
    for number in range(10_000):
        node.change(number, number % 50, there=True)
    assert await node.registry.flush()
    assert node.is_projected
    assert node.redis.calls == -(-(10_000 + 50) // WRITE_ROWS)


@in_virtual_time
async def test_when_all_is_written_again_rows_are_made_a_few_at_a_time() -> None:
    node = Node()
    await node.beat()
    for number in range(3000):
        node.clients[f"n.b.{number}"] = b"x" * 2000 if number < 1000 else b"x"
        node.topics[f"t{number}"] = 1
    asked: list[int] = [0]  # rows, in each turn of the loop
    client = node.registry._local_state.client_row

    def counted(client_id: str) -> bytes | None:
        asked[-1] += 1
        return client(client_id)

    ask = node.redis.execute

    async def travel(*command: Any) -> Any:
        asked.append(0)
        await asyncio.sleep(0)
        return await ask(*command)

    node.registry._local_state = replace(node.registry._local_state, client_row=counted)
    node.redis.execute = travel  # type: ignore[method-assign]
    assert await node.registry.flush()
    assert node.is_projected
    assert sum(asked) == 3000
    assert max(asked) <= WRITE_ROWS
    assert asked[0] * 2000 <= WRITE_BYTES + 2000, "large rows are fewer at a time"


@in_virtual_time
async def test_a_single_client_is_written_soon_and_a_burst_twice_a_second() -> None:
    node = Node()
    await node.registry.enroll()
    writer = asyncio.create_task(node.registry.run(lambda: None))
    await asyncio.sleep(1)
    for number in range(5):
        node.change(number, number, there=True)
        await asyncio.sleep(0.21)
        assert node.is_projected
    node.redis.calls = 0
    for number in range(10_000):  # a thousand a second
        node.change(number, 1, there=True)
        await asyncio.sleep(0.001)
    assert 15 <= node.redis.calls <= 22 + 10_000 // WRITE_ROWS
    await asyncio.sleep(0.51)
    assert node.is_projected
    writer.cancel()


@in_virtual_time
async def test_nothing_new_is_no_call_at_all() -> None:
    node = Node()
    await node.registry.enroll()
    node.change(1, 1, there=True)
    await node.registry.flush()
    node.redis.calls = 0
    assert await node.registry.flush()
    assert node.redis.calls == 0


@in_virtual_time
async def test_the_first_write_removes_what_stood_there_before() -> None:
    node = Node()
    await node.registry.enroll()
    node.redis.rows = ({"n.b.9": b"old"}, {"old": 1})
    assert await node.registry.flush()
    assert node.redis.rows == ({}, {})


@in_virtual_time
async def test_a_first_write_that_failed_is_a_first_write_again() -> None:
    node = Node()
    await node.registry.enroll()
    node.redis.rows = ({"n.b.9": b"old"}, {"old": 1})
    node.redis.trips_until_loss = 0
    with pytest.raises(Unavailable):
        await node.registry.flush()
    node.redis.trips_until_loss = -1
    assert await node.registry.flush()
    assert node.redis.rows == ({}, {})


@in_virtual_time
async def test_no_row_is_written_before_the_node_is_in_the_index() -> None:
    node = Node()
    node.change(1, 1, there=True)
    await node.registry.renew_lease()
    assert await node.registry.flush()
    assert node.redis.rows == ({}, {}) and node.redis.calls == 0
    await node.registry.enroll()
    assert await node.registry.flush()
    assert node.is_projected and node.redis.calls == 1


@in_virtual_time
async def test_without_a_lease_nothing_is_written_and_later_everything() -> None:
    node = Node()
    await node.registry.enroll()
    node.change(1, 1, there=True)
    await node.registry.flush()
    node.redis.leased, node.redis.rows = False, ({}, {})
    node.change(2, 2, there=True)
    assert not await node.registry.flush()
    node.redis.leased = True  # by a beat that was under way
    assert await node.registry.flush()
    assert len(node.redis.rows[0]) == 2 and node.is_projected


@in_virtual_time
async def test_what_changes_while_it_is_written_is_written_again() -> None:
    node = Node()
    await node.registry.enroll()
    node.change(1, 1, there=True)
    await node.registry.flush()
    node.change(1, 1, there=True)
    write = node.redis.write

    def meanwhile(args: Args) -> int:
        node.change(1, 1, there=False)
        return write(args)

    node.redis.write = meanwhile  # type: ignore[method-assign]  # a client goes in the middle of it
    await node.registry.flush()
    node.redis.write = write  # type: ignore[method-assign]
    await node.registry.flush()
    assert node.redis.rows == ({}, {})
