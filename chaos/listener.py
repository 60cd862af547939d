"""A gateway client with its own address, and its ledgers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from chaos.ledger import Ledger
from chaos.plan import keeps
from gateway.client import Gap, Gateway, Message, Recovered, State, Subscription

SILENCE_SECONDS = 1.0  # on one topic; shorter silences are normal at the plan's rates


class Listener:
    """Subscribes to all topics and records what it receives."""

    def __init__(self, urls: Iterable[str], source: str, restless: bool) -> None:
        turns = itertools.cycle(urls)
        self.gateway = Gateway(lambda: next(turns), on_state=self._state, local_addr=(source, 0), proxy=None)
        self.source = source
        self.restless = restless  # closes its own connection now and then
        self.ledgers: dict[str, Ledger] = {}
        self._subscriptions: list[Subscription] = []
        self.reconnects: list[float] = []  # duration of each, in seconds
        self.recovered = 0  # topics
        self.silences: list[tuple[float, float]] = []  # begin and end, in loop time, on topics with history
        self._received: dict[str, float] = {}  # loop time of a topic's last message
        self._lost_at: float | None = None

    @classmethod
    @asynccontextmanager
    async def listening(
        cls, urls: Iterable[str], source: str, topics: Iterable[str], *, restless: bool
    ) -> AsyncIterator[Self]:
        """A connected listener that is subscribed to `topics`. It tries `urls` in turn."""
        listener = cls(urls, source, restless)
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            await stack.enter_async_context(listener.gateway)
            for topic in topics:
                listener.ledgers[topic] = Ledger()
                subscription = await listener.gateway.subscribe(topic)
                listener._subscriptions.append(subscription)
                tasks.create_task(listener._write(subscription))
            yield listener

    @property
    def connected(self) -> bool:
        """Whether it is subscribed to all its topics, as far as it knows."""
        return all(subscription.live for subscription in self._subscriptions)

    def cut(self) -> None:
        """Closes the connection at once."""
        self.gateway.reconnect()

    async def _write(self, subscription: Subscription) -> None:
        ledger = self.ledgers[subscription.topic]
        async for event in subscription.events():
            match event:
                case Message(initial=False, data=number):
                    ledger.number(number)
                    self._break_silence(subscription.topic)
                case Gap():
                    ledger.notice()
                    self._resumed()
                case Recovered():
                    self.recovered += 1
                    self._resumed()

    def _break_silence(self, topic: str) -> None:
        if keeps(topic):
            now = asyncio.get_running_loop().time()
            if now - self._received.get(topic, now) > SILENCE_SECONDS:
                self.silences.append((self._received[topic], now))
            self._received[topic] = now

    def _state(self, state: State) -> None:
        if state is State.WAITING and self._lost_at is None:
            self._lost_at = asyncio.get_running_loop().time()

    def _resumed(self) -> None:
        if self._lost_at is not None and self.connected:
            self.reconnects.append(asyncio.get_running_loop().time() - self._lost_at)
            self._lost_at = None
