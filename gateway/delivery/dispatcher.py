"""Between the hub and pub/sub: publishes messages of this node and delivers messages of the cluster to its clients.

There is one path: every message goes to Redis and comes back through pub/sub, to the publisher's own node as to all
others. So there is one order, and no echo to suppress.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Final

from gateway.broker.client import RedisClient, Unavailable
from gateway.broker.envelope import Envelope, EnvelopeKind, UnknownEnvelopeVersion
from gateway.broker.history import History
from gateway.broker.keys import Keys
from gateway.broker.pubsub import PubSub
from gateway.broker.snapshots import Snapshots
from gateway.core import hub, json_text, message
from gateway.core.errors import ProtocolError
from gateway.core.events import Delivered
from gateway.core.events import History as HistoryPage
from gateway.core.hub import Hub
from gateway.core.position import Position
from gateway.core.publication import Publication, PublicationTooLarge
from gateway.core.stream_position import StreamEntry
from gateway.core.topic_rules import TopicRules, is_reserved
from gateway.delivery.conflation import Conflation
from gateway.delivery.presence import MAX_LISTED, PresenceTracker, member_json
from gateway.delivery.publisher import MessagePublisher
from gateway.delivery.recovery import Recovery
from gateway.logging import RateLimitedLog, logger
from gateway.metrics import Metrics

# How long a node that receives a message of `ws:broadcast` late still detects that another node has published it.
CLAIM_MS: Final = 2000
LEAVES_PER_TURN: Final = 250  # audiences checked in one turn of the loop
READY_TOPICS: Final = 100  # topics read at a time for a SUBSCRIBE
# Shortest time between two reports of unreadable messages on a channel.
UNREADABLE_SECONDS: Final = 10.0
# Prefix, on a node's own channel, of messages of one of its clients that another node received.
FORWARDED: Final = b"say "


class Dispatcher:
    """Publishes for this node and delivers to its hub. `now` gives seconds since 1970."""

    def __init__(
        self, *, hub: Hub, pubsub: PubSub, redis: RedisClient, keys: Keys, rules: TopicRules, metrics: Metrics,
        publisher: MessagePublisher, max_message_bytes: int, now: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None], str], object], presence: PresenceTracker,
    ) -> None:  # fmt: skip
        self.presence = presence
        self.rules_differ = False  # another node has other topic rules than this one
        self._hub = hub
        self._pubsub = pubsub
        self._redis = redis
        self._publisher = publisher
        self._keys = keys
        self._rules = rules
        self._metrics = metrics
        self._max_bytes = max_message_bytes
        self._now = now
        self._history = History(redis, keys, now)
        self.recovery = Recovery(self._history, rules, self, metrics, spawn)
        self.snapshots = Snapshots(redis, keys)
        self._refusals = RateLimitedLog("ws:broadcast message not published")
        self._spawn = spawn
        self._relayed = metrics.relayed.labels(
            "audience"
        )  # looked up once, because the lookup costs as much as counting
        self._conflation = Conflation(hub)
        self._left: dict[str, None] = {}  # audiences that may have lost their last member
        # Channel whose unreadable messages were just reported -> whether more have arrived since.
        self._unreadable: dict[str, bool] = {}
        self.on_gap: Callable[[str], None] | None = None  # called with a topic that has a gap
        self.on_missed: Callable[[list[str]], None] | None = None  # called with channels that have missed messages

    # ---- publish

    async def publish(
        self, publications: Sequence[Publication], published_ms: int | None = None
    ) -> list[Position | None]:
        """Publish all messages or none, as `MessagePublisher.publish`."""
        return await self._publisher.publish(publications, published_ms)

    def storage_cost(self, publication: Publication) -> tuple[int, list[str]]:
        """As `MessagePublisher.storage_cost`."""
        return self._publisher.storage_cost(publication)

    async def forward_post(self, node_id: str, payload: bytes) -> bool:
        """Send messages for an event stream to the node that has it. False: there is no such node.

        Raises:
            Unavailable: Redis did not confirm.
        """
        channel = self._keys.node_channel(node_id)
        [receivers] = await self._redis.transact([(self._redis.publish_command(channel), channel, FORWARDED + payload)])
        return bool(receivers)

    # ---- queries

    async def read_history(self, topic: str, *, limit: int, since: int | None, reverse: bool) -> HistoryPage:
        """Messages of a topic with history: the newest `limit`, or the first `limit` after the offset `since`.

        They are in order, or newest first with `reverse`.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        first = None if since is None or reverse else since + 1
        page = await self._history.read(topic, first, limit, compare=False)
        entries = [entry for entry in page.entries if since is None or entry.offset > since]
        messages = [_delivered(page.epoch, entry) for entry in (reversed(entries) if reverse else entries)]
        return HistoryPage(page.epoch, page.top, page.mark, messages)

    async def delete_history(self, topic: str) -> bool:
        """Delete the messages of a topic; False if there were none. The caller must notify the nodes to drop theirs.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        return await self._history.delete(topic)

    async def read_presence(self, topic: str) -> dict[str, Any]:
        """The members of a topic with presence: the number of members, and a list of them unless it is too long.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        presence_set = await self.presence.members(topic)
        about: dict[str, Any] = {"count": len(presence_set)}
        if len(presence_set) <= MAX_LISTED:
            about["members"] = [member_json(member) for member in presence_set.members()]
        return about

    # ---- deliver

    def join_channels(self, audiences: Iterable[str], confirmed: Callable[[], None] | None) -> bool:
        """Subscribe to `audiences`. True if Redis has confirmed them; otherwise `confirmed` is called later."""
        channels = [self._keys.audience(hub.channel_of(audience)) for audience in audiences]
        return self._pubsub.subscribe(channels, self._message_received, confirmed)

    def cancel_wait(self, audiences: Iterable[str], confirmed: Callable[[], None]) -> None:
        """Do not call `confirmed`, which was given to `join_channels`: its caller is gone."""
        self._pubsub.cancel_wait([self._keys.audience(hub.channel_of(audience)) for audience in audiences], confirmed)

    def leave_channels(self, audiences: Iterable[str]) -> None:
        """Unsubscribe audiences that have no local member left. A topic stays while a SUBSCRIBE for it waits.

        Members are counted when an audience is checked; `LEAVES_PER_TURN` audiences are checked per turn of the loop.
        """
        waiting = bool(self._left)
        self._left.update(dict.fromkeys(map(hub.channel_of, audiences)))
        if not waiting:
            self._leave_some()

    def _leave_some(self) -> None:
        channels = []
        for audience in list(itertools.islice(self._left, LEAVES_PER_TURN)):
            del self._left[audience]
            topic = hub.topic_of(audience)
            if audience in self._hub or (topic is not None and hub.joining_topic(topic) in self._hub):
                continue
            channels.append(self._keys.audience(audience))
            if topic is not None:
                self.recovery.close_topic(topic)
                self.snapshots.forget(topic)
                self.presence.close_topic(topic)
        self._pubsub.unsubscribe(channels, self._message_received)
        if self._left:
            asyncio.get_running_loop().call_soon(self._leave_some)

    def has_presence(self, topic: str) -> bool:
        """Whether the topic has presence."""
        return self._rules.of(topic).presence

    def channel(self, topic: str) -> str:
        """The channel of the topic."""
        return self._keys.audience(hub.topic_audience(topic))

    def is_plain(self, topic: str) -> bool:
        """Whether a client can subscribe without reads from Redis: no history, no snapshot, no presence."""
        rule = self._rules.of(topic)
        return not rule.history and not rule.snapshot and not rule.presence

    def has_history(self, topic: str) -> bool:
        """Whether the topic has history."""
        return bool(self._rules.of(topic).history)

    async def prepare(self, topics: Iterable[str]) -> None:
        """Read what new subscribers of `topics` receive first: positions, snapshots, rosters. Channels must be joined.

        `READY_TOPICS` topics are read in parallel and share round trips.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        waiting = [topic for topic in topics if not self.is_ready(topic)]
        for at in range(0, len(waiting), READY_TOPICS):
            some = waiting[at : at + READY_TOPICS]
            rules = {topic: self._rules.of(topic) for topic in some}
            values = [topic for topic, rule in rules.items() if rule.snapshot and not rule.history]
            found = await asyncio.gather(
                self.snapshots.prepare(values),
                *(self.recovery.prepare(topic) for topic, rule in rules.items() if rule.history),
                *(self.presence.prepare(topic) for topic, rule in rules.items() if rule.presence),
                return_exceptions=True,
            )
            for failure in filter(None, found):
                raise failure
            for topic in values:
                if hub.topic_audience(topic) not in self._hub:
                    self.snapshots.begin_topic(topic)

    def is_ready(self, topic: str) -> bool:
        """Whether a client can subscribe to the topic without a read."""
        rule = self._rules.of(topic)
        if rule.presence and not self.presence.is_ready(topic):
            return False
        return self.recovery.is_ready(topic) if rule.history else not rule.snapshot or self.snapshots.is_ready(topic)

    def catch_up(self, positions: Mapping[str, Position]) -> None:
        """Read the streams of topics where `positions`, the positions of a client, are ahead of this node's."""
        for topic, position in positions.items():
            self.recovery.catch_up(topic, position)

    def snapshot(self, topic: str) -> Delivered | None:
        """The snapshot of a topic that has one; call `prepare` first."""
        rule = self._rules.of(topic)
        if not rule.snapshot:
            return None
        body = self.recovery.newest(topic) if rule.history else self.snapshots.newest(topic)
        if body is None:
            return None
        return Delivered(body, self.recovery.position(topic) if rule.history else None, initial=True)

    def channels_lost(self, channels: Iterable[str]) -> None:
        """Invalidate the streams of these channels: their Redis is unreachable and may lose writes."""
        self.recovery.invalidate(filter(None, map(hub.topic_of, map(self.audience_of, channels))))

    def repair(self, topics: Iterable[str]) -> list[str]:
        """Repair topics that may have missed messages; return those that have a gap.

        While other nodes have other topic rules, they may publish to a topic without writing to its stream.
        """
        gaps = []
        for topic in topics:
            self.presence.mark_stale(topic)
            if self._rules.of(topic).history:
                self.recovery.mark_missed([topic])
                if self.rules_differ:
                    gaps.append(topic)
            else:
                self.snapshots.forget(topic)
                gaps.append(topic)
        return gaps

    def audience_of(self, channel: str) -> str:
        """The audience of a channel."""
        return self._keys.audience_of(channel)

    def unpack(self, payload: bytes) -> Envelope | None:
        """Parse an envelope and check its body; None, counted, if it is malformed."""
        try:
            envelope = Envelope.unpack(payload)
            return envelope._replace(body=message.check(envelope.body))
        except ValueError:
            self._metrics.relayed.labels("malformed").inc()
            return None

    def _message_received(self, channel: str, payload: bytes) -> None:
        try:
            envelope = Envelope.unpack(payload)
            body = b"" if envelope.kind == EnvelopeKind.NODES else message.check(envelope.body)
        except UnknownEnvelopeVersion as error:
            self._skip_unreadable(channel, error)
            return
        except ValueError:
            self._metrics.relayed.labels("malformed").inc()
            return
        audience = self._keys.audience_of(channel)
        topic = hub.topic_of(audience)
        self._relayed.inc()
        self._metrics.relay_delay.observe(max(0.0, self._now() - envelope.published_ms / 1000))
        if topic is not None and self._update_copies(topic, envelope, body):
            return
        if envelope.kind == EnvelopeKind.HISTORY:
            event = Delivered(body, Position(envelope.epoch, envelope.offset, envelope.mark or None))
        else:
            event = Delivered(body)
        if topic is not None:
            self._conflation.conflate(topic, event, envelope.exclude, envelope.conflate_ms)
        else:
            self._hub.deliver(audience, event, envelope.exclude)

    def _update_copies(self, topic: str, envelope: Envelope, body: bytes) -> bool:
        """Update the node's copies of a topic with a message. True: the caller must not deliver it.

        While nodes restart with new topic rules, the rules of the publisher may differ from this node's. The envelope
        describes the message, so it is delivered in any case: a numbered message even if the topic has no history here,
        and one without a number even if it has. Clients cannot recover the latter, nor from any position before it.
        """
        match envelope.kind:
            case EnvelopeKind.PLAIN:  # first, because most messages are plain
                self.snapshots.replace(topic, body)
                self.recovery.receive_unnumbered(topic)
            case EnvelopeKind.HISTORY if topic in self.recovery:
                entry = StreamEntry(envelope.offset, body, envelope.exclude, envelope.mark, envelope.previous)
                self.recovery.message_received(topic, envelope.epoch, entry)
                return True
            case EnvelopeKind.HISTORY | EnvelopeKind.SNAPSHOT:
                version = envelope.version or envelope.mark  # both are the time by Redis' clock
                if self.snapshots.is_superseded(topic, version):
                    return True
                self.snapshots.value_received(topic, version, body)
                self.recovery.receive_unnumbered(topic)
            case EnvelopeKind.NODES:
                self._presence_received(topic, envelope)
                return True
        return False

    def _skip_unreadable(self, channel: str, error: UnknownEnvelopeVersion) -> None:
        """Report that a message of a newer gateway is lost here, at most once per `UNREADABLE_SECONDS`."""
        self._metrics.relayed.labels("unreadable").inc()
        if channel in self._unreadable:
            self._unreadable[channel] = True
            return
        logger().warning("unreadable message", channel=channel, reason=str(error))
        self._report_unreadable(channel)

    def _report_unreadable(self, channel: str) -> None:
        self._unreadable[channel] = False
        asyncio.get_running_loop().call_later(UNREADABLE_SECONDS, self._report_more, channel)
        topic = hub.topic_of(self._keys.audience_of(channel))
        if topic is not None and topic in self.recovery:
            self.report_gap(topic)  # the stream may contain only messages that this node cannot read
        if self.on_missed is not None:
            self.on_missed([channel])

    def _report_more(self, channel: str) -> None:
        if self._unreadable.pop(channel):
            self._report_unreadable(channel)

    def _presence_received(self, topic: str, envelope: Envelope) -> None:
        try:
            self.presence.word_received(topic, envelope)
        except ValueError:
            self._metrics.relayed.labels("malformed").inc()

    def deliver(self, topic: str, epoch: str, entries: list[StreamEntry]) -> None:
        """Deliver messages of a topic with history, in order."""
        for entry in entries:
            self._hub.deliver(hub.topic_audience(topic), _delivered(epoch, entry), entry.exclude)

    def report_gap(self, topic: str) -> None:
        """Report that messages of the topic are lost."""
        self._metrics.gaps.labels("history").inc()
        if self.on_gap is not None:
            self.on_gap(topic)

    def ingest_received(self, _channel: str, payload: bytes) -> None:
        """Handle a message in the format of the first specification, ``{topic, data, timestamp, sourceId}``.

        Every node receives it and delivers it to its own clients, so a plain message is not published again.
        """
        now = int(self._now() * 1000)
        try:
            if len(payload) > self._max_bytes:
                raise PublicationTooLarge(f"{len(payload)} bytes; the limit is {self._max_bytes}")
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
            self._spawn(
                self._publish_ingested(publication, payload, stamped="timestamp" in item, published_ms=at), "ingest"
            )
            return
        audience = hub.topic_audience(topic)
        if audience in self._hub:
            event = Delivered(message.pack(topic, publication.data, publication.extras, at))
            self._conflation.conflate(topic, event, None, rule.conflate_ms)
            self._metrics.relay_delay.observe(max(0, now - at) / 1000)

    async def _publish_ingested(
        self, publication: Publication, payload: bytes, *, stamped: bool, published_ms: int
    ) -> None:
        digest = hashlib.sha256(payload).hexdigest()[:32]
        try:
            if stamped and self._rules.of(publication.topic).history:
                # Every node publishes with the same idempotency key, and Redis accepts the first. So the message is not
                # lost if a node dies here.
                await self.publish([replace(publication, key=f"ingest:{digest}")], published_ms)
            elif await self._redis.execute("SET", self._keys.ingest_claim(digest), 1, "NX", "PX", CLAIM_MS):
                await self.publish([publication], published_ms)
        except (Unavailable, PublicationTooLarge) as error:
            self._metrics.relayed.labels("refused").inc()
            self._refusals.warning(topic=publication.topic, reason=str(error))

    def wake(self) -> None:
        """Flush the hub after this turn of the loop has read all messages that have arrived."""
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        started = perf_counter()
        self._hub.flush()
        self._metrics.fanout.observe(perf_counter() - started)


def _delivered(epoch: str, entry: StreamEntry) -> Delivered:
    return Delivered(entry.body, entry.position(epoch))
