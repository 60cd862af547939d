"""A client of the package centrifuge-python, unmodified, and its ledgers.

It has no local address of its own: it names its address in X-Forwarded-For, which HAProxy trusts here.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

import centrifuge  # type: ignore[import-untyped]

from chaos.listener import Listener
from chaos.plan import keeps

RECONNECT_SECONDS = (0.1, 1.0)  # between two attempts, at least and at most
READY_SECONDS = 30.0
PATH = "/connection/websocket"


class CentrifugoListener(Listener):
    """Subscribes with recovery. A later subscription is a notice, unless it has recovered a topic with history."""

    def __init__(self, urls: Iterable[str], source: str, restless: bool) -> None:
        super().__init__(urls, source, restless)
        low, high = RECONNECT_SECONDS
        self._client = centrifuge.Client(
            next(self.urls).removesuffix("/ws") + PATH, events=_ClientEvents(self), min_reconnect_delay=low,
            max_reconnect_delay=high, headers={"X-Forwarded-For": source}, proxy=None,
        )  # fmt: skip
        self._subscriptions: list[Any] = []

    @property
    def client_id(self) -> str | None:
        """The id of its connection, or of the last one."""
        name: str | None = self._client.client_id
        return name

    @property
    def connected(self) -> bool:
        """Whether it is subscribed to all its topics, as far as it knows."""
        subscribed = centrifuge.SubscriptionState.SUBSCRIBED
        return self._client.state is centrifuge.ClientState.CONNECTED and all(
            subscription.state is subscribed for subscription in self._subscriptions
        )

    def cut(self) -> None:
        """Closes the connection at once."""
        socket = self._client._conn  # the package has no call for it
        if socket is not None:
            socket.transport.abort()

    async def _open(self, stack: AsyncExitStack) -> None:
        stack.push_async_callback(self._client.disconnect)
        await self._client.connect()
        await self._client.ready(READY_SECONDS)
        for topic in self.ledgers:
            subscription = self._client.new_subscription(topic, events=_TopicEvents(self, topic))
            await subscription.subscribe()
            await subscription.ready(READY_SECONDS)
            self._subscriptions.append(subscription)

    def subscribed(self, topic: str, *, again: bool, recovered: bool) -> None:
        """Records a subscription."""
        if again and not (recovered and keeps(topic)):
            self.ledgers[topic].notice()
        self.recovered += recovered
        self._resumed()

    def received(self, topic: str, number: int) -> None:
        """Records a message."""
        self._number(topic, number)

    def lost(self) -> None:
        """Records that the connection is lost."""
        self._lost()


class _ClientEvents(centrifuge.ClientEventHandler):  # type: ignore[misc]
    def __init__(self, listener: CentrifugoListener) -> None:
        self._listener = listener
        self._connected = False

    async def on_connected(self, _ctx: Any) -> None:
        self._connected = True

    async def on_connecting(self, _ctx: Any) -> None:
        if self._connected:
            self._listener.lost()


class _TopicEvents(centrifuge.SubscriptionEventHandler):  # type: ignore[misc]
    def __init__(self, listener: CentrifugoListener, topic: str) -> None:
        self._listener = listener
        self._topic = topic
        self._subscribed = False

    async def on_subscribed(self, ctx: Any) -> None:
        self._listener.subscribed(self._topic, again=self._subscribed, recovered=bool(ctx.recovered))
        self._subscribed = True

    async def on_publication(self, ctx: Any) -> None:
        self._listener.received(self._topic, ctx.pub.data)
