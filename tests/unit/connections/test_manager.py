"""gateway.connections.manager: what concerns very many clients or topics is done in turns of the event loop, and in
order.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.core.control_messages import ClientSelector, DisconnectClients, UnsubscribeClients
from gateway.core.hub import topics_of
from gateway.core.identity import Grant, Identity
from gateway.core.permissions import TOPICS_PER_TURN
from gateway.core.session import Session
from gateway.core.session_rules import SessionRules
from gateway.core.topic_rules import parse
from gateway.delivery.slices import SLICE_ITEMS
from gateway.protocols.native.protocol import NATIVE
from gateway.transports.connection import ConnectionStage
from gateway.transports.websocket import WebSocket
from tests.unit.one_client_node import MemoryTransport, OneClientNode, broken, refuse

CLIENTS = 3 * SLICE_ITEMS + 10

PLAIN = broken(is_plain=lambda _: True, has_history=lambda _: False, has_presence=lambda _: False)


def crowd(node: OneClientNode, user: str, size: int = CLIENTS) -> list[WebSocket]:
    """`size` clients of one user."""
    found = []
    for _ in range(size):
        one = WebSocket(Config(lambda: None, ws="none"), ServerState(), {})
        one.connection_made(MemoryTransport())
        assert one._handshake is not None
        one._handshake.cancel()
        one.handshake_accepted(deflates=False)
        node.connections.accept(one, NATIVE, Identity(user, "user", issued=5.0), "", "")
        found.append(one)
    return found


async def turns_until_all(done: Any, clients: list[WebSocket]) -> list[int]:
    """For how many of the clients it is `done`, after each turn of the event loop."""
    counts = [sum(map(done, clients))]
    while counts[-1] < len(clients):
        await asyncio.sleep(0)
        counts.append(sum(map(done, clients)))
        assert len(counts) < 100
    return counts


@pytest.mark.parametrize("how", ["order", "revocation"])
async def test_only_the_clients_of_the_user_are_closed_a_few_in_each_turn(how: str) -> None:
    node = OneClientNode(broken(), refuse)
    clients = crowd(node, "ann")
    other = crowd(node, "bob", 1)[0]
    if how == "order":
        node.client_orders.execute(DisconnectClients(ClientSelector(None, "ann"), "enough"))
    else:
        node.enforcer.enforce_revocations(lambda _token, user, _issued: user == "ann")
    counts = await turns_until_all(lambda client: client.stage is not ConnectionStage.OPEN, clients)
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= SLICE_ITEMS
    assert len(counts) >= 4
    for _ in range(10):
        await asyncio.sleep(0)
    assert other.stage is ConnectionStage.OPEN


async def test_a_topic_is_taken_from_the_clients_of_a_user_a_few_a_turn() -> None:
    node = OneClientNode(
        broken(is_plain=lambda _: True, has_history=lambda _: False, has_presence=lambda _: False), refuse
    )
    clients = crowd(node, "ann")
    for client in clients:
        for topic in ("a", "b"):
            node.hub.join(cast(Any, client), f"topic:{topic}")
    node.client_orders.execute(UnsubscribeClients(ClientSelector(None, "ann"), ["a"], "enough"))
    counts = await turns_until_all(lambda client: not client.audiences.has_topic("a"), clients)
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= SLICE_ITEMS
    assert all(client.audiences.has_topic("b") for client in clients)


async def test_clients_that_lose_many_topics_are_fewer_a_turn() -> None:
    node = OneClientNode(
        broken(is_plain=lambda _: True, has_history=lambda _: False, has_presence=lambda _: False), refuse
    )
    topics = [f"t{at}" for at in range(SLICE_ITEMS // 2)]
    clients = crowd(node, "ann", 10)
    for client in clients:
        for topic in topics:
            node.hub.join(cast(Any, client), f"topic:{topic}")
    node.client_orders.execute(UnsubscribeClients(ClientSelector(None, "ann"), topics, "enough"))
    assert await turns_until_all(lambda client: not client.audiences.topics, clients) == [2, 4, 6, 8, 10]


async def test_a_client_loses_many_topics_in_parts_and_is_notified_of_each_part() -> None:
    node = OneClientNode(
        broken(is_plain=lambda _: True, has_history=lambda _: False, has_presence=lambda _: False), refuse
    )
    await all_answers(node, 1)
    topics = [f"t{at}" for at in range(3 * SLICE_ITEMS - 10)]
    for topic in topics:
        node.hub.join(cast(Any, node.connection), f"topic:{topic}")
    node.client_orders.execute(UnsubscribeClients(ClientSelector(node.connection.client_id, None), topics, "enough"))
    for left in (topics[SLICE_ITEMS:], topics[2 * SLICE_ITEMS :], []):
        assert topics_of(node.connection.audiences) == set(left)
        await asyncio.sleep(0)
    sent = await node.answers()
    assert [topic for message in sent for topic in message["data"]["topics"]] == topics
    assert [len(message["data"]["topics"]) for message in sent] == [SLICE_ITEMS, SLICE_ITEMS, SLICE_ITEMS - 10]


MANY = 2 * TOPICS_PER_TURN + 10
RULES = """
[[topic]]
pattern = "theirs:*"
subscribe = "role:admin"
"""


def house_of_an_administrator() -> OneClientNode:
    """A client that is an administrator, until it says AUTH."""
    works = dict.fromkeys(("has_history", "has_presence"), lambda _: False)
    node = OneClientNode(broken(is_plain=lambda _: True, snapshot=lambda _: None, **works), refuse)
    rules = SessionRules(lambda _: Identity("ann", "user"), cast(Any, refuse), parse(RULES, "rules"), 10_000)
    node.connection.session = Session(rules, Identity("eve", "admin"))
    node.limits.allows = lambda *_: True  # type: ignore[method-assign]
    node.limits.charge = lambda *_: True  # type: ignore[method-assign]
    return node


@pytest.mark.parametrize("how", ["expired", "revoked"])
async def test_topics_of_void_subscription_tokens_are_taken_in_turns(how: str) -> None:
    node = house_of_an_administrator()
    session = node.connection.session
    session.identity = Identity("ann", "user")
    void, good = Grant(("*",), None, 0.0, "void"), Grant(("*",), None, 9e9, "good")
    grants = {f"theirs:{at}": void if at % 2 else good for at in range(4 * SLICE_ITEMS)}
    session._grants = dict(grants)
    for topic in grants:
        node.hub.join(cast(Any, node.connection), f"topic:{topic}")
    if how == "expired":
        node.enforcer.check_timeouts(asyncio.get_running_loop().time())
    else:
        node.enforcer.enforce_revocations(lambda token_id, _user, _issued: token_id == "void")
    left = []
    for _ in range(4):
        left.append(node.connection.audiences.topics)
        await asyncio.sleep(0)
    assert left == [3 * SLICE_ITEMS, 2 * SLICE_ITEMS, 2 * SLICE_ITEMS, 2 * SLICE_ITEMS]
    assert session._grants == {topic: grant for topic, grant in grants.items() if grant is good}
    assert topics_of(node.connection.audiences) == session._grants.keys()


async def all_answers(node: OneClientNode, number: int) -> list[tuple[str, Any]]:
    """The next messages to the client, `number` of them."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while len(found) < number:
            found += await node.answers()
            await asyncio.sleep(0)
    return [(answer["type"], answer.get("action")) for answer in found]


