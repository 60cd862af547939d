"""Clients of a cluster in a test: a browser's socket, and a back end's HTTP."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, MutableMapping
from http.cookies import SimpleCookie
from typing import Any, Protocol, cast

import httpx
import orjson
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from tests.events import EventSocket
from tests.kit.node import API_KEY, token

Message = dict[str, Any]

SECONDS = 20.0  # the longest a test waits for a message, where it asks for no other limit

_sources = itertools.count(1)


class Front(Protocol):
    """A node or a balancer: where clients connect, and where its API is."""

    ws: str
    api_url: str


def new_source() -> str:
    """An address of this machine that no client of this run has used before."""
    high, low = divmod(next(_sources), 250)
    return f"127.1.{high}.{low + 1}"


class Client:
    """One socket, and all messages that it received."""

    def __init__(self, socket: ClientConnection | EventSocket) -> None:
        self.socket = cast(ClientConnection, socket)  # an EventSocket does as one, as far as all are asked for it
        self.messages: list[Message] = []
        self._ids = itertools.count(1)
        self._news = asyncio.Event()
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def connect(
        cls, front: Front | str, *, user: str | None = None, role: str = "user",
        cookies: MutableMapping[str, str] | None = None, source: str | None = None, origin: str | None = None,
        subprotocols: Iterable[str] = (), headers: dict[str, str] | None = None, compression: str | None = None,
        over: str = "websocket", says_to: str = "",
    ) -> Client:  # fmt: skip
        """A client that was welcomed. `user`: by session cookie; `cookies`: a jar, which keeps what is set.

        `over`: websocket, sse or poll; `says_to`: where the latter two speak, if it is not where they hear.
        `compression`: what a WebSocket offers, "deflate" or nothing.
        """
        sent = dict(cookies or {})
        if user is not None:
            sent["session"] = token(user, role)
        fields = dict(headers or {})
        if sent:
            fields["Cookie"] = "; ".join(f"{name}={value}" for name, value in sent.items())
        if over != "websocket":
            base = (front if isinstance(front, str) else front.ws).replace("ws:", "http:").removesuffix("/ws")
            return await cls._welcomed(EventSocket(base, over, says_to or base, sent, source))
        socket = await open_socket(
            front if isinstance(front, str) else front.ws,
            compression=compression, proxy=None, ping_interval=None, max_size=None, max_queue=None,
            open_timeout=SECONDS, local_addr=(source, 0) if source is not None else None, additional_headers=fields,
            origin=Origin(origin) if origin is not None else None,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        )  # fmt: skip
        assert socket.response is not None
        if cookies is not None:
            for header in socket.response.headers.get_all("Set-Cookie"):
                cookies.update({name: morsel.value for name, morsel in SimpleCookie(header).items()})
        return await cls._welcomed(socket)

    @classmethod
    async def _welcomed(cls, socket: ClientConnection | EventSocket) -> Client:
        client = cls(socket)
        try:
            await client.hear(type="SYSTEM", action="welcome")
        except BaseException:
            await client.leave()
            raise
        return client

    @property
    def id(self) -> str:
        """The client id it was welcomed with."""
        return str(self.messages[0]["data"]["clientId"])

    @property
    def node(self) -> str:
        """The name of the node that welcomed it."""
        return str(self.messages[0]["data"]["node"])

    @property
    def open(self) -> bool:
        """Whether its socket is still open."""
        return not self._listener.done()

    # ---- sending

    async def send(self, **message: Any) -> None:
        """Send a message."""
        await self.socket.send(orjson.dumps(message).decode())

    async def ask(self, **message: Any) -> Message:
        """Send a message; return the next one received."""
        return await self.ask_text(orjson.dumps(message).decode())

    async def ask_text(self, text: str | bytes) -> Message:
        """Send a text (or, as bytes, a binary message); return the next message received."""
        at = len(self.messages)
        await self.socket.send(text)
        return await self.hear(start=at)

    async def subscribe(self, *topics: str, within: float = SECONDS, **more: Any) -> Message:
        """Subscribe; the answer, an ACKNOWLEDGMENT unless it was refused."""
        return await self._call(within, type="SUBSCRIBE", topics=topics, **more)

    async def unsubscribe(self, *topics: str) -> Message:
        """Unsubscribe; the answer."""
        return await self._call(SECONDS, type="UNSUBSCRIBE", topics=topics)

    async def publish(self, topic: str, data: Any, **more: Any) -> Message:
        """Publish; the answer, an ACKNOWLEDGMENT or an ERROR."""
        return await self._call(SECONDS, type="PUBLISH", topic=topic, data=data, **more)

    async def authenticate(self, user: str, role: str = "user", seconds: float = 3600) -> Message:
        """AUTH as `user`; the answer."""
        return await self.ask(type="AUTH", authToken=token(user, role, seconds))

    async def call(self, **message: Any) -> Message:
        """Send a message under a request id of its own; the answer to it."""
        return await self._call(SECONDS, **message)

    async def _call(self, within: float, **message: Any) -> Message:
        request_id = f"r{next(self._ids)}"
        at = len(self.messages)
        await self.send(requestId=request_id, **message)
        return await self._first(
            lambda received: request_id in (received.get("requestId"), received.get("inReplyTo")),
            at,
            within,
            f"answer to {message}",
        )

    # ---- receiving

    async def hear(self, *, start: int = 0, within: float = SECONDS, **fields: Any) -> Message:
        """Return the first message with these fields, among those received (from number `start` on) or to come."""
        return await self._first(
            lambda received: fields.items() <= received.items(), start, within, f"message with {fields}"
        )

    def received(self, **fields: Any) -> list[Message]:
        """Return the messages with these fields that were received so far."""
        return [message for message in self.messages if all(message.get(k) == v for k, v in fields.items())]

    def data(self, topic: str | None = None) -> list[Any]:
        """Return the data of messages on `topic`, or on any topic, in the order received."""
        return [m["data"] for m in self.messages if m["type"] == "DATA" and topic in (None, m["topic"])]

    async def closed(self, within: float = SECONDS) -> int:
        """The code its socket is closed with."""
        async with asyncio.timeout(within):
            await asyncio.shield(self._listener)
        assert self.socket.close_code is not None
        return self.socket.close_code

    async def leave(self) -> None:
        """Abort the connection without waiting for the other side."""
        self.socket.transport.abort()
        await self._listener
        await self.socket.wait_closed()

    async def close(self) -> None:
        """Close the connection in the proper way."""
        await self.socket.close()
        await self._listener

    async def _first(self, wanted: Any, at: int, within: float, what: str) -> Message:
        try:
            async with asyncio.timeout(within):
                while True:
                    while at < len(self.messages):
                        if wanted(self.messages[at]):
                            return self.messages[at]
                        at += 1
                    assert self.open, f"closed with {self.socket.close_code} while waiting for {what}"
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no {what} within {within:g} s; last received: {self.messages[-5:]}") from None

    async def _listen(self) -> None:
        try:
            while True:
                self.messages.append(orjson.loads(await self.socket.recv()))
                self._news.set()
        except ConnectionClosed:
            self._news.set()


class Api:
    """The HTTP API of a node, or of all behind a balancer, with the key."""

    def __init__(self, front: Front) -> None:
        self.http = httpx.AsyncClient(
            base_url=front.api_url, headers={"Authorization": f"Bearer {API_KEY}"}, timeout=30, trust_env=False
        )

    async def get(self, path: str, **parameters: str | int) -> Any:
        """What is at `path`; it must be there."""
        answer = await self.http.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def delete(self, path: str) -> Any:
        """Have `path` deleted; it must be there."""
        answer = await self.http.delete(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def publish(self, topic: str, data: Any, **more: Any) -> None:
        """Publish one message."""
        await self.publish_all([{"topic": topic, "data": data, **more}])

    async def post(self, path: str, body: Any) -> Any:
        """What posting `body` answers; it must be taken."""
        answer = await self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def publish_all(self, messages: list[Message]) -> None:
        """Publish them in one request."""
        results = (await self.post("/api/publish", {"messages": messages}))["results"]
        assert [result["topic"] for result in results] == [message["topic"] for message in messages]

    async def clients(self, **parameters: str | int) -> list[dict[str, Any]]:
        """The clients that the cluster knows, by these filters."""
        found: list[dict[str, Any]] = (await self.get("/api/clients", **parameters))["clients"]
        return found

    async def close(self) -> None:
        """Close its connections."""
        await self.http.aclose()
