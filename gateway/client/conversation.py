"""What goes over one socket: questions and their answers, the welcome, the login, pings. It ends with the socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gateway.client.events import Closed, Disconnected, TooLarge, refusal
from gateway.client.limits import Limits, stated
from gateway.client.pace import Heartbeat
from gateway.core import protocol
from gateway.core.numbers import NumberError
from gateway.core.protocol import Code

Frame = dict[str, Any]


class Lost(Exception):
    """The socket is gone, or given up; come back."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the server says of itself first."""

    client_id: str
    node: str
    ping_seconds: float


class Conversation:
    """One socket. `heard` is given each frame that answers neither a login nor a call."""

    def __init__(self, socket: ClientConnection, heard: Callable[[Frame], None]) -> None:
        self.reconnect_ms: int | None = None  # said by a server that sends us away
        self.token = ""  # the server has accepted
        self.logged_in = asyncio.Event()
        self.expiring = asyncio.Event()  # the token ends soon
        self.limits = Limits()  # the server's
        self._socket = socket
        self._heard = heard
        self._heartbeat = Heartbeat()
        self._ids = itertools.count(1)
        self._asked: dict[str, asyncio.Future[Frame]] = {}  # by request id
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._login: asyncio.Future[None] | None = None

    # ---- saying

    async def call(self, frame: Mapping[str, Any]) -> Frame:
        """The answer to a frame.

        Raises:
            ValueError: JSON cannot hold the frame unchanged.
            TooLarge: The server would not take it.
            Refused: The server answered with an ERROR.
            Disconnected: The socket was lost before the answer.
        """
        request_id = f"p{next(self._ids)}"
        data = protocol.dumps({**frame, "requestId": request_id})
        if len(data) > self.limits.message_bytes:
            raise TooLarge(str(frame["type"]), len(data), self.limits.message_bytes)
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._asked[request_id] = answer
        try:
            await self.send(data)
            return await answer
        finally:
            del self._asked[request_id]

    async def send(self, data: bytes) -> None:
        """Send a message that has no answer, or whose answer goes to `heard`.

        Raises:
            Disconnected: The socket is lost.
        """
        try:
            await self._socket.send(data, text=True)
        except ConnectionClosed:
            raise Disconnected("the connection is lost") from None

    async def welcome(self) -> Welcome:
        """The server's first words."""
        return await self._welcome

    async def log_in(self, token: str) -> None:
        """Say who we are.

        Raises:
            Refused: The server does not accept it, or cannot tell now (`temporary`).
            Disconnected: The socket was lost before the answer.
        """
        self._login = asyncio.get_running_loop().create_future()
        await self.send(protocol.dumps({"type": "AUTH", "authToken": token}))
        await self._login
        self.token = token
        self.logged_in.set()

    async def beat(self, seconds: float) -> None:
        """Ping every so often; raises `Lost` when the server says nothing any more, `Disconnected` when it is gone."""
        while True:
            await asyncio.sleep(seconds)
            if not self._heartbeat.ping():
                raise Lost("no pong")
            await self.send(protocol.dumps({"type": "ping", "timestamp": int(time.time() * 1000)}))

    def give_up(self) -> None:
        """Cut the connection: a close would wait for an answer."""
        self._socket.transport.abort()

    # ---- hearing

    async def read(self) -> None:
        """Hear what the server says, until the socket ends.

        Raises:
            Lost: It may be opened again.
            Closed: The server says not to.
        """
        try:
            while True:
                text = await self._socket.recv()
                self._heartbeat.heard()
                self._take(_read(text))
        except (TypeError, ValueError, KeyError, AttributeError) as error:  # what it meant is not known
            raise Lost(f"a message that cannot be read: {error!r}") from error
        except ConnectionClosed as closed:
            code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")
            if 3500 <= code < 4000:
                raise Closed(code, reason) from None
            raise Lost(f"closed with {code} {reason}".rstrip()) from None

    def end(self) -> None:
        """Whoever waits for an answer is told that none will come."""
        lost = Disconnected("the connection was lost before the answer")
        for future in (self._welcome, self._login, *self._asked.values()):
            _fail(future, lost)

    def _take(self, frame: Frame) -> None:
        request_id = frame.get("requestId", frame.get("inReplyTo"))
        answer = self._asked.get(request_id) if isinstance(request_id, str) else None
        match frame:
            case {"type": "ACKNOWLEDGMENT", "operation": "authenticate"}:
                _settle(self._login, None)
            case {"type": "ERROR"} if answer is not None:
                _fail(answer, refusal(frame))
            case {"type": "ERROR", "code": Code.TOKEN}:
                _fail(self._login, refusal(frame))
            case {"type": "ERROR", "temporary": True} if request_id is None:
                _fail(self._login, refusal(frame))  # AUTH has no id
            case _ if answer is not None:
                _settle(answer, frame)
            case _:
                if frame.get("type") == "SYSTEM":
                    self._system(str(frame.get("action")), frame.get("data") or {})
                self._heard(frame)

    def _system(self, action: str, about: Mapping[str, Any]) -> None:
        match action:
            case "welcome":
                self.limits = stated(about.get("limits") or {})
                ping_seconds = about.get("pingMs", 25_000) / 1000
                _settle(self._welcome, Welcome(str(about.get("clientId")), str(about.get("node")), ping_seconds))
            case "shutdown" | "move":
                self.reconnect_ms = int(about.get("reconnectMs", 0))
            case "token_expiring":
                self.expiring.set()


def _read(text: str | bytes) -> Frame:
    """A frame as Python has it; answers of a back end may hold integers of any length.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        frame: Frame = protocol.loads(text if isinstance(text, bytes) else text.encode())
    except NumberError:
        frame = json.loads(text)
    return frame


def _settle(future: asyncio.Future[Any] | None, result: Any) -> None:
    if future is not None and not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        future.exception()  # whoever asked may be gone
