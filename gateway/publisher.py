"""Publishing from a Python program, straight on Redis: no node in between, and the nodes' own topic rules.

    async with Publisher("redis://127.0.0.1:6379/0") as publisher:
        await publisher.publish("contest", {"leader": "ann"})

It does what `POST /api/publish` does: history is numbered, snapshots are kept, aliases are served. The rules come from
Redis, where the nodes write them.
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

from gateway.cluster.keys import Keys
from gateway.cluster.link import Link, Unavailable, Unconfirmed
from gateway.cluster.outgoing import MAX_MESSAGE_BYTES, Outgoing, TooLarge
from gateway.core.position import Position
from gateway.core.protocol import ProtocolError
from gateway.core.publication import Publication, refuse_reserved
from gateway.metrics import Metrics

TIMEOUT_SECONDS: Final = 2.0


class Publisher:
    """A way into the cluster over the Redis at `url`, to be entered with ``async with``. `namespace`: the nodes' own.

    Redis need not be there when it is entered; it comes back by itself.
    """

    def __init__(self, url: str, *, namespace: str = "gw:", timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        metrics = Metrics()
        name = f"publisher-{socket.gethostname()[:64]}-{secrets.token_hex(4)}"
        self._link = Link(url, timeout_seconds=timeout_seconds, name=name, metrics=metrics)
        keys = Keys(namespace, self._link.sharded)
        self._outgoing = Outgoing(self._link, keys, None, metrics, max_message_bytes=MAX_MESSAGE_BYTES, now=time.time)
        self._sender: asyncio.Task[None] | None = None

    async def publish(self, topic: str, data: Any, **more: Any) -> Position | None:
        """Publish `data`, any JSON; `more` as in the HTTP API: `action`, `to`, `idempotencyKey`, … Its place, if the
        topic has history.

        Raises: as `publish_all`.
        """
        return (await self.publish_all([{"topic": topic, "data": data, **more}]))[0]

    async def publish_all(self, messages: Sequence[Mapping[str, Any]]) -> list[Position | None]:
        """Publish all of them, or none, in one round trip.

        Raises:
            ProtocolError: One cannot be a message, is for a topic of the gateway's own, or has an idempotency key with
                `to` or on a topic without history; nothing was published.
            TooLarge: One is larger than 1 MiB; nothing was published.
            Unavailable: Redis did not confirm in time, or no node has told its rules; whether it is published is not
                known. With the same `idempotencyKey`, on a topic with history, it is safe to try again.
        """
        assert self._sender is not None, "enter it first: async with Publisher(…) as publisher"
        publications = [Publication.of_python(message) for message in messages]
        for publication in publications:
            refuse_reserved(publication.topic)
        return await self._outgoing.publish(publications)

    async def __aenter__(self) -> Self:
        self._sender = asyncio.get_running_loop().create_task(self._link.run(), name="publisher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._sender is not None
        self._sender.cancel()
        with suppress(asyncio.CancelledError):
            await self._sender
        await self._link.close()


__all__ = ["Position", "ProtocolError", "Publisher", "TooLarge", "Unavailable", "Unconfirmed"]
