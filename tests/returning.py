"""A browser that comes back: it keeps its cookies and its place on a topic, and connects again when it is sent away."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from websockets.exceptions import InvalidHandshake

from tests.client import Client, Front, Message, new_source


@dataclass
class Stay:
    """One socket's life."""

    node: str
    code: int | None = None  # why it ended
    farewell: Message | None = None  # what it was told before
    ended: float = 0.0  # monotonic


@dataclass
class Returning:
    """Hears `topic`, with its history, over as many sockets as it takes."""

    front: Front
    topic: str
    connect_after: float | None = None  # seconds; None: what `reconnectMs` says
    offsets: list[int] = field(default_factory=list)
    recovered: list[bool] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cookies: dict[str, str] = field(default_factory=dict)
    source: str = field(default_factory=new_source)
    client: Client | None = None
    _task: asyncio.Task[None] | None = None

    async def start(self) -> Returning:
        """Come for the first time."""
        await self._come()
        self._task = asyncio.create_task(self._stay())
        return self

    async def stop(self) -> None:
        """Go for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.client is not None:
            await self.client.leave()
            self._collect(self.client)

    def heard(self) -> list[int]:
        """The offsets heard so far, in the order heard."""
        return self.offsets + ([m["offset"] for m in self.client.heard(type="DATA")] if self.client else [])

    @property
    def node(self) -> str:
        """Where it is, or was last."""
        return self.stays[-1].node

    async def _stay(self) -> None:
        while True:
            client, stay = self.client, self.stays[-1]
            assert client is not None
            stay.code = await client.closed(within=3600)
            stay.ended = time.monotonic()
            stay.farewell = next((m for m in client.messages if m.get("action") in ("shutdown", "move")), None)
            self.client = None
            self._collect(client)
            await client.leave()
            told = stay.farewell["data"]["reconnectMs"] / 1000 if stay.farewell else 0.5
            await asyncio.sleep(told if self.connect_after is None else self.connect_after)
            while True:
                try:
                    await self._come()
                    break
                except (OSError, InvalidHandshake, AssertionError) as error:
                    self.failures.append(repr(error))
                    await asyncio.sleep(0.2)

    def _collect(self, client: Client) -> None:
        self.offsets += [message["offset"] for message in client.heard(type="DATA")]

    async def _come(self) -> None:
        client = await Client.connect(self.front, cookies=self.cookies, source=self.source)
        recover = {self.topic: {"epoch": self._epoch, "offset": self._last}} if self.stays else {}
        answer = await client.subscribe(self.topic, **({"recover": recover} if recover else {}))
        place = answer["positions"][self.topic]
        if self.stays:
            self.recovered.append(place["recovered"])
        self._epoch = place["epoch"]
        if not self.stays:
            self._first = place["offset"]
        self.client = client
        self.stays.append(Stay(client.node))

    @property
    def _last(self) -> int:
        return self.offsets[-1] if self.offsets else self._first
