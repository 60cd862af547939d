"""gateway.server: uvicorn from the start of a node to its stop."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import uvicorn

from gateway.server import Server
from tests.unit.virtual_time import in_virtual_time


class Node:
    """A node that drains for a moment."""

    DRAIN_SECONDS = 0.25

    async def leave(self) -> None:
        await asyncio.sleep(self.DRAIN_SECONDS)


class Looks(Server):
    """Counts how often it looks at the time."""

    looks = 0

    async def on_tick(self, counter: int) -> bool:
        self.looks += 1
        return await super().on_tick(counter)


@in_virtual_time
async def test_an_idle_server_looks_at_the_time_once_a_second_and_ends_when_the_node_has_drained() -> None:
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(cast(Any, None))
    config.encoded_headers = []
    server = Looks(config, cast(Any, Node()))
    running = asyncio.create_task(server.main_loop())
    await asyncio.sleep(10.5)
    assert server.looks == 11
    [(name, _)] = server.server_state.default_headers
    assert name == b"date"
    server._leave()
    began = loop.time()
    await running
    assert loop.time() - began == Node.DRAIN_SECONDS
