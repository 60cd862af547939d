"""Passes messages that a client posts for its event stream to the node that has the stream."""

from __future__ import annotations

from typing import Final

from gateway.broker.client import RedisClient
from gateway.broker.keys import Keys

# Prefix, on a node's own channel, of messages of one of its clients that another node received.
FORWARDED: Final = b"say "


class PostForwarder:
    """Publishes posted messages on the channels of other nodes."""

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def forward(self, node_id: str, payload: bytes) -> bool:
        """Send messages for an event stream to the node that has it. False: there is no such node.

        Raises:
            Unavailable: Redis did not confirm.
        """
        channel = self._keys.node_channel(node_id)
        [receivers] = await self._redis.transact([(self._redis.publish_command(channel), channel, FORWARDED + payload)])
        return bool(receivers)
