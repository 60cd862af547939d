"""The protocol on one socket: calls and their replies, the welcome, the login and pings."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.client.backoff import PingMonitor
from gateway.client.events import Closed, Disconnected, TooLarge, refusal
from gateway.client.server_limits import ServerLimits, parse_limits
from gateway.core import json_text
from gateway.core.json_numbers import NumberError
from gateway.protocols.native.codes import ErrorCode

if TYPE_CHECKING:  # websockets loads slowly, so it is imported when a connection is made
    from websockets.asyncio.client import ClientConnection

Frame = dict[str, Any]


class ConnectionLost(Exception):
    """The socket is lost or was given up. The client should reconnect."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server's welcome message."""

    client_id: str
    node: str
    ping_seconds: float


class Wire:
    """The protocol on one socket. It passes each frame that is not the reply to a login or a call to `on_frame`."""

    def __init__(self, socket: ClientConnection, on_frame: Callable[[Frame], None]) -> None:
        self.reconnect_ms: int | None = None  # when the server asked the client to reconnect
        self.token = ""  # the token that the server has accepted
        self.logged_in = asyncio.Event()
        self.expiring = asyncio.Event()  # the token expires soon
        self.limits = ServerLimits()  # of the server
        self._socket = socket
        self._on_frame = on_frame
        self._heartbeat = PingMonitor()
        self._ids = itertools.count(1)
        self._calls: dict[str, asyncio.Future[Frame]] = {}  # by request id
        self._welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._login: asyncio.Future[None] | None = None

    # ---- sending

    async def call(self, frame: Mapping[str, Any]) -> Frame:
        """Send a frame and return its reply.

        Raises:
            ValueError: JSON cannot hold the frame unchanged.
            TooLarge: The frame is larger than the server accepts.
            Refused: The server replied with an ERROR.
            Disconnected: The socket was lost before the reply.
        """
        request_id = f"p{next(self._ids)}"
        data = json_text.dumps({**frame, "requestId": request_id})
        if len(data) > self.limits.message_bytes:
            raise TooLarge(str(frame["type"]), len(data), self.limits.message_bytes)
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._calls[request_id] = answer
        try:
            await self.send(data)
            return await answer
        finally:
            del self._calls[request_id]

    async def send(self, data: bytes) -> None:
        """Send a message without a reply, or whose reply goes to `on_frame`.

        Raises:
            Disconnected: The socket is lost.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            await self._socket.send(data, text=True)
        except ConnectionClosed:
            raise Disconnected("the connection is lost") from None

    async def welcome(self) -> Welcome:
        """Wait for the server's welcome."""
        return await self._welcome

    async def log_in(self, token: str) -> None:
        """Log in with `token`.

        Raises:
            Refused: The server rejects the token, or cannot verify it now (`temporary`).
            Disconnected: The socket was lost before the reply.
        """
        self._login = asyncio.get_running_loop().create_future()
        await self.send(json_text.dumps({"type": "AUTH", "authToken": token}))
        await self._login
        self.token = token
        self.logged_in.set()

    async def keep_alive(self, seconds: float) -> None:
        """Send a ping every `seconds`, forever.

        Raises:
            ConnectionLost: The server has sent nothing after several pings.
            Disconnected: The socket is lost.
        """
        while True:
            await asyncio.sleep(seconds)
            if not self._heartbeat.ping_due():
                raise ConnectionLost("no pong")
            await self.send(json_text.dumps({"type": "ping", "timestamp": int(time.time() * 1000)}))

    def abort(self) -> None:
        """Abort the connection. A close would wait for the server."""
        self._socket.transport.abort()

    # ---- receiving

    async def read(self) -> None:
        """Process the server's messages until the socket is closed.

        Raises:
            ConnectionLost: The client may reconnect.
            Closed: The server asked the client not to reconnect.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                text = await self._socket.recv()
                self._heartbeat.received()
                self._process(_read(text))
        except (TypeError, ValueError, KeyError, AttributeError) as error:  # a message of an unknown form
            raise ConnectionLost(f"the server sent an invalid message: {error!r}") from error
        except ConnectionClosed as closed:
            code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd is not None else (1006, "")
            if 3500 <= code < 4000:
                raise Closed(code, reason) from None
            raise ConnectionLost(f"closed with {code} {reason}".rstrip()) from None

    def fail_waiters(self) -> None:
        """Fail all calls that wait for a reply."""
        lost = Disconnected("the connection was lost before the reply")
        for future in (self._welcome, self._login, *self._calls.values()):
            _fail(future, lost)

    def _process(self, frame: Frame) -> None:
        request_id = frame.get("requestId", frame.get("inReplyTo"))
        answer = self._calls.get(request_id) if isinstance(request_id, str) else None
        match frame:
            case {"type": "ACKNOWLEDGMENT", "operation": "authenticate"}:
                _settle(self._login, None)
            case {"type": "ERROR"} if answer is not None:
                _fail(answer, refusal(frame))
            case {"type": "ERROR", "code": ErrorCode.TOKEN}:
                _fail(self._login, refusal(frame))
            case {"type": "ERROR", "temporary": True} if request_id is None:
                _fail(self._login, refusal(frame))  # AUTH has no id
            case _ if answer is not None:
                _settle(answer, frame)
            case _:
                if frame.get("type") == "SYSTEM":
                    self._system(str(frame.get("action")), frame.get("data") or {})
                self._on_frame(frame)

    def _system(self, action: str, about: Mapping[str, Any]) -> None:
        match action:
            case "welcome":
                self.limits = parse_limits(about.get("limits") or {})
                ping_seconds = about.get("pingMs", 25_000) / 1000
                _settle(self._welcome, Welcome(str(about.get("clientId")), str(about.get("node")), ping_seconds))
            case "shutdown" | "move":
                self.reconnect_ms = int(about.get("reconnectMs", 0))
            case "token_expiring":
                self.expiring.set()


def _read(text: str | bytes) -> Frame:
    """Parse a frame. Replies of a back end may contain integers of any length.

    Raises:
        ValueError: `text` is not JSON.
    """
    try:
        frame: Frame = json_text.loads(text if isinstance(text, bytes) else text.encode())
    except NumberError:
        frame = json.loads(text)
    return frame


def _settle(future: asyncio.Future[Any] | None, result: Any) -> None:
    if future is not None and not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        future.exception()  # mark it as retrieved, since the caller may be cancelled
