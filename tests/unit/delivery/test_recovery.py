"""gateway.delivery.recovery: one reader for each topic, and events during its read."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from gateway.broker.client import Unavailable
from gateway.broker.history import History, HistoryTop
from gateway.broker.memory import RedisMemory
from gateway.core.position import Position, unborn
from gateway.core.rate_limits import BURST_SECONDS
from gateway.core.stream_position import StreamEntry, StreamPage
from gateway.core.topic_rules import Rule, TopicRules
from gateway.delivery.recovery import BEGUN_PER_SECOND, MAX_READING, Recovery
from gateway.metrics import Metrics
from tests.kit.waiting import eventually
from tests.unit.virtual_time import in_virtual_time, later

RULES = TopicRules([Rule(pattern="*", history=100)])


def entry(offset: int) -> StreamEntry:
    return StreamEntry(offset, b"%d" % offset, None, offset * 10, (offset - 1) * 10)


def place(offset: int, epoch: str = "e") -> Position:
    return Position(epoch, offset, offset * 10)


class FakeHistory:
    """A stream with `top` messages. An answer is what it held when it was asked, and waits for `go`."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.epoch = "e"
        self.reads = 0
        self.begun = 0
        self.away = False
        self.go = asyncio.Event()
        self.go.set()
        self.may_renew = asyncio.Event()

    async def read(self, _topic: str, first: int | None) -> StreamPage:
        self.reads += 1
        entries = [entry(offset) for offset in range(first or 1, self.top + 1)]
        page = StreamPage(self.epoch, self.top, entries, mark=self.top * 10)
        await self.go.wait()
        if self.away:
            raise Unavailable("away")
        return page

    async def begin(self, _topic: str, page: StreamPage) -> StreamPage:
        self.begun += 1
        return replace(page, epoch="e")

    async def renew_epoch(self, _topic: str, epoch: str) -> str:
        await self.may_renew.wait()
        self.epoch = f"{epoch}, renewed"
        return self.epoch

    async def tops(self, topics: Sequence[tuple[str, Rule]]) -> list[HistoryTop]:
        return [HistoryTop(self.epoch, self.top, self.top * 10) for _ in topics]

    def hours_now(self) -> int:
        return 500_000


class Node:
    """Streams, and what they handed to the node's subscribers."""

    def __init__(self, top: int = 0) -> None:
        self.history = FakeHistory(top)
        self.had: list[int] = []
        self.gaps = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.recovery = Recovery(cast(History, self.history), RULES, Metrics(), self._spawn)
        self.recovery.consumer = self

    def deliver(self, _topic: str, _epoch: str, entries: list[StreamEntry]) -> None:
        self.had += [entry.offset for entry in entries]

    def report_gap(self, _topic: str) -> None:
        self.gaps += 1

    def publish(self, *, received: bool = True) -> None:
        self.history.top += 1
        if received:
            self.recovery.message_received("t", self.history.epoch, entry(self.history.top))

    def _spawn(self, work: Coroutine[Any, Any, None], _name: str) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def test_a_missed_message_is_delivered_with_the_next_one() -> None:
    node = Node(3)
    await node.recovery.prepare("t")
    node.publish(received=False)
    node.publish()
    await eventually(lambda: node.had == [4, 5])
    assert not node.gaps


async def test_many_who_ask_at_once_are_served_by_one_read() -> None:
    node = Node(3)
    await asyncio.gather(*(node.recovery.prepare("t") for _ in range(1000)))
    assert node.history.reads == 1


async def test_a_client_ahead_of_the_node_makes_it_catch_up() -> None:
    """Its last node received the message earlier: a rejected recovery would report a loss that did not happen."""
    node = Node(3)
    await node.recovery.prepare("t")
    node.publish(received=False)
    node.recovery.catch_up("t", place(4))
    assert not node.recovery.is_ready("t")
    await node.recovery.prepare("t")
    assert node.recovery.missed_since("t", place(4)) == []
    assert node.had == [4]


async def test_a_client_that_is_not_ahead_costs_no_read() -> None:
    node = Node(3)
    await node.recovery.prepare("t")
    for at in (place(3), place(0), place(9, "other")):
        node.recovery.catch_up("t", at)
    node.recovery.catch_up("unknown", place(9))
    assert node.recovery.is_ready("t")
    assert node.history.reads == 1


async def test_messages_read_for_a_topic_closed_meanwhile_are_dropped() -> None:
    """After the topic is opened again, new subscribers have a later position: they would get the message twice."""
    node = Node(3)
    await node.recovery.prepare("t")
    node.history.go.clear()
    node.publish(received=False)
    node.recovery.mark_missed(["t"])
    await eventually(lambda: node.history.reads == 2)
    node.recovery.close_topic("t")
    ready = asyncio.create_task(node.recovery.prepare("t"))
    await eventually(lambda: node.history.reads == 3)
    node.history.go.set()
    await ready
    assert node.recovery.position("t") == place(4)
    node.publish()
    assert node.had == [5]


