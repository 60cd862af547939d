"""Subscriptions with deltas, on real nodes: of native clients and of the package centrifuge-python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import centrifuge  # type: ignore[import-untyped]
import orjson

from gateway.core import fossil_delta
from tests.conftest import Connect
from tests.integration.test_centrifugo import SECONDS, client
from tests.integration.test_filters import nodes
from tests.kit.client import Api, Client
from tests.kit.cluster import Cluster
from tests.kit.node import token
from tests.kit.waiting import eventually

__all__ = ["client", "nodes"]

TEXT = "é the same in each message " * 4


def state(number: int) -> dict[str, Any]:
    """Data that differs little from the previous."""
    return {"number": number, "text": TEXT, "more": [1.0, number % 3]}


async def publish(api: Api, topic: str, numbers: range, **more: Any) -> None:
    await api.publish_all([{"topic": topic, "data": state(n), **more} for n in numbers])


def numbers(received: Client, topic: str) -> list[int]:
    """The numbers in the data of a native client, which applies the deltas."""
    base, found = b"", []
    for message in received.received(type="DATA", topic=topic):
        if "delta" not in message:
            data = message["data"]
        else:
            raw = message["data"].encode()
            base = fossil_delta.apply(base, raw, 1 << 20) if message["delta"] else raw
            data = orjson.loads(base)
        assert data == state(data["number"])
        found.append(data["number"])
    return found


async def test_native_clients_reconstruct_each_message(
    nodes: Callable[..., Cluster], connect: Connect, api: Callable[..., Api]
) -> None:
    (node,) = nodes(1)
    plain, ann, bob = [await connect(node, user=user) for user in ("cid", "ann", "bob")]
    await plain.subscribe("kept")
    for each in (ann, bob):
        position = (await each.subscribe("kept", "free", delta="fossil"))["positions"]["kept"]
    there = api(node)
    await publish(there, "kept", range(5))
    await publish(there, "free", range(5))
    await publish(there, "kept", range(5, 7), **{"except": ann.id})
    await publish(there, "kept", range(7, 10))
    await publish(there, "kept", range(10, 11), to={"user": "ann"})
    await publish(there, "kept", range(11, 12), to={"client": bob.id})
    await publish(there, "kept", range(12, 14))
    expected = [*range(5), *range(7, 11), 12, 13]
    await eventually(lambda: numbers(ann, "kept") == expected, SECONDS)
    await eventually(lambda: numbers(bob, "kept") == [*range(10), 11, 12, 13], SECONDS)
    await eventually(lambda: numbers(ann, "free") == [*range(5)], SECONDS)
    await eventually(lambda: plain.data("kept") == [state(n) for n in (*range(10), 12, 13)], SECONDS)
    assert [m["delta"] for m in ann.received(type="DATA", topic="free")] == [False] + [True] * 4
    again = await connect(node, user="bob")
    answer = await again.subscribe("kept", delta="fossil", recover={"kept": position})
    assert answer["positions"]["kept"]["recovered"] is True
    recovered = [*range(10), 12, 13]
    assert numbers(again, "kept") == recovered
    assert not [m for m in again.received(type="DATA") if "delta" in m], "missed messages are whole"
    await publish(there, "kept", range(14, 17))
    await eventually(lambda: numbers(again, "kept") == [*recovered, 14, 15, 16], SECONDS)
    await ann.subscribe("kept")  # from now on without deltas
    await publish(there, "kept", range(17, 18))
    await eventually(lambda: ann.data("kept")[-1] == state(17), SECONDS)
    refused = await ann.subscribe("kept", delta="fossil", filter={"key": "side", "cmp": "ex"})
    assert (refused["code"], "not both" in refused["message"]) == (4016, True)


async def test_centrifuge_python_reconstructs_and_recovers(
    nodes: Callable[..., Cluster], client: Callable[..., Any], api: Callable[..., Api]
) -> None:
    home, other = nodes(2)
    one, there = client(home, token=token("ann", "user")), api(other)
    kept = await one.subscribe("kept", delta=centrifuge.DeltaType.FOSSIL)
    await publish(there, "kept", range(5))
    await eventually(lambda: one.events.data == [state(n) for n in range(5)], SECONDS)
    await publish(there, "kept", range(5, 6), to={"user": "ann"})
    await publish(there, "kept", range(6, 8))
    await eventually(lambda: one.events.data == [state(n) for n in range(8)], SECONDS)
    await kept.unsubscribe()
    await publish(there, "kept", range(8, 12))
    await kept.subscribe()
    await publish(there, "kept", range(12, 15))
    await eventually(lambda: one.events.data == [state(n) for n in range(15)], SECONDS)
    assert one.events.subscribed[-1].recovered
