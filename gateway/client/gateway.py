"""One socket to the cluster, opened again whenever it is lost, and all that goes over it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from gateway.client.events import (
    Closed,
    Disconnected,
    Event,
    Message,
    NoAnswer,
    Presence,
    Refused,
    message,
)
from gateway.client.pace import Backoff, Heartbeat
from gateway.client.place import Place
from gateway.client.subscription import Subscription
from gateway.protocol import Code, Json, Position

SUBSCRIBE_TRIES: Final = 3
BUFFER_EVENTS: Final = 10_000

# Handshake answers that are no better a minute later. 401 and 403 are among them, 429 and 5xx are not.
_HOPELESS: Final = frozenset({400, 401, 403, 404, 405, 426})


class State(enum.Enum):
    """What the connection is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"  # authenticated, and every topic asked for again
    WAITING = "waiting"  # until it tries again
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of everything that is waited for."""

    base: float = 1.0  # reconnect: the first wait is anywhere between 0 and this, and then it doubles
    cap: float = 20.0
    ack: float = 1.0  # a SUBSCRIBE without an answer is sent again after so long
    answer: float = 10.0  # any answer
    open: float = 10.0  # TCP and handshake


class _Lost(Exception):
    """The socket is gone; come back."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


@dataclass(slots=True)
class _Topic:
    place: Place
    subscriptions: list[Subscription] = field(default_factory=list)


