"""An HTTP server that the test controls: it answers each request, cuts the connection, or does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import orjson

from tests.kit.process import free_port


@dataclass
class Asked:
    """One request, as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Says:
    """What it answers; `text`, where it is not `body` as JSON."""

    status: int = 200
    body: object = None
    headers: tuple[str, ...] = ()
    text: bytes | None = None


class BreakOff(Exception):
    """Raised by a behaviour: the connection ends without an answer."""


Behaviour = Callable[[Asked], Awaitable[Says]]


class WebServer:
    """Listens on a port of its own inside `async with`; `behave` may be replaced at any time."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.asked: list[Asked] = []
        self.at_once = self.most_at_once = 0
        self.connections = 0
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Refuse connections, and end those there are."""
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while asked := await self._read(reader):
                self.asked.append(asked)
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    says = await self.behave(asked)
                finally:
                    self.at_once -= 1
                text = says.text if says.text is not None else b"" if says.body is None else orjson.dumps(says.body)
                lines = [f"HTTP/1.1 {says.status} x", f"content-length: {len(text)}", *says.headers, "", ""]
                writer.write("\r\n".join(lines).encode() + text)
                await writer.drain()
        except (BreakOff, OSError):
            pass
        finally:
            writer.transport.abort()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Asked | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Asked(method, target, headers, await reader.readexactly(int(headers.get("content-length", 0))))
