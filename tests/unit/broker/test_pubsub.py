"""PubSub on a Redis whose confirmations and failures the test controls, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio.connection import AbstractConnection
from structlog.testing import capture_logs

from gateway.broker.channel import Callback
from gateway.broker.client import Unavailable
from gateway.broker.pubsub import LINGER_SECONDS, PubSub
from gateway.broker.pubsub_health import PARTIAL_SECONDS
from gateway.broker.slot_map import SlotMap
from gateway.broker.subscriber import COMMAND_CHANNELS, RETRY_BASE_SECONDS, RETRY_CAP_SECONDS
from gateway.metrics import Metrics
from tests.unit.fake_redis import FakeRedis
from tests.unit.virtual_time import in_virtual_time, later, quiet

OWN = "gw:ws:node:web.f00d"
METRICS = Metrics()


@pytest.fixture(scope="module", autouse=True)
def log() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged. Thousands of faults are, and to print their tracebacks takes longer than all the rest."""
    with capture_logs() as lines:
        yield lines


class FakeListener:
    """A PubSub and its listener, which records the reports."""

    def __init__(self, redis: FakeRedis) -> None:
        self.redis = redis
        self.reports: list[str | list[str]] = []  # "lost", or the missed channels after all are subscribed again
        self.missed: list[str] = []
        self.received: list[tuple[str, bytes]] = []
        self.pubsub = PubSub(redis.client, OWN, METRICS)

    def pubsub_lost(self, reason: str, channels: list[str]) -> None:
        self.reports.append("lost")

    def pubsub_missed(self, channels: list[str]) -> None:
        self.missed += channels

    def pubsub_restored(self) -> None:
        self.reports.append(sorted(self.missed))
        self.missed.clear()

    def reason(self) -> str | None:
        return self.pubsub.health.reason

    def hear(self, channel: str, payload: bytes) -> None:
        self.received.append((channel, payload))

    def listen(self, *channels: str, done: Callable[[], None] = lambda: None) -> bool:
        return self.pubsub.subscribe(channels, self.hear, done)

    def ignore(self, *channels: str) -> None:
        self.pubsub.unsubscribe(channels, self.hear)

    async def lose(self, seconds: float = 0.0) -> None:
        """The connection breaks, and Redis is away for so long."""
        self.redis.reachable = not seconds
        self.redis.connection.cut()
        await later(seconds)
        self.redis.reachable = True


@asynccontextmanager
async def running(redis: FakeRedis) -> AsyncIterator[FakeListener]:
    """A listener whose PubSub runs; it is connected if Redis is reachable."""
    listener = FakeListener(redis)
    task = asyncio.get_running_loop().create_task(listener.pubsub.run(listener))
    await quiet()
    try:
        yield listener
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class CallCounter:
    """A `done` callback that counts its calls."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def commands(redis: FakeRedis) -> list[tuple[str, list[str]]]:
    """What was sent on the latest connection, without the node's own channel."""
    sent = [
        (command, [c.decode() for c in channels if c.decode() != OWN]) for command, channels in redis.connection.sent
    ]
    return [(command, channels) for command, channels in sent if channels]


# ---- listening


@in_virtual_time
async def test_done_is_called_once_redis_has_confirmed_and_not_before() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        redis.eager = False
        called = CallCounter()
        assert not listener.listen("a", "b", done=called)
        await later(5)
        assert called.times == 0
        redis.connection.confirm()
        await quiet()
        assert called.times == 1
        assert listener.listen("a", done=called) and listener.listen("b", "a", done=called)
        await quiet()
        assert called.times == 1


@in_virtual_time
async def test_done_waits_for_the_last_of_its_channels() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        redis.eager = False
        first, both = CallCounter(), CallCounter()
        listener.listen("a", done=first)
        await quiet()
        listener.listen("b", "a", done=both)
        await quiet()
        redis.connection.confirm(1)
        await quiet()
        assert (first.times, both.times) == (1, 0)
        redis.connection.confirm(1)
        await quiet()
        assert (first.times, both.times) == (1, 1)


@in_virtual_time
async def test_the_same_channel_twice_is_one_channel() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        called = CallCounter()
        listener.listen("a", "a", done=called)
        listener.listen("a", done=called)
        await quiet()
        assert called.times == 2
        redis.say("a", b"x")
        await quiet()
        assert listener.received == [("a", b"x")]


