"""Where a subscriber is in one topic, and what that makes of what the server says.  (pure)

Within one connection the server gives each message of a topic once and in order, or tells of a gap. What it cannot
know is what this client had before: so the last place is remembered, told when coming back (`recover`), and what is
not behind it is dropped.

An offset that jumps is no sign of a loss: a message that excluded this client has an offset too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.client.events import Event, Gap, Message, Recovered


class Place:
    """The subscriber's place in `topic`: nothing is known before the first acknowledgement."""

    __slots__ = ("_joined", "_position", "away", "topic")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._position: tuple[str, int] | None = None  # epoch and offset of the last message had
        self._joined = False  # an acknowledgement has come, so from then on every loss is to be told
        self.away = False  # it has come, and the connection was lost since

    def recover(self) -> dict[str, Any] | None:
        """What SUBSCRIBE says under `recover`; None: there is nothing to recover from."""
        if not self.away or self._position is None:
            return None
        epoch, offset = self._position
        return {"epoch": epoch, "offset": offset}

    def take(self, message: Message) -> list[Event]:
        """What to hand on of a message: nothing if it was had before."""
        if message.initial or message.offset is None or message.epoch is None:
            return [message]
        events: list[Event] = [message]
        if self._position is not None:
            epoch, offset = self._position
            if message.epoch == epoch and message.offset <= offset:
                return []
            if message.epoch != epoch:
                events.insert(0, Gap(self.topic, "the history began anew"))
        self._position = message.epoch, message.offset
        return events

    def acknowledged(self, position: Mapping[str, Any] | None) -> list[Event]:
        """SUBSCRIBE was acknowledged, with this position if the topic has history."""
        was_away, self.away = self.away, False
        recovered = position is not None and position.get("recovered") is True
        if position is not None:
            self._position = position["epoch"], position["offset"]
        if not self._joined:
            self._joined = True
            return []
        if not was_away:
            return []
        if recovered:
            return [Recovered(self.topic)]
        reason = "a topic without history" if position is None else "what was missed is no longer kept"
        return [Gap(self.topic, f"reconnected: {reason}")]

    def lost(self, reason: str) -> list[Event]:
        """The server tells of a gap: what it goes on with may even have lower offsets than were had."""
        self._position = None
        return [Gap(self.topic, reason)]

    def disconnected(self) -> None:
        """The connection is lost."""
        self.away = self._joined