async def test_a_topic_is_closed_also_while_a_client_that_is_gone_waits_for_it() -> None:
    """Its channel is left, so its position would be old when the next client comes."""
    node = Node(3)
    node.history.go.clear()
    waits = asyncio.create_task(node.recovery.prepare("t"))
    await eventually(lambda: node.history.reads == 1)
    waits.cancel()
    node.recovery.close_topic("t")
    node.history.go.set()
    await eventually(lambda: not node._tasks)  # the reader has ended
    assert "t" not in node.recovery
    assert not node.recovery.is_ready("t")
    node.publish(received=False)
    await node.recovery.prepare("t")
    assert node.recovery.position("t") == place(4)


@in_virtual_time
async def test_the_epochs_of_topics_without_messages_are_written_at_a_limited_rate() -> None:
    node = Node(0)
    node.history.epoch = unborn("0123456789ab", 500_000)
    memory = SimpleNamespace(full=False)
    node.recovery = Recovery(cast(History, node.history), RULES, Metrics(), node._spawn, cast(RedisMemory, memory))
    burst = int(BEGUN_PER_SECOND * BURST_SECONDS)
    await asyncio.gather(*(node.recovery.prepare(f"t{number}") for number in range(2 * burst)))
    assert node.history.begun == burst
    assert node.recovery.is_ready(f"t{2 * burst - 1}")
    await later(1)
    await asyncio.gather(*(node.recovery.prepare(f"u{number}") for number in range(burst)))
    assert node.history.begun == burst + int(BEGUN_PER_SECOND)
    memory.full = True
    await later(60)
    await node.recovery.prepare("full")
    assert node.history.begun == burst + int(BEGUN_PER_SECOND)


async def test_no_subscriber_joins_under_the_epoch_of_a_stream_that_went_back() -> None:
    node = Node(9)
    await node.recovery.prepare("t")
    node.history.top = 5
    node.recovery.mark_missed(["t"])
    await eventually(lambda: node.gaps == 1)
    assert not node.recovery.is_ready("t")
    node.history.may_renew.set()
    await node.recovery.prepare("t")
    assert node.recovery.position("t") == place(5, "e, renewed")
    assert node.gaps == 1
    node.publish()
    assert node.had == [6]


async def test_after_an_outage_subscribers_wait_until_the_stream_is_read_again() -> None:
    """Redis may be back without its last moments, and have given their offsets to other messages."""
    node = Node(9)
    await node.recovery.prepare("t")
    node.recovery.invalidate(["t"])
    assert not node.recovery.is_ready("t")
    node.history.top = 5
    node.history.may_renew.set()
    await node.recovery.prepare("t")
    assert node.recovery.position("t") == place(5, "e, renewed")
    assert node.gaps == 1


async def test_redis_away_is_asked_again_until_it_answers() -> None:
    node = Node(3)
    node.history.away = True
    ready = asyncio.create_task(node.recovery.prepare("t"))
    await eventually(lambda: node.history.reads == 2)
    node.history.away = False
    await ready
    assert node.recovery.position("t") == place(3)


async def test_a_missed_last_message_of_an_idle_topic_is_found_at_the_second_check() -> None:
    node = Node(3)
    await node.recovery.prepare("t")
    node.publish(received=False)
    await node.recovery.check()
    assert node.recovery.is_ready("t"), "it may still be on its way"
    await node.recovery.check()
    await eventually(lambda: node.had == [4])


async def test_an_idle_topic_gets_a_gap_after_a_flush_of_redis() -> None:
    node = Node(3)
    await node.recovery.prepare("t")
    node.history.epoch, node.history.top = "f", 0
    await node.recovery.check()
    await node.recovery.check()
    await eventually(lambda: node.gaps == 1)
    assert node.recovery.position("t") == place(0, "f")


async def test_of_many_topics_in_doubt_a_bounded_number_is_read_at_a_time() -> None:
    node = Node()
    topics = [f"t{number}" for number in range(MAX_READING + 50)]
    await asyncio.gather(*map(node.recovery.prepare, topics))
    node.history.reads = 0
    node.history.go.clear()
    node.recovery.mark_missed(topics)
    for _ in range(10):
        await asyncio.sleep(0)
    assert node.history.reads == MAX_READING
    node.history.go.set()
    await asyncio.gather(*map(node.recovery.prepare, topics))
    assert node.history.reads == len(topics)