@in_virtual_time
async def test_what_is_wanted_in_one_turn_is_one_command() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        for channel in "abc":
            listener.listen(channel)
        await quiet()
        assert commands(redis) == [("SUBSCRIBE", ["a", "b", "c"])]


@in_virtual_time
async def test_a_command_has_a_bounded_number_of_channels() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        wanted = [f"t{number}" for number in range(2 * COMMAND_CHANNELS + 1)]
        listener.listen(*wanted)
        await quiet()
        sent = commands(redis)
        assert [len(channels) for _, channels in sent] == [COMMAND_CHANNELS, COMMAND_CHANNELS, 1]
        assert [channel for _, channels in sent for channel in channels] == wanted


@in_virtual_time
async def test_every_callback_of_a_channel_receives_each_message_in_order() -> None:
    redis = FakeRedis()
    other: list[bytes] = []
    async with running(redis) as listener:
        listener.listen("a", "b")
        listener.pubsub.subscribe(["a"], lambda _channel, payload: other.append(payload), lambda: None)
        await quiet()
        for number, channel in enumerate("abab"):
            redis.say(channel, b"%d" % number)
        redis.say("c", b"not for us")
        await quiet()
    assert listener.received == [("a", b"0"), ("b", b"1"), ("a", b"2"), ("b", b"3")]
    assert other == [b"0", b"2"]


@in_virtual_time
async def test_a_callback_that_fails_keeps_nothing_from_the_others() -> None:
    def fails(channel: str, payload: bytes) -> None:
        raise ValueError("not mine to catch")

    redis = FakeRedis()
    async with running(redis) as listener:
        listener.pubsub.subscribe(["a"], fails, lambda: None)
        listener.listen("a")
        await quiet()
        for payload in (b"1", b"2"):
            redis.say("a", payload)
        await quiet()
        assert listener.received == [("a", b"1"), ("a", b"2")]
        assert len(redis.connections) == 1


@in_virtual_time
async def test_a_done_that_fails_keeps_nothing_from_the_others() -> None:
    def fails() -> None:
        raise ValueError("not mine to catch")

    redis = FakeRedis()
    async with running(redis) as listener:
        redis.eager = False
        before, after = CallCounter(), CallCounter()
        for done in (before, fails, after):
            listener.listen("a", done=done)
        await quiet()
        redis.connection.confirm()
        await quiet()
        assert (before.times, after.times) == (1, 1)


@in_virtual_time
async def test_a_done_that_fails_while_redis_is_away_does_not_end_pubsub() -> None:
    def fails() -> None:
        raise ValueError("not mine to catch")

    redis = FakeRedis(eager=False)
    async with running(redis) as listener:
        listener.listen("a", done=fails)
        await quiet()
        listener.ignore("a")
        await later(LINGER_SECONDS + 0.1)
        await listener.lose(5)  # the channel has no callback now, so its waiters are called
        redis.eager = True
        await later(5)
        assert listener.reason() is None


# ---- leaving


@in_virtual_time
async def test_an_empty_channel_is_kept_for_a_moment_and_then_left() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a", "b")
        await quiet()
        listener.ignore("a")
        await later(LINGER_SECONDS - 0.01)
        assert commands(redis) == [("SUBSCRIBE", ["a", "b"])]
        await later(0.02)
        assert commands(redis) == [("SUBSCRIBE", ["a", "b"]), ("UNSUBSCRIBE", ["a"])]
        assert redis.connection.subscribed == {OWN.encode(), b"b"}


@in_virtual_time
async def test_each_empty_channel_is_kept_for_its_own_moment() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a", "b", "c")
        await quiet()
        for channel in "abc":
            listener.ignore(channel)
            await later(0.4)
        assert commands(redis)[1:] == [("UNSUBSCRIBE", ["a"])]
        await later(0.4)
        assert commands(redis)[1:] == [("UNSUBSCRIBE", ["a"]), ("UNSUBSCRIBE", ["b"])]
        await later(0.4)
        assert redis.connection.subscribed == {OWN.encode()}


