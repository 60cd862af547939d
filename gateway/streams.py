"""Topics with history on this node: each has a `Sequence`, and one reader that asks the stream when it must.

However many clients want something of a topic at the same moment, and however many messages went missing, it is one
read: what it brings is delivered to those who listen, and kept for those who come back.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

from gateway.cluster.history import MAX_READ, NO_TOP, History, Top
from gateway.cluster.link import Unavailable
from gateway.core.position import Position, is_unborn
from gateway.core.sequence import Entry, Sequence
from gateway.core.topics import Rule, TopicRules
from gateway.logs import logger
from gateway.metrics import Metrics

RETRY_SECONDS: Final = 0.5
MAX_READING: Final = 200  # topics read at a time, however many are in doubt
MAX_CHECKED: Final = 1000  # topics compared with Redis at a time


class Audience(Protocol):
    """To whom the streams hand what they have put in order."""

    def deliver(self, topic: str, entries: list[Entry]) -> None:
        """The next messages of the topic."""

    def gap(self, topic: str) -> None:
        """Some of its messages are lost for good."""


class _Stream:
    __slots__ = ("busy", "losses", "sequence", "suspect", "waiters")

    def __init__(self, rule: Rule) -> None:
        self.sequence = Sequence(min(rule.history, MAX_READ), rule.history_bytes)
        self.waiters: list[asyncio.Future[None]] = []
        self.busy = False  # a reader is at work
        self.suspect: Top | None = None  # the top in Redis, when last compared
        self.losses = 0  # gaps that were reported since it was opened


class Streams:
    """The node's sequences by topic. A topic is opened while somebody here hears it."""

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
        self._reading = asyncio.Semaphore(MAX_READING)
        self._log = logger()

    def receive(self, topic: str, epoch: str, entry: Entry) -> None:
        """A live message of a topic with history."""
        stream = self._streams.get(topic)
        if stream is None:
            return
        if stream.sequence.receive(epoch, entry):
            self._audience.deliver(topic, [entry])
        else:
            self._ask(topic, stream)

    async def ready(self, topic: str) -> None:
        """Open the topic if it is not, and wait until its place is known and nothing is being repaired."""
        stream = self._streams.get(topic)
        if stream is None:
            stream = self._streams[topic] = _Stream(self._rules.of(topic))
        if stream.sequence.wanted:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            stream.waiters.append(waiter)
            self._ask(topic, stream)
            await waiter

    def settled(self, topic: str) -> bool:
        """Whether the topic is open, its place known and nothing being repaired."""
        stream = self._streams.get(topic)
        return stream is not None and not stream.sequence.wanted

    def overhear(self, topic: str) -> None:
        """A message without a number is being delivered on the topic: a publisher's rules give it no history."""
        stream = self._streams.get(topic)
        if stream is not None and not stream.sequence.delivered_unnumbered():
            self._gap(topic, stream)  # it overtakes numbered messages that are held

    def place(self, topic: str) -> Position:
        """The place of the last message delivered; the topic must be `ready`."""
        return self._streams[topic].sequence.position

    def losses(self, topic: str) -> int:
        """How many gaps were reported on the topic since it was opened; it must be `ready`."""
        return self._streams[topic].losses

    def missed(self, topic: str, place: Position) -> list[Entry] | None:
        """All that a client that was at `place` has missed; None if that cannot be known, or is not kept."""
        return self._streams[topic].sequence.since(place)

    def newest(self, topic: str) -> bytes | None:
        """The text of the topic's last message, if there is one."""
        return self._streams[topic].sequence.newest

    def distrust(self, topics: Iterable[str]) -> None:
        """Redis is away, and may be back without its last moments: let nobody in before they were read again."""
        for topic in topics:
            stream = self._streams.get(topic)
            if stream is not None:
                stream.sequence.doubt()  # read when the bus is back, or when somebody wants in

    def doubt(self, topics: Iterable[str]) -> None:
        """On these, messages may have been missed."""
        for topic in topics:
            stream = self._streams.get(topic)
            if stream is not None:
                stream.sequence.doubt()
                self._ask(topic, stream)

    def catch_up(self, topic: str, place: Position) -> None:
        """A client has been at this place. If it is ahead of us, what it has is still on its way: read the stream."""
        stream = self._streams.get(topic)
        if stream is not None and not stream.sequence.wanted:
            sequence = stream.sequence
            ahead = place.epoch == sequence.epoch and place.offset > sequence.offset
            if ahead or (sequence.is_unborn and place.epoch != "" and not is_unborn(place.epoch)):
                self.doubt([topic])

    def forget(self, topic: str) -> None:
        """The topic's messages were deleted."""
        stream = self._streams.get(topic)
        if stream is not None:
            stream.sequence.forget()

    def close(self, topic: str) -> None:
        """Nobody here hears the topic any more."""
        stream = self._streams.get(topic)
        if stream is not None and not stream.waiters:
            del self._streams[topic]

    def __contains__(self, topic: str) -> bool:
        return topic in self._streams

    async def check(self) -> None:
        """Compare with the tops in Redis: an idle topic whose last message went missing would not notice by itself.

        This also keeps Redis from forgetting topics that are idle, but open here.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        settled = (topic for topic, stream in self._streams.items() if not stream.sequence.wanted)
        idle = list(itertools.islice(settled, MAX_CHECKED))
        tops = await self._history.peek([(topic, self._rules.of(topic)) for topic in idle])
        for topic, top in zip(idle, tops, strict=True):
            stream = self._streams.pop(topic, None)
            if stream is None:
                continue
            self._streams[topic] = stream  # to the end: a topic that was not compared now is the first next time
            if top is None:
                continue
            sequence = stream.sequence
            if top == NO_TOP and sequence.is_unborn:
                sequence.still_unborn(self._history.hours())
            # A message that is newer than ours may be on its way; if it still is at the next check, it is not coming.
            elif stream.suspect == top and (sequence.epoch, sequence.offset, sequence.mark) != top:
                self.doubt([topic])
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
                        page = await self._history.read(topic, sequence.ask())
                except Unavailable:
                    await asyncio.sleep(RETRY_SECONDS)  # without end: nothing can be promised before it is read
                    continue
                self._metrics.stream_reads.inc()
                if self._streams.get(topic) is not stream:
                    break  # closed meanwhile, and perhaps opened anew: what this brings, its hearers have or will get
                settled = sequence.fill(page)
                if settled.gap:
                    self._gap(topic, stream)
                if settled.entries:
                    self._audience.deliver(topic, settled.entries)
                if settled.went_back:
                    # Nobody is let in before: in the old epoch, who had what is lost would seem to have missed nothing.
                    sequence.doubt()
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
        self._log.warning("stream lost messages, renewing its epoch", topic=topic, epoch=epoch)
        while self._streams.get(topic) is stream:
            try:
                renewed = await self._history.renew(topic, epoch)
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if renewed is not None:
                    stream.sequence.rename(renewed)
                return  # without one, Redis lost the topic meanwhile: the next read finds out
