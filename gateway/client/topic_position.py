"""The client's position in one topic: it drops duplicates, and detects gaps.  (pure)

Within one connection the server sends each message of a topic once and in order, or reports a gap. The server does not
know what the client received on earlier connections. So the client remembers its last position and sends it when it
subscribes again (`recover`). It drops messages that are not after that position.

A jump in the offsets does not mean a loss, because messages that excluded this client have offsets too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.client.events import Event, Gap, Message, Recovered
from gateway.core.position import Position


class TopicPosition:
    """The client's position in `topic`. It is unknown before the first acknowledgement."""

    __slots__ = ("_joined", "_position", "recovering", "topic")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._position: Position | None = None  # of the last delivered message
        self._joined = False  # subscribed once, so that every loss must be reported
        self.recovering = False  # subscribed once, and the connection was lost since

    def recover(self) -> dict[str, Any] | None:
        """The position for the `recover` field of SUBSCRIBE; None if there is none."""
        if not self.recovering or self._position is None:
            return None
        return {name: value for name, value in self._position._asdict().items() if value is not None}

    def message_received(self, message: Message) -> list[Event]:
        """The events for a received message: none if it is a duplicate."""
        if message.initial or message.offset is None or message.epoch is None:
            return [message]
        events: list[Event] = [message]
        if self._position is not None:
            epoch, offset, _ = self._position
            if message.epoch == epoch and message.offset <= offset:
                return []
            # At offset 0 the topic had no message yet. It gets its epoch with the first message, which is not a gap.
            if message.epoch != epoch and offset:
                events.insert(0, Gap(self.topic, "the history has a new epoch"))
        self._position = Position(message.epoch, message.offset, message.mark)
        return events

    def acknowledged(self, position: Mapping[str, Any] | None) -> list[Event]:
        """The events for an acknowledged SUBSCRIBE. `position`: set if the topic has history."""
        was_recovering, self.recovering = self.recovering, False
        recovered = position is not None and position.get("recovered") is True
        # On the same connection the messages determine the position. Taking it from here could hide a new epoch, which
        # is a gap.
        if position is not None and (was_recovering or not self._joined or self._position is None):
            self._position = Position(position["epoch"], position["offset"], position.get("mark"))
        if not self._joined:
            self._joined = True
            return []
        if not was_recovering:
            return []
        if recovered:
            return [Recovered(self.topic)]
        reason = "a topic without history" if position is None else "what was missed is no longer kept"
        return [Gap(self.topic, f"reconnected: {reason}")]

    def lost(self, reason: str) -> list[Event]:
        """The events for a gap that the server reports. The next messages may have lower offsets than before."""
        self._position = None
        return [Gap(self.topic, reason)]

    def disconnected(self) -> None:
        """Record that the connection is lost."""
        self.recovering = self._joined
