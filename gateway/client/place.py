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
from gateway.core.position import Position


class Place:
    """The subscriber's place in `topic`: nothing is known before the first acknowledgement."""

    __slots__ = ("_joined", "_position", "away", "topic")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._position: Position | None = None  # of the last message that was handed on
        self._joined = False  # an acknowledgement has come, so from then on every loss is to be told
        self.away = False  # it has come, and the connection was lost since

    def recover(self) -> dict[str, Any] | None:
        """What SUBSCRIBE says under `recover`; None: there is nothing to recover from."""
        if not self.away or self._position is None:
            return None
        return {name: value for name, value in self._position._asdict().items() if value is not None}

    def take(self, message: Message) -> list[Event]:
        """What to hand on of a message: nothing if it was had before."""
        if message.initial or message.offset is None or message.epoch is None:
            return [message]
        events: list[Event] = [message]
        if self._position is not None:
            epoch, offset, _ = self._position
            if message.epoch == epoch and message.offset <= offset:
                return []
            # At 0 the topic had no message yet, and gets its epoch with the first.
            if message.epoch != epoch and offset:
                events.insert(0, Gap(self.topic, "the history began anew"))
        self._position = Position(message.epoch, message.offset, message.mark)
        return events

    def acknowledged(self, position: Mapping[str, Any] | None) -> list[Event]:
        """SUBSCRIBE was acknowledged, with this position if the topic has history."""
        was_away, self.away = self.away, False
        recovered = position is not None and position.get("recovered") is True
        # On one connection the messages tell the place: another epoch, for one, must be seen as the gap it is.
        if position is not None and (was_away or not self._joined or self._position is None):
            self._position = Position(position["epoch"], position["offset"], position.get("mark"))
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
