"""Between the hub and the bus: what is published leaves here, what the cluster says comes in here.

One road for a message: whoever publishes, it goes to Redis and comes back through the bus, to the publisher's own
node as to all others; so there is one order, and no echo to suppress.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any, Final

import orjson

from gateway.cluster.bus import Bus
from gateway.cluster.envelope import Envelope, Kind, UnknownVersion
from gateway.cluster.history import History
from gateway.cluster.keys import Keys
from gateway.cluster.link import Link, Unavailable
from gateway.cluster.outgoing import Outgoing, TooLarge
from gateway.cluster.snapshots import Snapshots
from gateway.conflation import Conflation
from gateway.core import frames, hub, protocol, replies
from gateway.core.hub import Hub
from gateway.core.position import Position
from gateway.core.protocol import ProtocolError
from gateway.core.publication import Publication
from gateway.core.sequence import Entry
from gateway.core.topics import TopicRules, is_reserved
from gateway.logs import RareLog, logger
from gateway.metrics import Metrics
from gateway.presence import MAX_LISTED, Presence, listed
from gateway.streams import Streams

# How long a node that hears a message of `ws:broadcast` late still finds that another has passed it on.
CLAIM_MS: Final = 2000
LEAVES: Final = 250  # audiences looked at in one turn of the loop
READY_TOPICS: Final = 100  # read at a time for a SUBSCRIBE
# Between two reports that a channel carries messages which this node cannot read.
UNREADABLE_SECONDS: Final = 10.0
# Before what a client of another node has said, on that node's own channel.
SAID: Final = b"say "


class Relay:
    """Publishes for this node and feeds its hub. `now` gives seconds since 1970."""

    def __init__(
        self, *, hub: Hub, bus: Bus, link: Link, keys: Keys, rules: TopicRules, metrics: Metrics,
        outgoing: Outgoing, max_message_bytes: int, now: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None], str], object], presence: Presence,
    ) -> None:  # fmt: skip
        self.presence = presence
        self.rules_differ = False  # some node has other topic rules than this one
        self._hub = hub
        self._bus = bus
        self._link = link
        self._outgoing = outgoing
        self._keys = keys
        self._rules = rules
        self._metrics = metrics
        self._max_bytes = max_message_bytes
        self._now = now
        self._history = History(link, keys, now)
        self.streams = Streams(self._history, rules, self, metrics, spawn)
        self.snapshots = Snapshots(link, keys)
        self._refusals = RareLog("a message of ws:broadcast was not passed on")
        self._spawn = spawn
        self._relayed = metrics.relayed.labels("audience")  # looked up for each, it would cost as much as counting
        self._conflation = Conflation(hub)
        self._left: dict[str, None] = {}  # audiences that may have no member any more
        # Channels whose unreadable messages were just reported -> whether there were more since.
        self._unreadable: dict[str, bool] = {}
        self.on_gap: Callable[[str], None] | None = None  # its messages are lost to whoever hears it
        self.on_missed: Callable[[list[str]], None] | None = None  # so is something of what was said on these channels

    # ---- out

    async def publish(self, publications: Sequence[Publication], said_ms: int | None = None) -> list[Position | None]:
        """Publish all of them, or none, as `Outgoing.publish`."""
        return await self._outgoing.publish(publications, said_ms)

    def stored(self, publication: Publication) -> tuple[int, list[str]]:
        """As `Outgoing.stored`."""
        return self._outgoing.stored(publication)

    async def forward(self, node_id: str, said: bytes) -> bool:
        """Have another node hear what is said in one of its event streams. False: there is no such node.

        Raises:
            Unavailable: Redis did not confirm.
        """
        channel = self._keys.own(node_id)
        [hearers] = await self._link.send([(self._link.publish_command(channel), channel, SAID + said)])
        return bool(hearers)

    # ---- asked

    async def read_history(self, topic: str, *, limit: int, since: int | None, reverse: bool) -> dict[str, Any]:
        """Messages of a topic with history: the newest `limit`, or the first `limit` behind the offset `since`.

        In order, or the newest first if `reverse`.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        first = None if since is None or reverse else since + 1
        page = await self._history.read(topic, first, limit, compare=False)
        entries = [entry for entry in page.entries if since is None or entry.offset > since]
        messages = [orjson.Fragment(entry.text) for entry in (reversed(entries) if reverse else entries)]
        return {"epoch": page.epoch, "offset": page.top, "mark": page.mark, "messages": messages}

    async def delete_history(self, topic: str) -> bool:
        """Drop a topic's messages; False if there were none. Its nodes must be told to forget theirs.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        return await self._history.delete(topic)

    async def read_presence(self, topic: str) -> dict[str, Any]:
        """Who is on a topic with presence: their number, and everybody by one client unless they are too many.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        roster = await self.presence.people(topic)
        about: dict[str, Any] = {"count": len(roster)}
        if len(roster) <= MAX_LISTED:
            about["members"] = [listed(attendee) for attendee in roster.people()]
        return about

    # ---- in

    def join(self, audiences: Iterable[str], confirmed: Callable[[], None] | None) -> bool:
        """Hear `audiences`. True if Redis has confirmed them already; else `confirmed`, if given, is called later."""
        channels = [self._keys.audience(hub.channel_of(audience)) for audience in audiences]
        return self._bus.listen(channels, self._on_audience, confirmed)

    def abandon(self, audiences: Iterable[str], confirmed: Callable[[], None]) -> None:
        """Do not call `confirmed`, which was given to `join`: its caller is gone."""
        self._bus.abandon([self._keys.audience(hub.channel_of(audience)) for audience in audiences], confirmed)

    def leave(self, audiences: Iterable[str]) -> None:
        """These may have lost their last member here. A topic is heard on while somebody waits to be let in.

        What is then true counts, so of many `LEAVES` are looked at in a turn of the loop.
        """
        waiting = bool(self._left)
        self._left.update(dict.fromkeys(map(hub.channel_of, audiences)))
        if not waiting:
            self._leave_some()

    def _leave_some(self) -> None:
        channels = []
        for audience in list(itertools.islice(self._left, LEAVES)):
            del self._left[audience]
            topic = hub.topic_of(audience)
            if audience in self._hub or (topic is not None and hub.joining(topic) in self._hub):
                continue
            channels.append(self._keys.audience(audience))
            if topic is not None:
                self.streams.close(topic)
                self.snapshots.forget(topic)
                self.presence.close(topic)
        self._bus.ignore(channels, self._on_audience)
        if self._left:
            asyncio.get_running_loop().call_soon(self._leave_some)

    def has_presence(self, topic: str) -> bool:
        """Whether it is told who hears it."""
        return self._rules.of(topic).presence

    def channel(self, topic: str) -> str:
        """The topic's channel."""
        return self._keys.audience(hub.of_topic(topic))

    def is_plain(self, topic: str) -> bool:
        """Whether nothing must be known to let a newcomer in: no history, no last value, no presence."""
        rule = self._rules.of(topic)
        return not rule.history and not rule.snapshot and not rule.presence

    def has_history(self, topic: str) -> bool:
        """Whether its messages have places."""
        return bool(self._rules.of(topic).history)

    async def ready(self, topics: Iterable[str]) -> None:
        """Have what newcomers to `topics` are sent first: places in streams, last values. They must be joined.

        `READY_TOPICS` are read at a time, side by side: a round trip to Redis serves all of them.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        waiting = [topic for topic in topics if not self.is_ready(topic)]
        for at in range(0, len(waiting), READY_TOPICS):
            some = waiting[at : at + READY_TOPICS]
            rules = {topic: self._rules.of(topic) for topic in some}
            values = [topic for topic, rule in rules.items() if rule.snapshot and not rule.history]
            found = await asyncio.gather(
                self.snapshots.ready(values),
                *(self.streams.ready(topic) for topic, rule in rules.items() if rule.history),
                *(self.presence.ready(topic) for topic, rule in rules.items() if rule.presence),
                return_exceptions=True,
            )
            for failure in filter(None, found):
                raise failure
            for topic in values:
                if hub.of_topic(topic) not in self._hub:
                    self.snapshots.begin(topic)

    def is_ready(self, topic: str) -> bool:
        """Whether a newcomer can be let in this moment."""
        rule = self._rules.of(topic)
        if rule.presence and not self.presence.is_ready(topic):
            return False
        return self.streams.settled(topic) if rule.history else not rule.snapshot or self.snapshots.settled(topic)

    def catch_up(self, places: Mapping[str, Position]) -> None:
        """A client has been at these places, on another node perhaps: where it is ahead of us, ask the stream."""
        for topic, place in places.items():
            self.streams.catch_up(topic, place)

    def snapshot(self, topic: str) -> bytes | None:
        """The last value of a topic that has a snapshot; the topic must be `ready`."""
        rule = self._rules.of(topic)
        if not rule.snapshot:
            return None
        if not rule.history:
            return self.snapshots.newest(topic)
        return self.streams.newest(topic)

    def lost(self, channels: Iterable[str]) -> None:
        """The Redis that has these channels is away: what is known of its streams may be wrong when it is back."""
        self.streams.invalidate(filter(None, map(hub.topic_of, map(self.audience_of, channels))))

    def missed(self, topics: Iterable[str]) -> list[str]:
        """Messages of these topics may have been missed: repair what can be repaired, and return those that have a gap.

        While other nodes have other topic rules, they may publish to a topic without writing to its stream.
        """
        gaps = []
        for topic in topics:
            self.presence.mark_stale(topic)
            if self._rules.of(topic).history:
                self.streams.mark_missed([topic])
                if self.rules_differ:
                    gaps.append(topic)
            else:
                self.snapshots.forget(topic)
                gaps.append(topic)
        return gaps

    def audience_of(self, channel: str) -> str:
        """The audience whose channel this is."""
        return self._keys.audience_of(channel)

    def unpack(self, payload: bytes) -> Envelope | None:
        """The message in `payload`; None, counted, if it is not ours."""
        try:
            return Envelope.unpack(payload)
        except ValueError:
            self._metrics.relayed.labels("malformed").inc()
            return None

    def _on_audience(self, channel: str, payload: bytes) -> None:
        try:
            envelope = Envelope.unpack(payload)
        except UnknownVersion as error:
            self._skip_unreadable(channel, error)
            return
        except ValueError:
            self._metrics.relayed.labels("malformed").inc()
            return
        audience = self._keys.audience_of(channel)
        topic = hub.topic_of(audience)
        self._relayed.inc()
        self._metrics.relay_delay.observe(max(0.0, self._now() - envelope.published_ms / 1000))
        if topic is not None and self._keep(topic, envelope):
            return
        frame = frames.build(frames.TEXT, envelope.text)
        if topic is not None:
            self._conflation.deliver(topic, frame, envelope.exclude, envelope.conflate_ms)
        else:
            self._hub.deliver(audience, frame, envelope.exclude)

    def _keep(self, topic: str, envelope: Envelope) -> bool:
        """Take what the node keeps of a topic's message. True: that is all, it is not to be delivered from here.

        The publisher's topic rules may differ from this node's, while nodes are restarted with new rules. The envelope
        says what the message is, so it is delivered in any case: a numbered message also where the topic has no history
        here, and one without a number also where it has. Clients cannot recover the latter, nor any position before it.
        """
        match envelope.kind:
            case Kind.NODES:
                self._on_presence(topic, envelope)
                return True
            case Kind.HISTORY if topic in self.streams:
                entry = Entry(envelope.offset, envelope.text, envelope.exclude, envelope.mark, envelope.previous)
                self.streams.receive(topic, envelope.epoch, entry)
                return True
            case Kind.HISTORY | Kind.SNAPSHOT:
                version = envelope.version or envelope.mark  # both are the time by Redis' clock
                if self.snapshots.is_superseded(topic, version):
                    return True
                self.snapshots.receive(topic, version, envelope.text)
                self.streams.receive_unnumbered(topic)
            case Kind.PLAIN:
                self.snapshots.replace(topic, envelope.text)
                self.streams.receive_unnumbered(topic)
        return False

    def _skip_unreadable(self, channel: str, error: UnknownVersion) -> None:
        """Report that a message of a newer gateway is lost here: at once, then at most once in `UNREADABLE_SECONDS`."""
        self._metrics.relayed.labels("unreadable").inc()
        if channel in self._unreadable:
            self._unreadable[channel] = True
            return
        logger().warning("unreadable message", channel=channel, reason=str(error))
        self._report_unreadable(channel)

    def _report_unreadable(self, channel: str) -> None:
        self._unreadable[channel] = False
        asyncio.get_running_loop().call_later(UNREADABLE_SECONDS, self._report_further, channel)
        topic = hub.topic_of(self._keys.audience_of(channel))
        if topic is not None and topic in self.streams:
            self.gap(topic)  # the stream is read too, but it may hold nothing that this node can read
        if self.on_missed is not None:
            self.on_missed([channel])

    def _report_further(self, channel: str) -> None:
        if self._unreadable.pop(channel):
            self._report_unreadable(channel)

    def _on_presence(self, topic: str, envelope: Envelope) -> None:
        try:
            self.presence.receive(topic, envelope)
        except ValueError:
            self._metrics.relayed.labels("malformed").inc()

    def deliver(self, topic: str, entries: list[Entry]) -> None:
        """Messages of a topic with history, in order."""
        for entry in entries:
            self._hub.deliver(hub.of_topic(topic), frames.build(frames.TEXT, entry.text), entry.exclude)

    def gap(self, topic: str) -> None:
        """Some of its messages are lost for good."""
        if self.on_gap is not None:
            self.on_gap(topic)

    def on_ingest(self, _channel: str, payload: bytes) -> None:
        """A message of a publisher that speaks the original plan's ``{topic, data, timestamp, sourceId}``.

        Every node hears it and serves its own clients, so nobody has to pass it on.
        """
        now = int(self._now() * 1000)
        try:
            if len(payload) > self._max_bytes:
                raise TooLarge("larger than a message may be")
            said = protocol.loads(payload)
            publication = Publication.of_item({"topic": said["topic"], "data": said["data"]})
            stamp = said.get("timestamp")
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
            # It must be numbered, kept, or go out under several names: once, so it is published as all else is.
            self._spawn(self._pass_on(publication, payload, stamped="timestamp" in said, said_ms=at), "ingest")
            return
        audience = hub.of_topic(topic)
        if audience in self._hub:
            text = replies.data(publication, topic, protocol.iso(at))
            self._conflation.deliver(topic, frames.build(frames.TEXT, text), None, rule.conflate_ms)
            self._metrics.relay_delay.observe(max(0, now - at) / 1000)

    async def _pass_on(self, publication: Publication, payload: bytes, *, stamped: bool, said_ms: int) -> None:
        digest = hashlib.sha256(payload).hexdigest()[:32]
        try:
            if stamped and self._rules.of(publication.topic).history:
                # Every node publishes under one key: the first is taken, the others get its answer. So none is missed
                # if a node dies here.
                await self.publish([replace(publication, key=f"ingest:{digest}")], said_ms)
            elif await self._link.ask("SET", self._keys.ingested(digest), 1, "NX", "PX", CLAIM_MS):
                await self.publish([publication], said_ms)
        except (Unavailable, TooLarge) as error:
            self._metrics.relayed.labels("refused").inc()
            self._refusals.warning(topic=publication.topic, reason=str(error))

    def wake(self) -> None:
        """The hub has something to hand out: do it when this turn of the loop has read all that waits."""
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        started = perf_counter()
        self._hub.flush()
        self._metrics.fanout.observe(perf_counter() - started)
