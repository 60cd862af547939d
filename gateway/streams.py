"""Topics with history on this node: each has a `Sequence` and one task that reads the stream when necessary.

All clients that wait for a topic share one read, however many messages are missing. The node delivers the entries to
its subscribers and keeps them for clients that reconnect.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

from gateway.cluster.history import MAX_READ, NO_TOP, History, Top
from gateway.cluster.link import Unavailable
from gateway.core.events import Delivered, Encoder
from gateway.core.position import Position, is_unborn
from gateway.core.sequence import Entry, Sequence
from gateway.core.topics import Rule, TopicRules
from gateway.logs import logger
from gateway.metrics import Metrics

RETRY_SECONDS: Final = 0.5
MAX_READING: Final = 200  # topics that are read at the same time
RECOVERED_BYTES: Final = 16 << 20  # of the frames that are kept for other clients that recover
MAX_CHECKED: Final = 1000  # topics compared with Redis in one check


class Audience(Protocol):
    """Receiver of ordered messages and gaps."""

    def deliver(self, topic: str, epoch: str, entries: list[Entry]) -> None:
        """Deliver the next messages of the topic, in this epoch."""

    def gap(self, topic: str) -> None:
        """Report that messages of the topic are lost."""


class _Stream:
    __slots__ = ("busy", "losses", "sequence", "suspect", "waiters")

    def __init__(self, rule: Rule) -> None:
        self.sequence = Sequence(min(rule.history, MAX_READ), rule.history_bytes)
        self.waiters: list[asyncio.Future[None]] = []
        self.busy = False  # its reader task is running
        self.suspect: Top | None = None  # the newest message in Redis at the last check
        self.losses = 0  # gaps reported since it was opened


class Streams:
    """The sequences of the node, by topic. A topic is open while it has a local subscriber."""

    def __init__(
        self, history: History, rules: TopicRules, audience: Audience, metrics: Metrics,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:  # fmt: skip
        self._history = history
        self._rules = rules
        self._audience = audience
        self._metrics = metrics
        self._spawn = spawn
        self._streams: dict[str, _Stream] = {}
        self._recovered: dict[tuple[Encoder, str, str, int], bytes] = {}  # frames by protocol, topic, epoch and offset
        self._recovered_bytes = 0
        self._reading = asyncio.Semaphore(MAX_READING)
        self._log = logger()

    def receive(self, topic: str, epoch: str, entry: Entry) -> None:
        """Handle a message that arrived on the channel of a topic with history."""
        stream = self._streams.get(topic)
        if stream is None:
            return
        if stream.sequence.receive(epoch, entry):
            self._audience.deliver(topic, epoch, [entry])
        else:
            self._ask(topic, stream)

    async def ready(self, topic: str) -> None:
        """Open the topic if necessary, and wait until its position is known and no message is missing."""
        stream = self._streams.get(topic)
        if stream is None:
            stream = self._streams[topic] = _Stream(self._rules.of(topic))
        if stream.sequence.wanted:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            stream.waiters.append(waiter)
            self._ask(topic, stream)
            await waiter

    def settled(self, topic: str) -> bool:
        """Whether the topic is open, its position is known and no message is missing."""
        stream = self._streams.get(topic)
        return stream is not None and not stream.sequence.wanted

    def receive_unnumbered(self, topic: str) -> None:
        """Note that a message without an offset is delivered: its publisher's rules give the topic no history."""
        stream = self._streams.get(topic)
        if stream is not None and not stream.sequence.delivered_unnumbered():
            self._gap(topic, stream)  # it overtakes numbered messages that are held back

    def place(self, topic: str) -> Position:
        """The position of the last delivered message; the topic must be `ready`."""
        return self._streams[topic].sequence.position

    def losses(self, topic: str) -> int:
        """Number of gaps reported since the topic was opened; it must be `ready`."""
        return self._streams[topic].losses

    def missed(self, topic: str, place: Position) -> list[Entry] | None:
        """The messages after position `place`; None if the node cannot determine them or no longer keeps them."""
        return self._streams[topic].sequence.since(place)

    def frames(self, topic: str, entries: Iterable[Entry], protocol: Encoder) -> list[bytes]:
        """Encode recovered messages. The node keeps the frames until the next check, for other clients that recover."""
        epoch = self._streams[topic].sequence.position.epoch
        if self._recovered_bytes > RECOVERED_BYTES:
            self._forget_recovered()
        frames = []
        for entry in entries:
            key = protocol, topic, epoch, entry.offset
            frame = self._recovered.get(key)
            if frame is None:
                frame = self._recovered[key] = protocol.encode_broadcast(Delivered(entry.body, entry.position(epoch)))
                self._recovered_bytes += len(frame)
            frames.append(frame)
        return frames

    def _forget_recovered(self) -> None:
        self._recovered.clear()
        self._recovered_bytes = 0

    def newest(self, topic: str) -> bytes | None:
        """The body of the topic's last message; None if there is none."""
        return self._streams[topic].sequence.newest

    def invalidate(self, topics: Iterable[str]) -> None:
        """Accept no subscriber before the topics are read again: Redis may come back without its last writes."""
        for topic in topics:
            stream = self._streams.get(topic)
            if stream is not None:
                stream.sequence.mark_missed()  # read when the bus is back, or for the next subscriber

    def mark_missed(self, topics: Iterable[str]) -> None:
        """Read these topics: messages may have been missed."""
        for topic in topics:
            stream = self._streams.get(topic)
            if stream is not None:
                stream.sequence.mark_missed()
                self._ask(topic, stream)

    def catch_up(self, topic: str, place: Position) -> None:
        """Read the stream if `place`, the position of a client, is ahead of this node's."""
        stream = self._streams.get(topic)
        if stream is not None and not stream.sequence.wanted:
            sequence = stream.sequence
            ahead = place.epoch == sequence.epoch and place.offset > sequence.offset
            if ahead or (sequence.is_unborn and place.epoch != "" and not is_unborn(place.epoch)):
                self.mark_missed([topic])

    def forget(self, topic: str) -> None:
        """Forget the messages of a topic, which were deleted."""
        stream = self._streams.get(topic)
        if stream is not None:
            stream.sequence.forget()

    def close(self, topic: str) -> None:
        """Close a topic that has no local subscriber."""
        stream = self._streams.get(topic)
        if stream is not None and not stream.waiters:
            del self._streams[topic]

    def __contains__(self, topic: str) -> bool:
        return topic in self._streams

    async def check(self) -> None:
        """Compare open topics with Redis, because an idle topic does not notice that its last message was lost.

        The check also renews the TTL of open topics in Redis.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        settled = (topic for topic, stream in self._streams.items() if not stream.sequence.wanted)
        idle = list(itertools.islice(settled, MAX_CHECKED))
        self._forget_recovered()
        tops = await self._history.peek([(topic, self._rules.of(topic)) for topic in idle])
        for topic, top in zip(idle, tops, strict=True):
            stream = self._streams.pop(topic, None)
            if stream is None:
                continue
            self._streams[topic] = stream  # to the end: topics that were not compared come first next time
            if top is None:
                continue
            sequence = stream.sequence
            if top == NO_TOP and sequence.is_unborn:
                sequence.still_unborn(self._history.hours())
            # A newer message in Redis may be in flight. If it has not arrived at the next check, it is lost.
            elif stream.suspect == top and (sequence.epoch, sequence.offset, sequence.mark) != top:
                self.mark_missed([topic])
            stream.suspect = top

    def _ask(self, topic: str, stream: _Stream) -> None:
        if not stream.busy:
            stream.busy = True
            self._spawn(self._settle(topic, stream), "stream reader")

    async def _settle(self, topic: str, stream: _Stream) -> None:
        sequence = stream.sequence
        try:
            while sequence.wanted and self._streams.get(topic) is stream:
                try:
                    async with self._reading:
                        page = await self._history.read(topic, sequence.begin_read())
                except Unavailable:
                    await asyncio.sleep(RETRY_SECONDS)  # retry until read: no subscription is acknowledged before
                    continue
                self._metrics.stream_reads.inc()
                if self._streams.get(topic) is not stream:
                    break  # closed meanwhile; if it was opened again, that stream has its own reader
                settled = sequence.fill(page)
                if settled.gap:
                    self._gap(topic, stream)
                if settled.entries:
                    self._audience.deliver(topic, sequence.epoch or page.epoch, settled.entries)
                if settled.went_back:
                    # Accept no subscriber before the epoch is renewed: in the old epoch, a client that had the lost
                    # messages would seem to have missed nothing.
                    sequence.mark_missed()
                    await self._renew(topic, stream, page.epoch)
        finally:
            stream.busy = False
            waiters, stream.waiters = stream.waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _gap(self, topic: str, stream: _Stream) -> None:
        stream.losses += 1
        self._audience.gap(topic)

    async def _renew(self, topic: str, stream: _Stream, epoch: str) -> None:
        self._log.warning("stream lost messages, renewing epoch", topic=topic, epoch=epoch)
        while self._streams.get(topic) is stream:
            try:
                renewed = await self._history.renew(topic, epoch)
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if renewed is not None:
                    stream.sequence.rename(renewed)
                return  # None: Redis lost the topic meanwhile, which the next read detects
