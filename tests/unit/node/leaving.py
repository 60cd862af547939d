"""A node with fake connections, for the tests of drain and rebalance."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import orjson

from gateway.core.errors import CloseReason
from gateway.core.events import Event
from gateway.node.drain import Drain
from gateway.node.rebalance import Rebalance
from gateway.protocols.native import encoder
from gateway.transports.connection import ConnectionStage


class Client:
    """A connection: the time of its close, and the messages that it received."""

    def __init__(self) -> None:
        self.stage = ConnectionStage.OPEN
        self.closed: list[tuple[float, CloseReason, str]] = []
        self.sent: list[Any] = []

    def disconnect(self, reason: CloseReason, text: str) -> None:
        self.closed.append((asyncio.get_running_loop().time(), reason, text))
        self.stage = next(stage for stage in ConnectionStage if stage is not ConnectionStage.OPEN)


class FakeSender:
    """Hands each message to its client."""

    def send(self, connection: Any, event: Event) -> None:
        connection.sent.append(orjson.loads(encoder.text(event, 0)))


class Node:
    """A node with so many clients."""

    def __init__(self, count: int, drain_seconds: float = 10) -> None:
        self.clients = [Client() for _ in range(count)]
        sender = cast(Any, FakeSender())
        self.drain = Drain(cast(Any, self), sender, drain_seconds=drain_seconds)
        self.rebalance = Rebalance(cast(Any, self), sender, self.drain)

    def refuses(self, handshake: str | None) -> bool:
        """Whether the node refuses a handshake, for either reason."""
        return self.drain.rejects_handshakes or self.rebalance.refuses_handshake(handshake)

    def __iter__(self) -> Any:
        return iter([client for client in self.clients if client.stage is ConnectionStage.OPEN])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def times(self) -> list[float]:
        return sorted(closed[0] for client in self.clients for closed in client.closed)
