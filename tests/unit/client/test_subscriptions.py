"""What the Python client sends for its topics, in virtual time: batches, pace, answers, changes of mind."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from gateway.client import Disconnected, Gap, Message, Recovered, Refused, Subscription, TooLarge
from gateway.client.backoff import Backoff
from gateway.client.server_limits import ServerLimits
from gateway.client.subscriptions import TopicSubscriptions
from gateway.core import fossil_delta

Frame = dict[str, Any]


class Bench:
    """Topics at one end, the test as the server at the other; time stands still until `pass_seconds`."""

    def __init__(self, limits: ServerLimits | None = None) -> None:
        self.now = 0.0
        self.sent: list[Frame] = []
        self.other: list[Message] = []
        self.backoff = Backoff(1.0, 20.0, lambda _, high: high / 2)
        self.topics = TopicSubscriptions(1.0, 10.0, self.backoff, lambda: None, self.other.append)
        self.limits = limits or ServerLimits()
        self.topics.connected(self.limits)

    def turn(self) -> list[Frame]:
        """Let it send what it wants to, and give what that was."""
        data = self.topics.messages_due(self.now)
        assert all(len(each) <= self.limits.message_bytes for each in data)
        frames = [orjson.loads(each) for each in data]
        self.sent += frames
        return frames

    def pass_seconds(self, seconds: float) -> list[Frame]:
        """Let time pass, and it do what is due; what it sent meanwhile."""
        end = self.now + seconds
        frames: list[Frame] = []
        for _ in range(10_000):
            due = self.topics.due()
            if due is None or due > end:
                self.now = end
                return frames + self.turn()
            self.now = max(self.now, due)
            frames += self.turn()
        raise AssertionError("it is due without end")

    def hear(self, **frame: Any) -> None:
        self.topics.receive(frame, self.now)

    def acknowledge(self, frame: Frame, topics: list[str] | None = None, positions: Any = None) -> None:
        self.hear(
            type="ACKNOWLEDGMENT", operation="subscribe", topics=frame["topics"] if topics is None else topics,
            requestId=frame["requestId"], **({"positions": positions} if positions else {}),
        )  # fmt: skip

    def refuse(self, frame: Frame, code: int, temporary: bool = False) -> None:
        self.hear(type="ERROR", code=code, message="no", requestId=frame["requestId"], temporary=temporary)

    def data(
        self, topic: str, data: Any, offset: int | None = None, *, epoch: str = "e", initial: bool = False
    ) -> None:
        place = {} if offset is None else {"offset": offset, "epoch": epoch}
        self.hear(type="DATA", topic=topic, data=data, **place, **({"initialData": True} if initial else {}))

    def said(self, kind: str) -> list[str]:
        return [topic for frame in self.sent if frame["type"] == kind for topic in frame["topics"]]


def received(subscription: Subscription) -> list[Any]:
    """What waits to be read: data of messages, and the other events' names."""
    events = [*subscription._waiting]
    return [event.data if isinstance(event, Message) else type(event).__name__.lower() for event in events]


def at(offset: int, **more: Any) -> dict[str, Any]:
    return {"epoch": "e", "offset": offset, **more}


async def test_subscribe_close_and_subscribe_in_one_turn_is_one_subscribe() -> None:
    bench = Bench()
    bench.topics.remove(bench.topics.add("t", 10))
    second = bench.topics.add("t", 10)
    [frame] = bench.turn()
    assert (frame["type"], frame["topics"]) == ("SUBSCRIBE", ["t"])
    bench.acknowledge(frame, positions={"t": at(1)})
    bench.data("t", "a", 2)
    assert second.live
    assert received(second) == ["a"]
    assert bench.turn() == []


async def test_a_topic_that_is_subscribed_to_and_left_in_one_turn_is_not_asked_for() -> None:
    bench = Bench()
    bench.topics.remove(bench.topics.add("t", 10))
    assert bench.turn() == []


async def test_a_topic_that_is_left_while_its_subscribe_is_on_the_way_is_left_upon_the_answer() -> None:
    bench = Bench()
    first = bench.topics.add("t", 10)
    [frame] = bench.turn()
    bench.topics.remove(first)
    assert bench.pass_seconds(30) == []  # no subscription waits for it, so SUBSCRIBE is not sent again
    bench.acknowledge(frame)
    assert [frame["type"] for frame in bench.turn()] == ["UNSUBSCRIBE"]
    assert bench.pass_seconds(30) == []