async def test_a_subscribe_of_very_many_topics_is_judged_in_turns_and_the_next_frame_waits() -> None:
    node = house_of_an_administrator()
    await all_answers(node, 1)
    node.say(type="SUBSCRIBE", topics=[f"theirs:{at}" for at in range(MANY)], requestId="r")
    node.say(type="ping", timestamp=1)
    assert not node.connection.audiences.topics  # all or nothing
    assert [kind for kind, _ in await all_answers(node, 2)] == ["ACKNOWLEDGMENT", "pong"]
    assert node.connection.audiences.topics == MANY


async def test_a_new_identity_loses_very_many_topics_in_turns_before_it_is_acknowledged() -> None:
    node = house_of_an_administrator()
    await all_answers(node, 1)
    for at in range(MANY):
        node.hub.join(cast(Any, node.connection), f"topic:theirs:{at}")
    node.hub.join(cast(Any, node.connection), "topic:ours")
    node.say(type="AUTH", authToken="x")
    node.say(type="ping", timestamp=1)
    assert node.connection.audiences.topics == MANY + 1
    left = [MANY + 1]
    while left[-1] > 1:
        await asyncio.sleep(0)
        left.append(node.connection.audiences.topics)
        assert len(left) < 100
    assert max(before - after for before, after in itertools.pairwise(left)) <= SLICE_ITEMS
    assert await all_answers(node, 3) == [("SYSTEM", "unsubscribed"), ("ACKNOWLEDGMENT", None), ("pong", None)]
    assert node.connection.session.identity.user == "ann"


async def test_a_client_that_is_gone_while_it_is_judged_is_left_alone() -> None:
    node = house_of_an_administrator()
    await all_answers(node, 1)
    node.say(type="SUBSCRIBE", topics=[f"theirs:{at}" for at in range(MANY)], requestId="r")
    node.connection.abort(1006)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not node.connection.audiences
    assert not node.tasks
