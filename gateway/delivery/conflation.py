"""Conflation: of the messages within a time window, each client receives only the last one that is for it."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from gateway.core import hub
from gateway.core.events import Broadcast
from gateway.core.hub import Hub


class _Waiting:
    """The messages for one audience that wait for the end of a topic's window: at most two."""

    __slots__ = ("excluded", "newest", "other")

    def __init__(self) -> None:
        self.newest: Broadcast | None = None  # for all clients except `excluded`
        self.excluded: str | None = None
        self.other: Broadcast | None = None  # for the client `excluded` alone

    def put(self, event: Broadcast, exclude: str | None) -> None:
        """Store a message for all clients except `exclude`."""
        if exclude is None:
            self.other = None
        elif exclude != self.excluded:
            self.other = self.newest  # the last message for the client that does not get the new one
        self.newest, self.excluded = event, exclude


_Window = defaultdict[str, _Waiting]  # the messages that wait for the end of a window, by audience


class Conflation:
    """Delivers messages to the hub: the first of a window at once, the last at its end. The order is kept."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._windows: dict[str, _Window] = {}  # open windows by topic

    def conflate(self, topic: str, event: Broadcast, exclude: str | None, window_ms: int) -> None:
        """Deliver a message now or at the end of the window, never before an earlier one.

        `window_ms`: from the publisher's topic rules; 0: do not conflate this message.
        """
        window = self._windows.get(topic)
        if window is not None and window_ms:
            for audience in self._hub.groups(hub.topic_audience(topic), event):
                window[audience].put(event, exclude)
            return
        if window is not None:
            self._release(window)
        self._hub.deliver(hub.topic_audience(topic), event, exclude)
        if window_ms:
            self._open(topic, _Window(_Waiting), window_ms)

    def forget(self, topic: str) -> None:
        """Drop the waiting messages of a topic without subscribers: the next subscriber first gets newer ones."""
        if topic in self._windows:
            self._windows[topic].clear()

    def _open(self, topic: str, window: _Window, window_ms: int) -> None:
        self._windows[topic] = window
        asyncio.get_running_loop().call_later(window_ms / 1000, self._close, topic, window_ms)

    def _close(self, topic: str, window_ms: int) -> None:
        window = self._windows.pop(topic)
        if self._release(window):
            self._open(topic, window, window_ms)

    def _release(self, window: _Window) -> bool:
        """Deliver the waiting messages. False: there were none."""
        if not window:
            return False
        for audience, waiting in window.items():
            if waiting.other is not None:
                self._hub.deliver(audience, waiting.other, only=waiting.excluded)
            if waiting.newest is not None:
                self._hub.deliver(audience, waiting.newest, waiting.excluded)
        window.clear()
        return True
