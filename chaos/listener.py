"""A client with the reference logic, from an address of its own, and its ledgers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from chaos.ledger import Ledger
from chaos.plan import keeps
from gateway.client import Gap, Gateway, Message, Recovered, State, Subscription

SILENCE_SECONDS = 1.0  # on one topic; with the plan's rates a shorter one says nothing


class Listener:
    """Hears all topics and writes down what it had."""

    def __init__(self, urls: Iterable[str], source: str, restless: bool) -> None:
        turns = itertools.cycle(urls)
        self.gateway = Gateway(lambda: next(turns), on_state=self._state, local_addr=(source, 0), proxy=None)
        self.source = source
        self.restless = restless  # cuts its own connection now and then
        self.ledgers: dict[str, Ledger] = {}
        self._subscriptions: list[Subscription] = []
        self.reconnects: list[float] = []  # seconds each took
        self.recovered = 0  # topics
        self.silences: list[tuple[float, float]] = []  # begin and end, loop time, of those on topics with history
        self._heard: dict[str, float] = {}  # loop time of a topic's last message
        self._lost_at: float | None = None

    @classmethod
    @asynccontextmanager
    async def listening(
        cls, urls: Iterable[str], source: str, topics: Iterable[str], *, restless: bool
    ) -> AsyncIterator[Self]:
        """A connected listener that hears `topics`. It tries `urls` in turn, the first one first."""
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
        """Whether it hears its topics at this moment, as far as it knows."""
        return all(subscription.live for subscription in self._subscriptions)

    def cut(self) -> None:
        """Lose the connection, now."""
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
                    self._heard_again()
                case Recovered():
                    self.recovered += 1
                    self._heard_again()

    def _break_silence(self, topic: str) -> None:
        if keeps(topic):
            now = asyncio.get_running_loop().time()
            if now - self._heard.get(topic, now) > SILENCE_SECONDS:
                self.silences.append((self._heard[topic], now))
            self._heard[topic] = now

    def _state(self, state: State) -> None:
        if state is State.WAITING and self._lost_at is None:
            self._lost_at = asyncio.get_running_loop().time()

    def _heard_again(self) -> None:
        if self._lost_at is not None and self.connected:
            self.reconnects.append(asyncio.get_running_loop().time() - self._lost_at)
            self._lost_at = None
