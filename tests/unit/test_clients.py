"""gateway.clients: orders and revocations about very many clients of a node are carried out in turns."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.core.identity import Identity
from gateway.core.orders import Disconnect, Unsubscribe, Whom
from gateway.transport.connection import Stage
from gateway.transport.socket import Socket
from gateway.turns import TURN_ITEMS
from tests.unit.test_failing import House, Wire, broken, refuse

CLIENTS = 3 * TURN_ITEMS + 10


def crowd(house: House, user: str, size: int = CLIENTS) -> list[Socket]:
    """`size` clients of one user."""
    found = []
    for _ in range(size):
        one = Socket(Config(lambda: None, ws="none"), ServerState(), {})
        one.connection_made(Wire())
        assert one._handshake is not None
        one._handshake.cancel()
        one.accepted(deflates=False)
        house.clients.admit(one, Identity(user, "user", issued=5.0), "", "")
        found.append(one)
    return found


async def turns_until_all(done: Any, clients: list[Socket]) -> list[int]:
    """For how many of the clients it is `done`, after each turn of the event loop."""
    counts = [sum(map(done, clients))]
    while counts[-1] < len(clients):
        await asyncio.sleep(0)
        counts.append(sum(map(done, clients)))
        assert len(counts) < 100
    return counts


@pytest.mark.parametrize("how", ["order", "revocation"])
async def test_the_clients_of_a_user_are_closed_a_few_a_turn_and_nobody_else(how: str) -> None:
    house = House(broken(), refuse)
    clients = crowd(house, "ann")
    other = crowd(house, "bob", 1)[0]
    if how == "order":
        house.clients.obey(Disconnect(Whom(None, "ann"), "enough"))
    else:
        house.clients.enforce(lambda _token, user, _issued: user == "ann")
    counts = await turns_until_all(lambda client: client.stage is not Stage.OPEN, clients)
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= TURN_ITEMS
    assert len(counts) >= 4
    for _ in range(10):
        await asyncio.sleep(0)
    assert other.stage is Stage.OPEN


async def test_a_topic_is_taken_from_the_clients_of_a_user_a_few_a_turn() -> None:
    house = House(broken(is_plain=lambda _: True, has_history=lambda _: False, has_presence=lambda _: False), refuse)
    clients = crowd(house, "ann")
    for client in clients:
        for topic in ("a", "b"):
            house.clients._hub.join(cast(Any, client), f"topic:{topic}")
    house.clients.obey(Unsubscribe(Whom(None, "ann"), ["a"], "enough"))
    counts = await turns_until_all(lambda client: not client.audiences.has_topic("a"), clients)
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= TURN_ITEMS
    assert all(client.audiences.has_topic("b") for client in clients)
