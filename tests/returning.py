"""A browser that comes back: it keeps its cookies and its position on a topic, and reconnects after a close."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import InvalidHandshake

from tests.kit.client import Client, Front, Message, new_source


@dataclass
class Stay:
    """One socket's life."""

    node: str
    code: int | None = None  # why it ended
    farewell: Message | None = None  # the node's last message before the close
    ended: float = 0.0  # monotonic


@dataclass
class Returning:
    """Hears `topic`, with its history, over as many sockets as it takes."""

    front: Front
    topic: str
    connect_after: float | None = None  # seconds; None: what `reconnectMs` says
    keeps_cookies: bool = True
    offsets: list[int] = field(default_factory=list)
    recovered: list[bool] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cookies: dict[str, str] = field(default_factory=dict)
    source: str = field(default_factory=new_source)
    client: Client | None = None
    _place: dict[str, Any] | None = None
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

    def received(self) -> list[int]:
        """The offsets received so far, in order."""
        return self.offsets + ([m["offset"] for m in self.client.received(type="DATA")] if self.client else [])

    def has_heard(self, offset: int) -> bool:
        """Whether it has received the topic's messages up to this offset."""
        return self.received()[-1:] == [offset]

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
            sent = stay.farewell["data"]["reconnectMs"] / 1000 if stay.farewell else 0.5
            await asyncio.sleep(sent if self.connect_after is None else self.connect_after)
            while True:
                try:
                    await self._come()
                    break
                except (OSError, InvalidHandshake, AssertionError) as error:
                    self.failures.append(repr(error))
                    await asyncio.sleep(0.2)

    def _collect(self, client: Client) -> None:
        for message in client.received(type="DATA"):
            self.offsets.append(message["offset"])
            self._place = {"epoch": message["epoch"], "offset": message["offset"]}

    async def _come(self) -> None:
        client = await Client.connect(
            self.front, cookies=self.cookies if self.keeps_cookies else None, source=self.source
        )
        again: dict[str, Any] = {"recover": {self.topic: self._place}} if self._place else {}
        answer = await client.subscribe(self.topic, **again)
        position = answer["positions"][self.topic]
        if again:
            self.recovered.append(position["recovered"])
        # Where it is if it hears nothing before it is sent away.
        self._place = self._place or {"epoch": position["epoch"], "offset": position["offset"]}
        self.client = client
        self.stays.append(Stay(client.node))
