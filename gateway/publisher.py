"""Publishes from a Python program directly on Redis, without a node, under the topic rules of the nodes.

    async with Publisher("redis://127.0.0.1:6379/0") as publisher:
        await publisher.publish("contest", {"leader": "ann"})

It does the same as `POST /api/publish`: it numbers messages with history, stores snapshots and publishes on aliases. It
reads the rules from Redis, where the nodes write them.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from gateway.broker.client import RedisClient, Unavailable, Unconfirmed
from gateway.broker.keys import Keys
from gateway.core.errors import ProtocolError
from gateway.core.position import Position
from gateway.core.publication import Publication, refuse_reserved
from gateway.delivery.publisher import MAX_MESSAGE_BYTES, MessagePublisher, PublicationTooLarge
from gateway.metrics import Metrics

TIMEOUT_SECONDS: Final = 2.0


class Publisher:
    """A publisher on the Redis at `url`, used with ``async with``. `namespace`: as the nodes have it.

    Redis may be unreachable when the context is entered; the publisher connects when it is needed.
    """

    def __init__(self, url: str, *, namespace: str = "gw:", timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        metrics = Metrics()
        name = f"publisher-{socket.gethostname()[:64]}-{secrets.token_hex(4)}"
        self._redis = RedisClient(url, timeout_seconds=timeout_seconds, name=name, metrics=metrics)
        keys = Keys(namespace, self._redis.sharded)
        self._publisher = MessagePublisher(
            self._redis, keys, None, metrics, max_message_bytes=MAX_MESSAGE_BYTES, now=time.time
        )
        self._sender: asyncio.Task[None] | None = None

    async def publish(self, topic: str, data: Any, **more: Any) -> Position | None:
        """Publish `data`, any JSON; `more` holds the fields of the HTTP API: `action`, `to`, `idempotencyKey`, …

        Returns the position if the topic has history.

        Raises: As `publish_all`.
        """
        return (await self.publish_all([{"topic": topic, "data": data, **more}]))[0]

    async def publish_all(self, messages: Sequence[Mapping[str, Any]]) -> list[Position | None]:
        """Publish all messages or none, in one round trip.

        Raises:
            ProtocolError: A message is invalid, its topic is reserved for the gateway, or it has an idempotency key
                with `to` or on a topic without history; nothing was published.
            TooLarge: A message is larger than 1 MiB; nothing was published.
            Unavailable: Redis did not confirm in time, or has no topic rules; the outcome is unknown. On a topic with
                history it is safe to retry with the same `idempotencyKey`.
        """
        assert self._sender is not None, "the publisher is not open: use async with Publisher(…) as publisher"
        publications = [Publication.of_python(message) for message in messages]
        for publication in publications:
            refuse_reserved(publication.topic)
        return await self._publisher.publish(publications)

    async def __aenter__(self) -> Self:
        self._sender = asyncio.get_running_loop().create_task(self._redis.run(), name="publisher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._sender is not None
        self._sender.cancel()
        with suppress(asyncio.CancelledError):
            await self._sender
        await self._redis.close()


__all__ = ["Position", "ProtocolError", "PublicationTooLarge", "Publisher", "Unavailable", "Unconfirmed"]
