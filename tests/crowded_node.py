"""A node with many clients and topics but without sockets, to measure the cost of operations.

Run like a node, with its settings; `tests.costs` says how many there are, spread evenly. The clients are the node's own
`WebSocket`s on transports that keep nothing, so hub, bus, registry, presence and Redis hold all of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.applications import Starlette
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway import server
from gateway.app import create_app
from gateway.core import frames
from gateway.core.identity import ANONYMOUS
from gateway.node.node import Node
from gateway.protocols.native.protocol import NATIVE
from gateway.settings import Settings
from gateway.transports.websocket import WebSocket
from tests import costs

TURN = 100  # clients that come in one turn of the event loop


class Nowhere(asyncio.Transport):
    """Takes everything that is written."""

    def write(self, data: Any) -> None:
        """Drop it."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def get_write_buffer_size(self) -> int:
        """There is no buffer."""
        return 0

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""

    def is_closing(self) -> bool:
        """Never."""
        return False

    def abort(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


async def crowd(node: Node, clients: int, topics: int) -> None:
    """Have `clients` come, each of which subscribes to its part of `topics`."""
    config = Config(lambda: None, ws="none", log_config=None, access_log=False)
    state = ServerState()
    for at in range(clients):
        connection = WebSocket(config, state, {})
        connection.connection_made(Nowhere())
        assert connection._handshake is not None
        connection._handshake.cancel()
        connection.handshake_accepted(deflates=False)
        node.connections.accept(connection, NATIVE, ANONYMOUS, f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}", "crowd")
        names = [f"crowd:{topic}" for topic in range(at, topics, clients)]
        node.connections.message_received(connection, frames.TEXT, orjson.dumps({"type": "SUBSCRIBE", "topics": names}))
        if at % TURN == 0:
            await asyncio.sleep(0.001)


def crowded(settings: Settings, read_settings: Callable[[], Settings] | None = None) -> Starlette:
    """A node's application, into which the crowd comes when it starts."""
    app = create_app(settings, read_settings)
    node: Node = app.state.node
    life = node.lifespan

    @asynccontextmanager
    async def lively() -> AsyncIterator[None]:
        async with life():
            coming = asyncio.create_task(crowd(node, costs.CLIENTS, costs.TOPICS))
            try:
                yield
            finally:
                coming.cancel()

    node.lifespan = lively  # type: ignore[method-assign]
    return app


if __name__ == "__main__":
    server.create_app = crowded  # type: ignore[attr-defined]
    raise SystemExit(server.serve(Settings.from_env(os.environ)))
