"""The events of one topic for one caller, in order, in a limited buffer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from gateway.client.events import Closed, Event, Message, TooSlow


class Subscription:
    """A subscription to one topic. Iterate over it for messages, or over `events()` for gaps and presence as well.

    Only one reader at a time may iterate. The iteration ends when the subscription is closed, or raises the error that
    ended it, after all earlier events have been read.
    """

    def __init__(self, topic: str, limit: int, leave: Callable[[Subscription], None]) -> None:
        self.topic = topic
        self.live = False  # acknowledged on the current connection
        self.entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # acknowledged at least once
        self._limit = limit
        self._leave = leave
        self._waiting: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._end: BaseException | None = None

    async def events(self) -> AsyncIterator[Event]:
        """The events of the topic, in order.

        Raises:
            TooSlow: The events were not read in time.
            Refused: The server no longer allows the subscription.
            Closed: The server asked the client not to reconnect.
        """
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._end is not None:
                if isinstance(self._end, Closed) and self._end.code is None:
                    return
                raise self._end
            self._changed.clear()
            await self._changed.wait()

    async def __aiter__(self) -> AsyncIterator[Message]:
        async for event in self.events():
            if isinstance(event, Message):
                yield event

    async def close(self) -> None:
        """End the subscription."""
        self._leave(self)

    # ---- only for the gateway

    @property
    def ended(self) -> bool:
        """Whether the subscription receives no further events."""
        return self._end is not None

    def acknowledged(self) -> None:
        """Record that the server has acknowledged the subscription on the current connection."""
        self.live = True
        if not self.entered.done():
            self.entered.set_result(None)

    def put(self, event: Event) -> None:
        """Add an event to the buffer. A full buffer ends the subscription with `TooSlow`."""
        if self._end is not None:
            return
        if len(self._waiting) >= self._limit:
            self.end(TooSlow(f"{self._limit} events of {self.topic} wait to be read"))
            return
        self._waiting.append(event)
        self._changed.set()

    def end(self, why: BaseException) -> None:
        """End the subscription with the reason `why`."""
        if self._end is None:
            self._end = why
            self._changed.set()
        if not self.entered.done():
            self.entered.set_exception(why)
            self.entered.exception()  # mark it as retrieved, since the caller may be cancelled
