"""gateway.broker.history and snapshots: what is numbered, kept, read and deleted, on a Redis in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import pytest

from gateway.broker.envelope import Envelope, EnvelopeKind
from gateway.broker.history import NO_TOP, History, HistoryTop
from gateway.broker.keys import Keys
from gateway.broker.server_life import ServerLife
from gateway.broker.snapshots import Snapshots
from gateway.core.position import is_unborn
from gateway.core.topic_rules import Rule
from tests.unit.memory_redis import MemoryRedis
from tests.unit.raw import body

KEYS = Keys("", False)
RULE = Rule(pattern="*", history=5, history_seconds=100)
T = TypeVar("T")


def do(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


class At:
    """A topic's stream on an empty Redis."""

    def __init__(self) -> None:
        self.redis = MemoryRedis()
        self.history = History(self.redis.client, KEYS, lambda: self.redis.now_ms / 1000)
        self.snapshots = Snapshots(self.redis.client, KEYS)
        self.life = "0123456789ab"
        self.history._lives = cast(ServerLife, self)

    async def of(self, _key: str) -> str:
        """The life of this Redis."""
        return self.life

    def publish(self, number: int, topic: str = "t", rule: Rule = RULE, key: str | None = None) -> list[Any]:
        message = Envelope(self.redis.now_ms, body(b"%d" % number), kind=EnvelopeKind.HISTORY)
        [answer] = do(self.redis.transact([self.history.append_command(topic, rule, message, f"ch:{topic}", key)]))
        return cast(list[Any], answer)

    def keep(self, data: bytes, topic: str = "t") -> None:
        message = Envelope(self.redis.now_ms, body(data), kind=EnvelopeKind.SNAPSHOT)
        do(self.redis.transact([self.snapshots.publish_command(topic, message, f"ch:{topic}", None)]))

    def offsets(self, first: int | None, count: int = 100, **how: Any) -> list[int]:
        return [entry.offset for entry in do(self.history.read("t", first, count, **how)).entries]


def test_messages_are_numbered_linked_and_the_oldest_go() -> None:
    at = At()
    for number in range(1, 8):
        assert at.publish(number)[1] == number
    page = do(at.history.read("t", None))
    assert [entry.offset for entry in page.entries] == [3, 4, 5, 6, 7]
    assert [entry.previous for entry in page.entries[1:]] == [entry.mark for entry in page.entries[:-1]]
    assert (page.top, page.mark, page.more, page.beginning) == (7, page.entries[-1].mark, False, None)
    assert len(at.redis.published) == 7


@pytest.mark.parametrize(("first", "count", "offsets", "more"), [
    (None, 2, [4, 5], False), (1, 2, [1, 2], True), (4, 2, [4, 5], False), (5, 2, [5], False), (6, 2, [], False),
    (2, 3, [2, 3, 4], True), (1, 5, [1, 2, 3, 4, 5], False),
])  # fmt: skip
def test_a_page_is_bounded_and_states_whether_more_messages_exist(
    first: int | None, count: int, offsets: list[int], more: bool
) -> None:
    at = At()
    for number in range(1, 6):
        at.publish(number)
    page = do(at.history.read("t", first, count))
    assert ([entry.offset for entry in page.entries], page.more) == (offsets, more)


def test_a_topic_without_messages_has_the_position_of_this_redis_and_hour() -> None:
    at = At()
    page = do(at.history.read("t", None))
    assert is_unborn(page.epoch)
    assert (page.top, page.entries, page.beginning) == (0, [], page.epoch)
    assert do(at.history.read("t", None)).epoch == page.epoch
    at.life = "ba9876543210"
    assert do(at.history.read("t", None)).epoch != page.epoch


def test_the_whole_stream_begins_at_that_position_if_it_is_wanted() -> None:
    at = At()
    nothing = do(at.history.read("t", None)).epoch
    at.publish(1)
    assert do(at.history.read("t", None)).beginning == nothing
    assert do(at.history.read("t", None, compare=False)).beginning is None
    at.publish(2)
    assert do(at.history.read("t", 2)).beginning is None


def test_a_key_that_was_used_gives_the_first_answer_and_publishes_nothing() -> None:
    at = At()
    first = at.publish(1, key="k")
    again = at.publish(2, key="k")
    assert (first[:3], first[3], again[3]) == (again[:3], 0, 1)
    assert (at.offsets(None), len(at.redis.published)) == ([1], 1)


def test_tops_of_many_topics_are_read_in_one_round_trip_and_one_that_is_broken_is_its_own_failure() -> None:
    at = At()
    epoch, _, mark, _ = at.publish(1, "a")
    at.redis.run("SET", KEYS.history_meta("b"), "x")
    trips = len(at.redis.trips)
    found = do(at.history.tops([(topic, RULE) for topic in "abc"]))
    assert len(at.redis.trips) == trips + 1
    assert found[0] == HistoryTop(epoch.decode(), 1, int(mark))
    assert found[1] in (None, NO_TOP)
    assert found[2] == NO_TOP
    at.redis.run("PEXPIRE", KEYS.history_meta("a"), 1000)
    do(at.history.tops([("a", RULE)]))
    assert at.redis.ttl_ms(KEYS.history_meta("a")) > 1000, "a topic with subscribers is not forgotten"


