"""uvicorn around one node. On a signal the node drains first, and only then uvicorn stops."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from contextlib import suppress
from types import FrameType
from typing import Final

import uvicorn

from gateway import logging
from gateway.app import create_app
from gateway.node.node import Node
from gateway.settings import Settings
from gateway.transports.http1 import Http1Protocol
from gateway.transports.websocket import WebSocket

GC_THRESHOLDS = (10_000, 20, 20)
DATE_SECONDS: Final = 1.0  # resolution of the Date header
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # each makes the node drain and end
RELOAD_SIGNAL: Final = signal.SIGUSR1


class Server(uvicorn.Server):
    """Drains on the first signal, on a control message, or when the node fails; a second signal ends the waits."""

    def __init__(self, config: uvicorn.Config, node: Node, signals: int = 0) -> None:
        super().__init__(config)
        self._node = node
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._drained = asyncio.Event()
        self._signals = signals

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal or a failure; return when everything is closed."""
        self._loop = asyncio.get_running_loop()
        self._node.lifecycle.shut_down = self._leave
        if self._signals:  # one came before the loop ran
            self._leave()
        try:
            await super().serve(sockets)
            if self._leaving is not None:
                await self._leaving
        finally:
            self._loop = None

    async def main_loop(self) -> None:
        """Update the Date header until the node has drained. uvicorn's own loop wakes up ten times a second."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self._drained.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  signal's signature
        """The handler of all `SIGNALS`. uvicorn's own would end the process by the signal instead of with 0."""
        self._signals += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._leave if self._signals == 1 else self._node.drain.finish_now)

    def handle_reload(self) -> None:
        """Reload the node's configuration. Without effect before it serves, because it has just read its files."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._reload)

    def _reload(self) -> None:
        self._node.lifecycle.spawn(self._node.reloader.reload_node(), "reload")

    def _leave(self) -> None:
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        try:
            await self._node.leave()
        finally:
            self.should_exit = True
            self._drained.set()


def serve(settings: Settings) -> int:
    """Run one node until it stops; return the exit code of the process: 0, or 1 if a task of the node failed."""
    early = 0  # signals before there is a server
    server: Server | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal early
        if server is None:
            early += 1
        else:
            server.handle_exit(number, frame)

    def on_reload(_number: int, _frame: FrameType | None) -> None:
        if server is not None:
            server.handle_reload()

    for number in SIGNALS:
        if (
            signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP
        ):  # nohup sets SIGHUP to ignored on purpose
            signal.signal(number, on_signal)
    signal.signal(RELOAD_SIGNAL, on_reload)
    logging.configure(settings.log_level, node=settings.node)
    app = create_app(settings, lambda: Settings.from_env(os.environ))
    node: Node = app.state.node
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, loop="uvloop", http=Http1Protocol, ws=WebSocket,
        lifespan="on", log_config=None, access_log=False, server_header=False, backlog=4096,
        proxy_headers=True, forwarded_allow_ips=list(settings.trusted_proxies),
        # Longer than HAProxy's keep-alive, so that HAProxy never writes to a connection that the node is closing.
        timeout_keep_alive=60, timeout_graceful_shutdown=5,
    )  # fmt: skip
    # Connections create long-lived objects. With Python's default thresholds the collector would scan them again and
    # again while many clients connect. Objects that exist now are never freed, so they are excluded.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    server = Server(config, node, signals=early)
    server.run()
    logging.close()
    return 0 if node.lifecycle.failure is None else 1
