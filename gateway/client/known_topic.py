"""What the client knows of a topic, and of a SUBSCRIBE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.client.delta_base import DeltaBase
from gateway.client.subscription import Subscription
from gateway.client.topic_position import TopicPosition


@dataclass(slots=True, eq=False)
class KnownTopic:
    """A topic that has a subscription, or had one a moment ago."""

    name: str
    position: TopicPosition
    subscriptions: dict[Subscription, None] = field(default_factory=dict)
    pending: bool = False  # its SUBSCRIBE is unanswered, or waits for a retry
    covered: list[Subscription] = field(default_factory=list)  # the subscriptions that the reply acknowledges
    joined: bool = False  # acknowledged on this connection
    options: Mapping[str, Any] = field(default_factory=dict)  # `filter` and `delta` of its SUBSCRIBE
    base: DeltaBase = field(default_factory=DeltaBase)


@dataclass(slots=True)
class SubscribeRequest:
    """A SUBSCRIBE without an answer."""

    request_id: str
    entries: list[KnownTopic]
    data: bytes
    recovers: bool
    tries: int = 0
    refusals: int = 0
