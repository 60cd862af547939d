"""centrifuge-python, unmodified, loses nothing while its node drains and dies and while Redis restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_centrifugo import Client
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

RULES = """
[[topic]]
pattern = "*"
history = 20
publish = "anyone"
"""
SECONDS = 60.0


@pytest.mark.parametrize("protobuf", [False, True], ids=["json", "protobuf"])
async def test_a_subscriber_receives_each_message_once(folder: Path, protobuf: bool) -> None:
    rules = folder / "rules.toml"
    rules.write_text(RULES)
    with (
        Redis(folder, aof=True, fsync="always") as redis,
        Cluster(3, folder, redis, centrifugo=1, topics=rules, lease_seconds=2, drain_seconds=1) as nodes,
        LoadBalancer(nodes.nodes, folder) as front,
    ):
        left = list(nodes)
        one = Client(front, protobuf)
        await one.subscribe("chat")  # before its first message
        sent: list[int] = []

        async def publish(count: int) -> None:
            """Publish on a node that stays, each message until it is accepted, and have all of it delivered."""
            headers = {"x-api-key": API_KEY}
            async with httpx.AsyncClient(timeout=SECONDS, trust_env=False, headers=headers) as http:
                for value in range(len(sent), len(sent) + count):
                    body = {"channel": "chat", "data": value, "idempotency_key": str(value)}

                    async def accepted(body: dict[str, Any] = body) -> bool:
                        return "result" in (await http.post(f"{left[0].url}/api/publish", json=body)).json()

                    await eventually(accepted, SECONDS)
                    sent.append(value)
            await eventually(lambda: one.events.data == sent, SECONDS)

        def home() -> int:
            """The index of the node that the subscriber is connected to."""
            name = (one.client.client_id or "").partition(".")[0]
            return next(at for at, node in enumerate(left) if node.name == name)

        await publish(50)  # more than the history has
        redis.stop()
        redis.start()
        until(lambda: all(node.ready() for node in left), SECONDS, "all nodes are ready again")
        await publish(10)
        left.pop(home()).terminate()
        await eventually(lambda: len(one.events.subscribed) == 2, SECONDS)
        await publish(10)
        left.pop(home()).kill()
        await eventually(lambda: len(one.events.subscribed) == 3, SECONDS)
        await publish(10)
        assert [each.recovered for each in one.events.subscribed] == [False, True, True]
        assert not one.events.ended
        await one.leave()