@in_virtual_time
async def test_one_that_was_wanted_again_meanwhile_does_not_hold_up_the_others() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a", "b")
        await quiet()
        listener.ignore("a", "b")
        await later(0.5)
        listener.listen("a")
        listener.ignore("a")
        await later(0.51)
        assert commands(redis)[1:] == [("UNSUBSCRIBE", ["b"])]
        await later(0.5)
        assert commands(redis)[1:] == [("UNSUBSCRIBE", ["b"]), ("UNSUBSCRIBE", ["a"])]


@in_virtual_time
async def test_a_channel_subscribed_again_in_time_needs_no_confirmation() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a")
        await quiet()
        listener.ignore("a")
        await later(LINGER_SECONDS - 0.01)
        assert listener.listen("a")
        await later(3 * LINGER_SECONDS)
        assert commands(redis) == [("SUBSCRIBE", ["a"])]
        redis.say("a", b"x")
        await quiet()
        assert listener.received == [("a", b"x")]


@in_virtual_time
async def test_a_channel_subscribed_again_too_late_waits_for_redis() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a")
        await quiet()
        redis.eager = False
        listener.ignore("a")
        await later(LINGER_SECONDS + 0.1)
        called = CallCounter()
        assert not listener.listen("a", done=called)
        await quiet()
        redis.connection.confirm(1)  # that it was left
        await quiet()
        assert called.times == 0
        redis.connection.confirm(1)
        await quiet()
        assert called.times == 1
        assert [command for command, _ in commands(redis)] == ["SUBSCRIBE", "UNSUBSCRIBE", "SUBSCRIBE"]


@in_virtual_time
async def test_a_channel_with_another_callback_is_kept() -> None:
    redis = FakeRedis()
    other: list[bytes] = []
    async with running(redis) as listener:
        listener.listen("a")
        listener.pubsub.subscribe(["a"], lambda _channel, payload: other.append(payload), lambda: None)
        await quiet()
        listener.ignore("a")
        await later(3 * LINGER_SECONDS)
        redis.say("a", b"x")
        await quiet()
        assert (listener.received, other) == ([], [b"x"])


@in_virtual_time
async def test_a_channel_without_callbacks_when_confirmed_is_unsubscribed() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        redis.eager = False
        listener.listen("a")
        await quiet()
        listener.ignore("a")
        await later(3 * LINGER_SECONDS)
        redis.eager = True
        redis.connection.confirm()
        await quiet()
        assert redis.connection.subscribed == {OWN.encode()}


@in_virtual_time
async def test_a_short_subscription_during_an_unsubscribe_leaves_no_state() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a")
        await quiet()
        redis.eager = False
        listener.ignore("a")
        await later(LINGER_SECONDS + 0.1)
        listener.listen("a")
        listener.ignore("a")
        redis.connection.confirm()  # that it was left
        await later(3 * LINGER_SECONDS)
        assert [command for command, _ in commands(redis)] == ["SUBSCRIBE", "UNSUBSCRIBE"]


def test_a_channel_that_was_left_is_forgotten(log: list[MutableMapping[str, Any]]) -> None:
    @in_virtual_time
    async def scenario() -> None:
        async with running(FakeRedis()) as listener:
            for number in range(100):
                listener.listen(f"t{number}")
                listener.ignore(f"t{number}")
            await later(LINGER_SECONDS + 0.1)
            await listener.lose()
            await later(RETRY_CAP_SECONDS)

    scenario()
    assert [line["channels"] for line in log if line["event"] == "bus connected"][-1] == 1  # the node's own


@in_virtual_time
async def test_unsubscribing_an_unknown_callback_changes_nothing() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a")
        listener.pubsub.unsubscribe(["a", "never"], lambda _channel, _payload: None)
        await later(3 * LINGER_SECONDS)
        assert commands(redis) == [("SUBSCRIBE", ["a"])]


@in_virtual_time
async def test_a_done_may_bring_back_a_channel_that_is_about_to_be_left() -> None:
    redis = FakeRedis()
    redis.reachable = False

    def back() -> None:
        listener.listen("b")

    async with running(redis) as listener:
        # All three channels expire in the same moment. The waiter of the first subscribes to the second again.
        listener.listen("a", done=back)
        listener.listen("b", "c")
        listener.ignore("a", "b", "c")
        await later(LINGER_SECONDS + 0.1)
        redis.reachable = True
        await later(RETRY_CAP_SECONDS + 0.1)
        assert redis.connection.subscribed == {OWN.encode(), b"b"}
        assert not listener.listen("c")  # it had been left, as any other


