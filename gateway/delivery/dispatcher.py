"""Receives the messages of the cluster on this node and delivers them to its clients.

There is one path: every message goes to Redis and comes back through pub/sub, to the publisher's own node as to all
others. So there is one order, and no echo to suppress.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Final, Protocol

from gateway.broker.envelope import Envelope, EnvelopeKind, UnknownEnvelopeVersion
from gateway.broker.keys import Keys
from gateway.broker.pubsub import PubSub
from gateway.core import hub, message
from gateway.core.events import Delivered
from gateway.core.hub import Hub
from gateway.core.position import Position
from gateway.core.stream_position import StreamEntry
from gateway.delivery.conflation import Conflation
from gateway.delivery.topic_copies import TopicCopies
from gateway.logging import logger
from gateway.metrics import Metrics

LEAVES_PER_TURN: Final = 250  # audiences checked in one turn of the loop
# Shortest time between two reports of unreadable messages on a channel.
UNREADABLE_SECONDS: Final = 10.0


class GapListener(Protocol):
    """Receives reports about messages that clients do not receive."""

    def topic_gap(self, topic: str) -> None:
        """Messages of the topic are lost."""

    def pubsub_missed(self, channels: list[str]) -> None:
        """Messages on these channels may have been missed."""


class Dispatcher:
    """Delivers messages to the hub of this node. `now` gives seconds since 1970."""

    gap_listener: GapListener  # set by the node before the first message: the listener needs the dispatcher

    def __init__(
        self, *, hub: Hub, pubsub: PubSub, keys: Keys, topic_copies: TopicCopies, metrics: Metrics,
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        self.conflation = Conflation(hub)
        self._hub = hub
        self._pubsub = pubsub
        self._keys = keys
        self._topic_copies = topic_copies
        self._recovery = topic_copies.recovery
        self._recovery.consumer = self
        self._metrics = metrics
        self._now = now
        # Looked up once, because the lookup costs as much as counting
        self._relayed = metrics.relayed.labels("audience")
        self._left: dict[str, None] = {}  # audiences that may have lost their last member
        # Channel whose unreadable messages were just reported -> whether more have arrived since.
        self._unreadable: dict[str, bool] = {}

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
                self._topic_copies.close_topic(topic)
        self._pubsub.unsubscribe(channels, self._message_received)
        if self._left:
            asyncio.get_running_loop().call_soon(self._leave_some)

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
        if topic is not None and self._topic_copies.update(topic, envelope, body):
            return
        if envelope.kind == EnvelopeKind.HISTORY:
            event = Delivered(body, Position(envelope.epoch, envelope.offset, envelope.mark or None))
        else:
            event = Delivered(body)
        if topic is not None:
            self.conflation.conflate(topic, event, envelope.exclude, envelope.conflate_ms)
        else:
            self._hub.deliver_directly(audience, event, envelope.exclude)

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
        if topic is not None and topic in self._recovery:
            self.report_gap(topic)  # the stream may contain only messages that this node cannot read
        self.gap_listener.pubsub_missed([channel])

    def _report_more(self, channel: str) -> None:
        if self._unreadable.pop(channel):
            self._report_unreadable(channel)

    def deliver(self, topic: str, epoch: str, entries: list[StreamEntry]) -> None:
        """Deliver messages of a topic with history, in order."""
        for entry in entries:
            self._hub.deliver(hub.topic_audience(topic), Delivered(entry.body, entry.position(epoch)), entry.exclude)

    def report_gap(self, topic: str) -> None:
        """Report that messages of the topic are lost."""
        self._metrics.gaps.labels("history").inc()
        self.gap_listener.topic_gap(topic)

    def wake(self) -> None:
        """Flush the hub after this turn of the loop has read all messages that have arrived."""
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        started = perf_counter()
        self._hub.flush()
        self._metrics.fanout.observe(perf_counter() - started)
