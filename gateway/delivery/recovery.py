"""Topics with history on this node: each has a `StreamPosition` and one task that reads the stream when necessary.

All clients that wait for a topic share one read, however many messages are missing. The node delivers the entries to
its subscribers and keeps them for clients that reconnect.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

from gateway.broker.client import Unavailable
from gateway.broker.history import MAX_READ, NO_TOP, History, HistoryTop
from gateway.broker.memory import RedisMemory
from gateway.core.events import Broadcast, Delivered
from gateway.core.position import ANY_EPOCH, Position, is_unborn
from gateway.core.rate_limits import RateLimit
from gateway.core.stream_position import StreamEntry, StreamPosition
from gateway.core.topic_rules import Rule, TopicRules
from gateway.logging import logger
from gateway.metrics import Metrics

RETRY_SECONDS: Final = 0.5
MAX_READING: Final = 200  # topics that are read at the same time
RECOVERED_BYTES: Final = 16 << 20  # of the messages whose frames are kept for other clients that recover
MAX_CHECKED: Final = 1000  # topics compared with Redis in one check
BEGUN_PER_SECOND: Final = 20.0  # epochs that this node writes for topics without messages


class StreamConsumer(Protocol):
    """Receiver of ordered messages and gaps."""

    def deliver(self, topic: str, epoch: str, entries: list[StreamEntry]) -> None:
        """Deliver the next messages of the topic, in this epoch."""

    def report_gap(self, topic: str) -> None:
        """Report that messages of the topic are lost."""


class _TopicStream:
    __slots__ = ("is_reading", "is_suspect", "losses", "stream_position", "waiters")

    def __init__(self, rule: Rule) -> None:
        self.stream_position = StreamPosition(min(rule.history, MAX_READ), rule.history_bytes)
        self.waiters: list[asyncio.Future[None]] = []
        self.is_reading = False  # its reader task is running
        self.is_suspect: HistoryTop | None = None  # the newest message in Redis at the last check
        self.losses = 0  # gaps reported since it was opened


class Recovery:
    """The sequences of the node, by topic. A topic is open while it has a local subscriber."""

    consumer: StreamConsumer  # set by the dispatcher, which needs this object first

    def __init__(
        self, history: History, rules: TopicRules, metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None], str], object], begins_in: RedisMemory | None = None,
    ) -> None:  # fmt: skip
        """`begins_in`: a topic without messages gets an epoch when the node opens it, unless this memory is full.

        The rate is limited, because a client can subscribe to any names: other topics get theirs with a message.
        """
        self._history = history
        self._rules = rules
        self._metrics = metrics
        self._spawn = spawn
        self._begins_in = begins_in
        self._begun = -math.inf  # the state of the bucket of `BEGUN_PER_SECOND`
        self._streams: dict[str, _TopicStream] = {}
        self._recovered: dict[tuple[str, str, int], Delivered] = {}  # by topic, epoch and offset
        self._recovered_bytes = 0
        self._reading = asyncio.Semaphore(MAX_READING)
        self._log = logger()

    def message_received(self, topic: str, epoch: str, entry: StreamEntry) -> None:
        """Handle a message that arrived on the channel of a topic with history."""
        stream = self._streams.get(topic)
        if stream is None:
            return
        if stream.stream_position.message_received(epoch, entry):
            self.consumer.deliver(topic, epoch, [entry])
        else:
            self._start_read(topic, stream)

    async def prepare(self, topic: str) -> None:
        """Open the topic if necessary. Wait until its position is known and no message is missing, or it is closed."""
        stream = self._streams.get(topic)
        if stream is None:
            stream = self._streams[topic] = _TopicStream(self._rules.of(topic))
        if stream.stream_position.wanted:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            stream.waiters.append(waiter)
            self._start_read(topic, stream)
            await waiter

    def is_ready(self, topic: str) -> bool:
        """Whether the topic is open, its position is known and no message is missing."""
        stream = self._streams.get(topic)
        return stream is not None and not stream.stream_position.wanted

    def receive_unnumbered(self, topic: str) -> None:
        """Note that a message without an offset is delivered: its publisher's rules give the topic no history."""
        stream = self._streams.get(topic)
        if stream is not None and not stream.stream_position.delivered_unnumbered():
            self._gap(topic, stream)  # it overtakes numbered messages that are held back

    def position(self, topic: str) -> Position:
        """The position of the last delivered message; call `prepare` first."""
        return self._streams[topic].stream_position.position

    def losses(self, topic: str) -> int:
        """Number of gaps reported since the topic was opened; call `prepare` first."""
        return self._streams[topic].losses

    def missed_since(self, topic: str, position: Position) -> list[StreamEntry] | None:
        """The messages after `position`; None if the node cannot determine them or no longer keeps them."""
        return self._streams[topic].stream_position.since(position)

    def messages(self, topic: str, entries: Iterable[StreamEntry]) -> list[Broadcast]:
        """Recovered messages. The node keeps them and their frames until the next check, for other clients."""
        epoch = self._streams[topic].stream_position.position.epoch
        if self._recovered_bytes > RECOVERED_BYTES:
            self._forget_recovered()
        messages: list[Broadcast] = []
        for entry in entries:
            key = topic, epoch, entry.offset
            message = self._recovered.get(key)
            if message is None:
                message = self._recovered[key] = Delivered(entry.body, entry.position(epoch))
                self._recovered_bytes += len(entry.body)
            messages.append(message)
        return messages

    def _forget_recovered(self) -> None:
        self._recovered.clear()
        self._recovered_bytes = 0

    def newest(self, topic: str) -> bytes | None:
        """The body of the topic's last message; None if there is none."""
        return self._streams[topic].stream_position.newest

    def invalidate(self, topics: Iterable[str]) -> None:
        """Accept no subscriber before the topics are read again: Redis may come back without its last writes."""
        for topic in topics:
            stream = self._streams.get(topic)
            if stream is not None:
                stream.stream_position.mark_missed()  # read when pub/sub is back, or for the next subscriber

    def mark_missed(self, topics: Iterable[str]) -> None:
        """Read these topics: messages may have been missed."""
        for topic in topics:
            stream = self._streams.get(topic)
            if stream is not None:
                stream.stream_position.mark_missed()
                self._start_read(topic, stream)

    def catch_up(self, topic: str, position: Position) -> None:
        """Read the stream if `position`, the position of a client, is ahead of this node's."""
        stream = self._streams.get(topic)
        if stream is not None and not stream.stream_position.wanted:
            stream_position = stream.stream_position
            ahead = position.epoch == stream_position.epoch and position.offset > stream_position.offset
            if ahead or (
                stream_position.is_unborn and position.epoch not in ("", ANY_EPOCH) and not is_unborn(position.epoch)
            ):
                self.mark_missed([topic])

    def forget_messages(self, topic: str) -> None:
        """Forget the messages of a topic, which were deleted."""
        stream = self._streams.get(topic)
        if stream is not None:
            stream.stream_position.forget_messages()

    def close_topic(self, topic: str) -> None:
        """Close a topic that has no local subscriber, nor a client that waits to be one. A read of it has no effect."""
        self._streams.pop(topic, None)

    def __contains__(self, topic: str) -> bool:
        return topic in self._streams

    async def check(self) -> None:
        """Compare open topics with Redis, because an idle topic does not notice that its last message was lost.

        The check also renews the TTL of open topics in Redis.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        settled = (topic for topic, stream in self._streams.items() if not stream.stream_position.wanted)
        idle = list(itertools.islice(settled, MAX_CHECKED))
        self._forget_recovered()
        tops = await self._history.tops([(topic, self._rules.of(topic)) for topic in idle])
        for topic, top in zip(idle, tops, strict=True):
            stream = self._streams.pop(topic, None)
            if stream is None:
                continue
            self._streams[topic] = stream  # to the end: topics that were not compared come first next time
            if top is None:
                continue
            stream_position = stream.stream_position
            if top == NO_TOP and stream_position.is_unborn:
                stream_position.still_unborn(self._history.hours_now())
            # A newer message in Redis may be in flight. If it has not arrived at the next check, it is lost.
            elif (
                stream.is_suspect == top
                and (stream_position.epoch, stream_position.offset, stream_position.mark) != top
            ):
                self.mark_missed([topic])
            stream.is_suspect = top

    def _start_read(self, topic: str, stream: _TopicStream) -> None:
        if not stream.is_reading:
            stream.is_reading = True
            self._spawn(self._catch_up_stream(topic, stream), "stream reader")

    async def _catch_up_stream(self, topic: str, stream: _TopicStream) -> None:
        stream_position = stream.stream_position
        try:
            while stream_position.wanted and self._streams.get(topic) is stream:
                try:
                    async with self._reading:
                        page = await self._history.read(topic, stream_position.begin_read())
                        if is_unborn(page.epoch) and stream_position.epoch is None and self._may_begin():
                            page = await self._history.begin(topic, page)
                except Unavailable:
                    await asyncio.sleep(RETRY_SECONDS)  # retry until read: no subscription is acknowledged before
                    continue
                self._metrics.stream_reads.inc()
                if self._streams.get(topic) is not stream:
                    break  # closed meanwhile; if it was opened again, that stream has its own reader
                settled = stream_position.end_read(page)
                if settled.gap:
                    self._gap(topic, stream)
                if settled.entries:
                    self.consumer.deliver(topic, stream_position.epoch or page.epoch, settled.entries)
                if settled.went_back:
                    # Accept no subscriber before the epoch is renewed: in the old epoch, a client that had the lost
                    # messages would seem to have missed nothing.
                    stream_position.mark_missed()
                    await self._renew(topic, stream, page.epoch)
        finally:
            stream.is_reading = False
            waiters, stream.waiters = stream.waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _may_begin(self) -> bool:
        if self._begins_in is None or self._begins_in.full:
            return False
        limit, now = RateLimit(BEGUN_PER_SECOND), asyncio.get_running_loop().time()
        may = limit.left(self._begun, now) > 0
        if may:
            self._begun = limit.take(self._begun, now)
        return may

    def _gap(self, topic: str, stream: _TopicStream) -> None:
        stream.losses += 1
        self.consumer.report_gap(topic)

    async def _renew(self, topic: str, stream: _TopicStream, epoch: str) -> None:
        self._log.warning("stream lost messages, renewing epoch", topic=topic, epoch=epoch)
        while self._streams.get(topic) is stream:
            try:
                renewed = await self._history.renew_epoch(topic, epoch)
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if renewed is not None:
                    stream.stream_position.set_epoch(renewed)
                return  # None: Redis lost the topic meanwhile, which the next read detects
