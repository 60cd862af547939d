"""The client's life: connect, log in, hear the topics again, and once more whenever the connection is lost."""

from __future__ import annotations

import asyncio
import enum
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from gateway.client.conversation import Conversation, Frame, Lost
from gateway.client.events import Closed, Disconnected, Message, NoAnswer, Refused
from gateway.client.pace import Backoff, refresh_seconds
from gateway.client.subscription import Subscription
from gateway.client.topics import Topics
from gateway.core.position import Position
from gateway.core.protocol import Json

BUFFER_EVENTS: Final = 10_000
REFRESH_AGAIN_SECONDS: Final = 5.0  # after a token could not be replaced

# Handshake answers that are no better a minute later. 401 and 403 are among them, 429 and 5xx are not.
_HOPELESS: Final = frozenset({400, 401, 403, 404, 405, 426})

_GetToken = Callable[[], str | Awaitable[str]]


class State(enum.Enum):
    """What the connection is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"  # welcomed
    AUTHENTICATED = "authenticated"  # and its token accepted
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


class Gateway:
    """The client. It connects on entering its `async with`, which waits until it is connected.

    `url` may be a function, asked at each attempt: of several load balancers, say. `token` or `get_token` (asked at
    each connection and before the last one ends; it may be a coroutine function) says who this is. `on_state` is called
    with each `State`; `on_system` with what the server says of itself: action and data; `on_other` with messages for
    this user or client on topics nobody subscribed to here. Further keywords go to websockets' `connect`.

    Raises, on entering:
        Closed: The server does not want this client.
    """

    def __init__(
        self, url: str | Callable[[], str], *, token: str | None = None, get_token: _GetToken | None = None,
        timing: Timing | None = None, on_state: Callable[[State], None] = lambda _: None,
        on_system: Callable[[str, Mapping[str, Any]], None] = lambda *_: None,
        on_other: Callable[[Message], None] = lambda _: None,
        uniform: Callable[[float, float], float] = random.uniform, **options: Any,
    ) -> None:  # fmt: skip
        self.client_id = ""  # the server's name for this connection
        self.node = ""  # and its own
        self.state = State.WAITING
        self._url = url if callable(url) else lambda: url
        self._get_token: _GetToken | None = get_token
        if token is not None:
            self._get_token = lambda: token
        self._timing = timing or Timing()
        self._on_state = on_state
        self._on_system = on_system
        # Our own pings are messages: they pass every proxy, and prove that the node itself is alive.
        self._options: dict[str, Any] = {
            "compression": None, "ping_interval": None, "max_size": None, "open_timeout": self._timing.open,
            "close_timeout": 1.0, **options,
        }  # fmt: skip
        self._backoff = Backoff(self._timing.base, self._timing.cap, uniform)
        self._topics = Topics(self._timing.ack, self._timing.answer, self._backoff, self._spawn, on_other)
        self._talk: Conversation | None = None  # while there is a socket
        self._connected = asyncio.Event()  # and messages may go out
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

    def reconnect(self, after: float | None = None) -> None:
        """Give up this connection and make a new one, as if it had been lost; `after` so many seconds, if given."""
        if self._talk is not None:
            if after is not None:
                self._talk.reconnect_ms = int(after * 1000)
            self._talk.give_up()

    async def subscribe(self, topic: str, *, buffer: int = BUFFER_EVENTS) -> Subscription:
        """Hear `topic`: from now on every message comes, or a `Gap`. At most `buffer` events wait to be read.

        Raises:
            Refused: The server does not let us.
            NoAnswer: It did not say in time.
            Closed: The client has ended.
        """
        self._check()
        subscription = self._topics.add(topic, buffer)
        try:
            async with asyncio.timeout(self._timing.answer):
                await asyncio.shield(subscription.entered)
        except TimeoutError:
            await self._topics.leave(subscription)
            raise NoAnswer(f"no answer to SUBSCRIBE {topic} within {self._timing.answer:g} s") from None
        except BaseException:
            await self._topics.leave(subscription)
            raise
        return subscription

    async def unsubscribe(self, topic: str) -> None:
        """Hear `topic` no more: ends all its subscriptions."""
        await self._topics.leave_all(topic)

    async def publish(self, topic: str, data: Json, **extras: Json) -> Position | None:
        """Say something on `topic`; its place if the topic has history. It is never sent twice.

        Raises:
            ValueError: JSON cannot hold `data` unchanged; nothing was sent.
            Refused: The server did not publish it.
            NoAnswer, Disconnected: Nobody knows whether it did.
        """
        answer = await self._call({"type": "PUBLISH", "topic": topic, "data": data, **extras})
        return Position(answer["epoch"], answer["offset"], answer.get("mark")) if "epoch" in answer else None

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

    async def presence(self, topic: str) -> Json:
        """Who is on `topic`: `count`, and `members`.

        Raises:
            Refused, NoAnswer, Disconnected: as `publish`.
        """
        return await self.request(topic, "presence")

    async def history(self, topic: str, **where: Json) -> Json:
        """The last messages of `topic`, or by `limit`, `since` (an offset), `reverse`: `epoch`, `offset`, `messages`.

        Raises:
            Refused, NoAnswer, Disconnected: as `publish`.
        """
        return await self.request(topic, "history", **where)

    # ---- asking

    async def _until_connected(self) -> None:
        await self._connected.wait()
        self._check()

    def _check(self) -> None:
        if self._end is not None:
            raise self._end
        if self._runner is None:
            raise Closed(None, "use it within `async with`")

    async def _call(self, frame: Frame) -> Frame:
        self._check()
        try:
            async with asyncio.timeout(self._timing.answer):
                await self._until_connected()
                if self._talk is None:
                    raise Disconnected("the connection is lost")
                return await self._talk.call(frame)
        except TimeoutError:
            raise NoAnswer(f"no answer to {frame['type']} within {self._timing.answer:g} s") from None

    # ---- the connection

    async def _run(self) -> None:
        while True:
            self._now(State.CONNECTING)
            told_ms: int | None = None
            try:
                told_ms = await self._converse()
            except (Lost, Disconnected, OSError, WebSocketException) as error:
                if isinstance(error, InvalidStatus) and error.response.status_code in _HOPELESS:
                    raise Closed(error.response.status_code, "the handshake was refused") from None
            self._now(State.WAITING)
            await asyncio.sleep(self._backoff.seconds(told_ms))

    async def _converse(self) -> int | None:
        """One connection, until it is lost; when the server wants us back, in ms.

        Raises:
            Closed: For good.
            Lost, OSError, WebSocketException: There was none.
        """
        async with connect(self._url(), **self._options) as socket:
            talk = self._talk = Conversation(socket, self._heard)
            work = [talk.read(), self._tend(talk)]
            if self._get_token is not None:
                work.append(self._renew(talk, self._get_token))
            # No TaskGroup: in Python 3.11 one that meets an error and a cancellation at once loses the cancellation.
            tasks = [asyncio.create_task(each) for each in work]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:  # the reader first: it knows why
                    if task.done():
                        task.result()
            except (Lost, Disconnected, TimeoutError):
                talk.give_up()
                return talk.reconnect_ms
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._talk = None
                self._connected.clear()
                self._topics.disconnected()
                talk.end()
        return talk.reconnect_ms

    async def _tend(self, talk: Conversation) -> None:
        """Say who we are, ask for our topics, then ping."""
        async with asyncio.timeout(self._timing.answer):
            welcome = await talk.welcome()
            self.client_id, self.node = welcome.client_id, welcome.node
            self._now(State.CONNECTED)
            if self._get_token is not None:
                try:
                    await talk.log_in(await _token(self._get_token))
                except Refused as refusal:
                    raise Closed(refusal.code, str(refusal)) from None
                self._now(State.AUTHENTICATED)
        self._backoff.reset()
        self._topics.connected(talk)
        self._connected.set()
        await talk.beat(welcome.ping_seconds)

    async def _renew(self, talk: Conversation, get_token: _GetToken) -> None:
        """Replace the token before it ends. While that fails the old one holds; when that ends, so does the socket."""
        await talk.logged_in.wait()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(refresh_seconds(talk.token, time.time())):
                    await talk.expiring.wait()
            talk.expiring.clear()
            with suppress(Refused, Lost, TimeoutError):
                async with asyncio.timeout(self._timing.answer):
                    fresh = await _token(get_token)
                    if fresh != talk.token:  # else there is nothing to say
                        await talk.log_in(fresh)
                        continue
            await asyncio.sleep(REFRESH_AGAIN_SECONDS)

    def _heard(self, frame: Frame, asked: Frame | None) -> None:
        self._topics.heard(frame, asked)
        if frame.get("type") == "SYSTEM":
            self._on_system(str(frame.get("action")), frame.get("data") or {})

    # ---- life

    def _now(self, state: State) -> None:
        self.state = state
        self._on_state(state)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._runner is not None:
            self._failure = task.exception()  # a fault of ours: nothing can be promised any more
            self._runner.cancel()

    def _ended(self, runner: asyncio.Task[None]) -> None:
        ended = Closed(None, "the caller has left") if runner.cancelled() else runner.exception()
        self._end = self._failure or ended
        assert self._end is not None
        for task in self._tasks:
            task.cancel()
        self._topics.end(self._end)
        self._now(State.CLOSED)
        self._connected.set()  # whoever waits for it finds `_end`


async def _token(get_token: _GetToken) -> str:
    """A token.

    Raises:
        Lost: None could be had; the next connection asks again.
    """
    try:
        token = get_token()
        return await token if inspect.isawaitable(token) else token
    except Exception as error:
        raise Lost(f"no token: {error}") from error
