"""The Redis channels that every node subscribes for itself: its own, the control channel and the ingest channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.broker.pubsub import PubSub


class OwnChannels:
    """Subscribes the channels, and knows whether Redis has confirmed all of them."""

    def __init__(self, pubsub: PubSub) -> None:
        self.confirmed = False
        self._pubsub = pubsub
        self._waiting = 0
        self._then: Callable[[], None] | None = None

    def join(self, callbacks: Mapping[str, Callable[[str, bytes], None]], then: Callable[[], None]) -> None:
        """Call these callbacks, by channel, with messages; call `then` once Redis has confirmed all channels."""
        self._waiting, self._then = len(callbacks), then
        for channel, callback in callbacks.items():
            self._pubsub.subscribe([channel], callback, self._channel_confirmed)

    def _channel_confirmed(self) -> None:
        self._waiting -= 1
        if not self._waiting and self._then is not None:
            self.confirmed = True
            self._then()
