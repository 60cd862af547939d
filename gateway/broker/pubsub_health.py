"""Whether pub/sub receives everything, and if not, why, and whether other nodes are affected too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from gateway.broker.client import RedisClient
from gateway.broker.subscriber import Subscriber

# Losing one of several servers leaves a node ready for this long: longer than the servers need to agree that one of
# them has failed (cluster-node-timeout, 15 s by default).
PARTIAL_SECONDS: Final = 20.0


class PubSubHealth:
    """Asks the subscribers, which are given by server, at each call."""

    def __init__(self, redis: RedisClient, subscribers: Mapping[str, Subscriber]) -> None:
        self.map_error: str | None = "not yet connected"  # why the slot map is unknown; None: it is known
        self._redis = redis
        self._subscribers = subscribers

    @property
    def reason(self) -> str | None:
        """Why another node may receive more than this one; None: no known reason."""
        if not self._subscribers:
            return self.map_error
        lost = self._lost()
        if len(lost) == len(self._subscribers):
            return "; ".join(
                describe_loss(subscriber, subscriber.reason) for subscriber in lost if subscriber.reason is not None
            )
        return (
            "; ".join(
                describe_loss(subscriber, subscriber.reason)
                for subscriber in lost
                if subscriber.reason and not self._is_away(subscriber)
            )
            or None
        )

    @property
    def partial(self) -> str | None:
        """The part of a Redis Cluster that no node can receive from; None: no known part."""
        lost = self._lost()
        if not self._subscribers or len(lost) == len(self._subscribers):
            return None
        parts = [
            f"{subscriber.server} is away ({subscriber.reason})" for subscriber in lost if self._is_away(subscriber)
        ]
        if self._redis.slot_map.uncovered:
            parts.append(f"{self._redis.slot_map.uncovered} slots of the Redis Cluster have no server")
        return "; ".join(parts) or None

    def problem(self) -> str | None:
        """Why some messages may not be received; None: no known reason."""
        return self.reason or self.partial

    @property
    def is_complete(self) -> bool:
        """Whether all wanted channels are confirmed."""
        return bool(self._subscribers) and not self._lost() and not self._redis.slot_map.uncovered

    def _lost(self) -> list[Subscriber]:
        return [subscriber for subscriber in self._subscribers.values() if subscriber.reason is not None]

    def _is_away(self, subscriber: Subscriber) -> bool:
        """Whether other nodes have most likely lost this server too.

        True if some servers of the cluster cannot reach it, or have not had the time to find out.
        """
        if not self._redis.sharded:
            return False
        undecided = asyncio.get_running_loop().time() < subscriber.lost_at + PARTIAL_SECONDS
        return undecided or subscriber.server in self._redis.slot_map.suspected


def describe_loss(subscriber: Subscriber, reason: str) -> str:
    """The reason with the server's name; a single Redis needs no name."""
    return f"{subscriber.server}: {reason}" if subscriber.server else reason
