"""Integers beyond 64 bits are never delivered as other numbers, on any path."""

from __future__ import annotations

import math
from collections.abc import Callable

import httpx
import pytest

from gateway.core.errors import ProtocolError
from gateway.publisher import Publisher
from tests.conftest import Connect
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.waiting import eventually

LARGE = "100000000000000000001"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/publish", '{"topic":"t","data":{"wei":%s}}'),
        ("POST", "/api/publish", '{"messages":[{"topic":"contest-chat","data":1},{"topic":"t","data":[%s]}]}'),
        ("POST", "/api/publish", '{"topic":"t","data":1,"priority":%s}'),
        ("PUT", "/api/cache/numbers", '{"value":%s}'),
        ("PUT", "/api/services/numbers", '{"status":"active","leaseSeconds":5,"stats":{"x":%s}}'),
    ],
)
async def test_the_api_refuses_them_and_names_the_number(
    plain: Cluster, api: Callable[[Front], Api], method: str, path: str, body: str
) -> None:
    answer: httpx.Response = await api(plain[0]).http.request(method, path, content=body % LARGE)
    assert answer.status_code == 400, answer.text
    assert LARGE in answer.json()["error"]["message"] and "string" in answer.json()["error"]["message"]


async def test_none_of_them_is_delivered(plain: Cluster, api: Callable[[Front], Api], connect: Connect) -> None:
    client = await connect(plain[0], user="ann")
    await client.subscribe("numbers", "contest-chat-numbers")
    before = plain[0].metric("gateway_messages_relayed_total", kind="malformed")
    for topic in ("numbers", "contest-chat-numbers"):
        await client.socket.send(f'{{"type":"PUBLISH","topic":"{topic}","data":{LARGE},"requestId":"{topic}"}}')
        error = await client.hear(type="ERROR", inReplyTo=topic)  # the client's own PRESENCE may come before it
        assert error["code"] == 4016 and LARGE in error["message"]
        await api(plain[0]).http.post("/api/publish", content=f'{{"topic":"{topic}","data":{LARGE}}}')
    redis = plain.redis
    redis.cli("PUBLISH", "gw:ws:broadcast", f'{{"topic":"numbers","data":{LARGE},"sourceId":1}}')
    async with Publisher(redis.url) as publisher:
        for value in (int(LARGE), math.nan, math.inf, [{"x": -math.inf}], "\ud800"):
            with pytest.raises(ProtocolError, match="cannot be written as JSON"):
                await publisher.publish("numbers", value)
        await publisher.publish("numbers", [LARGE, (1 << 64) - 1, None])
    await eventually(lambda: bool(client.data("numbers")))
    assert client.data("numbers") == [[LARGE, (1 << 64) - 1, None]]
    assert client.data("contest-chat-numbers") == []
    assert plain[0].metric("gateway_messages_relayed_total", kind="malformed") == before + 1