# ---- the connection


@in_virtual_time
async def test_reason_states_why_nothing_is_subscribed() -> None:
    redis = FakeRedis(eager=False)
    async with running(redis) as listener:
        assert listener.reason() == "not yet connected"
        redis.connection.confirm()
        await quiet()
        assert listener.reason() is None
        assert listener.reports == [[]]
        await listener.lose()
        await quiet()
        assert listener.reason() == "connection lost"


@in_virtual_time
async def test_channels_are_subscribed_again_after_a_loss_and_reported_as_missed() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a", "b")
        await quiet()
        await listener.lose(10)
        await later(RETRY_CAP_SECONDS)
        assert listener.reports == [[], "lost", ["a", "b", OWN]]
        redis.say("a", b"x")
        await quiet()
        assert listener.received == [("a", b"x")]


@in_virtual_time
async def test_a_loss_that_the_first_retry_repairs_is_no_outage_but_may_have_cost_messages() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a")
        await quiet()
        for _ in range(2):
            await listener.lose()
            await later(1)
        assert listener.reports == [[], ["a", OWN], ["a", OWN]]


@in_virtual_time
async def test_an_outage_is_reported_once_however_long_it_lasts() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        for _ in range(2):
            await listener.lose(60)
            await later(RETRY_CAP_SECONDS)
        assert listener.reports == [[], "lost", [OWN], "lost", [OWN]]


@in_virtual_time
async def test_a_redis_that_was_never_reachable_is_reported_too() -> None:
    redis = FakeRedis()
    redis.reachable = False
    async with running(redis) as listener:
        await later(10)
        assert listener.reason() == "connection refused"
        assert listener.reports == ["lost"]
        redis.reachable = True
        await later(RETRY_CAP_SECONDS)
        assert listener.reason() is None
        assert listener.reports == ["lost", []]


@in_virtual_time
async def test_a_redis_that_accepts_connections_but_refuses_to_subscribe_is_reported_too() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        redis.refuses = "NOPERM this user has no permissions to access one of the channels"
        await listener.lose()
        await later(60)
        assert listener.reports == [[], "lost"]
        assert str(listener.reason()).startswith("NOPERM")
        redis.refuses = None
        await later(RETRY_CAP_SECONDS)
        assert listener.reports == [[], "lost", [OWN]]


@in_virtual_time
async def test_a_connection_that_never_lasts_until_all_is_confirmed_is_reported_too() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen(*(f"t{number}" for number in range(COMMAND_CHANNELS)))
        await quiet()
        redis.eager = False
        for _ in range(5):
            redis.connection.cut()
            await later(RETRY_CAP_SECONDS)
            redis.connection.confirm(1)  # the own channel is among these; one is not
            await quiet()
        assert listener.reports == [[], "lost"]


@in_virtual_time
async def test_only_confirmed_channels_are_reported_as_missed() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("kept", "left")
        await quiet()
        listener.ignore("left")
        redis.eager = False
        listener.listen("asked")
        await quiet()
        redis.connection.cut()
        listener.listen("new")
        await later(1)
        redis.eager = True
        redis.connection.confirm()
        await quiet()
        assert listener.reports == [[], [OWN, "kept"]]


@in_virtual_time
async def test_the_end_of_an_outage_is_reported_once_all_channels_are_subscribed() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen(*(f"t{number:04}" for number in range(COMMAND_CHANNELS)))
        await quiet()
        redis.eager = False
        await listener.lose()
        await later(1)
        redis.connection.confirm(1)
        await quiet()
        assert listener.reports == [[]] and listener.reason() is not None
        redis.connection.confirm(1)
        await quiet()
        assert listener.reports[1:] == [sorted([OWN, *(f"t{number:04}" for number in range(COMMAND_CHANNELS))])]


@in_virtual_time
async def test_a_second_loss_before_the_news_loses_nothing_of_it() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen(*(f"t{number:04}" for number in range(COMMAND_CHANNELS)))
        await quiet()
        redis.eager = False
        await listener.lose()
        await later(1)
        redis.connection.confirm(1)  # half of it is back
        await quiet()
        listener.ignore("t0000")  # and of that, one is not wanted any more
        redis.eager = True
        await listener.lose()
        await later(3)
        assert listener.reports[1:] == [
            "lost",
            sorted([OWN, *(f"t{number:04}" for number in range(1, COMMAND_CHANNELS))]),
        ]


