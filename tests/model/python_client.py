"""gateway.client as the player sees it: on a loop of virtual time, with sockets in memory."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from unittest import mock

from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from gateway.client import Event as ClientEvent
from gateway.client import Gap, Gateway, Message, State, Subscription
from gateway.client import subscriptions as topics_module
from tests.model.cases import Step
from tests.model.play import Event
from tests.unit.virtual_time import VirtualLoop


class _Socket:
    """A connection that the player is the other end of."""

    def __init__(self, owner: PythonClient) -> None:
        self._owner = owner
        self._inbox: deque[str] = deque()
        self._news = asyncio.Event()
        self._lost: ConnectionClosedError | None = None
        self.transport = self  # which has `abort`

    async def send(self, data: bytes, text: bool) -> None:
        assert text
        if self._lost is not None:
            raise self._lost
        self._owner.note("send", data.decode())

    async def recv(self) -> str:
        while not self._inbox:
            if self._lost is not None:
                raise self._lost
            await self._news.wait()
            self._news.clear()
        return self._inbox.popleft()

    def deliver(self, text: str) -> None:
        self._inbox.append(text)
        self._news.set()

    def lose(self, code: int = 1006) -> None:
        received = None if code == 1006 else Close(code, "cut")
        self._lost = self._lost or ConnectionClosedError(received, None)
        self._news.set()

    def abort(self) -> None:
        if self._lost is None:
            self._owner.note("shut")
            self.lose()


class _Connect:
    """In the place of websockets' `connect`."""

    owner: PythonClient

    def __init__(self, _url: str, **_options: Any) -> None:
        pass

    async def __aenter__(self) -> _Socket:
        socket = self.owner.socket = _Socket(self.owner)
        self.owner.note("open")
        return socket

    async def __aexit__(self, *_: object) -> None:
        assert self.owner.socket is not None
        self.owner.socket.abort()


class _Noted(Subscription):
    """A subscription that notes what it is given when it is given it."""

    owner: PythonClient

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.handle = self.owner.next_handle
        self.owner.subscriptions[self.handle] = self

    def put(self, event: ClientEvent) -> None:
        if self.ended:
            return
        super().put(event)
        match event:
            case Message(data=data, initial=initial):
                self.owner.note("notified", self.handle, "initial" if initial else "message", data)
            case _:
                self.owner.note("notified", self.handle, "gap" if isinstance(event, Gap) else "recovered")

    def acknowledged(self) -> None:
        super().acknowledged()
        self.owner.note("notified", self.handle, "subscribed")

    def end(self, why: BaseException) -> None:
        if not self.ended:
            self.owner.note("notified", self.handle, "ended", type(why).__name__)
        super().end(why)


class PythonClient:
    """Many cases, each on a loop of its own that begins with `start`."""

    patience_ms = 10_000

    def __init__(self) -> None:
        self.socket: _Socket | None = None
        self.next_handle = -1
        self.subscriptions: dict[int, Subscription] = {}
        self._events: list[Event] = []
        self._loop: VirtualLoop | None = None
        self._gateway: Gateway | None = None
        self._tasks: dict[Any, asyncio.Task[Any]] = {}
        self._early: dict[Any, Coroutine[Any, Any, Any]] = {}  # what waits for `connect`
        self._token = "fresh"
        self._tokens = 1
        self._patches = [
            mock.patch("websockets.asyncio.client.connect", type("Connect", (_Connect,), {"owner": self})),
            mock.patch.object(topics_module, "Subscription", type("Noted", (_Noted,), {"owner": self})),
        ]

    def note(self, *event: Any) -> None:
        """Something that the client did."""
        self._events.append(list(event))

    def do(self, step: Step) -> list[Event]:
        """See `play.Client`."""
        word, *values = step
        if word == "start":
            self._start(*values)
        assert self._loop is not None
        self._loop.run_until_complete(self._carry_out(word, values))
        events, self._events = self._events, []
        return events

    # ---- within

    def _start(self, with_token: bool) -> None:
        self._stop()
        self._loop = VirtualLoop()
        self._loop.set_exception_handler(lambda _, context: self.note("fault", str(context)))
        asyncio.set_event_loop(self._loop)
        self._events, self.subscriptions, self._tasks, self._early = [], {}, {}, {}
        self._token, self._tokens, self.socket = "fresh", 1, None
        self._gateway = Gateway(
            "ws://gateway/ws", get_token=self._get_token if with_token else None, on_state=self._state,
            uniform=lambda low, high: (low + high) / 2,
        )  # fmt: skip

    def _stop(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._carry_out("end", []))
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0.001))
            self._loop.close()
            self._loop = None

    async def _carry_out(self, word: str, values: list[Any]) -> None:
        gateway = self._gateway
        assert gateway is not None
        match word, values:
            case "connect", []:
                if "connect" not in self._tasks:
                    self._spawn("connect", gateway.__aenter__())
                    for name, work in self._early.items():
                        self._spawn(name, work)
                    self._early = {}
            case "reconnect", []:
                gateway.reconnect()
            case "subscribe", [handle, topic, *_]:  # it has no callbacks
                self._begin(handle, self._subscribe(handle, topic))
            case "close", [handle]:
                if handle in self._early:
                    self._early.pop(handle).close()
                    return
                self._tasks[handle].cancel()
                if handle in self.subscriptions:
                    await self.subscriptions[handle].close()
            case "say", [number, topic]:
                self._begin(("say", number), self._say(number, topic))
            case "token", [how]:
                self._token = how
            case "deliver", [text]:
                assert self.socket is not None
                self.socket.deliver(text)
            case "cut", [code]:
                assert self.socket is not None
                self.socket.lose(code)
            case "time", [ms]:
                await asyncio.sleep(ms / 1000)
            case "end", []:
                await gateway.close()
                if "connect" in self._tasks:
                    self._tasks["connect"].cancel()
        await asyncio.sleep(1e-4)  # all that needs no time

    def _begin(self, name: Any, work: Coroutine[Any, Any, Any]) -> None:
        if "connect" in self._tasks:
            self._spawn(name, work)
        else:  # this client is of use within its `async with` only
            self._early[name] = work

    def _spawn(self, name: Any, work: Coroutine[Any, Any, Any]) -> None:
        self._tasks[name] = asyncio.ensure_future(work)

    async def _subscribe(self, handle: int, topic: str) -> None:
        assert self._gateway is not None
        self.next_handle = handle
        with suppress(Exception):
            await self._gateway.subscribe(topic)

    async def _say(self, number: int, topic: str) -> None:
        assert self._gateway is not None
        try:
            await self._gateway.publish(topic, "said")
            self.note("answered", number, "resolved")
        except Exception as error:
            self.note("answered", number, f"rejected {error}")

    async def _get_token(self) -> str | None:
        match self._token:
            case "fails":
                raise OSError("no token now")
            case "never":
                await asyncio.sleep(1e6)
            case "fresh":
                self._tokens += 1
        return f"t{self._tokens}"

    def _state(self, state: State) -> None:
        self.note("state", state.value)

    def __enter__(self) -> Self:
        for patch in self._patches:
            patch.start()
        logging.getLogger("gateway.client").disabled = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()
        asyncio.set_event_loop(None)
        logging.getLogger("gateway.client").disabled = False
        for patch in self._patches:
            patch.stop()
