"""The client: connects, logs in and subscribes, and does so again whenever the connection is lost."""

from __future__ import annotations

import asyncio
import enum
import inspect
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from gateway.client.address import address, shown
from gateway.client.backoff import Backoff, FailureLog
from gateway.client.events import Closed, Disconnected, Message, NoAnswer, describe
from gateway.client.subscription import Subscription
from gateway.client.subscriptions import TopicSubscriptions
from gateway.client.timing import Timing
from gateway.client.tokens import GetToken, Tokens
from gateway.client.wire import ConnectionLost, Frame, Wire
from gateway.core.json_text import Json
from gateway.core.position import Position

BUFFER_EVENTS: Final = 10_000
TOKEN_TRIES: Final = 3  # refused tokens in a row, each fetched again, after which the client ends

# HTTP statuses of the handshake for which a retry has no use. 429 and 5xx are not among them.
_PERMANENT: Final = frozenset({400, 401, 403, 404, 405, 426})

_Url = str | Callable[[], str | Awaitable[str]]

_log = logging.getLogger("gateway.client")


class State(enum.Enum):
    """The state of the connection."""

    CONNECTING = "connecting"
    CONNECTED = "connected"  # the server has sent its welcome
    AUTHENTICATED = "authenticated"  # the server has accepted the token
    WAITING = "waiting"  # for the next attempt
    CLOSED = "closed"