@in_virtual_time
async def test_what_is_ignored_while_it_is_missed_does_not_hold_up_the_news() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a")
        await quiet()
        redis.eager = False
        await listener.lose()
        await later(1)
        listener.ignore("a")
        await later(3 * LINGER_SECONDS)
        redis.connection.confirm()
        await quiet()
        assert listener.reports == [[], [OWN]]


@in_virtual_time
async def test_if_nothing_else_is_missed_the_news_comes_when_the_last_missed_is_ignored() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        wanted = [f"t{number:04}" for number in range(COMMAND_CHANNELS)]
        listener.listen(*wanted)
        await quiet()
        redis.eager = False
        await listener.lose()
        await later(1)
        redis.connection.confirm(1)  # all but the last, for which another command is under way
        await quiet()
        assert listener.reports == [[]]
        listener.ignore(wanted[-1])
        assert listener.reports == [[], [OWN, *wanted[:-1]]]


@in_virtual_time
async def test_a_listen_while_redis_is_away_is_kept_and_confirmed_when_it_can_be() -> None:
    redis = FakeRedis()
    redis.reachable = False
    called = CallCounter()
    async with running(redis) as listener:
        assert not listener.listen("a", done=called)
        await later(30)
        assert called.times == 0
        redis.reachable = True
        await later(RETRY_CAP_SECONDS)
        assert called.times == 1


@in_virtual_time
async def test_retries_never_end_and_never_crowd() -> None:
    redis = FakeRedis()
    random.seed(1)
    async with running(redis) as listener:
        before = redis.attempts
        await listener.lose(600)
        assert 600 / RETRY_CAP_SECONDS <= redis.attempts - before < 2000


@in_virtual_time
async def test_after_an_outage_the_first_retry_is_quick_again() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        await listener.lose(600)
        await later(RETRY_CAP_SECONDS)
        for _ in range(20):
            await listener.lose()
            await later(RETRY_BASE_SECONDS + 0.001)
            assert listener.reason() is None


@in_virtual_time
async def test_a_lost_connection_is_given_up_for_good() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        await listener.lose()
        await later(1)
    assert [connection.disconnected for connection in redis.connections] == [True, True]


# ---- the self-check


@in_virtual_time
async def test_a_check_goes_through_the_own_channel_and_back() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        assert await listener.pubsub.check() < 0.001
        listener.pubsub.subscribe([OWN], listener.hear, lambda: None)
        redis.say(OWN, b"a message to a client")
        redis.say(OWN, PubSub.CHECK + b"of another node")
        assert await listener.pubsub.check() < 0.001
        assert [payload for _, payload in listener.received][:2] == [b"a message to a client", b"check of another node"]


@in_virtual_time
async def test_a_deaf_connection_is_given_up_and_made_anew() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        redis.connection.subscribed.clear()  # it died unnoticed: no error, no message
        with pytest.raises(Unavailable, match="self-check failed"):
            await listener.pubsub.check()
        assert listener.reason() is not None
        await later(1)
        assert len(redis.connections) == 2 and redis.connections[0].disconnected
        assert listener.reason() is None
        assert listener.reports == [[], [OWN]]
        await listener.pubsub.check()


@in_virtual_time
async def test_a_master_that_is_one_no_more_is_left_though_it_answers() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        redis.elsewhere = True
        with pytest.raises(Unavailable, match="another master"):
            await listener.pubsub.check()
        redis.elsewhere = False
        await later(1)
        assert len(redis.connections) == 2 and redis.connections[0].disconnected
        assert listener.reports == [[], [OWN]]
        await listener.pubsub.check()


@in_virtual_time
async def test_a_frozen_redis_is_noticed_in_time() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        redis.frozen = True
        started = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await listener.pubsub.check()
        assert asyncio.get_running_loop().time() - started == pytest.approx(redis.timeout_seconds)
        await quiet()
        assert redis.connections[0].disconnected


