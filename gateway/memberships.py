"""Clients let into audiences and taken out of them: nobody is told that it hears a topic before it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from gateway.cluster.link import Unavailable
from gateway.cluster.registry import Registry
from gateway.core import hub, replies
from gateway.core.hub import Hub
from gateway.core.identity import Identity
from gateway.core.protocol import RequestId
from gateway.core.publication import Position
from gateway.core.sequence import Entry
from gateway.core.session import Join
from gateway.outbox import Outbox
from gateway.relay import Relay
from gateway.transport.connection import Connection, Stage

# SUBSCRIBEs of one client that may wait for Redis in an outage while its other frames go on.
MAX_JOINING: Final = 8
PREPARE_SECONDS: Final = 0.5  # between two tries to read what a newcomer is sent first


class Memberships:
    """Keeps hub, bus, registry and presence of one mind about who hears what; `spawn` runs a coroutine for the node."""

    def __init__(
        self, hub: Hub, relay: Relay, registry: Registry, outbox: Outbox,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:  # fmt: skip
        self.degraded = False  # Redis is away, and the clients know
        self._hub = hub
        self._relay = relay
        self._registry = registry
        self._outbox = outbox
        self._spawn = spawn

    def admit(self, connection: Connection, welcome: bytes) -> None:
        """Let a newcomer hear what is said to it alone, then welcome it."""
        personal = _personal(connection.session.identity)
        if self.degraded:  # nobody can say when Redis will confirm, and a client waits for its welcome
            self._outbox.send(connection, welcome)
            self._join(connection, personal, (), lambda: None)
        else:
            self._join(connection, personal, (), lambda: welcome)

    def login(self, connection: Connection, data: bytes) -> None:
        """It has a new identity: move it between users' and roles' audiences, then send `data`."""
        self._join(connection, self._identify(connection), (), lambda: data)

    def subscribe(self, connection: Connection, effect: Join) -> None:
        """Let it hear topics, and acknowledge once it does."""
        topics, request_id = effect.topics, effect.request_id
        personal = self._identify(connection) if effect.login else []
        if all(map(self._relay.is_plain, topics)):
            audiences = [*map(hub.of_topic, topics), *personal]
            self._join(connection, audiences, (), lambda: self._subscribed(connection, topics, request_id))
            return
        # What it missed and the last values come first: it is let in when those are at hand.
        audiences = [*map(hub.joining, topics), *personal]
        recover = {topic: effect.recover[topic] for topic in topics if topic in effect.recover}
        self._join(
            connection, audiences, topics, lambda: self._let_in(connection, topics, request_id, recover), recover
        )

    def unsubscribe(self, connection: Connection, topics: Sequence[str]) -> None:
        """Let it hear these no more, also those that it still waits for."""
        self._leave(connection, [*map(hub.of_topic, topics), *map(hub.joining, topics)])

    def remove(self, connection: Connection) -> None:
        """It is gone: out of all audiences, and out of what Redis is told."""
        topics = [topic for topic in map(hub.topic_of, connection.audiences) if topic is not None]
        self._relay.leave(self._hub.remove(connection))
        for topic in topics:
            self._touch_topic(topic, connection.client_id)
        self._registry.touch_client(connection.client_id)

    def go_on(self, connection: Connection) -> None:
        """Redis is away: handle its next frames, though it waits for acknowledgements, if those are few."""
        if connection.joining < MAX_JOINING:
            connection.release("join")

    def _join(
        self, connection: Connection, audiences: Sequence[str], topics: Sequence[str],
        reply: Callable[[], bytes | None], recover: Mapping[str, Position] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Make it a member of `audiences`; `reply` is sent once Redis has confirmed all their channels.

        `topics` must also be ready to let it in, and not be behind the places that it says to `recover` from.
        """
        for audience in audiences:
            self._hub.join(connection, audience)
        self._touch(connection, audiences)
        waiting = False

        def entered() -> None:
            try:
                self._outbox.reply(connection, reply() if connection.stage is Stage.OPEN else None)
            except Exception:
                self._outbox.fail(connection)
            if waiting:
                connection.joining -= 1
                if not connection.joining:
                    connection.release("join")

        def confirmed() -> None:
            self._relay.catch_up(recover)
            if all(map(self._relay.is_ready, topics)):
                entered()
            else:
                self._spawn(self._prepare(connection, topics, recover, entered), "subscribe")

        joined = self._relay.join(audiences, confirmed)
        if joined:
            self._relay.catch_up(recover)
        if joined and all(map(self._relay.is_ready, topics)):
            entered()
            return
        waiting = True
        connection.joining += 1
        # Frames are handled in order, so what follows waits. In an outage nobody can say for how long: then the
        # acknowledgement comes when it can, and the frames behind go on.
        if not self.degraded or connection.joining >= MAX_JOINING:
            connection.hold("join")
        if joined:
            confirmed()

    async def _prepare(
        self,
        connection: Connection,
        topics: Sequence[str],
        recover: Mapping[str, Position],
        entered: Callable[[], None],
    ) -> None:
        try:
            await self._until_ready(connection, topics)
            self._relay.catch_up(recover)  # what was being read when it came may be older than its place: once more
            await self._until_ready(connection, topics)
        except Exception:
            self._outbox.fail(connection)
            self._leave(connection, [*map(hub.joining, topics)])  # so that nothing is acknowledged
        entered()
        self._relay.leave(map(hub.of_topic, topics))  # it may have left while we opened what nobody hears now

    async def _until_ready(self, connection: Connection, topics: Sequence[str]) -> None:
        while connection.stage is Stage.OPEN and not all(map(self._relay.is_ready, topics)):
            try:
                await self._relay.ready(topics)
            except Unavailable:
                await asyncio.sleep(PREPARE_SECONDS)

    def _let_in(
        self, connection: Connection, topics: Sequence[str], request_id: RequestId, recover: Mapping[str, Position]
    ) -> bytes | None:
        """Send what it missed or the last values, and make it a member, all in one turn: nothing comes between."""
        positions: dict[str, dict[str, Any]] = {}
        heard, first = [], []
        for topic in topics:
            if hub.joining(topic) not in connection.audiences:
                continue  # it has unsubscribed since it asked
            heard.append(topic)
            recovered = False
            if self._relay.has_history(topic):
                epoch, offset = self._relay.streams.place(topic)
                positions[topic] = {"epoch": epoch, "offset": offset}
                if topic in recover:
                    missed = self._missed(connection, topic, recover[topic])
                    recovered = positions[topic]["recovered"] = missed is not None
                    first += [entry.text for entry in missed or ()]
            snapshot = self._relay.snapshot(topic)
            if snapshot is not None and not recovered:
                first.append(replies.initial(snapshot))
        if first:
            self._outbox.send_all(connection, first)
        for topic in heard:
            self._hub.join(connection, hub.of_topic(topic))
            self._hub.leave(connection, hub.joining(topic))
        self._touch(connection, [hub.of_topic(topic) for topic in heard])
        return replies.subscribed(heard, request_id, self._outbox.time(), positions) if heard else None

    def _missed(self, connection: Connection, topic: str, place: Position) -> list[Entry] | None:
        if hub.of_topic(topic) in connection.audiences and self._relay.streams.place(topic)[0] == place.epoch:
            return []  # a member already: the same SUBSCRIBE, sent again
        return self._relay.streams.missed(topic, place.epoch, place.offset)

    def _leave(self, connection: Connection, audiences: Sequence[str]) -> None:
        self._relay.leave([audience for audience in audiences if self._hub.leave(connection, audience)])
        self._touch(connection, audiences)

    def _touch(self, connection: Connection, audiences: Iterable[str]) -> None:
        for topic in map(hub.topic_of, audiences):
            if topic is not None:
                self._touch_topic(topic, connection.client_id)
        self._registry.touch_client(connection.client_id)

    def _touch_topic(self, topic: str, client_id: str) -> None:
        self._registry.touch_topic(topic)
        if self._relay.has_presence(topic):
            self._relay.presence.touch(topic, client_id)

    def _identify(self, connection: Connection) -> list[str]:
        """Take it out of the audiences that only its former identity was in; those that the new one is in."""
        now = _personal(connection.session.identity)
        self._leave(connection, [a for a in connection.audiences if hub.is_personal(a) and a not in now])
        return now

    def _subscribed(self, connection: Connection, topics: Iterable[str], request_id: RequestId) -> bytes | None:
        # It may have unsubscribed, or be gone, since it asked.
        heard = [topic for topic in topics if hub.of_topic(topic) in connection.audiences]
        return replies.subscribed(heard, request_id, self._outbox.time()) if heard else None


def _personal(identity: Identity) -> list[str]:
    """The audiences a client is in for being who it is."""
    audiences = [hub.of_user(identity.user)] if identity.user is not None else []
    return [*audiences, hub.of_role(identity.role)] if identity.role is not None else audiences