class Gateway:
    """The client. It connects on entering its `async with`, which waits until it is connected.

    `token` or `get_token` (asked before each AUTH; it may be a coroutine function) says who this is. `on_state` is
    called with each `State`; `on_other` with messages for this user or client on topics nobody subscribed to here.
    Further keywords go to websockets' `connect`.

    Raises, on entering:
        Closed: The server does not want this client.
    """

    def __init__(
        self, url: str, *, token: str | None = None, get_token: Callable[[], str | Awaitable[str]] | None = None,
        timing: Timing | None = None, on_state: Callable[[State], None] | None = None,
        on_other: Callable[[Message], None] | None = None, uniform: Callable[[float, float], float] = random.uniform,
        **options: Any,
    ) -> None:  # fmt: skip
        self.client_id = ""  # the server's name for this connection
        self.node = ""  # and its own
        self.state = State.WAITING
        self._url = url
        self._token: Callable[[], str | Awaitable[str]] | None = get_token
        if token is not None:
            self._token = lambda: token
        self._timing = timing or Timing()
        self._on_state = on_state
        self._on_other = on_other
        # Our own pings are messages: they pass every proxy, and prove that the node itself is alive.
        self._options: dict[str, Any] = {
            "compression": None, "ping_interval": None, "max_size": None, "open_timeout": self._timing.open,
            "close_timeout": 1.0, **options,
        }  # fmt: skip
        self._backoff = Backoff(self._timing.base, self._timing.cap, uniform)
        self._topics: dict[str, _Topic] = {}
        self._ids = itertools.count(1)
        self._answers: dict[str, asyncio.Future[Any]] = {}  # by request id
        self._asked: dict[str, tuple[str, ...]] = {}  # topics of a SUBSCRIBE under way, by request id
        self._socket: ClientConnection | None = None  # while messages may go out
        self._welcome: asyncio.Future[int] | None = None
        self._authenticated: asyncio.Future[None] | None = None
        self._reconnect_ms: int | None = None  # said by a server that shuts down
        self._connected = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._end: BaseException | None = None
        self._failure: BaseException | None = None  # what a task of ours died of
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- for the caller

    async def __aenter__(self) -> Self:
        self._runner = asyncio.create_task(self._run(), name="gateway client")
        self._runner.add_done_callback(self._ended)
        try:
            await self._until_connected()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave; all subscriptions end."""
        if self._runner is None:
            return
        self._runner.cancel()
        await asyncio.wait([self._runner])

    def reconnect(self) -> None:
        """Give up this connection and make a new one, as if it had been lost."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def subscribe(self, topic: str, *, buffer: int = BUFFER_EVENTS) -> Subscription:
        """Hear `topic`: from now on every message comes, or a `Gap`. At most `buffer` events wait to be read.

        Raises:
            Refused: The server does not let us.
            NoAnswer: It did not say in time.
            Closed: The client has ended.
        """
        self._check()
        subscription = Subscription(topic, buffer, self._leave)
        known = self._topics.setdefault(topic, _Topic(Place(topic)))
        known.subscriptions.append(subscription)
        if self._connected.is_set():  # else it is among those asked for on the next connection
            self._spawn(self._join((topic,)), "subscribe")
        try:
            async with asyncio.timeout(self._timing.answer):
                await asyncio.shield(subscription.entered)
        except TimeoutError:
            await self._leave(subscription)
            raise NoAnswer(f"no answer to SUBSCRIBE {topic} within {self._timing.answer:g} s") from None
        except BaseException:
            await self._leave(subscription)
            raise
        return subscription

    async def unsubscribe(self, topic: str) -> None:
        """Hear `topic` no more: ends all its subscriptions."""
        known = self._topics.get(topic)
        for subscription in list(known.subscriptions) if known is not None else ():
            await self._leave(subscription)

    async def publish(self, topic: str, data: Json, **extras: Json) -> Position | None:
        """Say something on `topic`; its place if the topic has history. It is never sent twice.

        Raises:
            Refused: The server did not publish it.
            NoAnswer, Disconnected: Nobody knows whether it did.
        """
        answer = await self._call({"type": "PUBLISH", "topic": topic, "data": data, **extras})
        return Position(answer["epoch"], answer["offset"]) if "epoch" in answer else None

    async def request(self, topic: str, action: str, **parameters: Json) -> Json:
        """The answer to a REQUEST.

        Raises:
            Refused, NoAnswer, Disconnected: as `publish`.
        """
        answer = await self._call({"type": "REQUEST", "topic": topic, "action": action, "data": parameters})
        return answer.get("data")

    async def command(self, topic: str, action: str, data: Json = None) -> Json:
        """The answer to a COMMAND.

        Raises:
            Refused, NoAnswer, Disconnected: as `publish`.
        """
        answer = await self._call({"type": "COMMAND", "topic": topic, "action": action, "data": data})
        return answer.get("data")

    # ---- asking

    async def _until_connected(self) -> None:
        await self._connected.wait()
        self._check()

    def _check(self) -> None:
        if self._end is not None:
            raise self._end
        if self._runner is None:
            raise Closed(None, "use it within `async with`")

    async def _call(self, frame: dict[str, Any]) -> dict[str, Any]:
        self._check()
        request_id = self._new_id()
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timing.answer):
                await self._until_connected()
                self._answers[request_id] = answer
                await self._send({**frame, "requestId": request_id})
                return await answer
        except TimeoutError:
            raise NoAnswer(f"no answer to {frame['type']} within {self._timing.answer:g} s") from None
        finally:
            self._answers.pop(request_id, None)

    def _new_id(self) -> str:
        return f"p{next(self._ids)}"

    async def _send(self, frame: dict[str, Any]) -> None:
        if self._socket is None:
            raise Disconnected("the connection is lost")
        try:
            await self._socket.send(orjson.dumps(frame).decode())
        except ConnectionClosed:
            raise Disconnected("the connection is lost") from None

    # ---- topics

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._runner is not None:
            self._failure = task.exception()  # a fault of ours: nothing can be promised any more
            self._runner.cancel()

    async def _join(self, topics: tuple[str, ...]) -> None:
        """Subscribe in one frame; all their subscriptions are told how it went.

        If the connection is lost meanwhile, the next asks for them again.
        """
        topics = tuple(topic for topic in topics if topic in self._topics)
        if not topics:
            return  # left meanwhile
        request_id = self._new_id()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = answer
        self._asked[request_id] = topics
        recover = {topic: place for topic in topics if (place := self._topics[topic].place.recover())}
        frame: dict[str, Any] = {"type": "SUBSCRIBE", "topics": topics, "requestId": request_id}
        if recover:
            frame["recover"] = recover
        try:
            for _ in range(SUBSCRIBE_TRIES):
                await self._send(frame)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._timing.ack):
                        await asyncio.shield(answer)
                        return
            async with asyncio.timeout(self._timing.answer - SUBSCRIBE_TRIES * self._timing.ack):
                await answer
        except TimeoutError:
            if self._socket is not None:
                self._socket.transport.abort()  # this node cannot: perhaps another can
        except Disconnected:
            pass
        except Refused as refusal:
            await self._refused(topics, refusal)
        finally:
            self._answers.pop(request_id, None)
            self._asked.pop(request_id, None)

    async def _refused(self, topics: tuple[str, ...], refusal: Refused) -> None:
        here = tuple(topic for topic in topics if topic in self._topics)
        if refusal.temporary:
            await asyncio.sleep(self._backoff.seconds())
            if here and self._connected.is_set():
                self._spawn(self._join(here), "subscribe")
        elif len(here) > 1:  # all or nothing: one of them is to blame
            for topic in here:
                self._spawn(self._join((topic,)), "subscribe")
        else:
            for topic in here:
                self._drop(topic, refusal)

    def _drop(self, topic: str, why: BaseException) -> None:
        known = self._topics.pop(topic, None)
        for subscription in known.subscriptions if known is not None else ():
            subscription.end(why)

    async def _leave(self, subscription: Subscription) -> None:
        subscription.end(Closed(None, "unsubscribed"))
        known = self._topics.get(subscription.topic)
        if known is None or subscription not in known.subscriptions:
            return
        known.subscriptions.remove(subscription)
        if not known.subscriptions:
            del self._topics[subscription.topic]
            await self._unsubscribe(subscription.topic)

    def _hand_on(self, topic: str, events: Iterable[Event]) -> None:
        known = self._topics.get(topic)
        if known is None:
            return
        for event in events:
            initial = isinstance(event, Message) and event.initial
            for subscription in known.subscriptions:
                # A snapshot comes again with every SUBSCRIBE: it is for who has just come, or comes back.
                if not (initial and subscription.entered.done() and self._connected.is_set()):
                    subscription.offer(event)
        for subscription in [s for s in known.subscriptions if s.ended]:
            known.subscriptions.remove(subscription)
        if not known.subscriptions:
            del self._topics[topic]
            self._spawn(self._unsubscribe(topic), "unsubscribe")

    async def _unsubscribe(self, topic: str) -> None:
        with contextlib.suppress(Disconnected):
            await self._send({"type": "UNSUBSCRIBE", "topics": [topic]})

    # ---- the connection

    async def _run(self) -> None:
        while True:
            self._now(State.CONNECTING)
            self._reconnect_ms = None
            try:
                await self._converse()
            except (_Lost, Disconnected, NoAnswer, OSError, WebSocketException) as error:
                if isinstance(error, InvalidStatus) and error.response.status_code in _HOPELESS:
                    raise Closed(error.response.status_code, "the handshake was refused") from None
            finally:
                self._lost()
            self._now(State.WAITING)
            await asyncio.sleep(self._backoff.seconds(self._reconnect_ms))

    async def _converse(self) -> None:
        """One connection, until it is lost.

        Raises:
            Closed: For good.
            _Lost, Disconnected, OSError, WebSocketException: What it was lost by.
        """
        loop = asyncio.get_running_loop()
        self._welcome, self._authenticated = loop.create_future(), loop.create_future()
        async with connect(self._url, **self._options) as socket:
            self._socket = socket
            heartbeat = Heartbeat()
            # No TaskGroup: in Python 3.11 one that meets an error and a cancellation at once loses the cancellation.
            tasks = [loop.create_task(work) for work in (self._read(socket, heartbeat), self._tend(socket, heartbeat))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:  # the reader first: it knows why
                    if task.done():
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _tend(self, socket: ClientConnection, heartbeat: Heartbeat) -> None:
        """Say who we are, ask for our topics, then ping."""
        assert self._welcome is not None
        async with asyncio.timeout(self._timing.answer):
            ping_ms = await self._welcome
            if self._token is not None:
                await self._authenticate(self._token)
        if self._topics:
            await self._join(tuple(self._topics))
        # A topic may have been added while the others were being asked for.
        for topic, known in self._topics.items():
            if any(not subscription.entered.done() for subscription in known.subscriptions):
                self._spawn(self._join((topic,)), "subscribe")
        self._backoff.reset()
        self._now(State.CONNECTED)
        self._connected.set()
        while True:
            await asyncio.sleep(ping_ms / 1000)
            if not heartbeat.ping():
                socket.transport.abort()  # a close would wait for an answer
                raise _Lost("no pong")
            await self._send({"type": "ping", "timestamp": int(time.time() * 1000)})

    async def _authenticate(self, get_token: Callable[[], str | Awaitable[str]]) -> None:
        assert self._authenticated is not None
        token = get_token()
        await self._send({"type": "AUTH", "authToken": await token if inspect.isawaitable(token) else token})
        try:
            await self._authenticated
        except Refused as refusal:
            raise Closed(refusal.code, str(refusal)) from None

    async def _read(self, socket: ClientConnection, heartbeat: Heartbeat) -> None:
        try:
            while True:
                text = await socket.recv()
                heartbeat.heard()
                self._heard(orjson.loads(text))
        except ConnectionClosed as closed:
            code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")
            if 3500 <= code < 4000:
                raise Closed(code, reason) from None
            raise _Lost(f"{code} {reason}") from None

    def _lost(self) -> None:
        self._socket = None
        self._connected.clear()
        for known in self._topics.values():
            known.place.disconnected()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(Disconnected("the connection was lost before the answer"))
                answer.exception()  # whoever asked may be gone

    def _now(self, state: State) -> None:
        self.state = state
        if self._on_state is not None:
            self._on_state(state)

    def _ended(self, runner: asyncio.Task[None]) -> None:
        ended = Closed(None, "the caller has left") if runner.cancelled() else runner.exception()
        self._end = self._failure or ended
        assert self._end is not None
        for task in self._tasks:
            task.cancel()
        for topic in list(self._topics):
            self._drop(topic, self._end)
        self._now(State.CLOSED)
        self._connected.set()  # whoever waits for it finds `_end`

    # ---- what the server says

    def _heard(self, frame: dict[str, Any]) -> None:
        match frame:
            case {"type": "DATA", "requestId": str(request_id)} if request_id in self._answers:
                self._answer(request_id, frame)
            case {"type": "DATA", "topic": str(topic)}:
                heard = message(frame)
                known = self._topics.get(topic)
                if known is not None:
                    self._hand_on(topic, known.place.take(heard))
                elif self._on_other is not None:
                    self._on_other(heard)
            case {"type": "ACKNOWLEDGMENT", "operation": "subscribe"}:
                self._subscribed(frame)
            case {"type": "ACKNOWLEDGMENT", "operation": "authenticate"}:
                _settle(self._authenticated, None)
            case {"type": "ERROR", "code": Code.TOKEN}:
                _fail(self._authenticated, _refusal(frame))
            case {"type": "ERROR"}:
                self._fail(frame.get("requestId", frame.get("inReplyTo")), _refusal(frame))
            case {"type": "PRESENCE", "topic": str(topic)}:
                who = {name: value for name, value in frame.items() if name not in ("type", "topic")}
                self._hand_on(topic, [Presence(topic, who)])
            case {"type": "SYSTEM", "action": str(action), "data": dict(about)}:
                self._system(action, about)
            case {"type": "ACKNOWLEDGMENT" | "RESPONSE", "requestId": str(request_id)}:
                self._answer(request_id, frame)

    def _system(self, action: str, about: dict[str, Any]) -> None:
        match action:
            case "welcome":
                self.client_id, self.node = str(about.get("clientId", "")), str(about.get("node", ""))
                _settle(self._welcome, int(about.get("pingMs", 25_000)))
            case "gap":
                for topic in about.get("topics", ()):
                    known = self._topics.get(topic)
                    if known is not None:
                        self._hand_on(topic, known.place.lost("the server could not hear the topic"))
            case "shutdown" | "move":
                self._reconnect_ms = int(about.get("reconnectMs", 0))
            case "unsubscribed":
                for topic in about.get("topics", ()):
                    self._drop(topic, Refused(Code.NOT_ALLOWED, str(about.get("reason", "unsubscribed"))))

    def _subscribed(self, frame: dict[str, Any]) -> None:
        request_id = frame.get("requestId")
        asked = self._asked.pop(request_id, None) if isinstance(request_id, str) else None
        if asked is None:
            return  # answered already: it was sent twice
        positions, heard = frame.get("positions", {}), set(frame["topics"])
        for topic in asked:
            known = self._topics.get(topic)
            if known is None:
                continue
            if topic not in heard:
                self._drop(topic, Refused(Code.NO_VALID_TOPIC, f"no such topic: {topic}"))
                continue
            self._hand_on(topic, known.place.acknowledged(positions.get(topic)))
            for subscription in known.subscriptions:
                if not subscription.entered.done():
                    subscription.entered.set_result(None)
        self._answer(str(request_id), frame)

    def _answer(self, request_id: str, frame: dict[str, Any]) -> None:
        _settle(self._answers.get(request_id), frame)

    def _fail(self, request_id: Any, refusal: Refused) -> None:
        _fail(self._answers.get(request_id) if isinstance(request_id, str) else None, refusal)


def _settle(future: asyncio.Future[Any] | None, result: Any) -> None:
    if future is not None and not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any] | None, error: Refused) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        future.exception()  # whoever asked may be gone


def _refusal(frame: dict[str, Any]) -> Refused:
    return Refused(frame["code"], str(frame.get("message")), bool(frame.get("temporary")), frame.get("reason"))
