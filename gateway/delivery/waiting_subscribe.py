"""A SUBSCRIBE that waits for Redis, and how it recovered its topics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.core.json_text import Json, RequestId
from gateway.core.position import Position
from gateway.core.subscription_options import SubscriptionOptions


class TopicRecovery(NamedTuple):
    """How a subscriber recovered a topic. If it repeats the SUBSCRIBE, it gets the same answer and no duplicates."""

    position: Position  # the position that it asked to recover from
    losses: int  # gaps reported on the topic until then
    whole: bool


@dataclass(slots=True, eq=False)
class WaitingSubscribe:
    """One SUBSCRIBE that is not acknowledged yet."""

    topics: tuple[str, ...]
    audiences: Sequence[str]  # audiences whose channels Redis must confirm: topics, and a new identity
    request_id: RequestId
    positions: dict[str, Position]  # by topic to recover: the position of the client's last message
    by_server: bool  # the client has not asked
    whole: bool  # the client wants no subscription to a topic that it cannot recover
    options: SubscriptionOptions | None  # as in `SubscribeTopics`
    join_leave: Sequence[str] = ()  # topics of which the client is sent clients that join and leave
    data: Json = None  # of the back end that subscribes the client
    recovered: dict[str, bool] = field(default_factory=dict)  # by topic: whether the client received all it missed
    recoveries: dict[str, TopicRecovery] = field(default_factory=dict)  # by topic: stored once the client is subscribed
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    unconfirmed: int = 0  # parts of `audiences` that Redis has not confirmed yet

    def confirm(self) -> None:
        """Note that Redis has confirmed a part of the audiences."""
        self.unconfirmed -= 1
        if not self.unconfirmed:
            self.confirmed.set()
