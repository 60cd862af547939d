"""A node with one client, whose other parts fail at each call that a test does not define."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import orjson
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.broker.keys import Keys
from gateway.connections.async_commands import AsyncCommands
from gateway.connections.client_limits import ClientLimits
from gateway.connections.client_orders import ClientOrders
from gateway.connections.command_handler import CommandHandler
from gateway.connections.enforcer import Enforcer
from gateway.connections.manager import ConnectionManager
from gateway.connections.open_connections import OpenConnections
from gateway.connections.outages import OutageNotifier
from gateway.core import frames
from gateway.core.hub import Hub
from gateway.core.identity import Identity
from gateway.core.session_rules import SessionRules
from gateway.core.topic_rules import parse
from gateway.delivery.sender import Sender
from gateway.delivery.subscriptions import Subscriptions
from gateway.metrics import Metrics
from gateway.protocols.native.protocol import NATIVE
from gateway.settings import Settings
from gateway.transports.compression import inflate
from gateway.transports.http_stream import HttpStreams
from gateway.transports.websocket import WebSocket
from tests.kit.raw import frame

RULES = """
[[topic]]
pattern = "kept"
snapshot = true

[[topic]]
pattern = "lasting"
history = 10
"""


class MemoryTransport(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As a real one; there is no limit here."""

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """The same."""


class Broken:
    """Does nothing it is asked for but to fail, save for what is named."""

    def __init__(self, **works: Any) -> None:
        self.__dict__.update(works)

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{name} is broken")

        return fail


class OneClientNode:
    """One client of a node that fails at every command."""

    def __init__(
        self, dispatcher: Broken, verify: Callable[[str | None], Identity], *, deflates: bool = False
    ) -> None:  # fmt: skip
        settings = Settings(open=True)
        self.now_ms = 0
        self.metrics = metrics = Metrics()
        self.hub = hub = Hub(lambda: None, lambda _: None)
        sender = Sender(hub, metrics, lambda: 0)
        self.outage_notifier = OutageNotifier(
            (), hub, Keys(""), cast(Any, dispatcher), sender, cast(Any, None), metrics
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.event_streams = HttpStreams()
        self.admission = admission = Broken(change_identity=lambda _, go_on: go_on(), release=lambda _: None)
        registry = Broken(touch_client=lambda _: None, touch_topic=lambda _: None)
        self.open_connections = OpenConnections("n.1", hub, lambda: self.now_ms)
        self.subscriptions = Subscriptions(
            hub,
            cast(Any, dispatcher),
            cast(Any, dispatcher),
            cast(Any, registry),
            sender,
            self.spawn,
            answer_seconds=1,
        )
        async_commands = AsyncCommands(
            cast(Any, dispatcher),
            cast(Any, dispatcher),
            sender,
            cast(Any, Broken()),
            cast(Any, Broken()),
            cast(Any, Broken()),
            metrics,
            self.spawn,
        )
        rules = SessionRules(verify, cast(Any, verify), parse(RULES, "rules"), 10, open=True)
        self.limits = ClientLimits(settings, rules.topics, sender, metrics)
        commands = CommandHandler(
            self.limits, sender, self.subscriptions, async_commands, None, cast(Any, admission), metrics, status
        )
        self.connections = ConnectionManager(
            settings, rules, self.open_connections, self.subscriptions, cast(Any, admission), commands, metrics,
            lambda: self.now_ms,
        )  # fmt: skip
        self.enforcer = Enforcer(
            settings, self.open_connections, sender, self.subscriptions, metrics, lambda: self.now_ms
        )
        self.client_orders = ClientOrders(
            self.open_connections, self.subscriptions, self.enforcer, max_client_topics=rules.max_client_topics
        )
        self.wire = MemoryTransport()
        self.connection = WebSocket(Config(lambda: None, ws="none"), ServerState(), {})
        self.connection.connection_made(self.wire)
        assert self.connection._handshake is not None
        self.connection._handshake.cancel()
        self.connection.handshake_accepted(deflates=deflates)
        self.connections.accept(self.connection, NATIVE, Identity(None, None, None), "", "")

    def spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work, name=name))
        return self.tasks[-1]

    def say(self, **message: Any) -> None:
        self.connection.data_received(frame(1, orjson.dumps(message)))

    async def answers(self) -> list[dict[str, Any]]:
        """What it was sent since the last look; no task may have failed."""
        while self.connection._source is not None:  # a slow machine ends the client's turn early
            await asyncio.sleep(0)
            await asyncio.gather(*self.tasks)
        await asyncio.gather(*self.tasks)
        stream, self.wire.written = self.wire.written, b""
        found = []
        while stream:
            size = stream[1]
            start = 2
            if size == 126:
                size, start = int.from_bytes(stream[2:4], "big"), 4
            text = stream[start : start + size]
            found.append(orjson.loads(inflate(text, 1 << 20) if stream[0] & frames.RSV1 else text))
            stream = stream[start + size :]
        return found


def status() -> dict[str, Any]:
    raise RuntimeError("status is broken")


def refuse(_token: str | None) -> Identity:
    raise RuntimeError("verify is broken")


def broken(**works: Any) -> Broken:
    """A dispatcher that can be joined and left, and otherwise only does what is named."""
    return Broken(
        **{
            "join_channels": lambda *_: True,
            "leave_channels": lambda _: None,
            "catch_up": lambda _: None,
            "is_ready": lambda _: True,
        }
        | works
    )
