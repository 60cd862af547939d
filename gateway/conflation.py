"""Messages that may be conflated: of what comes within a window, each client is sent the last message meant for it."""

from __future__ import annotations

import asyncio

from gateway.core import hub
from gateway.core.hub import Hub


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

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._windows: dict[str, _Window] = {}  # those that are open

    def deliver(self, topic: str, frame: bytes, exclude: str | None, window_ms: int) -> None:
        """Deliver a message now or at the end of the window; never before one that came before it.

        `window_ms`: what the publisher's topic rules say; 0: this message is not to be conflated.
        """
        window = self._windows.get(topic)
        if window is not None and window_ms:
            window.put(frame, exclude)
            return
        if window is not None:
            self._release(topic, window)
        self._hub.deliver(hub.of_topic(topic), frame, exclude)
        if window_ms:
            self._open(topic, _Window(), window_ms)

    def forget(self, topic: str) -> None:
        """Nobody here is subscribed any more: what waits would be older than what the next client is sent first."""
        if topic in self._windows:
            self._windows[topic].clear()

    def _open(self, topic: str, window: _Window, window_ms: int) -> None:
        self._windows[topic] = window
        asyncio.get_running_loop().call_later(window_ms / 1000, self._close, topic, window_ms)

    def _close(self, topic: str, window_ms: int) -> None:
        window = self._windows.pop(topic)
        if self._release(topic, window):
            self._open(topic, window, window_ms)

    def _release(self, topic: str, window: _Window) -> bool:
        """Deliver what waits. False: nothing did."""
        if window.newest is None:
            return False
        audience = hub.of_topic(topic)
        if window.other is not None:
            self._hub.deliver(audience, window.other, only=window.excluded)
        self._hub.deliver(audience, window.newest, window.excluded)
        window.clear()
        return True
