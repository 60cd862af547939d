"""The client's life: connect, log in, subscribe again, and once more whenever the connection is lost."""

from __future__ import annotations

import asyncio
import enum
import inspect
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from gateway.client.address import address, shown
from gateway.client.conversation import Conversation, Frame, Lost
from gateway.client.events import Closed, Disconnected, Message, NoAnswer, words
from gateway.client.pace import Backoff, Reports
from gateway.client.subscription import Subscription
from gateway.client.tokens import GetToken, Tokens
from gateway.client.topics import Topics
from gateway.core import protocol
from gateway.core.position import Position
from gateway.core.protocol import Json

BUFFER_EVENTS: Final = 10_000
TOKEN_TRIES: Final = 3  # refused tokens in a row, each fetched again, after which the client ends

# Handshake answers that are no better a minute later. 401 and 403 are among them, 429 and 5xx are not.
_HOPELESS: Final = frozenset({400, 401, 403, 404, 405, 426})
# Keywords that are passed on: to websockets' `connect`, or by it to the loop's `create_connection`.
_OPTIONS: Final = (
    set(inspect.signature(connect).parameters)
    | set(inspect.signature(asyncio.BaseEventLoop.create_connection).parameters)
) - {"self", "uri", "kwargs", "protocol_factory"}

_Url = str | Callable[[], str | Awaitable[str]]

_log = logging.getLogger("gateway.client")


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
    ack: float = 1.0  # a SUBSCRIBE without an answer is sent again after this time, unless it recovers
    answer: float = 10.0  # any answer
    open: float = 10.0  # an address, TCP and handshake, and the server's welcome, each


