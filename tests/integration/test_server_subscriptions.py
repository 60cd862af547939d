"""Subscriptions that a back end makes for clients, through real nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Connect
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.waiting import eventually

Start = Callable[..., Cluster]
Of = Callable[[Front], Api]

RULES = """
[[topic]]
pattern = "given:*"
subscribe = "token"
history = 10
presence = true
"""


async def until_subscribed(client: Client, topic: str) -> None:
    """Wait for the notice that the client is subscribed to `topic`."""
    await eventually(
        lambda: any(topic in said["data"]["topics"] for said in client.received(type="SYSTEM", action="subscribed")), 20
    )


async def test_a_back_end_subscribes_a_client_and_all_clients_of_a_user(
    cluster: Start, connect: Connect, folder: Path, api: Of
) -> None:
    rules = folder / "topics.toml"
    rules.write_text(RULES)
    one, two = cluster(2, topics=rules)
    ann, again, bob = await connect(one, user="ann"), await connect(two, user="ann"), await connect(two, user="bob")
    await api(one).publish("given:1", 1)

    async def listed() -> bool:
        return (await api(two).http.get(f"/api/clients/{ann.id}")).status_code == 200

    await eventually(listed)
    assert await api(two).post(f"/api/clients/{ann.id}/topics", {"topics": ["given:1", "plain"]}) == {
        "subscribed": ["given:1", "plain"]
    }
    data = (await ann.hear(type="SYSTEM", action="subscribed"))["data"]
    assert data["topics"] == ["given:1", "plain"]
    assert data["positions"]["given:1"]["offset"] == 1
    await api(one).post("/api/users/ann/topics", {"topics": ["given:2", "given:2"]})
    for client in (ann, again):
        await until_subscribed(client, "given:2")
    await api(two).publish("given:1", 2)
    await api(two).publish("given:2", 3)
    await ann.hear(type="DATA", topic="given:1", data=2)
    for client in (ann, again):
        await client.hear(type="DATA", topic="given:2", data=3)
    history = await ann.call(type="REQUEST", topic="given:1", action="history")
    assert [message["data"] for message in history["data"]["messages"]] == [1, 2]
    await api(one).delete("/api/users/ann/topics/given%3A2")
    for client in (ann, again):
        await client.hear(type="SYSTEM", action="unsubscribed")
    assert (await ann.subscribe("given:2"))["code"] == 4403
    assert (await bob.subscribe("given:1"))["code"] == 4403
    assert bob.received(type="SYSTEM", action="subscribed") == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"topics": ["system"]}, 403), ({"topics": ["a b"]}, 400), ({"topics": []}, 400), ({}, 400), ([], 400),
        ({"topics": [f"t{at}" for at in range(101)]}, 400), ({"topics": ["a"], "more": 1}, 400),
    ],
)  # fmt: skip
async def test_a_bad_order_is_refused(plain: Cluster, api: Of, body: object, status: int) -> None:
    for at in ("/api/users/ann/topics", "/api/clients/n1.abc.1/topics"):
        answer = await api(plain[0]).http.post(at, json=body)
        assert answer.status_code == (status if "users" in at else 404)