@in_virtual_time
async def test_a_check_does_not_wait_for_a_server_that_has_no_slots_any_more() -> None:
    redis = FakeRedis()
    redis.sharded, redis.slot_map = True, SlotMap(sharded=True)
    redis.slot_map.update([(0, 8191, (b"dead", 1)), (8192, 16383, (b"alive", 1))], "")
    answered = redis.publish

    async def publish(channel: str, payload: bytes) -> None:
        if redis.slot_map.server(channel) == "dead:1":
            await asyncio.Event().wait()
        await answered(channel, payload)

    redis.publish = publish  # type: ignore[method-assign]
    async with running(redis) as listener:
        checking = asyncio.create_task(listener.pubsub.check())
        await quiet()
        assert not checking.done()
        redis.slot_map.update([(0, 16383, (b"alive", 1))], "")
        assert await listener.pubsub.check() < 0.001
        await quiet()
        assert checking.done() and checking.result() < 0.001


@in_virtual_time
async def test_a_lost_part_of_a_cluster_is_no_reason_until_the_servers_would_know_and_do_not_agree() -> None:
    redis = FakeRedis()
    redis.sharded, redis.slot_map = True, SlotMap(sharded=True)
    rows = [(0, 8191, (b"dead", 1, b"d")), (8192, 16383, (b"alive", 1, b"a"))]
    redis.slot_map.update(rows, "")
    away, connections, connect = [""], {}, redis.connect_subscriber

    async def subscriber(server: str) -> AbstractConnection:
        if server in away:
            raise Unavailable("connection refused")
        connections[server] = await connect(server)
        return connections[server]

    redis.connect_subscriber = subscriber  # type: ignore[method-assign,assignment]
    async with running(redis) as listener:
        pubsub = listener.pubsub

        def state() -> tuple[str | None, str | None, bool]:
            return pubsub.health.reason, pubsub.health.partial, pubsub.health.is_complete

        assert state() == (None, None, True)
        away.append("dead:1")
        cast(Any, connections["dead:1"]).cut()
        await later(1)
        assert state() == (None, "dead:1 is away (connection refused)", False)
        await later(PARTIAL_SECONDS)
        assert state() == ("dead:1: connection refused", None, False), "this node alone has lost it"
        redis.slot_map.update(rows, "", "d dead:1@2 master,fail - 0 0 1 connected 0-8191")
        assert state() == (None, "dead:1 is away (connection refused)", False), "all have lost it"
        away.append("alive:1")
        cast(Any, connections["alive:1"]).cut()
        await later(1)
        assert state() == ("dead:1: connection refused; alive:1: connection refused", None, False), "all is away"
        away.clear()
        await later(RETRY_CAP_SECONDS)
        assert state() == (None, None, True)


@in_virtual_time
async def test_subscribers_leave_a_server_that_is_not_the_master() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a")
        await quiet()
        redis.client.on_left("READONLY: the server is a replica, not the master")
        await later(1)
        assert redis.connections[0].disconnected and len(redis.connections) == 2
        assert listener.reason() is None


@in_virtual_time
async def test_a_check_that_was_sent_on_the_last_connection_does_not_end_the_next() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        redis.frozen = True
        check = asyncio.get_running_loop().create_task(listener.pubsub.check())
        await quiet()
        await listener.lose()
        await later(1)
        redis.frozen = False
        with pytest.raises(Unavailable):
            await check
        await quiet()
        assert not redis.connection.disconnected and len(redis.connections) == 2
        assert listener.reason() is None
        assert listener.reports == [[], [OWN]]


@in_virtual_time
async def test_a_check_that_comes_before_the_own_channel_is_confirmed_waits_for_it() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        redis.eager = False
        await listener.lose()
        await later(1)
        check = asyncio.get_running_loop().create_task(listener.pubsub.check())
        await quiet()
        redis.connection.confirm()
        assert await check < 0.001
        assert listener.reason() is None


@in_virtual_time
async def test_what_happens_while_a_connection_is_given_up_does_not_make_it_good_again() -> None:
    redis = FakeRedis()
    async with running(redis) as listener:
        listener.listen("a", "b")
        await quiet()
        redis.frozen = True
        with pytest.raises(Unavailable):
            await listener.pubsub.check()
        listener.ignore("a")  # before PubSub has unsubscribed
        assert listener.reports == [[]] and listener.reason() is not None
        await later(1)
        assert listener.reports == [[], ["b", OWN]]


