"""A client of the native protocol under virtual time: a socket or an event stream, which reconnects and recovers.

It checks what it receives with a `Watch` for each topic.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from gateway.core import frames
from gateway.core.identity import ANONYMOUS, Identity
from gateway.node.node import Node
from gateway.protocols.native.protocol import NATIVE
from gateway.transports.connection import Connection, ConnectionStage
from gateway.transports.http_stream import HttpStream
from tests.simulation.oracle import Broken, Watch

RETRY_SECONDS = 1.0


def texts(data: bytes) -> Iterator[bytes]:
    """The texts of whole frames of a server."""
    at = 0
    while at < len(data):
        size, at = data[at + 1], at + 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        yield data[at : at + size]
        at += size


class MemorySocket(Connection):
    """A WebSocket without a wire: what it is sent goes to `deliver` after `delay()` seconds, in order."""

    kind = "websocket"

    def __init__(self, delay: Callable[[], float], deliver: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        super().__init__()
        self.stage = ConnectionStage.OPEN
        self._delay = delay
        self._deliver = deliver
        self._lost = lost
        self._flight: deque[bytes] = deque()  # on its way to the client
        self._due = 0.0

    def send(self, data: bytes) -> bool:
        if self.stage is ConnectionStage.OPEN:
            loop = asyncio.get_running_loop()
            self._due = max(self._due, loop.time() + self._delay())
            self._flight.append(data)
            loop.call_at(self._due, self._arrive)
        return True

    def _arrive(self) -> None:
        self._deliver(self._flight.popleft())

    def held_bytes(self) -> int:
        return 0

    def unsent_bytes(self) -> int:
        return 0

    def is_late(self, now: float) -> bool:
        return False

    def ping(self) -> None:
        self.last_heard = asyncio.get_running_loop().time()

    def close(self, code: int, reason: str) -> None:
        self.abort(code)

    def abort(self, code: int) -> None:
        if self.stage is ConnectionStage.OPEN:
            self.stage = ConnectionStage.CLOSED
            self._drop_input()
            self._report_closed(code)
            self._lost()

    def say(self, text: bytes) -> None:
        """A frame of the client has arrived."""
        if self.stage is ConnectionStage.OPEN:
            self._receive(text)

    def _read(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        yield frames.TEXT, data

    def _must_wait(self, opcode: int) -> bool:
        return True

    def _handle(self, opcode: int, payload: bytes) -> None:
        assert self._owner is not None
        self._owner.message_received(self, opcode, payload)

    def _pause(self, paused: bool) -> None:
        """Nothing is ever paused: the client sends little."""


class World(Protocol):
    """What a client needs of the simulation."""

    def delay(self) -> float:
        """Seconds that the next message takes."""

    def watch(self, client: str, topic: str) -> Watch:
        """A new view of a topic."""

    def changed(self, client: SimulatedClient) -> None:
        """Its connection was lost."""

    def broken(self, promise: Broken) -> None:
        """A promise was broken."""

    @property
    def lossless(self) -> bool:
        """Whether nothing can be lost in this history."""


def position_of(message: dict[str, Any]) -> dict[str, Any]:
    """The position in a message, as `recover` takes it."""
    return {name: message[name] for name in ("epoch", "offset", "mark") if name in message}


@dataclass(slots=True)
class Subscription:
    """What the client wants of a topic, and where it is."""

    watch: Watch
    position: dict[str, Any] | None = None
    value: int | None = None  # the last message received, also as the last value of a topic with a snapshot
    people: int | None = None  # how many are there, as was shown last on this connection


class SimulatedClient:
    """One client. `stream`: it uses an event stream instead of a socket."""

    def __init__(self, name: str, world: World, *, stream: bool) -> None:
        self.name = name
        self.stream = stream
        self.user: str | None = None
        self.node: Node | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.unanswered: dict[str, bytes] = {}  # requests of this connection, by id
        self.welcomed = False
        self.away = 0.0  # seconds that it stays away when its connection is lost next
        self.gone = False  # it does not come back
        self._world = world
        self._connection: MemorySocket | HttpStream | None = None
        self._generation = 0
        self._requests = itertools.count(1)
        self._said: deque[tuple[int, bytes]] = deque()  # on its way to the node, with the connection that sent it
        self._due = 0.0
        self._reader: asyncio.Task[None] | None = None

    @property
    def client_id(self) -> str | None:
        """As the node calls it; None while it is not connected."""
        return self._connection.client_id if self._connection is not None else None

    # ---- connecting

    def connect(self, node: Node) -> None:
        """Connect to `node`, and subscribe to everything again, from where it was."""
        assert self._connection is None
        self._generation += 1
        generation = self._generation
        self.welcomed = False
        self.unanswered.clear()
        connection: MemorySocket | HttpStream
        if self.stream:
            connection = HttpStream("sse", node.event_streams, lambda: self._lost(generation))
        else:
            connection = MemorySocket(
                self._world.delay, lambda data: self._received(generation, data), lambda: self._lost(generation)
            )
        self.node, self._connection = node, connection
        identity = Identity(self.user, "user") if self.user is not None else ANONYMOUS
        node.connections.accept(connection, NATIVE, identity, f"10.0.0.{len(self.name)}", "simulation")
        if isinstance(connection, HttpStream):
            self._reader = asyncio.get_running_loop().create_task(self._take(generation, connection))
        for subscription in self.subscriptions.values():
            subscription.watch.connected(connection.client_id)
        if self.subscriptions:
            self.subscribe(list(self.subscriptions))

    def disconnect(self) -> None:
        """Cut the connection, without a word."""
        if self._connection is not None:
            self._connection.abort(1006)

    @property
    def connected(self) -> bool:
        """Whether it has a connection."""
        return self._connection is not None

    # ---- what it says

    def subscribe(self, topics: Sequence[str]) -> None:
        """Subscribe to `topics`, from the positions that it has."""
        if not topics:
            return
        recover = {}
        for topic in topics:
            subscription = self.subscriptions.get(topic)
            if subscription is None:
                subscription = self.subscriptions[topic] = Subscription(self._world.watch(self.name, topic))
                if self.client_id is not None:
                    subscription.watch.connected(self.client_id)
            subscription.watch.subscribing()
            if subscription.position is not None:
                recover[topic] = subscription.position
        self._ask({"type": "SUBSCRIBE", "topics": list(topics), "recover": recover})

    def unsubscribe(self, topic: str) -> None:
        """Unsubscribe, and forget the position."""
        subscription = self.subscriptions.pop(topic, None)
        if subscription is not None:
            subscription.watch.forgotten()
            self._ask({"type": "UNSUBSCRIBE", "topics": [topic]})

    def login(self, user: str, token: str) -> None:
        """Prove to be a user."""
        if self._connection is not None:
            self.user = user
            self._send(orjson.dumps({"type": "AUTH", "authToken": token}))

    @property
    def person(self) -> str:
        """Who it is among the people of a topic."""
        return f"user:{self.user}" if self.user is not None else self.client_id or ""

    def check_values(self) -> None:
        """It must know the last value of each topic that has one. Only in a history in which nothing is lost.

        Raises:
            Broken: It does not.
        """
        for topic, subscription in self.subscriptions.items():
            newest = subscription.watch.feed.newest
            if topic[0] in "sv" and newest is not None and subscription.value != newest:
                raise Broken(f"{self.name} knows {subscription.value} as the last value of {topic}, not {newest}")

    def ask(self, message: dict[str, Any]) -> None:
        """Send a request that must be answered."""
        self._ask(message)

    def _ask(self, message: dict[str, Any]) -> None:
        """Send a request, if there is a connection."""
        if self._connection is not None:
            request = f"r{next(self._requests)}"
            text = orjson.dumps({**message, "requestId": request})
            self.unanswered[request] = text
            self._send(text)

    def _send(self, text: bytes) -> None:
        generation = self._generation
        loop = asyncio.get_running_loop()
        self._due = max(self._due, loop.time() + self._world.delay())
        self._said.append((generation, text))
        loop.call_at(self._due, self._say)

    def _say(self) -> None:
        generation, text = self._said.popleft()
        if generation != self._generation or self._connection is None:
            return
        if isinstance(self._connection, HttpStream):
            self._connection.post_received(text)
        else:
            self._connection.say(text)

    # ---- what it receives

    async def _take(self, generation: int, stream: HttpStream) -> None:
        while (taken := await stream.take_frames()) is not None:
            await asyncio.sleep(self._world.delay())
            for data in taken:
                self._received(generation, data)
        self._lost(generation)

    def _received(self, generation: int, data: bytes) -> None:
        if generation != self._generation:
            return
        try:
            for text in texts(data):
                self._handle(orjson.loads(text))
        except Broken as broken:
            self._world.broken(broken)

    def _lost(self, generation: int) -> None:
        if generation != self._generation or self._connection is None:
            return
        self._generation += 1
        self._connection = self.node = None
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        self._reader = None
        for subscription in self.subscriptions.values():
            subscription.watch.ended()
            subscription.people = None
        self._world.changed(self)

    def _handle(self, message: dict[str, Any]) -> None:
        asked = None
        for name in ("requestId", "inReplyTo"):
            if name in message:
                asked = self.unanswered.pop(message[name], None)
                if asked is None:
                    raise Broken(f"{self.name}: answer to a request that was answered before: {message}")
        match message:
            case {"type": "DATA", "topic": topic, "data": {"n": number}}:
                self._data(topic, number, message)
            case {"type": "ACKNOWLEDGMENT", "operation": "subscribe", "topics": topics}:
                self._subscribed(topics, message.get("positions", {}))
            case {"type": "ERROR", "code": 4004} if asked is not None and self._has_left(orjson.loads(asked)["topics"]):
                pass
            case {"type": "ERROR", "code": code} if code == 5000 or not message.get("temporary"):
                raise Broken(f"{self.name}: refused with {code}: {message}")
            case {"type": "ERROR"} if asked is not None:
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._retry, self._generation, orjson.loads(asked))
            case {"type": "SYSTEM", "action": "welcome"}:
                self.welcomed = True
            case {"type": "SYSTEM", "action": "gap", "data": {"topics": topics}}:
                for topic in topics:
                    if topic in self.subscriptions:
                        if self._world.lossless:
                            raise Broken(f"{self.name} on {topic}: received a gap, but no message was lost")
                        self.subscriptions[topic].watch.gap()
                        self.subscriptions[topic].position = None
            case {"type": "PRESENCE", "topic": topic, "count": count} if topic in self.subscriptions:
                self.subscriptions[topic].people = count
            case {"type": "SYSTEM", "action": "unsubscribed"}:
                raise Broken(f"{self.name}: {message}")
            case _:
                pass

    def _retry(self, generation: int, message: dict[str, Any]) -> None:
        """Ask again for what the node could not do."""
        if generation == self._generation and message["type"] == "SUBSCRIBE":
            self.subscribe([topic for topic in message["topics"] if topic in self.subscriptions])

    def _has_left(self, topics: list[str]) -> bool:
        return not any(topic in self.subscriptions for topic in topics)

    def _is_leaving(self, topic: str) -> bool:
        """Whether an UNSUBSCRIBE of `topic` is not answered yet: messages are of the earlier subscription."""
        return any(
            b'"UNSUBSCRIBE"' in asked and topic in orjson.loads(asked)["topics"] for asked in self.unanswered.values()
        )

    def _data(self, topic: str, number: int, message: dict[str, Any]) -> None:
        subscription = self.subscriptions.get(topic)
        if subscription is None or self._is_leaving(topic):
            return  # of a subscription that it has just ended
        here = subscription.position
        if here is not None and message.get("epoch") == here["epoch"] and message["offset"] <= here["offset"]:
            return  # as docs/reference/protocol.md asks of clients: it has this one already
        subscription.value = number
        if not message.get("initialData"):
            subscription.watch.received(number)
        if "offset" in message:
            subscription.position = position_of(message)

    def _subscribed(self, topics: list[str], positions: dict[str, dict[str, Any]]) -> None:
        for topic in topics:
            subscription = self.subscriptions.get(topic)
            if subscription is None or self._is_leaving(topic):
                continue  # it has unsubscribed since, and perhaps subscribed again
            position = positions.get(topic, {})
            if position.get("recovered") is False and self._world.lossless and subscription.watch.has_all:
                raise Broken(f"{self.name} on {topic}: did not recover, but missed nothing")
            subscription.watch.subscribed(position.get("recovered"))
            if position:
                subscription.position = position_of(position)
