"""What one caller hears of one topic: events in order, in a buffer with a limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from gateway.client.events import Closed, Event, Message, TooSlow


class Subscription:
    """Iterate over it for its messages, or over `events()` for gaps and presence too, each where it belongs.

    One reader at a time. It ends when it is closed; with what went wrong, if something did; either way only after
    what came before has been read.
    """

    def __init__(self, topic: str, limit: int, leave: Callable[[Subscription], None]) -> None:
        self.topic = topic
        self.live = False  # acknowledged on the connection that there is
        self.entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # acknowledged once
        self._limit = limit
        self._leave = leave
        self._waiting: deque[Event] = deque()
        self._news = asyncio.Event()
        self._end: BaseException | None = None

    async def events(self) -> AsyncIterator[Event]:
        """Everything that concerns the topic, in order.

        Raises:
            TooSlow: They were not read in time.
            Refused: The server no longer lets us hear the topic.
            Closed: The server has told the client not to come back.
        """
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._end is not None:
                if isinstance(self._end, Closed) and self._end.code is None:
                    return
                raise self._end
            self._news.clear()
            await self._news.wait()

    async def __aiter__(self) -> AsyncIterator[Message]:
        async for event in self.events():
            if isinstance(event, Message):
                yield event

    async def close(self) -> None:
        """Hear the topic no more."""
        self._leave(self)

    # ---- for the gateway alone

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._end is not None

    def enter(self) -> None:
        """The server has acknowledged it on the connection that there is."""
        self.live = True
        if not self.entered.done():
            self.entered.set_result(None)

    def offer(self, event: Event) -> None:
        """Something for the reader."""
        if self._end is not None:
            return
        if len(self._waiting) >= self._limit:
            self.end(TooSlow(f"{self._limit} events of {self.topic} wait to be read"))
            return
        self._waiting.append(event)
        self._news.set()

    def end(self, why: BaseException) -> None:
        """Nothing more will come."""
        if self._end is None:
            self._end = why
            self._news.set()
        if not self.entered.done():
            self.entered.set_exception(why)
            self.entered.exception()  # whoever waited may have given up