class Gateway:
    """The client. Use it as an async context manager; entering it waits for the connection.

    The logger `gateway.client` logs failed attempts: each new reason, and the same reason once a minute.

    Args:
        url: A URL that begins with ws, wss, http or https; or a function or coroutine function that returns one. The
            client calls it at each attempt, for example to choose one of several load balancers.
        token: A constant token for the login.
        get_token: A function or coroutine function that returns a token. The client calls it at each connection and
            before the current token expires. If it returns None, the client is anonymous.
        timing: The timeouts.
        connect_timeout: Seconds for entering; by default the client tries forever.
        on_state: Called with each new `State`.
        on_system: Called with the action and the data of each SYSTEM message.
        on_other: Called with messages for this user or client on topics without a subscription here.
        uniform: Returns a random number, for tests.
        options: Passed to websockets' `connect`.

    Raises:
        ValueError: `url` is invalid.
        TypeError: `url` is not a string, or a keyword is unknown.

    Raises, on entering:
        Closed: The server refuses this client.
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
        if options:
            _check_options(options)
        self.client_id = ""  # the id of the current connection
        self.node = ""  # the node of the current connection
        self.state = State.WAITING
        self._url = url if callable(url) else address(url)
        self._timing = timing or Timing()
        self._tokens: Tokens | None = None
        if token is not None:  # a constant token is tried once
            self._tokens = Tokens(lambda: token, self._timing.answer, 1)
        elif get_token is not None:
            self._tokens = Tokens(get_token, self._timing.answer, TOKEN_TRIES)
        self._connect_timeout = connect_timeout
        self._on_state = on_state
        self._on_system = on_system
        # The client sends its own ping messages instead: they pass every proxy, and show that the node is alive.
        self._options: dict[str, Any] = {
            "compression": None, "ping_interval": None, "max_size": None, "open_timeout": self._timing.open,
            "close_timeout": 1.0, **options,
        }  # fmt: skip
        self._backoff = Backoff(self._timing.base, self._timing.cap, uniform)
        self._changed = asyncio.Event()  # the topics may have messages to send
        self._topics = TopicSubscriptions(
            self._timing.ack, self._timing.answer, self._backoff, self._changed.set,
            lambda message: _guarded(on_other, message),
        )  # fmt: skip
        self._wire: Wire | None = None  # None: there is no socket
        self._connected = asyncio.Event()  # calls may be sent
        self._runner: asyncio.Task[None] | None = None
        self._end: BaseException | None = None
        self._reports = FailureLog()
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
        """Close the client. All subscriptions end."""
        if self._runner is None:
            return
        self._runner.cancel()
        await asyncio.wait([self._runner])

    def reconnect(self, after: float | None = None) -> None:
        """Abort the connection and reconnect, `after` so many seconds if given, as if the connection had been lost."""
        if self._wire is not None:
            if after is not None:
                self._wire.reconnect_ms = int(after * 1000)
            self._wire.abort()

    async def subscribe(
        self, topic: str, *, buffer: int = BUFFER_EVENTS, tag_filter: Json = None, delta: bool = False
    ) -> Subscription:  # fmt: skip
        """Subscribe to `topic`. From now on the subscription receives every message, or a `Gap`.

        `buffer` is the largest number of unread events. `tag_filter`: only messages whose tags match it. `delta`: the
        node sends differences, from which the client makes the messages.

        Raises:
            TypeError, ValueError: JSON cannot hold an argument, or another subscription has another filter.
            Refused: The server refuses the subscription.
            NoAnswer: The server did not reply in time.
            Closed: The client has ended.
        """
        self._check()
        subscription = self._topics.add(topic, buffer, tag_filter, delta=delta)
        try:
            async with asyncio.timeout(self._timing.answer):
                await asyncio.shield(subscription.entered)
        except TimeoutError:
            self._topics.remove(subscription)
            raise NoAnswer(f"no answer to SUBSCRIBE {topic} within {self._timing.answer:g} s") from None
        except BaseException:
            self._topics.remove(subscription)
            raise
        return subscription

    async def unsubscribe(self, topic: str) -> None:
        """End all subscriptions to `topic`."""
        self._topics.remove_topic(topic)

    async def publish(self, topic: str, data: Json, **extras: Json) -> Position | None:
        """Publish `data` on `topic`. Returns its position if the topic has history. The client never sends it twice.

        Raises:
            ValueError: JSON cannot hold `data` unchanged; nothing was sent.
            TooLarge: The message is larger than the server accepts; nothing was sent.
            Refused: The server did not publish the message.
            NoAnswer, Disconnected: It is unknown whether the server published the message.
        """
        answer = await self._call({"type": "PUBLISH", "topic": topic, "data": data, **extras})
        return Position(answer["epoch"], answer["offset"], answer.get("mark")) if "epoch" in answer else None

    async def request(self, topic: str, action: str, **parameters: Json) -> Json:
        """Send a REQUEST and return the data of its reply.

        Raises:
            Refused, NoAnswer, Disconnected: As in `publish`.
        """
        answer = await self._call({"type": "REQUEST", "topic": topic, "action": action, "data": parameters})
        return answer.get("data")

    async def command(self, topic: str, action: str, data: Json = None) -> Json:
        """Send a COMMAND and return the data of its reply.

        Raises:
            Refused, NoAnswer, Disconnected: As in `publish`.
        """
        answer = await self._call({"type": "COMMAND", "topic": topic, "action": action, "data": data})
        return answer.get("data")

    async def presence(self, topic: str, *, clients: bool = False) -> Json:
        """The people on `topic`: `count` and `members`; with `clients` a list of all clients instead of `members`.

        Raises:
            Refused, NoAnswer, Disconnected: As in `publish`.
        """
        return await self.request(topic, "presence", **({"clients": True} if clients else {}))

    async def history(self, topic: str, **where: Json) -> Json:
        """The latest messages of `topic`, as `epoch`, `offset` and `messages`.

        `where` may have `limit`, `since` (an offset) and `reverse`.

        Raises:
            Refused, NoAnswer, Disconnected: As in `publish`.
        """
        return await self.request(topic, "history", **where)

    # ---- calls

    async def _until_connected(self) -> None:
        await self._connected.wait()
        self._check()

    def _check(self) -> None:
        if self._end is not None:
            raise self._end
        if self._runner is None:
            raise Closed(None, "the client is not open: use it within `async with`")

    async def _call(self, frame: Frame) -> Frame:
        self._check()
        try:
            async with asyncio.timeout(self._timing.answer):
                await self._until_connected()
                if self._wire is None:
                    raise Disconnected("the connection is lost")
                return await self._wire.call(frame)
        except TimeoutError:
            raise NoAnswer(f"no answer to {frame['type']} within {self._timing.answer:g} s") from None

    # ---- the connection

    async def _run(self) -> None:
        while True:
            self._set_state(State.CONNECTING)
            reconnect_ms = await self._attempt()
            wait = self._backoff.seconds(reconnect_ms)
            if self._reports.due(self._trouble, time.monotonic()):
                _log.warning("not connected: %s; the next attempt is in %.1f s", self._trouble, wait)
            self._set_state(State.WAITING)
            await asyncio.sleep(wait)

    async def _attempt(self) -> int | None:
        """Make one connection and use it until it is lost. Returns the server's `reconnectMs`, if it sent one.

        Raises:
            Closed: The client must not reconnect.
        """
        from websockets.asyncio.client import connect  # here, because it loads slowly
        from websockets.exceptions import InvalidStatus, WebSocketException

        wire: Wire | None = None
        try:
            url = await self._address()
            async with connect(url, **self._options) as socket:
                wire = Wire(socket, self._receive)
                await self._converse(wire)
        except (ConnectionLost, Disconnected) as error:
            self._trouble = str(error)
        except (OSError, WebSocketException) as error:
            if isinstance(error, InvalidStatus) and error.response.status_code in _PERMANENT:
                raise Closed(error.response.status_code, "the handshake was refused") from None
            self._trouble = f"{shown(url)}: {describe(error)}"
        return wire.reconnect_ms if wire is not None else None

    async def _address(self) -> str:
        if not callable(self._url):
            return self._url
        try:
            async with asyncio.timeout(self._timing.open):
                url = self._url()
                return address(await url if inspect.isawaitable(url) else url)
        except TimeoutError:
            raise ConnectionLost(f"the url function returned nothing within {self._timing.open:g} s") from None
        except Exception as error:
            raise ConnectionLost(f"the url function failed: {describe(error)}") from error

    async def _converse(self, wire: Wire) -> None:
        """Use one socket until it is lost.

        Raises:
            Closed: The client must not reconnect.
            Lost, Disconnected: The client may reconnect.
        """
        self._wire = wire
        work = [wire.read(), self._set_up(wire), self._subscribe(wire)]
        if self._tokens is not None:
            work.append(self._tokens.renew(wire))
        # Not a TaskGroup: in Python 3.11 it loses a cancellation that comes together with an error.
        tasks = [asyncio.create_task(each) for each in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:  # the reader first, because its error has the reason
                if task.done():
                    task.result()
        except (ConnectionLost, Disconnected):
            wire.abort()
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._wire = None
            self._connected.clear()
            self._topics.disconnected()
            wire.fail_waiters()

    async def _set_up(self, wire: Wire) -> None:
        """Log in and subscribe, then send pings."""
        try:
            async with asyncio.timeout(self._timing.open):
                welcome = await wire.welcome()
        except TimeoutError:
            raise ConnectionLost(f"no welcome within {self._timing.open:g} s") from None
        self.client_id, self.node = welcome.client_id, welcome.node
        self._set_state(State.CONNECTED)
        if self._tokens is not None and await self._tokens.log_in(wire):
            self._set_state(State.AUTHENTICATED)
        self._reports.reset()
        self._topics.connected(wire.limits)
        await self._send_topics(wire)  # before any call
        self._connected.set()
        await wire.keep_alive(welcome.ping_seconds)

    async def _subscribe(self, wire: Wire) -> None:
        """Send SUBSCRIBE and UNSUBSCRIBE messages whenever the topics change."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._topics.due()):
                    await self._changed.wait()
            await self._send_topics(wire)

    async def _send_topics(self, wire: Wire) -> None:
        self._changed.clear()
        for data in self._topics.messages_due(asyncio.get_running_loop().time()):
            await wire.send(data)

    def _receive(self, frame: Frame) -> None:
        self._topics.receive(frame, asyncio.get_running_loop().time())
        if frame.get("type") == "SYSTEM":
            _guarded(self._on_system, str(frame.get("action")), frame.get("data") or {})

    # ---- state

    def _set_state(self, state: State) -> None:
        self.state = state
        _guarded(self._on_state, state)

    def _ended(self, runner: asyncio.Task[None]) -> None:
        self._end = Closed(None, "the caller has closed the client") if runner.cancelled() else runner.exception()
        assert self._end is not None
        self._topics.end_all(self._end)
        self._set_state(State.CLOSED)
        self._connected.set()  # wakes the waiting callers, which then find `_end`


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that neither websockets' `connect` nor the loop's `create_connection` accepts."""
    from websockets.asyncio.client import connect

    accepted = {
        *inspect.signature(connect).parameters,
        *inspect.signature(asyncio.BaseEventLoop.create_connection).parameters,
    } - {"self", "uri", "kwargs", "protocol_factory"}
    unknown = sorted(options.keys() - accepted)
    if unknown:
        raise TypeError(f"Gateway() has no keyword {unknown[0]!r}; see its documentation and websockets' connect()")


def _guarded(callback: Callable[..., None], *values: Any) -> None:
    """Call `callback`. An exception in it is logged and does not stop the client."""
    try:
        callback(*values)
    except Exception:
        _log.exception("callback failed")
