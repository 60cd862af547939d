"""Clients of one kind, each with its own address, and their ledgers."""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from chaos.ledger import Ledger
from chaos.plan import keeps
from gateway.client import Gap, Gateway, Message, Recovered, State, Subscription

SILENCE_SECONDS = 1.0  # on one topic; shorter silences are normal at the plan's rates


class Listener(ABC):
    """Subscribes to all topics and records what it receives. It tries `urls` in turn."""

    def __init__(self, urls: Iterable[str], source: str, restless: bool) -> None:
        self.urls = itertools.cycle(urls)
        self.source = source
        self.restless = restless  # closes its own connection now and then
        self.ledgers: dict[str, Ledger] = {}
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
        """A connected listener that is subscribed to `topics`."""
        listener = cls(urls, source, restless)
        listener.ledgers = {topic: Ledger() for topic in topics}
        async with AsyncExitStack() as stack:
            await listener._open(stack)
            yield listener

    @property
    @abstractmethod
    def client_id(self) -> str | None:
        """The id of its connection, or of the last one."""

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether it is subscribed to all its topics, as far as it knows."""

    @abstractmethod
    def cut(self) -> None:
        """Closes the connection at once."""

    @abstractmethod
    async def _open(self, stack: AsyncExitStack) -> None:
        """Connects and subscribes to the topics of `ledgers`; `stack` ends it."""

    def _number(self, topic: str, number: int) -> None:
        """Records a message."""
        self.ledgers[topic].number(number)
        if keeps(topic):
            now = asyncio.get_running_loop().time()
            if now - self._received.get(topic, now) > SILENCE_SECONDS:
                self.silences.append((self._received[topic], now))
            self._received[topic] = now

    def _lost(self) -> None:
        """Records that the connection is lost."""
        if self._lost_at is None:
            self._lost_at = asyncio.get_running_loop().time()

    def _resumed(self) -> None:
        """Records that one more topic is subscribed again."""
        if self._lost_at is not None and self.connected:
            self.reconnects.append(asyncio.get_running_loop().time() - self._lost_at)
            self._lost_at = None


class GatewayListener(Listener):
    """A client of `gateway.client`."""

    def __init__(self, urls: Iterable[str], source: str, restless: bool) -> None:
        super().__init__(urls, source, restless)
        self._gateway = Gateway(
            lambda: next(self.urls), on_state=self._state, local_addr=(source, 0), proxy=None
        )  # fmt: skip
        self._subscriptions: list[Subscription] = []

    @property
    def client_id(self) -> str | None:
        """The id of its connection, or of the last one."""
        return self._gateway.client_id

    @property
    def connected(self) -> bool:
        """Whether it is subscribed to all its topics, as far as it knows."""
        return all(subscription.live for subscription in self._subscriptions)

    def cut(self) -> None:
        """Closes the connection at once."""
        self._gateway.reconnect()

    async def _open(self, stack: AsyncExitStack) -> None:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        await stack.enter_async_context(self._gateway)
        for topic in self.ledgers:
            subscription = await self._gateway.subscribe(topic)
            self._subscriptions.append(subscription)
            tasks.create_task(self._write(subscription))

    async def _write(self, subscription: Subscription) -> None:
        async for event in subscription.events():
            match event:
                case Message(initial=False, data=number):
                    self._number(subscription.topic, number)
                case Gap():
                    self.ledgers[subscription.topic].notice()
                    self._resumed()
                case Recovered():
                    self.recovered += 1
                    self._resumed()

    def _state(self, state: State) -> None:
        if state is State.WAITING:
            self._lost()
