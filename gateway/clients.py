"""The connections of this node: let in, listened to, answered, let go."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

import orjson

from gateway import __version__
from gateway.admission import Admission
from gateway.calls import Calls
from gateway.cluster.bus import Bus
from gateway.core import effects, frames, hub, messages, protocol, replies, session
from gateway.core.deflate import Deflater
from gateway.core.effects import Findings
from gateway.core.hub import Hub
from gateway.core.identity import Identity, IsRevoked
from gateway.core.orders import ClientSelector, Disconnect, Unsubscribe
from gateway.core.permits import JudgeLater
from gateway.core.protocol import Close, Code, ProtocolError
from gateway.core.rates import Outcome
from gateway.core.roster import Attendee
from gateway.core.session import Session, Verify
from gateway.errands import Errands
from gateway.limits import Limits
from gateway.logs import logger
from gateway.memberships import Memberships
from gateway.metrics import Metrics
from gateway.outages import DEGRADED, Outages
from gateway.outbox import Outbox
from gateway.relay import SAID, Relay
from gateway.settings import Settings
from gateway.transport.connection import Connection, Facts, Stage
from gateway.transport.eventstream import EventStreams
from gateway.turns import TURN_ITEMS, each_in_turns

USER_AGENT_CHARACTERS: Final = 256
WARNING_SECONDS: Final = 30.0  # before its token's end a client is told
NOT_ANY_MORE: Final = "not allowed for the user that you are now"

_CLOSE_CODES: Final = frozenset({*map(int, Close), 1000, 1005, 1006, 1011})


class Clients:
    """Owner of every open `Connection`: carries out what a session says, and orders from the cluster.

    `status` gives what getStatus answers; `now_ms` the time in ms since 1970.
    """

    def __init__(
        self, settings: Settings, node_id: str, *, rules: session.Rules, hub: Hub, relay: Relay, outbox: Outbox,
        memberships: Memberships, errands: Errands, calls: Calls | None, admission: Admission, metrics: Metrics,
        status: Callable[[], dict[str, Any]], now_ms: Callable[[], int],
    ) -> None:  # fmt: skip
        self.max_message_bytes = settings.max_message_bytes
        self.client_buffer_bytes = settings.client_buffer_bytes
        self.received_bytes = 0
        self.deflater = Deflater()
        self.deflate = self.deflater.deflate
        self._settings = settings
        self._node_id = node_id
        self._rules = rules
        self._hub = hub
        self._relay = relay
        self._outbox = outbox
        self._memberships = memberships
        self._errands = errands
        self._calls = calls  # None: there is no back end
        self._admission = admission
        self._metrics = metrics
        self._received = cache(metrics.received.labels)  # by type: a dozen
        self._status = status
        self._now_ms = now_ms
        self.limits = Limits(settings, rules.topics, outbox, metrics)
        self.grew, self.counted_part = self.limits.grew, self.limits.count_part
        self._told_limits: Mapping[str, protocol.Json] = {
            "messageBytes": settings.max_message_bytes, "topics": settings.max_client_topics,
            "messagesPerSecond": settings.client_messages_per_second,
            "subscriptionsPerSecond": settings.client_subscriptions_per_second,
        }  # fmt: skip
        self._log = logger()
        self.event_streams = EventStreams()
        self._open: dict[str, Connection] = {}
        self.outages = Outages(lambda: list(self), hub, relay, outbox, memberships)
        self._counter = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open.values()))

    # ---- coming and going

    def admit(
        self, connection: Connection, identity: Identity, ip: str, user_agent: str, verify: Verify | None = None
    ) -> None:
        """Take in a connection whose handshake was just accepted, and welcome it once it can be reached.

        `verify`: what proves who it is, if not what does everywhere.
        """
        self._counter += 1
        client_id = f"{self._node_id}.{self._counter}"
        # A thousand visitors share one browser's name, and here one string.
        facts = Facts(self._now_ms(), sys.intern(ip), sys.intern(user_agent[:USER_AGENT_CHARACTERS]))
        rules = self._rules if verify is None else replace(self._rules, verify=verify)
        connection.open(self, client_id, Session(rules, identity), facts)
        self._open[client_id] = connection
        self._metrics.opens.inc()
        self._log.debug("client opened", client=client_id, ip=ip, user=identity.user)
        welcome = replies.welcome(
            client_id,
            self._settings.node,
            __version__,
            int(self._settings.ping_seconds * 1000),
            self._told_limits,
            self._outbox.time(),
        )
        self._memberships.admit(connection, welcome)
        if self._memberships.degraded:  # the others were told when it happened
            self._outbox.send(connection, replies.system("degraded", {"message": DEGRADED}, self._outbox.time()))

    def closed(self, connection: Connection, code: int) -> None:
        """Out of the hub and the registry in the same turn."""
        del self._open[connection.client_id]
        self._memberships.remove(connection)
        self._admission.leave(connection)
        self.limits.forget(connection)
        self._metrics.closes.labels(str(int(code)) if code in _CLOSE_CODES else "other").inc()
        self._log.debug("client closed", client=connection.client_id, code=int(code))

    def sweep(self, now: float) -> None:
        """Ping who is silent; close who stays silent, ends no message, or has a token that ended; `now`: loop time."""
        each_in_turns(list(self), partial(self._sweep, now, self._now_ms() / 1000))

    def _sweep(self, now: float, seconds: float, connection: Connection) -> int:
        if connection.stage is not Stage.OPEN:
            return 0
        if connection.pinged:
            if connection.is_silent(self._settings.ping_seconds + self._settings.pong_seconds, now):
                connection.close(Close.NO_PONG, "no pong")
        elif connection.is_silent(self._settings.ping_seconds, now):
            connection.ping()
        ended = self._watch_tokens(connection, seconds)
        if connection.is_late(now):
            self._metrics.limited.labels("message_seconds").inc()
            connection.close(Close.BAD_USE, "message not complete in time")
        return ended

    def _watch_tokens(self, connection: Connection, now: float) -> int:
        """Tell whose token ends soon, close whose has ended; the same of tokens for topics. `now`: s since 1970.

        Returns for how many topics a token has ended; at `TURN_ITEMS` there may be more.
        """
        client, expires = connection.session, connection.session.identity.expires
        if expires is not None and expires <= now:
            connection.close(Close.TOKEN_EXPIRED, "token expired")
            return 0
        if expires is not None and not client.warned:
            ends = expires - self._settings.jwt_leeway_seconds
            if ends - WARNING_SECONDS <= now:
                client.warned = True
                self._outbox.send(connection, replies.token_expiring(int(ends * 1000), self._outbox.time()))
        ended, topics = client.expire_grants(now, TURN_ITEMS)
        self._unsubscribe(connection, topics, "subscription token expired")
        return ended

    def enforce(self, revoked: IsRevoked) -> None:
        """Close whose token is revoked, and take what was heard by a revoked subscription token."""
        each_in_turns(list(self), partial(self._enforce, revoked))

    def _enforce(self, revoked: IsRevoked, connection: Connection) -> int:
        identity = connection.session.identity
        if revoked(identity.token_id, identity.user, identity.issued):
            self._log.info("token revoked", client=connection.client_id)
            connection.close(Close.BAD_TOKEN, "token revoked")
            return 0
        ended, topics = connection.session.revoke_grants(revoked, TURN_ITEMS)
        self._unsubscribe(connection, topics, "subscription token revoked")
        return ended

    # ---- what a client says

    def received(self, connection: Connection, opcode: int, payload: bytes) -> None:
        """One message, decoded, judged and carried out."""
        self.received_bytes += len(payload)
        kind = "invalid"
        try:
            verdict = self.limits.count(connection, len(payload))
            if verdict is Outcome.ENOUGH:
                return
            if opcode != frames.TEXT:
                raise ProtocolError(Code.NOT_JSON, "Messages are text frames, not binary ones")
            if not payload.isascii():
                payload.decode()
            message = messages.decode(payload)
            kind = type(message).__name__.lower()
            if self.limits.allows(connection, message, verdict):
                self._handle(connection, message, effects.NO_FINDINGS)
        except ProtocolError as error:
            self._outbox.refuse(connection, error)
        except UnicodeDecodeError:
            connection.close(Close.NOT_UTF8, "text is not UTF-8")
        except Exception:
            self._outbox.fail(connection)
        finally:
            self._received(kind).inc()

    def counted(self, connection: Connection, size: int) -> bool:
        """A ping or pong counts as a message does; it is no question, so it is answered until it is enough."""
        return self.limits.count(connection, size) is not Outcome.ENOUGH

    def _handle(self, connection: Connection, message: messages.ClientMessage, findings: Findings) -> None:
        effect = connection.session.handle(message, connection.audiences, self._outbox.time(), findings)
        match effect:
            case effects.ChargeTopics(topics, request_id):
                if self.limits.charge(connection, topics, request_id):
                    self._handle(connection, message, replace(findings, topics_charged=True))
            case effects.AskBackend() | effects.RefreshKeys():
                self._errands.find_out(
                    connection, effect, findings, lambda more: self._again(connection, message, more)
                )
            case JudgeLater(verdicts):
                connection.hold("judge")
                more = replace(findings, verdicts=verdicts)
                asyncio.get_running_loop().call_soon(self._judge_on, connection, message, more)
            case _:
                self._carry_out(connection, effect)

    def _judge_on(self, connection: Connection, message: messages.ClientMessage, findings: Findings) -> None:
        # Held by another name, so that the message can be held again when it is handled.
        connection.hold("judged")
        self._again(connection, message, findings)
        connection.release("judged")

    def _again(self, connection: Connection, message: messages.ClientMessage, findings: Findings) -> None:
        """Handle a message again with the `findings` collected for it."""
        if connection.stage is Stage.OPEN:
            try:
                self._handle(connection, message, findings)
            except ProtocolError as error:
                self._outbox.refuse(connection, error)
            except Exception:
                self._outbox.fail(connection)

    def _carry_out(self, connection: Connection, effect: effects.FinalEffect) -> None:
        match effect:
            case effects.Reply(data):
                self._outbox.send(connection, data)
            case effects.SubscribeTopics(login=True):
                enter = partial(self._memberships.subscribe, connection, effect)
                self._take(connection, effect.removed, partial(self._admission.become, connection, enter))
            case effects.SubscribeTopics():
                self._memberships.subscribe(connection, effect)
            case effects.UnsubscribeTopics(topics, request_id):
                reply = replies.unsubscribed(topics, request_id, self._outbox.time())
                self._memberships.unsubscribe_all(connection, topics, reply)
            case effects.PublishMessage(publication, request_id):
                self._errands.publish(connection, publication, request_id)
            case effects.LoggedIn(data, removed):
                enter = partial(self._memberships.login, connection, data)
                self._take(connection, removed, partial(self._admission.become, connection, enter))
            case effects.ReplyStatus(request):
                self._outbox.send(connection, replies.answer(request, self._status(), self._outbox.time()))
            case effects.ReadTopic(request):
                self._errands.look_up(connection, request)
            case effects.FetchFromBackend():
                assert self._calls is not None  # the session was told so
                self._calls.fetch(connection, effect)
            case effects.ForwardCommand():
                assert self._calls is not None
                self._calls.forward(connection, effect)
            case effects.WriteLogs(entries, data):
                self.limits.report(connection, entries)
                self._outbox.send(connection, data)
            case effects.CloseConnection(code, reason):
                connection.close(code, reason)

    def receive_lines(self, body: bytes) -> bool:
        """Process messages for an event stream: its name, then one message per line. False: there is no such stream."""
        name, _, texts = body.partition(b"\n")
        stream = self.event_streams.find(name)
        if stream is not None:
            stream.receive_lines(texts)
        return stream is not None

    # ---- what the cluster says to one client, or of some

    def on_own(self, _channel: str, payload: bytes) -> None:
        """A message to one client of this node, or what one has said at another."""
        if payload.startswith(Bus.CHECK):  # the bus's own
            return
        if payload.startswith(SAID):
            self.receive_lines(payload.removeprefix(SAID))
            return
        envelope = self._relay.unpack(payload)
        connection = self._open.get(envelope.only or "") if envelope is not None else None
        if envelope is not None and connection is not None:
            self._metrics.relayed.labels("client").inc()
            self._outbox.send(connection, envelope.text)

    def obey(self, order: Disconnect | Unsubscribe) -> None:
        """Carry out an order on those of its clients that it is about."""
        parts: list[list[str]] = [[]]
        if isinstance(order, Unsubscribe):
            parts = [order.topics[at : at + TURN_ITEMS] for at in range(0, len(order.topics), TURN_ITEMS)]
        each_in_turns(itertools.product(self._selected(order.clients), parts), partial(self._obey, order))

    def _obey(self, order: Disconnect | Unsubscribe, about: tuple[Connection, list[str]]) -> int:
        connection, topics = about
        if connection.stage is not Stage.OPEN:
            return 0
        self._log.info("order", op=type(order).__name__.lower(), client=connection.client_id, reason=order.reason)
        if isinstance(order, Disconnect):
            connection.close(Close.DISCONNECTED, order.reason)
            return 0
        self._unsubscribe(connection, topics, order.reason)
        return len(topics) - 1

    def _selected(self, selector: ClientSelector) -> list[Connection]:
        if selector.client is not None:
            connection = self._open.get(selector.client)
            return [connection] if connection is not None else []
        assert selector.user is not None
        return [m for m in self._hub.members(hub.of_user(selector.user)) if isinstance(m, Connection)]

    def _take(self, connection: Connection, topics: Collection[str], then: Callable[[], None]) -> None:
        """Take the topics that the client's new identity may not have, tell the client, and go on with `then`."""
        heard = [topic for topic in topics if connection.audiences.has_topic(topic)]
        if heard:
            about = {"topics": heard, "reason": NOT_ANY_MORE}
            data = replies.system("unsubscribed", about, self._outbox.time())
            self._memberships.unsubscribe_all(connection, heard, data, then)
        else:
            then()

    def _unsubscribe(self, connection: Connection, topics: Collection[str], reason: str) -> None:
        if not topics:
            return
        heard = [topic for topic in topics if connection.audiences.has_topic(topic)]
        if heard:
            self._memberships.unsubscribe(connection, heard)
            self._outbox.send(
                connection, replies.system("unsubscribed", {"topics": heard, "reason": reason}, self._outbox.time())
            )

    # ---- messages that are lost, and presence

    def gap(self, topic: str) -> None:
        """Messages of this topic are lost to all who hear it here."""
        data = replies.gap([topic], self._outbox.time())
        for member in self._hub.members(hub.of_topic(topic)):
            assert isinstance(member, Connection)
            self._outbox.send(member, data)

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
        data = replies.presence(topic, about, self._outbox.time())
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
             "transport": connection.kind, "user": identity.user, "role": identity.role, "topics": topics}
        )  # fmt: skip

    def ids(self) -> list[str]:
        """Their ids, as they are now."""
        return list(self._open)
