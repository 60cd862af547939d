"""The connections of this node: let in, listened to, answered, let go."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import orjson

from gateway import __version__, frames, hub, protocol, replies, session
from gateway.auth import Identity
from gateway.cluster.bus import Bus
from gateway.cluster.link import Unavailable, Unconfirmed
from gateway.cluster.registry import Registry
from gateway.connection import Connection, Facts, Stage
from gateway.hub import Hub
from gateway.logs import logger
from gateway.metrics import Metrics
from gateway.orders import Disconnect, Unsubscribe, Whom
from gateway.protocol import Close, Code, Position, ProtocolError, RequestId
from gateway.relay import Relay, TooLarge
from gateway.roster import Attendee
from gateway.sequence import Entry
from gateway.session import Session
from gateway.settings import Settings

# SUBSCRIBEs of one client that may wait for Redis in an outage while its other frames go on.
MAX_JOINING: Final = 8
PREPARE_SECONDS: Final = 0.5  # between two tries to read what a newcomer is sent first
LOGGED_LINES: Final = 20  # of one LOGS message
LOGGED_CHARACTERS: Final = 500
USER_AGENT_CHARACTERS: Final = 256

_CLOSE_CODES: Final = frozenset({*map(int, Close), 1000, 1005, 1006, 1011})


class Clients:
    """Owner of every open `Connection`: carries out what a session says, and orders from the cluster.

    `spawn` runs a coroutine under the node's eye; `status` gives what getStatus answers; `now_ms` the time.
    """

    def __init__(
        self, settings: Settings, node_id: str, *, rules: session.Rules, hub: Hub, relay: Relay, registry: Registry,
        metrics: Metrics, spawn: Callable[[Coroutine[Any, Any, None], str], object],
        status: Callable[[], dict[str, Any]], now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self.max_message_bytes = settings.max_message_bytes
        self.client_buffer_bytes = settings.client_buffer_bytes
        self.received_bytes = 0
        self._settings = settings
        self._node_id = node_id
        self._rules = rules
        self._hub = hub
        self._relay = relay
        self._registry = registry
        self._metrics = metrics
        self._spawn = spawn
        self._status = status
        self._now_ms = now_ms
        self._log = logger()
        self._open: dict[str, Connection] = {}
        self._counter = 0
        self._degraded = False  # Redis is away, and the clients know

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open.values()))

    # ---- coming and going

    def admit(self, connection: Connection, identity: Identity, ip: str, user_agent: str) -> None:
        """Take in a connection whose handshake was just accepted, and welcome it once it can be reached."""
        self._counter += 1
        client_id = f"{self._node_id}.{self._counter}"
        # A thousand visitors share one browser's name, and here one string.
        facts = Facts(self._now_ms(), sys.intern(ip), sys.intern(user_agent[:USER_AGENT_CHARACTERS]))
        connection.open(self, client_id, Session(self._rules, identity), facts)
        self._open[client_id] = connection
        self._metrics.opens.inc()
        self._log.debug("client opened", client=client_id, ip=ip, user=identity.user)
        welcome = replies.welcome(
            client_id, self._settings.node, __version__, int(self._settings.ping_seconds * 1000), self._time()
        )
        personal = _personal(identity)
        if self._degraded:  # nobody can say when Redis will confirm, and a client waits for its welcome
            self.send(connection, welcome)
            self._join(connection, personal, (), lambda: None)
        else:
            self._join(connection, personal, (), lambda: welcome)

    def closed(self, connection: Connection, code: int) -> None:
        """Out of the hub and the registry in the same turn."""
        del self._open[connection.client_id]
        topics = [topic for topic in map(hub.topic_of, connection.audiences) if topic is not None]
        self._relay.leave(self._hub.remove(connection))
        for topic in topics:
            self._touch_topic(topic, connection.client_id)
        self._registry.touch_client(connection.client_id)
        self._metrics.closes.labels(str(int(code)) if code in _CLOSE_CODES else "other").inc()
        self._log.debug("client closed", client=connection.client_id, code=int(code))

    def evict(self, subscriber: hub.Subscriber) -> None:
        """End a client that has not read its budget's worth; nobody waits for it."""
        assert isinstance(subscriber, Connection)
        self._metrics.slow_consumers.inc()
        self._log.warning("slow consumer closed", client=subscriber.client_id, ip=subscriber.facts.ip)
        subscriber.abort(Close.SLOW_CONSUMER)

    def send(self, connection: Connection, data: bytes) -> None:
        """Send it a message, behind what was relayed before."""
        self._hub.flush()
        if not connection.send(frames.build(frames.TEXT, data)):
            self.evict(connection)

    def _send_all(self, connection: Connection, messages: Sequence[bytes]) -> None:
        self._hub.flush()
        if not connection.send(b"".join(frames.build(frames.TEXT, data) for data in messages)):
            self.evict(connection)

    def tell_all(self, action: str, message: str) -> None:
        """Send everybody a SYSTEM message."""
        data = replies.system(action, {"message": message}, self._time())
        for connection in self:
            self.send(connection, data)

    def sweep(self, now: float) -> None:
        """Ping who is silent, close who stays silent or whose token has ended; `now` in loop time."""
        ping_at = now - self._settings.ping_seconds
        dead_at = ping_at - self._settings.pong_seconds
        seconds = self._now_ms() / 1000
        for connection in self:
            if connection.last_heard < dead_at and connection.pinged:
                connection.close(Close.NO_PONG, "no pong")
            elif connection.last_heard < ping_at and not connection.pinged:
                connection.ping()
            expires = connection.session.identity.expires
            if expires is not None and expires <= seconds:
                connection.close(Close.TOKEN_EXPIRED, "token expired")

    # ---- what a client says

    def received(self, connection: Connection, opcode: int, payload: bytes) -> None:
        """One message, decoded, judged and carried out."""
        self.received_bytes += len(payload)
        kind = "invalid"
        try:
            if opcode != frames.TEXT:
                raise ProtocolError(Code.NOT_JSON, "Messages are text frames, not binary ones")
            if not payload.isascii():
                payload.decode()
            message = protocol.decode(payload)
            kind = type(message).__name__.lower()
            effect = connection.session.handle(message, connection.audiences, self._time())
        except ProtocolError as error:
            self._refuse(connection, error)
        except UnicodeDecodeError:
            connection.close(Close.NOT_UTF8, "text is not UTF-8")
        else:
            self._carry_out(connection, effect)
        finally:
            self._metrics.received.labels(kind).inc()

    def _carry_out(self, connection: Connection, effect: session.Effect) -> None:
        match effect:
            case session.Reply(data):
                self.send(connection, data)
            case session.Join(topics, request_id, login, recover):
                personal = self._identify(connection) if login else []
                if all(self._relay.is_plain(topic) for topic in topics):
                    audiences = [*map(hub.of_topic, topics), *personal]
                    self._join(connection, audiences, (), lambda: self._subscribed(connection, topics, request_id))
                else:
                    # What it missed and the last values come first: it is let in when those are at hand.
                    audiences = [*map(hub.joining, topics), *personal]
                    recover = {topic: recover[topic] for topic in topics if topic in recover}
                    self._join(
                        connection, audiences, topics, lambda: self._let_in(connection, topics, request_id, recover),
                        recover,
                    )  # fmt: skip
            case session.Leave(topics, request_id):
                self._leave(connection, [*map(hub.of_topic, topics), *map(hub.joining, topics)])
                self.send(connection, replies.unsubscribed(topics, request_id, self._time()))
            case session.Say(publication, request_id):
                connection.hold("publish")
                self._spawn(self._say(connection, publication, request_id), "client's publish")
            case session.Login(data):
                self._join(connection, self._identify(connection), (), lambda: data)
            case session.Status(request):
                self.send(connection, replies.answer(request, self._status(), self._time()))
            case session.Lookup(request):
                connection.hold("request")
                self._spawn(self._look_up(connection, request), "client's request")
            case session.Report(entries, data):
                for entry in entries[:LOGGED_LINES]:
                    line = orjson.dumps(entry).decode()[:LOGGED_CHARACTERS]
                    self._log.info("browser log", client=connection.client_id, line=line)
                self.send(connection, data)
            case session.Quit(code, reason):
                connection.close(code, reason)

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
            self._reply(connection, reply() if connection.stage is Stage.OPEN else None)
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
        if not self._degraded or connection.joining >= MAX_JOINING:
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
        await self._until_ready(connection, topics)
        self._relay.catch_up(recover)  # what was being read when it came may be older than its place: then once more
        await self._until_ready(connection, topics)
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
            self._send_all(connection, first)
        for topic in heard:
            self._hub.join(connection, hub.of_topic(topic))
            self._hub.leave(connection, hub.joining(topic))
        self._touch(connection, [hub.of_topic(topic) for topic in heard])
        return replies.subscribed(heard, request_id, self._time(), positions) if heard else None

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
        self._leave(connection, [a for a in connection.audiences if hub.topic_of(a) is None and a not in now])
        return now

    def _subscribed(self, connection: Connection, topics: Iterable[str], request_id: RequestId) -> bytes | None:
        # It may have unsubscribed, or be gone, since it asked.
        heard = [topic for topic in topics if hub.of_topic(topic) in connection.audiences]
        return replies.subscribed(heard, request_id, self._time()) if heard else None

    async def _say(self, connection: Connection, publication: protocol.Publication, request_id: RequestId) -> None:
        try:
            [position] = await self._relay.publish([publication])
            self._reply(connection, replies.published(publication.topic, position, request_id, self._time()))
        except Unconfirmed:
            message = "Published, but too few replicas confirmed it; safe to retry with the same idempotencyKey"
            self._refuse(connection, ProtocolError(Code.UNAVAILABLE, message, request_id))
        except Unavailable:
            message = "The cluster is unavailable, try again"
            self._refuse(connection, ProtocolError(Code.UNAVAILABLE, message, request_id))
        except TooLarge as error:
            self._refuse(connection, ProtocolError(Code.DATA_REFUSED, str(error), request_id))
        finally:
            connection.release("publish")

    async def _look_up(self, connection: Connection, request: protocol.Request) -> None:
        try:
            if request.action == "history":
                about = await self._relay.read_history(request.topic, **protocol.history_range(request))
            else:
                about = await self._relay.read_presence(request.topic)
            self._reply(connection, replies.answer(request, about, self._time()))
        except ProtocolError as error:
            self._refuse(connection, error)
        except Unavailable:
            message = "The cluster is unavailable, try again"
            self._refuse(connection, ProtocolError(Code.UNAVAILABLE, message, request.request_id))
        finally:
            connection.release("request")

    def _reply(self, connection: Connection, data: bytes | None) -> None:
        if data is not None and connection.stage is Stage.OPEN:
            self.send(connection, data)

    def _refuse(self, connection: Connection, error: ProtocolError) -> None:
        self._metrics.errors.labels(str(int(error.code))).inc()
        self._reply(connection, error.encode(self._time()))

    # ---- what the cluster says to one client, or of some

    def on_own(self, _channel: str, payload: bytes) -> None:
        """A message to one client of this node."""
        if payload.startswith(Bus.CHECK):  # the bus's own
            return
        envelope = self._relay.unpack(payload)
        connection = self._open.get(envelope.only or "") if envelope is not None else None
        if envelope is not None and connection is not None:
            self._metrics.relayed.labels("client").inc()
            self.send(connection, envelope.text)

    def obey(self, order: Disconnect | Unsubscribe) -> None:
        """Carry out an order on those of its clients that it is about."""
        for connection in self._named(order.whom):
            self._log.info("order", op=type(order).__name__.lower(), client=connection.client_id, reason=order.reason)
            if isinstance(order, Disconnect):
                connection.close(Close.DISCONNECTED, order.reason)
            else:
                self._unsubscribe(connection, order.topics, order.reason)

    def _named(self, whom: Whom) -> list[Connection]:
        if whom.client is not None:
            connection = self._open.get(whom.client)
            return [connection] if connection is not None else []
        assert whom.user is not None
        return [m for m in self._hub.members(hub.of_user(whom.user)) if isinstance(m, Connection)]

    def _unsubscribe(self, connection: Connection, topics: list[str], reason: str) -> None:
        heard = [topic for topic in topics if hub.of_topic(topic) in connection.audiences]
        if heard:
            self._leave(connection, [hub.of_topic(topic) for topic in heard])
            self.send(connection, replies.system("unsubscribed", {"topics": heard, "reason": reason}, self._time()))

    # ---- what the bus could not hear

    def bus_lost(self, reason: str) -> None:
        """Redis is away: tell the clients, and let those go on whose frames wait for it."""
        self._degraded = True
        self._relay.lost()
        self._log.warning("degraded", reason=reason)
        self.tell_all("degraded", "Live updates are interrupted; you stay connected")
        for connection in self:
            if connection.joining < MAX_JOINING:
                connection.release("join")

    def bus_resumed(self, channels: list[str]) -> None:
        """Redis is back: what was published on these channels meanwhile is lost to us, and said so."""
        missed: dict[Connection, list[str]] = {}
        audiences = [self._relay.audience_of(channel) for channel in channels]
        lost = set(self._relay.missed(topic for topic in map(hub.topic_of, audiences) if topic is not None))
        for audience in audiences:
            topic = hub.topic_of(audience)
            if topic is not None and topic not in lost:
                continue  # its stream has what was missed
            for member in self._hub.members(audience):
                assert isinstance(member, Connection)
                told = missed.setdefault(member, [])
                if topic is not None:
                    told.append(topic)
        now = self._time()
        for connection, topics in missed.items():
            self.send(connection, replies.gap(topics, now))
        if missed:
            self._log.warning("gap told", clients=len(missed))
        if self._degraded:
            self._degraded = False
            self.tell_all("restored", "Live updates flow again")

    def gap(self, topic: str) -> None:
        """Messages of this topic are lost to all who hear it here."""
        data = replies.gap([topic], self._time())
        for member in self._hub.members(hub.of_topic(topic)):
            assert isinstance(member, Connection)
            self.send(member, data)

    # ---- presence

    def attendees(self, topic: str) -> list[Attendee]:
        """Its own clients on the topic, as they are now."""
        members = [m for m in self._hub.members(hub.of_topic(topic)) if isinstance(m, Connection)]
        return [Attendee(member.client_id, member.session.identity.user) for member in members]

    def attendee(self, topic: str, client_id: str) -> Attendee | None:
        """One of them; None if it is not on the topic."""
        connection = self._open.get(client_id)
        if connection is None or hub.of_topic(topic) not in connection.audiences:
            return None
        return Attendee(client_id, connection.session.identity.user)

    def channel(self, topic: str) -> str:
        """The topic's channel."""
        return self._relay.channel(topic)

    def show(self, topic: str, about: dict[str, Any]) -> None:
        """Send a PRESENCE message to the topic's hearers here."""
        data = replies.presence(topic, about, self._time())
        self._hub.deliver(hub.of_topic(topic), frames.build(frames.TEXT, data))

    # ---- what the registry writes

    def row(self, client_id: str) -> bytes | None:
        """A client's row as JSON; None if it is gone."""
        connection = self._open.get(client_id)
        if connection is None:
            return None
        facts, identity = connection.facts, connection.session.identity
        topics = sorted(topic for topic in map(hub.topic_of, connection.audiences) if topic is not None)
        return orjson.dumps(
            {"connectedAt": protocol.iso(facts.connected_ms), "ip": facts.ip, "userAgent": facts.user_agent,
             "user": identity.user, "role": identity.role, "topics": topics}
        )  # fmt: skip

    def ids(self) -> list[str]:
        """Their ids, as they are now."""
        return list(self._open)

    def _time(self) -> str:
        return protocol.iso(self._now_ms())


def _personal(identity: Identity) -> list[str]:
    """The audiences a client is in for being who it is."""
    audiences = [hub.of_user(identity.user)] if identity.user is not None else []
    return [*audiences, hub.of_role(identity.role)] if identity.role is not None else audiences
