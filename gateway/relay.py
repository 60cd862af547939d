"""Between the hub and the bus: what is published leaves here, what the cluster says comes in here.

One road for a message: whoever publishes, it goes to Redis and comes back through the bus, to the publisher's own
node as to all others; so there is one order, and no echo to suppress.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from gateway import frames, hub, protocol
from gateway.cluster.bus import Bus
from gateway.cluster.envelope import Envelope
from gateway.cluster.keys import Keys, node_of
from gateway.cluster.link import Link, Unavailable
from gateway.hub import Hub
from gateway.metrics import Metrics
from gateway.protocol import ProtocolError, Publication


class TooLarge(ValueError):
    """A publication that no node would relay."""


class Relay:
    """Publishes for this node and feeds its hub. `now` gives seconds since 1970."""

    def __init__(
        self, *, hub: Hub, bus: Bus, link: Link, keys: Keys, metrics: Metrics, max_message_bytes: int,
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        self._hub = hub
        self._bus = bus
        self._link = link
        self._keys = keys
        self._metrics = metrics
        self._max_bytes = max_message_bytes
        self._now = now
        self._prefix = len(keys.audience(""))

    # ---- out

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish all of them, or none.

        Raises:
            TooLarge: One is larger than a message may be; nothing was published.
            Unavailable: Redis did not confirm.
        """
        now = int(self._now() * 1000)
        messages: list[tuple[str, bytes]] = []
        for publication in publications:
            text = protocol.data(publication, protocol.iso(now))
            if len(text) > self._max_bytes:
                raise TooLarge(f"message for {publication.topic} has {len(text)} bytes; {self._max_bytes} may be")
            messages.append(self._address(publication, text, now))
        try:
            await self._link.publish(messages)
        except Unavailable:
            self._metrics.publishes.labels("unavailable").inc(len(messages))
            raise
        self._metrics.publishes.labels("ok").inc(len(messages))

    def _address(self, publication: Publication, text: bytes, now: int) -> tuple[str, bytes]:
        keys = self._keys
        match publication.to:
            case None:
                envelope = Envelope(now, text, exclude=publication.except_client)
                return keys.audience(hub.of_topic(publication.topic)), envelope.pack()
            case "user", user:
                return keys.audience(hub.of_user(user)), Envelope(now, text).pack()
            case "role", role:
                return keys.audience(hub.of_role(role)), Envelope(now, text).pack()
            case _, client_id:
                return keys.own(node_of(client_id)), Envelope(now, text, only=client_id).pack()

    # ---- in

    def join(self, audiences: Iterable[str], confirmed: Callable[[], None]) -> bool:
        """Hear `audiences`. True if Redis has confirmed them already; else `confirmed` is called when it has."""
        return self._bus.listen(map(self._keys.audience, audiences), self._on_audience, confirmed)

    def leave(self, audiences: Iterable[str]) -> None:
        """Nobody here is in `audiences` any more."""
        self._bus.ignore(map(self._keys.audience, audiences), self._on_audience)

    def audience_of(self, channel: str) -> str:
        """The audience whose channel this is."""
        return channel[self._prefix :]

    def unpack(self, payload: bytes) -> Envelope | None:
        """The message in `payload`; None, counted, if it is not ours."""
        try:
            return Envelope.unpack(payload)
        except ValueError:
            self._metrics.relayed.labels("malformed").inc()
            return None

    def _on_audience(self, channel: str, payload: bytes) -> None:
        envelope = self.unpack(payload)
        if envelope is not None:
            frame = frames.build(frames.TEXT, envelope.text)
            self._hub.deliver(channel[self._prefix :], frame, envelope.exclude)
            self._metrics.relayed.labels("audience").inc()
            self._metrics.relay_delay.observe(max(0.0, self._now() - envelope.published_ms / 1000))

    def on_ingest(self, _channel: str, payload: bytes) -> None:
        """A message of a publisher that speaks the original plan's ``{topic, data, timestamp, sourceId}``.

        Every node hears it and serves its own clients, so nobody has to pass it on.
        """
        now = int(self._now() * 1000)
        try:
            if len(payload) > self._max_bytes:
                raise TooLarge("larger than a message may be")
            said = protocol.loads(payload)
            publication = protocol.publication({"topic": said["topic"], "data": said["data"]})
            stamp = said.get("timestamp")
            at = int(stamp) if isinstance(stamp, int | float) and 0 < stamp < 2 * now else now
        except (ValueError, TypeError, KeyError, AttributeError, ProtocolError):
            self._metrics.relayed.labels("malformed").inc()
            return
        self._metrics.relayed.labels("ingest").inc()
        audience = hub.of_topic(publication.topic)
        if audience in self._hub:
            text = protocol.data(publication, protocol.iso(at))
            self._hub.deliver(audience, frames.build(frames.TEXT, text))
            self._metrics.relay_delay.observe(max(0, now - at) / 1000)

    def wake(self) -> None:
        """The hub has something to hand out: do it when this turn of the loop has read all that waits."""
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        with self._metrics.fanout.time():
            self._hub.flush()