@in_virtual_time
async def test_a_check_without_a_connection_fails_and_breaks_nothing() -> None:
    redis = FakeRedis()
    redis.reachable = False
    async with running(redis) as listener:
        with pytest.raises(Unavailable, match="self-check failed"):
            await listener.pubsub.check()
        redis.reachable = True
        await later(RETRY_CAP_SECONDS)
        assert listener.reason() is None


# ---- the contract, over all sequences

CHANNELS = [f"c{number}" for number in range(6)]


@dataclass(eq=False)
class Registration:
    """One callback on one channel, from listen to ignore."""

    channel: str
    promised: bool = False  # Redis had confirmed, and the waiter was called
    owed: list[int] = field(default_factory=list)  # what was published since
    received: list[int] = field(default_factory=list)
    told_missed: int = -1  # up to here a bus_resumed has named its channel


class World(FakeListener):
    """An listener whose every event is checked against the contract."""

    def __init__(self, redis: FakeRedis) -> None:
        super().__init__(redis)
        self.active: dict[tuple[str, int], Registration] = {}
        self.callbacks = [self._callback(number) for number in range(3)]
        self.published = 0
        self.away = True  # since the last disconnect, nothing was resumed
        self.lost_told = False
        self.emptied: dict[str, float] = {}
        self.checks: list[asyncio.Task[None]] = []
        self.deliveries = self.outages = 0
        self.faults: list[str] = []  # errors that a callback found; PubSub would only log an exception
        redis.on_command = self._on_command
        redis.on_disconnect = self._on_disconnect

    # ---- messages and reports

    def _callback(self, number: int) -> Callback:
        def received(channel: str, payload: bytes) -> None:
            registration = self.active.get((channel, number))
            if registration is None:
                self.faults.append(f"received {channel}, which it has unsubscribed")
                return
            sequence = int(payload)
            if registration.received and sequence <= registration.received[-1]:
                self.faults.append(f"{sequence} after {registration.received[-1]} on {channel}")
            registration.received.append(sequence)
            self.deliveries += 1
            if sequence % 7 == number:
                raise ValueError("one listener's fault")

        return received

    def pubsub_lost(self, reason: str, channels: list[str]) -> None:
        assert self.away and not self.lost_told, "reported twice, or without need"
        self.lost_told = True

    def pubsub_restored(self) -> None:
        assert self.away, "resumed what was not lost"
        self.away = self.lost_told = False
        self.outages += 1

    def pubsub_missed(self, channels: list[str]) -> None:
        assert self.away, "missed what was not lost"
        assert len(set(channels)) == len(channels)
        for (channel, _), registration in self.active.items():
            if channel in channels:
                registration.told_missed = self.published

    def _on_disconnect(self) -> None:
        self.away = True

    def _on_command(self, command: str, channels: list[bytes]) -> None:
        if command != "UNSUBSCRIBE":
            return
        now = asyncio.get_running_loop().time()
        for channel in map(bytes.decode, channels):
            assert not any(r.promised for (name, _), r in self.active.items() if name == channel), "left in use"
            assert now - self.emptied[channel] >= LINGER_SECONDS - 1e-6, "left too early"

    # ---- what is done

    def want(self, channels: Iterable[str], number: int) -> None:
        channels = list(channels)
        registrations = [self.active.setdefault((c, number), Registration(c)) for c in channels]
        called = 0

        def done() -> None:
            nonlocal called
            called += 1
            if called > 1 or at_once:
                self.faults.append(f"called twice for {channels}")
            for registration in registrations:
                registration.promised = True

        at_once = False
        at_once = self.pubsub.subscribe(channels, self.callbacks[number], done)
        if at_once:
            for registration in registrations:
                registration.promised = True

    def unwant(self, channels: Iterable[str], number: int) -> None:
        channels = list(channels)
        for channel in channels:
            registration = self.active.pop((channel, number), None)
            if registration is not None:
                self.audit(registration, ended=True)
                if not any(name == channel for name, _ in self.active):
                    self.emptied[channel] = asyncio.get_running_loop().time()
        self.pubsub.unsubscribe(channels, self.callbacks[number])

    def publish(self, channel: str) -> None:
        self.published += 1
        for (name, _), registration in self.active.items():
            if name == channel and registration.promised:
                registration.owed.append(self.published)
        self.redis.say(channel, b"%d" % self.published)

    def check(self) -> None:
        async def check() -> None:
            with suppress(Unavailable):
                await self.pubsub.check()

        self.checks.append(asyncio.get_running_loop().create_task(check()))

    def audit(self, registration: Registration, ended: bool) -> None:
        """Each promised message was received, or is known to be lost."""
        received = set(registration.received)
        for sequence in registration.owed:
            if sequence in received:
                continue
            taken = (registration.channel, b"%d" % sequence) in self.redis.read
            assert not taken, f"{sequence} arrived and was not handed on"
            assert ended or sequence <= registration.told_missed, f"{sequence} was lost without a report"

    async def step(self, act: str, pick: Callable[[int], int]) -> None:
        redis = self.redis
        match act:
            case "want":
                self.want({CHANNELS[pick(6)] for _ in range(1 + pick(3))}, pick(3))
            case "unwant":
                self.unwant({CHANNELS[pick(6)] for _ in range(1 + pick(3))}, pick(3))
            case "publish":
                self.publish(CHANNELS[pick(6)])
            case "confirm":
                if redis.connections:
                    redis.connection.confirm(1 + pick(2))
            case "hesitate" | "obey":
                redis.eager = act == "obey"
            case "slow":
                redis.slow = not redis.slow
            case "turn":
                await asyncio.sleep(0)
            case "quiet":
                await quiet()
            case "wait":
                await later((0.01, 0.3, 1.1)[pick(3)])
            case "cut":
                if redis.connections:
                    redis.connection.cut()
            case "away" | "back":
                redis.reachable = act == "back"
            case "freeze" | "thaw":
                redis.frozen = act == "freeze"
            case "check":
                self.check()

    async def come_to_rest(self) -> None:
        """Redis works again: every message arrives, and no state is left over."""
        redis = self.redis
        redis.eager, redis.slow, redis.frozen, redis.reachable, redis.refuses = True, False, False, True, None
        for task in self.checks:
            await task
        if redis.connections:
            redis.connection.confirm()
        await later(2 * RETRY_CAP_SECONDS)
        assert self.pubsub.health.reason is None and not self.away
        assert all(registration.promised for registration in self.active.values())
        for channel in CHANNELS:
            self.publish(channel)
        await quiet()
        for registration in self.active.values():
            assert registration.owed and registration.received[-1] == registration.owed[-1]
            self.audit(registration, ended=False)
        assert redis.connection.subscribed >= {OWN.encode(), *(name.encode() for name, _ in self.active)}
        for channel, number in list(self.active):
            self.unwant([channel], number)
        await later(LINGER_SECONDS + 0.1)
        assert redis.connection.subscribed == {OWN.encode()}
        assert await self.pubsub.check() < 0.001