def test_a_new_epoch_is_as_durable_as_a_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    at = At()
    old = at.publish(1)[0].decode()
    transact, durable = at.redis.client.transact, []

    async def recorded(commands: Any, **how: Any) -> Any:
        durable.append(how.get("durable", False))
        return await transact(commands, **how)

    monkeypatch.setattr(at.redis.client, "transact", recorded)
    assert do(at.history.renew_epoch("t", old)) != old
    assert durable == [True]


def test_a_broken_epoch_is_replaced_once() -> None:
    at = At()
    old = at.publish(1)[0].decode()
    new = do(at.history.renew_epoch("t", old))
    assert new is not None and new != old
    assert do(at.history.renew_epoch("t", old)) == new, "another node was quicker"
    assert do(at.history.renew_epoch("none", old)) is None
    assert at.publish(2)[:2] == [new.encode(), 2]


def test_after_a_delete_offsets_go_on() -> None:
    at = At()
    at.publish(1)
    assert do(at.history.delete("t"))
    assert not do(at.history.delete("t"))
    assert at.offsets(None) == []
    assert at.publish(2)[1] == 2


def test_an_entry_of_another_program_is_skipped_and_counted() -> None:
    at = At()
    at.publish(1)
    assert at.redis.run("XADD", KEYS.history("t"), "1-1", "m", "{}") == b"1-1"
    assert at.offsets(None) == [1]
    assert at.redis.metrics.malformed.labels("history").value == 1


async def test_a_snapshot_that_is_forgotten_during_its_read_stays_unknown() -> None:
    at = At()
    go, answers = asyncio.Event(), at.redis.execute_each

    async def wait(commands: Any) -> list[Any]:
        found = await answers(commands)
        await go.wait()
        return found

    at.redis.execute_each = wait  # type: ignore[method-assign]
    read, cancelled = [asyncio.create_task(at.snapshots.prepare(["left", "kept"])) for _ in range(2)]
    await asyncio.sleep(0)
    at.snapshots.forget("left")
    cancelled.cancel()
    go.set()
    await read
    assert (at.snapshots.is_ready("left"), at.snapshots.is_ready("kept")) == (False, True)
    await at.snapshots.prepare(["left"])
    assert at.snapshots.is_ready("left")
    assert not at.snapshots._reading


def test_a_snapshot_is_kept_read_once_and_replaced_by_newer_ones_only() -> None:
    at = At()
    assert do(at.snapshots.read("t")) is None
    at.keep(b'{"n":1}')
    trips = len(at.redis.trips)
    do(at.snapshots.prepare(["t", "none"]))
    do(at.snapshots.prepare(["t", "none"]))
    assert len(at.redis.trips) == trips + 1
    assert (at.snapshots.newest("t"), at.snapshots.newest("none")) == (body(b'{"n":1}'), None)
    assert (at.snapshots.is_ready("t"), at.snapshots.is_ready("other")) == (True, False)
    version = at.redis.now_ms * 10**6
    at.snapshots.value_received("t", version, body(b'{"n":2}'))
    at.snapshots.value_received("t", version - 1, body(b'{"n":3}'))
    at.snapshots.value_received("t", version, body(b'{"n":4}'))
    assert at.snapshots.newest("t") == body(b'{"n":2}')
    at.snapshots.replace("t", body(b'{"n":5}'))
    at.snapshots.replace("other", b'{"n":5}')
    assert (at.snapshots.newest("t"), at.snapshots.is_ready("other")) == (body(b'{"n":5}'), False)


def test_what_all_subscribers_have_had_is_superseded_until_it_is_forgotten() -> None:
    at = At()
    assert not at.snapshots.is_superseded("t", 1)
    at.snapshots.value_received("t", 5, b"{}")
    assert not at.snapshots.is_superseded("t", 5)
    at.snapshots.begin_topic("t")
    assert [at.snapshots.is_superseded("t", version) for version in (4, 5, 6)] == [True, True, False]
    at.snapshots.forget("t")
    assert not at.snapshots.is_ready("t")
    assert not at.snapshots.is_superseded("t", 4)


def test_a_snapshot_that_is_none_of_ours_is_none() -> None:
    at = At()
    at.redis.run("SET", KEYS.snapshot("t"), "x")
    assert do(at.snapshots.read("t")) is None
    at.redis.run("UNLINK", KEYS.snapshot("t"))
    at.redis.run("HSET", KEYS.snapshot("t"), "v", "1", "m", "no object")
    assert do(at.snapshots.read("t")) is None
    assert at.redis.metrics.malformed.labels("snapshot").value >= 1
