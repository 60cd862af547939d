"""Messages in the format of the first specification, which other programs publish directly on Redis."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any, Final

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.keys import Keys
from gateway.core import hub, json_text, message
from gateway.core.errors import ProtocolError
from gateway.core.events import Delivered
from gateway.core.hub import Hub
from gateway.core.publication import Publication, PublicationTooLarge
from gateway.core.topic_rules import TopicRules, is_reserved
from gateway.delivery.conflation import Conflation
from gateway.delivery.publisher import MessagePublisher
from gateway.logging import RateLimitedLog
from gateway.metrics import Metrics

# How long a node that receives a message of `ws:broadcast` late still detects that another node has published it.
CLAIM_MS: Final = 2000


class Ingest:
    """Delivers the messages of `ws:broadcast`. `spawn` runs a coroutine as a task of the node."""

    def __init__(
        self, hub: Hub, conflation: Conflation, publisher: MessagePublisher, redis: RedisClient, keys: Keys,
        rules: TopicRules, metrics: Metrics, spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:  # fmt: skip
        self._hub = hub
        self._conflation = conflation
        self._publisher = publisher
        self._redis = redis
        self._keys = keys
        self._rules = rules
        self._metrics = metrics
        self._spawn = spawn
        self._refusals = RateLimitedLog("ws:broadcast message not published")

    def message_received(self, _channel: str, payload: bytes) -> None:
        """Handle one message, ``{topic, data, timestamp, sourceId}``.

        Every node receives it and delivers it to its own clients, so a plain message is not published again.
        """
        now = self._publisher.now_ms()
        try:
            if len(payload) > self._publisher.max_message_bytes:
                raise PublicationTooLarge(f"{len(payload)} bytes; the limit is {self._publisher.max_message_bytes}")
            item = json_text.loads(payload)
            publication = Publication.of_item({"topic": item["topic"], "data": item["data"]})
            stamp = item.get("timestamp")
            at = int(stamp) if isinstance(stamp, int | float) and 0 < stamp < 2 * now else now
        except (ValueError, TypeError, KeyError, AttributeError, ProtocolError):
            self._metrics.relayed.labels("malformed").inc()
            return
        topic = publication.topic
        if is_reserved(topic):
            self._metrics.relayed.labels("refused").inc()
            return
        self._metrics.relayed.labels("ingest").inc()
        rule = self._rules.of(topic)
        if rule.history or rule.snapshot or len(self._rules.names(topic)) > 1:
            # It must be numbered, stored or published on aliases, exactly once: publish it like any other message.
            self._spawn(self._publish(publication, payload, stamped="timestamp" in item, published_ms=at), "ingest")
        elif hub.topic_audience(topic) in self._hub:
            event = Delivered(message.pack(topic, publication.data, publication.extras, at))
            self._conflation.conflate(topic, event, None, rule.conflate_ms)
            self._metrics.relay_delay.observe(max(0, now - at) / 1000)

    async def _publish(self, publication: Publication, payload: bytes, *, stamped: bool, published_ms: int) -> None:
        digest = hashlib.sha256(payload).hexdigest()[:32]
        try:
            if stamped and self._rules.of(publication.topic).history:
                # Every node publishes with the same idempotency key, and Redis accepts the first. So the message is not
                # lost if a node dies here.
                await self._publisher.publish([publication._replace(key=f"ingest:{digest}")], published_ms)
            elif await self._redis.execute("SET", self._keys.ingest_claim(digest), 1, "NX", "PX", CLAIM_MS):
                await self._publisher.publish([publication], published_ms)
        except (Unavailable, PublicationTooLarge) as error:
            self._metrics.relayed.labels("refused").inc()
            self._refusals.warning(topic=publication.topic, reason=str(error))
