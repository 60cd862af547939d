"""A client with the reference logic, from an address of its own, and its ledgers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from chaos.ledger import Ledger
from gateway.client import Gap, Gateway, Message, Recovered, State, Subscription


class Listener:
    """Hears all topics and writes down what it had."""

    def __init__(self, url: str, source: str, restless: bool) -> None:
        self.gateway = Gateway(url, on_state=self._state, local_addr=(source, 0), proxy=None)
        self.source = source
        self.restless = restless  # cuts its own connection now and then
        self.ledgers: dict[str, Ledger] = {}
        self.reconnects: list[float] = []  # seconds each took
        self.recovered = 0  # topics
        self._lost_at: float | None = None

    @classmethod
    @asynccontextmanager
    async def listening(cls, url: str, source: str, topics: Iterable[str], *, restless: bool) -> AsyncIterator[Self]:
        """A connected listener that hears `topics`."""
        listener = cls(url, source, restless)
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            await stack.enter_async_context(listener.gateway)
            for topic in topics:
                listener.ledgers[topic] = Ledger()
                tasks.create_task(listener._write(await listener.gateway.subscribe(topic)))
            yield listener

    @property
    def connected(self) -> bool:
        """Whether it hears its topics at this moment, as far as it knows."""
        return self.gateway.state is State.CONNECTED

    def cut(self) -> None:
        """Lose the connection, now."""
        self.gateway.reconnect()

    async def _write(self, subscription: Subscription) -> None:
        ledger = self.ledgers[subscription.topic]
        async for event in subscription.events():
            match event:
                case Message(initial=False, data=number):
                    ledger.number(number)
                case Gap():
                    ledger.notice()
                case Recovered():
                    self.recovered += 1

    def _state(self, state: State) -> None:
        now = asyncio.get_running_loop().time()
        if state is State.WAITING and self._lost_at is None:
            self._lost_at = now
        elif state is State.CONNECTED and self._lost_at is not None:
            self.reconnects.append(now - self._lost_at)
            self._lost_at = None