async def test_a_subscription_added_while_anothers_subscribe_is_on_the_way_is_live_upon_its_own() -> None:
    bench = Bench()
    first = bench.topics.add("t", 10)
    [frame] = bench.turn()
    bench.topics.remove(first)
    second = bench.topics.add("t", 10)
    assert bench.turn() == []
    bench.acknowledge(frame, positions={"t": at(1)})
    assert not second.live
    [again] = bench.turn()
    bench.data("t", "last", 1, initial=True)
    bench.acknowledge(again, positions={"t": at(1)})
    bench.data("t", "a", 2)
    assert received(second) == ["last", "a"]
    assert bench.said("UNSUBSCRIBE") == []


async def test_close_and_subscribe_in_one_turn_leaves_the_topic_subscribed() -> None:
    bench = Bench()
    first = bench.topics.add("t", 10)
    bench.acknowledge(bench.turn()[0], positions={"t": at(1)})
    bench.turn()
    bench.topics.remove(first)
    second = bench.topics.add("t", 10)
    [frame] = bench.turn()
    bench.data("t", "a", 2)
    bench.acknowledge(frame, positions={"t": at(2)})
    bench.data("t", "b", 3)
    assert received(second) == ["a", "b"]
    assert bench.said("UNSUBSCRIBE") == []


async def test_what_is_closed_while_offline_is_forgotten_with_its_place() -> None:
    bench = Bench()
    first = bench.topics.add("t", 10)
    bench.acknowledge(bench.turn()[0], positions={"t": at(1)})
    bench.topics.disconnected()
    assert bench.topics.due() is None
    bench.topics.remove(first)
    bench.topics.add("t", 10)
    bench.topics.connected(ServerLimits())
    [frame] = bench.turn()
    assert "recover" not in frame


async def test_a_topic_left_while_its_subscribe_was_cut_off_is_not_asked_for_again() -> None:
    bench = Bench()
    first = bench.topics.add("t", 10)
    bench.turn()
    bench.topics.remove(first)
    bench.topics.disconnected()
    bench.topics.connected(ServerLimits())
    assert bench.turn() == []


async def test_a_topic_taken_while_it_is_asked_for_again_is_left_if_the_server_gives_it_back() -> None:
    bench = Bench()
    first = bench.topics.add("t", 10)
    bench.acknowledge(bench.turn()[0])
    bench.topics.add("t", 10)
    [frame] = bench.turn()
    bench.hear(type="SYSTEM", action="unsubscribed", data={"topics": ["t"], "reason": "by the operator"})
    assert first.ended
    bench.acknowledge(frame)
    bench.turn()
    assert bench.said("UNSUBSCRIBE") == ["t"]


async def test_a_topic_that_a_second_subscription_may_not_hear_ends_for_all_and_is_left() -> None:
    bench = Bench()
    first = bench.topics.add("t", 10)
    bench.acknowledge(bench.turn()[0])
    bench.topics.add("t", 10)
    [frame] = bench.turn()
    bench.refuse(frame, 4012)
    bench.turn()
    assert first.ended
    assert bench.said("UNSUBSCRIBE") == ["t"]


@pytest.mark.parametrize("message_bytes", [1024, 65_536, 1 << 20])
async def test_thousands_of_topics_are_asked_for_in_messages_that_the_server_takes(message_bytes: int) -> None:
    bench = Bench(ServerLimits(message_bytes=message_bytes))
    names = [f"contest-chat:{number}:{'ü' * 80}" for number in range(2000)]
    subscriptions = [bench.topics.add(name, 10) for name in names]
    for _ in range(2):
        bench.sent.clear()
        waiting = bench.turn()
        assert sum(len(orjson.dumps(frame)) for frame in waiting) <= min(message_bytes, 60_000)
        while waiting:
            frame = waiting.pop(0)
            bench.acknowledge(frame, positions={name: at(1) for name in frame["topics"]})
            waiting += bench.turn()
        assert bench.said("SUBSCRIBE") == names
        assert all(subscription.live for subscription in subscriptions)
        bench.topics.disconnected()
        bench.topics.connected(bench.limits)
    bench.topics.disconnected()
    bench.topics.connected(bench.limits)
    while waiting := bench.turn():
        for frame in waiting:
            assert set(frame["recover"]) == set(frame["topics"])
            bench.acknowledge(frame)
    for subscription in subscriptions:
        bench.topics.remove(subscription)
    bench.turn()
    assert bench.said("UNSUBSCRIBE") == names


