"""A minimal WebSocket server with Starlette and Redis, as a first version would be.

`python starlette_server.py <port> <redis port>`
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import redis.asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

members: defaultdict[str, set[WebSocket]] = defaultdict(set)


async def serve(websocket: WebSocket) -> None:
    """Serves one client."""
    await websocket.accept()
    subscribed: set[str] = set()
    try:
        while True:
            message = await websocket.receive_json()
            for topic in message["topics"]:
                members[topic].add(websocket)
                subscribed.add(topic)
            await websocket.send_json({"type": "ACKNOWLEDGMENT", "operation": "subscribe", "status": "success"})
    except WebSocketDisconnect:
        pass
    finally:
        for topic in subscribed:
            members[topic].discard(websocket)


async def relay() -> None:
    """Sends every published message to its subscribers."""
    bus = redis.asyncio.Redis(port=int(sys.argv[2])).pubsub()
    await bus.psubscribe("bench:*")
    async for message in bus.listen():
        if message["type"] == "pmessage":
            text = message["data"].decode()
            for websocket in list(members[message["channel"].decode().removeprefix("bench:")]):
                with suppress(WebSocketDisconnect, RuntimeError):  # it is disconnecting
                    await websocket.send_text(text)


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Runs the relay while the server runs."""
    task = asyncio.create_task(relay())
    yield
    task.cancel()


app = Starlette(routes=[WebSocketRoute("/ws", serve)], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", ws="websockets-sansio", backlog=4096,
        ws_per_message_deflate=False, log_level="warning", access_log=False,
    )  # fmt: skip
