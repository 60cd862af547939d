"""Publishes from a Python program directly on Redis, without a node, under the topic rules of the nodes.

    async with Publisher("redis://127.0.0.1:6379/0") as publisher:
        await publisher.publish("contest", {"leader": "ann"})

Programs without an event loop use `gateway.sync_publisher.SyncPublisher`. Both do the same as `POST /api/publish`: they
number messages with history, store snapshots and publish on aliases. They read the rules from Redis, where the nodes
write them.

If Redis does not confirm, the outcome is unknown. If the message has an idempotency key, the publisher then publishes
again, and subscribers receive the message once; otherwise it raises `Unavailable`. On topics with history the publisher
makes a key for each message that has none.

Its parts load slowly, above all asyncio and redis-py. They are imported when they are needed, so that a program that
may not publish starts fast.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Self

from gateway.broker.failures import Unavailable, Unconfirmed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from gateway.broker.client import RedisClient
    from gateway.core.errors import ProtocolError
    from gateway.core.position import Position
    from gateway.core.publication import Publication, PublicationTooLarge
    from gateway.delivery.publisher import MessagePublisher

# Names that are loaded at their first use (PEP 562), and their modules.
_LAZY: Final = {
    "Position": "gateway.core.position", "ProtocolError": "gateway.core.errors",
    "PublicationTooLarge": "gateway.core.publication",
}  # fmt: skip

TIMEOUT_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 5.0
# The pause before a retry is random between 0 and a bound, which doubles from the first to the second of these.
PAUSE_SECONDS: Final = 0.05
MAX_PAUSE_SECONDS: Final = 1.0
_NOT_OPEN: Final = "the publisher is not open: use async with Publisher(…) as publisher"


class Publisher:
    """A publisher on the Redis at `url`, used with ``async with``.

    Redis may be unreachable when the context is entered; the publisher connects when it is needed. Calls from several
    tasks share a round trip.

    Args:
        url: The URL of Redis, as the nodes have it.
        namespace: As the nodes have it.
        timeout_seconds: Deadline of a round trip.
        retry_seconds: How long a publish on topics with history is retried. 0: not at all; messages then need no
            idempotency key of the publisher. Redis keeps each key for five minutes (about 150 bytes).

    Raises:
        UrlError: `url` is not a Redis URL.
    """

    def __init__(
        self, url: str, *, namespace: str = "gw:", timeout_seconds: float = TIMEOUT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:  # fmt: skip
        check_url(url)
        self._url = url
        self._namespace = namespace
        self._timeout = timeout_seconds
        self._retry = retry_seconds
        self._redis: RedisClient | None = None  # while it is open
        self._publisher: MessagePublisher | None = None
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
            ProtocolError: A message is invalid, or its topic is reserved for the gateway; nothing was published.
            PublicationTooLarge: A message is larger than 1 MiB; nothing was published.
            Unavailable: Redis did not confirm in time, or has no topic rules; the outcome is unknown. It is safe to
                publish again with the same `idempotencyKey`.
        """
        return await self.publish_publications(read_messages(messages))

    async def broadcast(self, topics: Sequence[str], data: Any, **more: Any) -> list[Position | None]:
        """Publish one message on all of `topics` or on none, in one round trip; `more` as for `publish`.

        Returns the position on each topic, if it has history.

        Raises: As `publish_all`; `PublicationTooLarge` also if the data on all topics together have over 16 MiB.
        """
        return await self.publish_publications(read_broadcast(topics, data, more))

    async def delete_history(self, topic: str) -> bool:
        """Delete the messages of `topic`, as `DELETE /api/topics/{topic}/history` does. False if there were none.

        Raises:
            ProtocolError: `topic` is not a valid topic, or is reserved for the gateway.
            Unavailable: Redis did not confirm in time; it is safe to delete again.
        """
        from gateway.core.publication import check_topic, refuse_reserved

        check_topic(topic, None)
        refuse_reserved(topic)
        assert self._publisher is not None, _NOT_OPEN
        return await self._publisher.delete_history(topic)

    async def publish_publications(self, publications: Sequence[Publication]) -> list[Position | None]:
        """As `publish_all`, for messages that `read_messages` has read."""
        import asyncio
        import random

        assert self._publisher is not None, _NOT_OPEN
        loop = asyncio.get_running_loop()
        deadline, bound = loop.time() + self._retry, PAUSE_SECONDS
        keyed: list[Publication] | None = None  # the keys are made once
        while True:
            try:
                if keyed is None:
                    keyed = list(publications) if not self._retry else await self._publisher.with_keys(publications)
                return await self._publisher.publish(keyed)
            except Unavailable:
                pause = random.uniform(0, bound)
                may_repeat = keyed is None or all(map(self._publisher.is_repeatable, keyed))
                if not may_repeat or loop.time() + pause >= deadline:
                    raise
            bound = min(2 * bound, MAX_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def __aenter__(self) -> Self:
        import asyncio
        import secrets
        import socket
        import time

        from gateway.broker.client import RedisClient
        from gateway.broker.keys import Keys
        from gateway.delivery.publisher import MAX_MESSAGE_BYTES, MessagePublisher
        from gateway.metrics import Metrics

        metrics = Metrics()
        name = f"publisher-{socket.gethostname()[:64]}-{secrets.token_hex(4)}"
        self._redis = redis = RedisClient(self._url, timeout_seconds=self._timeout, name=name, metrics=metrics)
        keys = Keys(self._namespace, redis.sharded)
        self._publisher = MessagePublisher(
            redis, keys, None, metrics, max_message_bytes=MAX_MESSAGE_BYTES, now=time.time
        )
        self._sender = asyncio.get_running_loop().create_task(redis.run(), name="publisher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        import asyncio

        assert self._sender is not None and self._redis is not None
        self._publisher = None
        self._sender.cancel()
        with suppress(asyncio.CancelledError):
            await self._sender
        await self._redis.close()


def check_url(url: str) -> None:
    """Raise UrlError if `url` is not a Redis URL."""
    from gateway.core.urls import parse_redis

    parse_redis(url)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Publication]:
    """The publications of `messages`.

    Raises:
        ProtocolError: A message is invalid, or its topic is reserved for the gateway.
    """
    from gateway.core.publication import Publication, refuse_reserved

    publications = [Publication.of_python(message) for message in messages]
    for publication in publications:
        refuse_reserved(publication.topic)
    return publications


def read_broadcast(topics: Sequence[str], data: Any, more: Mapping[str, Any]) -> list[Publication]:
    """The publications of one message on `topics`. Errors: as `read_messages`, and PublicationTooLarge."""
    from gateway.core.publication import of_python_broadcast, refuse_reserved

    publications = of_python_broadcast({"topics": list(topics), "data": data, **more})
    for publication in publications:
        refuse_reserved(publication.topic)
    return publications


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


__all__ = [
    "Position", "ProtocolError", "PublicationTooLarge", "Publisher", "Unavailable", "Unconfirmed",
]  # fmt: skip
