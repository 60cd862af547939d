"""A Redis for pub/sub, driven by the test: the test decides when it confirms and when it breaks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.slot_map import SlotMap
from tests.simulation.redis_server import encode


class FakeConnection:
    """A subscriber's connection: the part of redis-py's and its transport that the bus uses, and its peer's end."""

    def __init__(self, redis: FakeRedis) -> None:
        self.redis = redis
        self.subscribed: set[bytes] = set()
        self.sent: list[tuple[str, list[bytes]]] = []  # every command, in order
        self.commands: deque[tuple[str, list[bytes]]] = deque()  # those that Redis has not yet seen to
        self.under_way: set[bytes] = set()  # channels whose confirmation has not been read
        self.disconnected = False
        self._left: deque[set[bytes]] = deque()  # channels that a PING stands behind
        self._inbox: list[list[bytes | int]] = []
        self._broken: Exception | None = None
        self._commands = hiredis.Reader()
        self._protocol: asyncio.Protocol | None = None
        self.transport = self

    # ---- what the bus calls

    @property
    def _writer(self) -> FakeConnection:
        """Itself, where redis-py has an `asyncio.StreamWriter`."""
        return self

    def get_protocol(self) -> asyncio.Protocol:
        """redis-py's own."""
        return asyncio.Protocol()

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """The callbacks for arriving messages."""
        self._protocol = protocol

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._broken is not None

    def write(self, packed: bytes) -> None:
        """SUBSCRIBE, UNSUBSCRIBE, and a PING behind each of those."""
        assert self._protocol is not None
        if self.redis.slow:
            self._protocol.pause_writing()
            asyncio.get_running_loop().call_soon(self._protocol.resume_writing)
        self._commands.feed(packed)
        while (parts := self._commands.gets()) is not False:
            command, channels = parts[0].decode(), parts[1:]
            self.commands.append((command, channels))
            if command == "PING":
                continue
            assert not self.under_way & set(channels), "a second command for a channel before the first was confirmed"
            assert len(set(channels)) == len(channels)
            self.under_way |= set(channels)
            self.sent.append((command, channels))
            self.redis.on_command(command, channels)
        if self.redis.eager:
            self.confirm()

    def abort(self) -> None:
        """The bus gives it up."""
        self.disconnected = True
        self.cut()
        self.redis.on_disconnect()

    def _close(self) -> None:
        """redis-py forgets the transport."""

    # ---- what the test does

    def confirm(self, commands: int = 1_000_000) -> None:
        """Redis sees to so many of the commands that wait."""
        while self.commands and (commands or self.commands[0][0] == "PING"):
            command, channels = self.commands.popleft()
            if command == "PING":
                self._arrive([b"pong", b""])
                continue
            commands -= 1
            if self.redis.refuses is not None:
                self._fail(ResponseError(self.redis.refuses))
                return
            for channel in channels:
                (self.subscribed.add if command == "SUBSCRIBE" else self.subscribed.discard)(channel)
                self._arrive([command.lower().encode(), channel, len(self.subscribed)])
            if command == "UNSUBSCRIBE":
                self._left.append(set(channels))

    def hear(self, channel: bytes, payload: bytes) -> None:
        """A message is published, as far as it concerns this connection."""
        if channel in self.subscribed:
            self._arrive([b"message", channel, payload])

    def cut(self) -> None:
        """It is lost, with all that was under way."""
        self._inbox.clear()
        self._fail(RedisConnectionError("connection lost"))

    def _fail(self, error: Exception) -> None:
        self.subscribed.clear()
        self.commands.clear()
        if self._broken is None:
            self._broken = error
            self._soon(self._lose, error)

    def _arrive(self, response: list[bytes | int]) -> None:
        if not self._inbox:
            self._soon(self._read)
        self._inbox.append(response)

    def _read(self) -> None:
        responses, self._inbox = self._inbox, []
        for response in responses:
            if response == [b"pong", b""]:
                self.under_way -= self._left.popleft()
                continue
            kind, channel, payload = response
            assert isinstance(channel, bytes)
            if kind in (b"message", b"smessage"):
                self.redis.read.add((channel.decode(), cast(bytes, payload)))
            elif kind in (b"subscribe", b"ssubscribe"):
                self.under_way.discard(channel)
        assert self._protocol is not None
        self._protocol.data_received(b"".join(map(encode, responses)))

    def _lose(self, error: Exception) -> None:
        assert self._protocol is not None
        if isinstance(error, ResponseError):
            self._protocol.data_received(f"-{error}\r\n".encode())
        else:
            self._protocol.connection_lost(error)

    @staticmethod
    def _soon(act: Callable[..., None], *arguments: Any) -> None:
        asyncio.get_running_loop().call_soon(act, *arguments)


class FakeRedis:
    """Stands for the `RedisClient` to a single Redis, too, as far as the bus takes it."""

    def __init__(self, *, eager: bool = True) -> None:
        self.timeout_seconds = 2.0
        self.sharded = False
        self.slot_map = SlotMap(sharded=False)
        self.eager = eager  # commands are seen to at once
        self.slow = False  # a command takes a turn of the loop to be written
        self.reachable = True
        self.elsewhere = False  # the Sentinels name another server than the connections that there are lead to
        self.frozen = False  # publishes are never answered
        self.refuses: str | None = None  # the error that every command is answered with
        self.attempts = 0
        self.connections: list[FakeConnection] = []
        self.read: set[tuple[str, bytes]] = set()  # messages that the bus took from a connection
        self.on_command: Callable[[str, list[bytes]], None] = lambda _command, _channels: None
        self.on_disconnect: Callable[[], None] = lambda: None

    @property
    def client(self) -> RedisClient:
        """Itself, to the bus."""
        return cast(RedisClient, self)

    @property
    def connection(self) -> FakeConnection:
        """The latest."""
        return self.connections[-1]

    def publish_command(self, _channel: str) -> str:
        """Nothing has a slot."""
        return "PUBLISH"

    async def refresh_topology(self, *, force: bool = False) -> None:
        """There is nothing to learn."""

    def mark_stale(self) -> None:
        """There is no slot map."""

    async def connect_subscriber(self, _server: str) -> AbstractConnection:
        """A new connection, if it can be reached."""
        self.attempts += 1
        await asyncio.sleep(0)
        if not self.reachable:
            raise Unavailable("connection refused")
        self.connections.append(FakeConnection(self))
        return cast(AbstractConnection, self.connections[-1])

    async def is_moved(self, _server: str, _connection: AbstractConnection) -> bool:
        """Whether the master is elsewhere."""
        return self.elsewhere

    async def publish(self, channel: str, payload: bytes) -> None:
        """To all who are subscribed."""
        if self.frozen:
            await asyncio.Event().wait()
        if not self.reachable:
            raise Unavailable("connection refused")
        self.say(channel, payload)

    def say(self, channel: str, payload: bytes) -> None:
        """Publish at once."""
        for connection in self.connections:
            connection.hear(channel.encode(), payload)