async def live(acts: Iterable[str], pick: Callable[[int], int]) -> World:
    """A world after these acts, come to rest."""
    redis = FakeRedis()
    world = World(redis)
    task = asyncio.get_running_loop().create_task(world.pubsub.run(world))
    try:
        for act in acts:
            await world.step(act, pick)
            assert not task.done() and not world.faults
        await world.come_to_rest()
        assert not task.done() and not world.faults
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return world


WEIGHTS = {
    "want": 25, "unwant": 20, "publish": 30, "confirm": 15, "turn": 15, "quiet": 8, "wait": 5, "hesitate": 2, "obey": 2,
    "slow": 1, "cut": 3, "away": 1, "back": 5, "freeze": 1, "thaw": 5, "check": 2,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(16))
@in_virtual_time
async def test_every_promise_is_kept_over_thousands_of_steps(seed: int) -> None:
    dice = random.Random(seed)
    random.seed(seed)  # the jitter of PubSub
    acts = dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=2500)
    world = await live(acts, dice.randrange)
    assert world.deliveries > 100 and world.outages > 10  # it was a life worth living


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(list(WEIGHTS)), max_size=50), st.data())
def test_every_promise_holds_in_random_histories(acts: list[str], data: st.DataObject) -> None:
    @in_virtual_time
    async def scenario() -> None:
        await live(acts, lambda sides: data.draw(st.integers(0, sides - 1)))

    scenario()
