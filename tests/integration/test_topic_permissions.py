"""Permissions of topics that depend on the subscriptions of a client, through real nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.conftest import Connect
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster

Start = Callable[..., Cluster]

RULES = """
[[topic]]
pattern = "chat:*"
subscribe = "user"
publish = "subscriber"
"""


async def test_only_subscribers_publish_under_the_rule_subscriber(
    cluster: Start, connect: Connect, folder: Path, api: Callable[[Front], Api]
) -> None:
    rules = folder / "topics.toml"
    rules.write_text(RULES)
    one, two = cluster(2, topics=rules)
    ann, bob = await connect(one, user="ann"), await connect(two, user="bob")
    await bob.subscribe("chat:1")
    refused = await ann.publish("chat:1", "too early")
    assert (refused["type"], refused["code"]) == ("ERROR", 4403)
    assert "subscribe to it first" in refused["message"]
    await ann.subscribe("chat:1")
    assert (await ann.publish("chat:1", "hello"))["operation"] == "publish"
    await ann.unsubscribe("chat:1")
    assert (await ann.publish("chat:1", "too late"))["code"] == 4403
    await api(one).publish("chat:1", "by a back end")  # topic rules do not restrict back ends
    await bob.hear(type="DATA", data="by a back end")
    assert bob.data("chat:1") == ["hello", "by a back end"]
    stranger = await connect(two)
    assert (await stranger.subscribe("chat:1"))["code"] == 4010
    assert (await stranger.publish("chat:1", "hi"))["code"] == 4403
