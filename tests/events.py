"""The transport of `Client` without a WebSocket: `over="sse"` or `over="poll"`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import orjson
from websockets.exceptions import ConnectionClosedError


class EventSocket:
    """A stream of events in the dress of a WebSocket. It speaks to `says_to`, and hears from where it was opened."""

    def __init__(self, base: str, over: str, says_to: str, cookies: dict[str, str], source: str | None) -> None:
        self.close_code: int | None = None
        self.name = ""  # the stream's
        self.transport = self  # what a test aborts
        self._base = base
        self._over = over
        self._says_to = says_to
        self._http = httpx.AsyncClient(
            timeout=60, cookies=cookies, transport=httpx.AsyncHTTPTransport(local_address=source), trust_env=False
        )
        self._cut = False
        self._texts = self._events() if over == "sse" else self._polled()
        self.response: httpx.Response | None = None

    async def send(self, text: str | bytes) -> None:
        """Say it, by POST."""
        said = text.encode() if isinstance(text, str) else text
        answer = await self._http.post(f"{self._says_to}/say", content=self.name.encode() + b"\n" + said)
        assert answer.status_code == 204, answer.text

    async def recv(self) -> bytes:
        """The next message.

        Raises:
            ConnectionClosedError: There is none.
        """
        try:
            async for text in self._texts:
                match orjson.loads(text):
                    case {"type": "OPEN", "stream": name}:
                        self.name = name
                    case {"type": "CLOSE", "code": code}:
                        self.close_code = code
                    case _:
                        return text
        except (httpx.TransportError, httpx.StreamClosed):
            pass
        self.close_code = self.close_code or 1006
        raise ConnectionClosedError(None, None)

    def abort(self) -> None:
        """Cut it."""
        self._cut = True
        self._ending = asyncio.ensure_future(self._http.aclose())

    async def wait_closed(self) -> None:
        """It is cut."""
        await self._ending

    async def close(self) -> None:
        """The same: there is no other way."""
        self.abort()
        await self.wait_closed()

    async def _events(self) -> AsyncIterator[bytes]:
        async with self._http.stream("GET", f"{self._base}/sse") as self.response:
            self.response.raise_for_status()
            async for line in self.response.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "data":
                    yield value.encode()

    async def _polled(self) -> AsyncIterator[bytes]:
        while not self._cut:
            self.response = await self._http.post(f"{self._base}/poll", content=self.name.encode())
            if self.response.status_code != 200:
                return
            for text in filter(None, self.response.content.split(b"\n")):
                yield text