async def test_a_topic_larger_than_a_message_ends_alone() -> None:
    bench = Bench(ServerLimits(message_bytes=1024))
    large, small = bench.topics.add("t" * 2000, 10), bench.topics.add("t", 10)
    [frame] = bench.turn()
    assert frame["topics"] == ["t"]
    bench.acknowledge(frame)
    assert small.live
    with pytest.raises(TooLarge, match=r"SUBSCRIBE has 20\d\d bytes; the server accepts at most 1024"):
        await large.entered


async def test_subscriptions_keep_to_the_servers_rate() -> None:
    bench = Bench(ServerLimits(subscriptions_per_second=1))
    for number in range(30):
        bench.topics.add(f"t{number}", 10)
    frames = bench.turn()
    for second in range(1, 60):
        for frame in frames:
            bench.acknowledge(frame)
        frames = bench.pass_seconds(1)
        assert len(bench.said("SUBSCRIBE")) <= 10 + second
    assert len(bench.said("SUBSCRIBE")) == len(set(bench.said("SUBSCRIBE"))) == 30


async def test_a_server_that_counts_otherwise_is_asked_again_when_its_rate_allows_it() -> None:
    bench = Bench(ServerLimits(subscriptions_per_second=10))
    for number in range(50):
        bench.topics.add(f"t{number}", 10)
    [frame] = bench.turn()
    bench.refuse(frame, 4029, temporary=True)
    assert bench.pass_seconds(5) == []
    assert [len(again["topics"]) for again in bench.pass_seconds(0.6)] == [50]


async def test_a_subscribe_without_an_answer_is_sent_three_times_and_then_given_up() -> None:
    bench = Bench()
    bench.topics.add("t", 10)
    bench.turn()
    bench.pass_seconds(9)
    assert len({frame["requestId"] for frame in bench.sent}) == 1
    assert bench.said("SUBSCRIBE") == ["t"] * 3
    with pytest.raises(Disconnected):
        bench.pass_seconds(1)


async def test_a_subscribe_that_recovers_is_sent_once_since_its_copy_would_recover_again() -> None:
    bench = Bench()
    bench.topics.add("t", 10)
    bench.acknowledge(bench.turn()[0], positions={"t": at(1)})
    bench.topics.disconnected()
    bench.topics.connected(ServerLimits())
    [frame] = bench.turn()
    assert frame["recover"] == {"t": at(1)}
    assert bench.pass_seconds(9) == []
    with pytest.raises(Disconnected):
        bench.pass_seconds(1)


async def test_while_answers_come_none_is_given_up() -> None:
    bench = Bench(ServerLimits(message_bytes=1024))
    for number in range(500):
        bench.topics.add(f"{number}:{'x' * 180}", 10)
    waiting = bench.turn()
    while waiting:
        bench.acknowledge(waiting.pop(0))
        waiting += bench.pass_seconds(0.9)
    assert bench.now > 50
    assert len(bench.said("SUBSCRIBE")) == 500


async def test_while_redis_is_away_a_subscribe_waits_with_it() -> None:
    bench = Bench()
    subscription = bench.topics.add("t", 10)
    [frame] = bench.turn()
    bench.hear(type="SYSTEM", action="degraded", data={})
    assert bench.pass_seconds(100) == []
    bench.acknowledge(frame)
    assert subscription.live


async def test_only_once_all_is_acknowledged_the_waits_begin_anew() -> None:
    bench = Bench()
    bench.topics.add("t", 10)
    bench.backoff.seconds()
    bench.backoff.seconds()
    [frame] = bench.turn()
    assert bench.backoff.seconds() == 2.0
    bench.acknowledge(frame)
    bench.turn()
    assert bench.backoff.seconds() == 0.5


async def test_another_history_in_a_second_acknowledgement_is_a_gap_before_its_first_message() -> None:
    bench = Bench()
    first = bench.topics.add("t", 10)
    bench.acknowledge(bench.turn()[0], positions={"t": at(5)})
    bench.topics.add("t", 10)
    [frame] = bench.turn()
    bench.acknowledge(frame, positions={"t": {"epoch": "f", "offset": 1}})
    bench.data("t", "a", 2, epoch="f")
    assert received(first) == ["gap", "a"]
    assert isinstance(first._waiting[0], Gap)


