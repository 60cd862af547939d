"""Subscriptions with a filter, on real nodes: of native clients and of the package centrifuge-python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import centrifuge  # type: ignore[import-untyped]
import pytest

from gateway.core.tag_filter import TagFilter
from gateway.core.variants import MAX_CLIENT_BYTES
from tests.conftest import Connect
from tests.integration.test_centrifugo import SECONDS, client
from tests.kit.client import Api
from tests.kit.cluster import Cluster
from tests.kit.waiting import eventually

__all__ = ["client"]

RULES: Final = """
[[topic]]
pattern = "kept*"
history = 100
presence = true

[[topic]]
pattern = "slow*"
conflate_ms = 200
"""
BUYS: Final = {"key": "side", "cmp": "eq", "val": "buy"}
SELLS: Final = {"op": "not", "nodes": [BUYS]}


@pytest.fixture
def nodes(cluster: Callable[..., Cluster], folder: Path) -> Callable[..., Cluster]:
    """`nodes(2)`: so many nodes that serve both protocols."""
    rules = folder / "rules.toml"
    rules.write_text(RULES)
    return lambda n, **settings: cluster(n, centrifugo=1, topics=rules, **settings)


async def publish(api: Api, topic: str, numbers: range) -> None:
    """Publish each number, the even ones as buys, the odd ones as sells."""
    await api.publish_all(
        [{"topic": topic, "data": n, "tags": {"side": ("buy", "sell")[n % 2]}} for n in numbers]
    )  # fmt: skip


async def test_native_clients_receive_and_recover_what_they_want(
    nodes: Callable[..., Cluster], connect: Connect, api: Callable[..., Api]
) -> None:
    (node,) = nodes(1)
    every, buys, sells = [await connect(node, user=user) for user in ("ann", "bob", "cid")]
    await every.subscribe("kept")
    acknowledged = await buys.subscribe("kept", "free", filter=BUYS)
    await sells.subscribe("kept", filter=SELLS)
    there = api(node)
    await publish(there, "kept", range(6))
    await publish(there, "free", range(4))
    await eventually(lambda: buys.data("kept") == [0, 2, 4] and buys.data("free") == [0, 2], SECONDS)
    await eventually(lambda: sells.data() == [1, 3, 5] and every.data() == [*range(6)], SECONDS)
    await buys.hear(type="PRESENCE")  # it is not filtered
    again = await connect(node, user="bob")
    answer = await again.subscribe("kept", filter=BUYS, recover=acknowledged["positions"])
    assert answer["positions"]["kept"]["recovered"] is True
    assert again.data() == [0, 2, 4]
    await again.subscribe("kept")  # from now on without a filter
    await publish(there, "kept", range(6, 8))
    await eventually(lambda: again.data()[-2:] == [6, 7] and buys.data("kept")[-1] == 6, SECONDS)


async def test_a_filter_and_conflation(
    nodes: Callable[..., Cluster], connect: Connect, api: Callable[..., Api]
) -> None:
    (node,) = nodes(1)
    buys, sells = await connect(node), await connect(node)
    await buys.subscribe("slow", filter=BUYS)
    await sells.subscribe("slow", filter=SELLS)
    await publish(api(node), "slow", range(10))
    await eventually(lambda: buys.data()[-1:] == [8] and sells.data()[-1:] == [9], SECONDS)
    assert not [n for n in buys.data() if n % 2] and not [n for n in sells.data() if n % 2 == 0]


async def test_filters_that_are_refused(nodes: Callable[..., Cluster], connect: Connect) -> None:
    (node,) = nodes(1)
    ann = await connect(node)
    refused = await ann.subscribe("a", filter={"key": "side", "cmp": "like", "val": "b"})
    assert (refused["code"], "cmp must be one of" in refused["message"]) == (4016, True)
    many = [f"t{number}" for number in range(MAX_CLIENT_BYTES // len(TagFilter(BUYS).canonical))]
    assert (await ann.subscribe(*many, filter=BUYS))["status"] == "success"
    refused = await ann.subscribe("a", filter=BUYS)
    assert (refused["code"], "at most 16384 bytes" in refused["message"]) == (4016, True)
    assert (await ann.subscribe("a"))["status"] == "success"


async def test_centrifuge_python_receives_and_recovers_what_it_wants(
    nodes: Callable[..., Cluster], client: Callable[..., Any], api: Callable[..., Api]
) -> None:
    (node,) = nodes(1)
    one, there = client(node), api(node)
    topic = await one.subscribe("kept", tags_filter=centrifuge.Filter.eq("side", "buy"))
    await publish(there, "kept", range(6))
    await eventually(lambda: one.events.data == [0, 2, 4], SECONDS)
    await topic.unsubscribe()
    await publish(there, "kept", range(6, 10))
    await topic.subscribe()
    await eventually(lambda: one.events.data == [0, 2, 4, 6, 8], SECONDS)
    assert one.events.subscribed[-1].recovered
