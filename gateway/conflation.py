"""Topics with `conflate_ms`: of what comes within a window, each client is sent the last message meant for it."""

from __future__ import annotations

import asyncio

from gateway.core import hub
from gateway.core.hub import Hub
from gateway.core.topics import TopicRules


class _Window:
    """What waits for the end of a topic's window: two messages at most."""

    __slots__ = ("excluded", "newest", "other")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Nothing waits."""
        self.newest: bytes | None = None  # for everybody but the client `excluded`
        self.excluded: str | None = None
        self.other: bytes | None = None  # for that client alone

    def put(self, frame: bytes, exclude: str | None) -> None:
        """A message has come, for everybody but the client `exclude`."""
        if exclude is None:
            self.other = None
        elif exclude != self.excluded:
            self.other = self.newest  # this one was meant for the client that the new one is not for
        self.newest, self.excluded = frame, exclude


class Conflation:
    """Hands messages to the hub, the first of a window at once and the last at its end. Order stays as it came."""

    def __init__(self, hub: Hub, rules: TopicRules) -> None:
        self._hub = hub
        self._rules = rules
        self._windows: dict[str, _Window] = {}  # those that are open

    def deliver(self, topic: str, frame: bytes, exclude: str | None) -> None:
        """Deliver a message now or at the end of the window; never before one that came before it."""
        window = self._windows.get(topic)
        if window is not None:
            window.put(frame, exclude)
            return
        self._hub.deliver(hub.of_topic(topic), frame, exclude)
        if self._rules.of(topic).conflate_ms:
            self._open(topic, _Window())

    def forget(self, topic: str) -> None:
        """Nobody here is subscribed any more: what waits would be older than what the next client is sent first."""
        if topic in self._windows:
            self._windows[topic].clear()

    def _open(self, topic: str, window: _Window) -> None:
        self._windows[topic] = window
        seconds = self._rules.of(topic).conflate_ms / 1000
        asyncio.get_running_loop().call_later(seconds, self._close, topic)

    def _close(self, topic: str) -> None:
        window = self._windows.pop(topic)
        if window.newest is None:
            return
        audience = hub.of_topic(topic)
        if window.other is not None:
            self._hub.deliver(audience, window.other, only=window.excluded)
        self._hub.deliver(audience, window.newest, window.excluded)
        window.clear()
        self._open(topic, window)
