"""gateway.contrib.fastapi with the real FastAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket

from gateway.contrib.fastapi import GatewayPublisher, publisher_lifespan
from gateway.dev import DevCluster
from tests.contrib.running import running

Kept = Callable[[str], list[Any]]


def application(lifespan: Any) -> Any:
    app = FastAPI(lifespan=lifespan)

    @app.post("/orders/{topic}")
    async def create(topic: str, gateway: GatewayPublisher) -> dict[str, int]:
        position = await gateway.publish(topic, {"state": "new"})
        assert position is not None
        return {"offset": position.offset}

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, gateway: GatewayPublisher) -> None:
        await websocket.accept()
        await websocket.close()

    return app


async def test_an_endpoint_publishes_with_the_publisher_of_the_application(
    live_gateway: DevCluster, topic: str, kept: Kept
) -> None:
    async with running(application(publisher_lifespan(live_gateway.redis_url))) as client:
        for offset in (1, 2):
            answer = await client.post(f"/orders/{topic}")
            assert (answer.status_code, answer.json()) == (200, {"offset": offset})
    assert [message["data"] for message in kept(topic)] == [{"state": "new"}] * 2


async def test_it_joins_a_lifespan_of_the_application(live_gateway: DevCluster, topic: str) -> None:
    ended = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with publisher_lifespan(live_gateway.redis_url, retry_seconds=0)(app) as state:
            yield {**state, "pool": "a pool"}
        ended.append("closed")

    async with running(application(lifespan)) as client:
        assert (await client.post(f"/orders/{topic}")).status_code == 200
    assert ended == ["closed"]


async def test_without_the_lifespan_the_error_names_it(topic: str) -> None:
    @asynccontextmanager
    async def nothing(_app: Any) -> AsyncIterator[dict[str, Any]]:
        yield {}

    async with running(application(nothing)) as client:
        with pytest.raises(RuntimeError, match="use FastAPI\\(lifespan=publisher_lifespan"):
            await client.post(f"/orders/{topic}")
