"""The Python client against real nodes: sending, receiving and reconnecting."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.client import (
    Closed,
    Disconnected,
    Event,
    Gap,
    Gateway,
    Message,
    NoAnswer,
    Presence,
    Recovered,
    Refused,
    State,
    Subscription,
    Timing,
    TooSlow,
)
from gateway.protocols.native.codes import ErrorCode
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.node import token
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

Start = Callable[..., Cluster]
Of = Callable[..., Api]

QUICK = Timing(base=0.1, cap=0.5)

RULES = """
[[topic]]
pattern = "kept*"
history = 100
presence = true

[[topic]]
pattern = "last"
snapshot = true

[[topic]]
pattern = "both"
history = 100
snapshot = true

[[topic]]
pattern = "secret"
subscribe = "user"
"""


class Reader:
    """All that came on a subscription, read as it comes."""

    def __init__(self, subscription: Subscription) -> None:
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self._task = asyncio.create_task(self._read(subscription))

    @property
    def data(self) -> list[Any]:
        return [event.data for event in self.events if isinstance(event, Message)]

    @property
    def notices(self) -> list[type]:
        return [type(event) for event in self.events if isinstance(event, Gap | Recovered)]

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def _read(self, subscription: Subscription) -> None:
        try:
            async for event in subscription.events():
                self.events.append(event)
        except Exception as error:
            self.error = error


@pytest.fixture
def rules(folder: Path) -> Path:
    file = folder / "topics.toml"
    file.write_text(RULES)
    return file


@asynccontextmanager
async def gateway(front: Front, **how: Any) -> AsyncIterator[Gateway]:
    async with Gateway(front.ws, **{"timing": QUICK, "proxy": None, **how}) as client:
        yield client


async def test_the_client_receives_messages_with_their_positions(cluster: Start, rules: Path, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node, token=token("ann")) as client:
        kept = await client.subscribe("kept")
        plain = await client.subscribe("plain")
        position = await client.publish("kept", {"n": 1}, action="go")
        assert position is not None
        assert await client.publish("plain", "hello") is None
        first = await anext(aiter(kept))
        assert (first.topic, first.data, first.extras, first.initial) == ("kept", {"n": 1}, {"action": "go"}, False)
        assert (first.epoch, first.offset, first.mark) == tuple(position)
        second = await anext(aiter(plain))
        assert (second.data, second.offset) == ("hello", None)
        assert (client.node, client.state) == ("n1", State.AUTHENTICATED)


async def test_after_a_cut_it_comes_back_and_has_missed_nothing(cluster: Start, rules: Path, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node) as client:
        kept, plain = Reader(await client.subscribe("kept")), Reader(await client.subscribe("plain"))
        for number in range(30):
            if number % 10 == 5:
                client.reconnect()
            await api(node).post("/api/publish", {"topic": "kept", "data": number})
        await eventually(lambda: kept.data == list(range(30)))
        await eventually(lambda: kept.notices == [Recovered] * 3)
        await eventually(lambda: plain.notices == [Gap] * 3)


async def test_a_killed_node_costs_it_nothing(
    cluster: Start, rules: Path, haproxy: Callable[..., Any], api: Of
) -> None:
    nodes = cluster(2, topics=rules)
    balancer = haproxy(nodes.nodes)
    async with gateway(balancer) as client:
        kept = Reader(await client.subscribe("kept"))
        home, other = sorted(nodes, key=lambda node: node.name != client.node)
        await api(other).post("/api/publish", {"topic": "kept", "data": 1})
        await eventually(lambda: kept.data == [1])
        home.kill()
        await api(other).post("/api/publish", {"topic": "kept", "data": 2})
        await eventually(lambda: kept.data == [1, 2], 30)
        assert client.node == other.name
        await eventually(lambda: kept.notices == [Recovered])  # behind what was missed: that was all


async def test_a_flushed_redis_is_reported_as_a_gap(cluster: Start, rules: Path, redis: Redis, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node) as client:
        kept = Reader(await client.subscribe("kept"))
        await api(node).post("/api/publish", {"topic": "kept", "data": 1})
        redis.flush()
        await api(node).post("/api/publish", {"topic": "kept", "data": 2})
        await api(node).post("/api/publish", {"topic": "kept", "data": 3})
        await eventually(lambda: kept.data[-1:] == [3])
        assert Gap in kept.notices


async def test_each_new_subscription_alone_gets_the_snapshot(cluster: Start, rules: Path, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    await api(node).publish("last", "value")
    async with gateway(node) as client:
        first = Reader(await client.subscribe("last"))
        second = Reader(await client.subscribe("last"))
        await api(node).publish("last", "newer")
        await eventually(lambda: first.data == second.data == ["value", "newer"])
        event = second.events[0]
        assert isinstance(event, Message)
        assert event.initial


async def test_a_subscription_added_while_offline_gets_the_last_value(cluster: Start, rules: Path, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    await api(node).publish("both", "value")
    async with gateway(node) as client:
        first = Reader(await client.subscribe("both"))
        client.reconnect()
        async with asyncio.timeout(10):
            while client.state is State.CONNECTED:  # noqa: ASYNC110  it may be offline for a few milliseconds only
                await asyncio.sleep(0)
            second = Reader(await client.subscribe("both"))
        await api(node).publish("both", "newer")
        await eventually(lambda: first.data == second.data == ["value", "newer"])
        assert first.notices == [Recovered]
        assert second.notices == []


async def test_two_subscriptions_share_one_on_the_wire_until_both_have_ended(
    cluster: Start, rules: Path, api: Of
) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node) as client:
        first, second = await client.subscribe("plain"), await client.subscribe("plain")
        await first.close()
        assert [message async for message in first] == []
        await api(node).publish("plain", 1)
        assert (await anext(aiter(second))).data == 1
        await client.unsubscribe("plain")

        async def no_subscriber() -> bool:
            return bool((await api(node).get("/api/topics/plain"))["subscribers"] == 0)

        await eventually(no_subscriber)
        assert second.ended


async def test_requests_are_answered_or_refused_each_for_itself(cluster: Start, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node) as client:
        answers = await asyncio.gather(
            client.request("system", "getStatus"), client.request("system", "ping"),
            client.request("system", "dance"), client.publish("kept", 1), client.subscribe("secret"),
            client.command("contest", "JOIN"), return_exceptions=True,
        )  # fmt: skip
        status, pong, dance, publish, secret, command = answers
        assert isinstance(status, dict)
        assert status["node"] == "n1"
        assert isinstance(pong, dict)
        refusals = [refusal.code for refusal in (dance, publish, secret, command) if isinstance(refusal, Refused)]
        assert refusals == [
            ErrorCode.UNKNOWN_ACTION, ErrorCode.AUTHENTICATION_NEEDED, ErrorCode.AUTHENTICATION_NEEDED,
            ErrorCode.COMMAND_WITHOUT_AUTHENTICATION,
        ]  # fmt: skip
        with pytest.raises(Refused, match="4004"):
            await client.subscribe("no such topic")


async def test_presence_changes_arrive_among_the_messages(cluster: Start, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node) as first, gateway(node, token=token("ann")) as second:
        received = Reader(await first.subscribe("kept"))
        await second.subscribe("kept")
        await eventually(lambda: any(isinstance(e, Presence) and "ann" in str(e.about) for e in received.events))


async def test_a_message_to_its_user_needs_no_subscription(cluster: Start, rules: Path, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    personal: list[Message] = []
    async with gateway(node, token=token("ann"), on_other=personal.append):
        await api(node).publish("wallet", 7, to={"user": "ann"})
        await eventually(lambda: [message.data for message in personal] == [7])


async def test_a_bad_token_ends_it_with_the_reason(cluster: Start, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    with pytest.raises(Closed, match="4401"):
        await Gateway(node.ws, token="nonsense", proxy=None).__aenter__()


async def test_a_token_is_replaced_before_it_ends_and_the_connection_stays(cluster: Start, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    tokens: list[str] = []
    states: list[State] = []

    async def fresh() -> str:
        # The node warns at once of each, and one of the same second is the same, so that the next comes 5 s later.
        tokens.append(token("ann", seconds=8))
        return tokens[-1]

    async with gateway(node, get_token=fresh, on_state=states.append) as client:
        await client.subscribe("secret")
        await eventually(lambda: len(tokens) == 4, 30)
        assert states == [State.CONNECTING, State.CONNECTED, State.AUTHENTICATED]


async def test_each_connection_asks_for_a_token_until_it_has_one(cluster: Start, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    asked = 0

    def fresh() -> str:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise OSError("no address")
        return token("ann")

    async with gateway(node, get_token=fresh) as client:
        secret = await client.subscribe("secret")
        client.reconnect()
        await eventually(lambda: asked == 3 and secret.live)


async def test_what_a_topic_has_kept_and_who_is_on_it_can_be_asked(cluster: Start, rules: Path, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    for number in range(3):
        await api(node).publish("kept", number)
    async with gateway(node) as client:
        await client.subscribe("kept")
        history: Any = await client.history("kept", limit=2)
        assert [message["data"] for message in history["messages"]] == [1, 2]
        await eventually(lambda: _alone(client))


async def _alone(client: Gateway) -> bool:
    present: Any = await client.presence("kept")
    return bool(present["count"] == 1)


async def test_of_many_topics_one_that_is_refused_harms_no_other(cluster: Start, rules: Path, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node) as client:
        received = [Reader(await client.subscribe(f"t{number}")) for number in range(9)]
        await api(node).publish("t0", 0)
        asked = asyncio.create_task(client.subscribe("secret"))
        await asyncio.sleep(0)
        client.reconnect(0)  # so that all are asked for in one frame
        with pytest.raises(Refused, match="4010"):
            await asked
        await eventually(lambda: all(Gap in reader.notices for reader in received))
        await api(node).publish("t8", 8)
        await eventually(lambda: received[8].data == [8])


async def test_thousands_of_topics_come_back_in_messages_that_the_node_takes(
    cluster: Start, rules: Path, api: Of
) -> None:
    [node] = cluster(1, topics=rules, max_message_bytes=4096, client_messages_per_second=10_000)
    states: list[State] = []
    names = [f"kept:{number:04}:{'x' * 100}" for number in range(1000)]
    async with gateway(node, on_state=states.append) as client:
        subscriptions = await asyncio.gather(*(client.subscribe(name) for name in names))
        states.clear()
        client.reconnect(0)
        await eventually(lambda: len(states) >= 3 and all(each.live for each in subscriptions), 30)
        assert states == [State.WAITING, State.CONNECTING, State.CONNECTED]
        last = Reader(subscriptions[-1])
        await api(node).publish(names[-1], "here")
        await eventually(lambda: last.data == ["here"])


async def test_the_client_reconnects_after_the_delay_of_the_server(cluster: Start, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    said: list[str] = []
    async with gateway(node, on_system=lambda action, _: said.append(action)) as client:
        await eventually(lambda: said == ["welcome"])
        loop = asyncio.get_running_loop()
        started = loop.time()
        client.reconnect(1.0)
        await eventually(lambda: said == ["welcome"] * 2)
        assert loop.time() - started > 1.0


async def test_a_final_close_code_ends_the_client_and_its_subscriptions(cluster: Start, rules: Path, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node) as client:
        plain = Reader(await client.subscribe("plain"))
        await eventually(lambda: _listed(api(node), client))
        await api(node).delete(f"/api/clients/{client.client_id}")
        await eventually(lambda: plain.ended)
        assert isinstance(plain.error, Closed)
        assert plain.error.code == 3503
        assert client.state is State.CLOSED
        with pytest.raises(Closed):
            await client.subscribe("other")


async def _listed(api: Api, client: Gateway) -> bool:
    return any(row["id"] == client.client_id for row in await api.clients())


async def test_a_subscription_that_does_not_read_ends_alone(cluster: Start, rules: Path, api: Of) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node) as client:
        idle, busy = await client.subscribe("plain", buffer=3), Reader(await client.subscribe("plain"))
        for number in range(5):
            await api(node).publish("plain", number)
        await eventually(lambda: busy.data == [0, 1, 2, 3, 4])
        late = Reader(idle)
        await eventually(lambda: late.ended)
        assert late.data == [0, 1, 2]
        assert isinstance(late.error, TooSlow)


async def test_a_frozen_node_is_left_after_three_pongs_that_did_not_come(
    cluster: Start, rules: Path, haproxy: Callable[..., Any]
) -> None:
    nodes = cluster(2, topics=rules, ping_seconds=1)
    balancer = haproxy(nodes.nodes)
    async with gateway(balancer) as client:
        kept = Reader(await client.subscribe("kept"))
        [home] = [node for node in nodes if node.name == client.node]
        home.freeze()
        try:
            await eventually(lambda: kept.notices == [Recovered], 30)
            assert client.node != home.name
        finally:
            home.thaw()


async def test_what_is_not_answered_in_time_is_given_up(cluster: Start, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node, timing=Timing(answer=0.5)) as client:
        node.freeze()
        try:
            with pytest.raises(NoAnswer):
                await client.request("system", "ping")
        finally:
            node.thaw()


async def test_what_was_asked_of_a_lost_connection_fails_at_once(cluster: Start, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    async with gateway(node) as client:
        node.freeze()
        asked = asyncio.create_task(client.request("system", "ping"))
        await asyncio.sleep(0)
        try:
            client.reconnect()
            with pytest.raises(Disconnected):
                await asked
        finally:
            node.thaw()


async def test_its_address_may_be_another_at_each_attempt(cluster: Start, rules: Path) -> None:
    first, second = cluster(2, topics=rules)
    urls = itertools.cycle([first.ws, second.ws])
    async with Gateway(lambda: next(urls), timing=QUICK, proxy=None) as client:
        assert client.node == first.name
        first.kill()
        await eventually(lambda: client.state is State.CONNECTED and client.node == second.name)


async def test_it_waits_for_a_server_that_is_not_there_yet(cluster: Start, rules: Path) -> None:
    [node] = cluster(1, topics=rules)
    node.kill()
    client = Gateway(node.ws, timing=QUICK, proxy=None)
    entering = asyncio.create_task(client.__aenter__())
    await eventually(lambda: client.state is State.WAITING and not entering.done())
    node.start()
    await asyncio.wait_for(entering, 30)
    await client.close()