class Gateway:
    """The client. It connects on entering its `async with`, which waits until it is connected.

    `url` begins with ws, wss, http or https. It may be a function or a coroutine function that returns the URL; it is
    called at each attempt, for example to choose one of several load balancers. The login uses `token`, or what
    `get_token` returns: a function or a coroutine function, called at each connection and before the current token
    expires. Without a token (None) the client is an anonymous one. `connect_timeout` bounds the time to enter, in
    seconds; by default the client tries without end. `on_state` is called with each `State`; `on_system` with the
    action and the data of each SYSTEM message; `on_other` with messages for this user or client on topics without a
    subscription here. Further keywords are passed to websockets' `connect`.

    The logger `gateway.client` logs failed attempts: each new reason, and the same reason once a minute.

    Raises:
        ValueError: No server can be reached at `url`.
        TypeError: `url` is no text, or there is no such keyword.

    Raises, on entering:
        Closed: The server does not want this client.
        NoAnswer: There was no connection within `connect_timeout`.
    """

    def __init__(
        self, url: _Url, *, token: str | None = None, get_token: GetToken | None = None,
        timing: Timing | None = None, connect_timeout: float | None = None,
        on_state: Callable[[State], None] = lambda _: None,
        on_system: Callable[[str, Mapping[str, Any]], None] = lambda *_: None,
        on_other: Callable[[Message], None] = lambda _: None,
        uniform: Callable[[float, float], float] = random.uniform, **options: Any,
    ) -> None:  # fmt: skip
        unknown = sorted(options.keys() - _OPTIONS)
        if unknown:
            raise TypeError(f"Gateway() has no keyword {unknown[0]!r}; see its documentation and websockets' connect()")
        self.client_id = ""  # the server's name for this connection
        self.node = ""  # and its own
        self.state = State.WAITING
        self._url = url if callable(url) else address(url)
        self._timing = timing or Timing()
        self._tokens: Tokens | None = None
        if token is not None:  # a constant token is not tried again
            self._tokens = Tokens(lambda: token, self._timing.answer, 1)
        elif get_token is not None:
            self._tokens = Tokens(get_token, self._timing.answer, TOKEN_TRIES)
        self._connect_timeout = connect_timeout
        self._on_state = on_state
        self._on_system = on_system
        # Our own pings are messages: they pass every proxy, and prove that the node itself is alive.
        self._options: dict[str, Any] = {
            "compression": None, "ping_interval": None, "max_size": None, "open_timeout": self._timing.open,
            "close_timeout": 1.0, **options,
        }  # fmt: skip
        self._backoff = Backoff(self._timing.base, self._timing.cap, uniform)
        self._changed = asyncio.Event()  # there may be something to send for topics
        self._topics = Topics(
            self._timing.ack, self._timing.answer, self._backoff, self._changed.set,
            lambda message: _guarded(on_other, message),
        )  # fmt: skip
        self._talk: Conversation | None = None  # while there is a socket
        self._connected = asyncio.Event()  # and messages may go out
        self._runner: asyncio.Task[None] | None = None
        self._end: BaseException | None = None
        self._reports = Reports()
        self._trouble = ""  # why the last attempt failed

    # ---- for the caller

    async def __aenter__(self) -> Self:
        self._runner = asyncio.create_task(self._run(), name="gateway client")
        self._runner.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._until_connected()
        except TimeoutError:
            await self.close()
            why = f": {self._trouble}" if self._trouble else ""
            raise NoAnswer(f"no connection within {self._connect_timeout:g} s{why}") from None
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
            TypeError, ValueError: `topic` is no text that JSON can hold.
            Refused: The server does not let us.
            NoAnswer: It did not say in time.
            Closed: The client has ended.
        """
        self._check()
        if not isinstance(topic, str):
            raise TypeError(f"a topic is a str, not {type(topic).__name__}")
        protocol.dumps(topic)
        subscription = self._topics.add(topic, buffer)
        try:
            async with asyncio.timeout(self._timing.answer):
                await asyncio.shield(subscription.entered)
        except TimeoutError:
            self._topics.leave(subscription)
            raise NoAnswer(f"no answer to SUBSCRIBE {topic} within {self._timing.answer:g} s") from None
        except BaseException:
            self._topics.leave(subscription)
            raise
        return subscription

    async def unsubscribe(self, topic: str) -> None:
        """Hear `topic` no more: ends all its subscriptions."""
        self._topics.leave_all(topic)

    async def publish(self, topic: str, data: Json, **extras: Json) -> Position | None:
        """Say something on `topic`; its place if the topic has history. It is never sent twice.

        Raises:
            ValueError: JSON cannot hold `data` unchanged; nothing was sent.
            TooLarge: It is larger than the server takes; nothing was sent.
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
            told_ms = await self._attempt()
            wait = self._backoff.seconds(told_ms)
            if self._reports.due(self._trouble, time.monotonic()):
                _log.warning("not connected: %s; the next attempt is in %.1f s", self._trouble, wait)
            self._now(State.WAITING)
            await asyncio.sleep(wait)

    async def _attempt(self) -> int | None:
        """One connection, until it is lost; when the server wants us back, in ms.

        Raises:
            Closed: For good.
        """
        talk: Conversation | None = None
        try:
            url = await self._address()
            async with connect(url, **self._options) as socket:
                talk = Conversation(socket, self._heard)
                await self._converse(talk)
        except (Lost, Disconnected) as error:
            self._trouble = str(error)
        except (OSError, WebSocketException) as error:
            if isinstance(error, InvalidStatus) and error.response.status_code in _HOPELESS:
                raise Closed(error.response.status_code, "the handshake was refused") from None
            self._trouble = f"{shown(url)}: {words(error)}"
        return talk.reconnect_ms if talk is not None else None

    async def _address(self) -> str:
        if not callable(self._url):
            return self._url
        try:
            async with asyncio.timeout(self._timing.open):
                url = self._url()
                return address(await url if inspect.isawaitable(url) else url)
        except TimeoutError:
            raise Lost(f"the url function gave nothing within {self._timing.open:g} s") from None
        except Exception as error:
            raise Lost(f"the url function failed: {words(error)}") from error

    async def _converse(self, talk: Conversation) -> None:
        """All that goes over one socket, until it is lost.

        Raises:
            Closed: For good.
            Lost, Disconnected: It may be opened again.
        """
        self._talk = talk
        work = [talk.read(), self._tend(talk), self._subscribe(talk)]
        if self._tokens is not None:
            work.append(self._tokens.renew(talk))
        # No TaskGroup: in Python 3.11 one that meets an error and a cancellation at once loses the cancellation.
        tasks = [asyncio.create_task(each) for each in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:  # the reader first: it knows why
                if task.done():
                    task.result()
        except (Lost, Disconnected):
            talk.give_up()
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._talk = None
            self._connected.clear()
            self._topics.disconnected()
            talk.end()

    async def _tend(self, talk: Conversation) -> None:
        """Say who we are, ask for our topics, then ping."""
        try:
            async with asyncio.timeout(self._timing.open):
                welcome = await talk.welcome()
        except TimeoutError:
            raise Lost(f"no welcome within {self._timing.open:g} s") from None
        self.client_id, self.node = welcome.client_id, welcome.node
        self._now(State.CONNECTED)
        if self._tokens is not None and await self._tokens.log_in(talk):
            self._now(State.AUTHENTICATED)
        self._reports.reset()
        self._topics.connected(talk.limits)
        await self._send_topics(talk)  # before any call
        self._connected.set()
        await talk.beat(welcome.ping_seconds)

    async def _subscribe(self, talk: Conversation) -> None:
        """Keep the server's subscriptions in line with ours."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._topics.due()):
                    await self._changed.wait()
            await self._send_topics(talk)

    async def _send_topics(self, talk: Conversation) -> None:
        self._changed.clear()
        for data in self._topics.outgoing(asyncio.get_running_loop().time()):
            await talk.send(data)

    def _heard(self, frame: Frame) -> None:
        self._topics.heard(frame, asyncio.get_running_loop().time())
        if frame.get("type") == "SYSTEM":
            _guarded(self._on_system, str(frame.get("action")), frame.get("data") or {})

    # ---- life

    def _now(self, state: State) -> None:
        self.state = state
        _guarded(self._on_state, state)

    def _ended(self, runner: asyncio.Task[None]) -> None:
        self._end = Closed(None, "the caller has left") if runner.cancelled() else runner.exception()
        assert self._end is not None
        self._topics.end(self._end)
        self._now(State.CLOSED)
        self._connected.set()  # whoever waits for it finds `_end`


def _guarded(callback: Callable[..., None], *values: Any) -> None:
    """Call back; an exception there is logged, and stops nothing here."""
    try:
        callback(*values)
    except Exception:
        _log.exception("a callback failed")