async def test_of_many_topics_one_that_is_refused_is_found_by_halves() -> None:
    bench = Bench()
    subscriptions = {name: bench.topics.add(name, 10) for name in "abcdefgh"}
    bench.turn()
    for frame in bench.sent:  # grows meanwhile
        if "e" in frame["topics"]:
            bench.refuse(frame, 4010)
        else:
            bench.acknowledge(frame)
        bench.turn()
    assert [name for name, each in subscriptions.items() if each.ended] == ["e"]
    assert all(each.live for name, each in subscriptions.items() if name != "e")
    with pytest.raises(Refused, match="4010"):
        await subscriptions["e"].entered
    assert len(bench.sent) == 7


# ---- filters and deltas

BUYS = {"key": "side", "cmp": "eq", "val": "buy"}


async def test_topics_with_the_same_options_share_a_subscribe() -> None:
    bench = Bench()
    for number in range(3):
        bench.topics.add(f"plain{number}", 10)
        bench.topics.add(f"buys{number}", 10, BUYS)
        bench.topics.add(f"deltas{number}", 10, delta=True)
    sent = {tuple(frame["topics"]): (frame.get("filter"), frame.get("delta")) for frame in bench.turn()}
    assert sent == {
        ("plain0", "plain1", "plain2"): (None, None),
        ("buys0", "buys1", "buys2"): (BUYS, None),
        ("deltas0", "deltas1", "deltas2"): (None, "fossil"),
    }


async def test_subscriptions_of_a_topic_share_its_filter() -> None:
    bench = Bench()
    first = bench.topics.add("a", 10, BUYS)
    bench.topics.add("a", 10, dict(BUYS))
    with pytest.raises(ValueError, match="another filter"):
        bench.topics.add("a", 10)
    with pytest.raises(ValueError, match="JSON"):
        bench.topics.add("b", 10, {"key": object()})
    bench.topics.remove_topic("a")
    assert first.ended
    bench.topics.add("a", 10)
    assert [frame.get("filter") for frame in bench.turn()] == [None]


def said(bench: Bench, data: Any, delta: bool | None = None, **more: Any) -> None:
    """A message of the topic `a` as the server sends it."""
    about = {} if delta is None else {"delta": delta}
    bench.hear(type="DATA", topic="a", data=data, timestamp="", **about, **more)


def data(subscription: Subscription) -> list[Any]:
    """What has been delivered, and is not read yet: data of messages, and the types of other events."""
    return [each.data if isinstance(each, Message) else type(each) for each in subscription._waiting]


async def test_messages_are_made_from_deltas() -> None:
    bench = Bench()
    subscription = bench.topics.add("a", 10, delta=True)
    [frame] = bench.turn()
    bench.acknowledge(frame)
    texts = [orjson.dumps({"n": n, "text": "é" * 50}) for n in range(3)]
    said(bench, texts[0].decode(), delta=False)
    said(bench, {"initial": "value"}, initialData=True)  # older nodes, missed messages: no delta, and the base stays
    said(bench, "direct")
    for old, new in itertools.pairwise(texts):
        delta = fossil_delta.create(old, new)
        assert delta is not None
        said(bench, delta.decode(), delta=True, tags={"a": "b"})
    assert data(subscription) == [orjson.loads(texts[0]), "direct", *map(orjson.loads, texts[1:])]
    last = subscription._waiting[-1]
    assert isinstance(last, Message)
    assert last.extras == {"tags": {"a": "b"}}


@pytest.mark.parametrize("history", [True, False])
async def test_after_a_delta_that_does_not_apply_it_subscribes_again_and_recovers(history: bool) -> None:
    bench = Bench()
    subscription = bench.topics.add("a", 10, delta=True)
    positions = {"a": {"epoch": "e", "offset": 0, "mark": 0}} if history else None
    [frame] = bench.turn()
    bench.acknowledge(frame, positions=positions)
    at = iter(range(1, 10))

    def place() -> dict[str, Any]:
        return {"epoch": "e", "offset": next(at), "mark": 5} if history else {}

    said(bench, '"one"', delta=False, **place())
    for wrong in ('2\n2:""0;', "no delta"):  # the second one comes before the answer
        said(bench, wrong, delta=True, **place())
    [again] = bench.turn()
    assert again.get("recover") == ({"a": {"epoch": "e", "offset": 1, "mark": 5}} if history else None)
    if history:
        for offset, value in ((2, "two"), (3, "three")):
            said(bench, value, epoch="e", offset=offset, mark=5)
    bench.acknowledge(again, positions={"a": {"epoch": "e", "offset": 3, "recovered": True}} if history else None)
    said(bench, '"four"', delta=False, **place())
    assert data(subscription) == (
        ["one", "two", "three", Recovered, "four"] if history else ["one", Gap, "four"]
    )  # fmt: skip
    assert bench.turn() == []
