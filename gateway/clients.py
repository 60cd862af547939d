"""The connections of this node: opens them, handles their messages, closes them."""

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
from gateway.core import commands, effects, events, frames, hub, json_text, session, timestamps
from gateway.core.deflate import Deflater
from gateway.core.effects import Findings
from gateway.core.errors import CloseReason, ProtocolError
from gateway.core.hub import Hub
from gateway.core.identity import Identity, IsRevoked
from gateway.core.orders import ClientSelector, Disconnect, Unsubscribe
from gateway.core.permits import JudgeLater
from gateway.core.rates import Outcome
from gateway.core.roster import Attendee
from gateway.core.session import Session, Verify
from gateway.errands import Errands
from gateway.limits import Limits
from gateway.logs import logger
from gateway.memberships import Memberships
from gateway.metrics import Metrics
from gateway.outages import Outages
from gateway.outbox import Outbox
from gateway.protocols.protocol import ClientProtocol
from gateway.relay import FORWARDED, Relay
from gateway.settings import Settings
from gateway.transport.connection import Connection, Facts, Stage
from gateway.transport.eventstream import EventStreams
from gateway.turns import TURN_ITEMS, each_in_turns

USER_AGENT_CHARACTERS: Final = 256
WARNING_SECONDS: Final = 30.0  # a client is warned this long before its token expires
NOT_ANY_MORE: Final = "not allowed for the user that you are now"

_RFC_CODES: Final = frozenset({1000, 1001, 1002, 1005, 1006, 1007, 1009, 1011, 1012})  # RFC 6455, 7.4.1


class Clients:
    """Owner of every open `Connection`: executes the effects of sessions and control messages.

    `status` returns the answer to getStatus; `now_ms` gives the time in ms since 1970.
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
        self._calls = calls  # None: no back end
        self._admission = admission
        self._metrics = metrics
        self._received = cache(metrics.received.labels)  # by type: a dozen
        self._status = status
        self._now_ms = now_ms
        self.limits = Limits(settings, rules.topics, outbox, metrics)
        self.grew, self.counted_part = self.limits.grew, self.limits.count_part
        self._limits_about: Mapping[str, json_text.Json] = {
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

    # ---- open and close

    def admit(
        self, connection: Connection, protocol: ClientProtocol, identity: Identity, ip: str, user_agent: str,
        verify: Verify | None = None,
    ) -> None:  # fmt: skip
        """Open a connection whose handshake was accepted; it receives the welcome once its channels are subscribed.

        `protocol`: what the client speaks; `verify`: replaces the usual check of tokens for this connection.
        """
        self._counter += 1
        client_id = f"{self._node_id}.{self._counter}"
        # Many clients have the same user agent; they share one string.
        facts = Facts(self._now_ms(), sys.intern(ip), sys.intern(user_agent[:USER_AGENT_CHARACTERS]))
        rules = self._rules if verify is None else replace(self._rules, verify=verify)
        connection.open(self, client_id, Session(rules, identity), facts, protocol)
        self._open[client_id] = connection
        self._metrics.opens.inc()
        self._log.debug("client opened", client=client_id, ip=ip, user=identity.user)
        ping_ms = int(self._settings.ping_seconds * 1000)
        welcome = events.Welcome(client_id, self._settings.node, __version__, ping_ms, self._limits_about)
        self._memberships.admit(connection, welcome)
        if self._memberships.degraded:  # the other clients were notified before
            self._outbox.send(connection, events.Degraded())

    def closed(self, connection: Connection, code: int) -> None:
        """Remove a closed connection from the hub and the registry in the same turn."""
        del self._open[connection.client_id]
        self._memberships.remove(connection)
        self._admission.leave(connection)
        self.limits.forget(connection)
        known = code in _RFC_CODES or code in connection.protocol.close_codes.values()
        self._metrics.closes.labels(str(int(code)) if known else "other").inc()
        self._log.debug("client closed", client=connection.client_id, code=int(code))

    def sweep(self, now: float) -> None:
        """Ping silent clients; close those without a pong, a late message or an expired token. `now`: loop time."""
        each_in_turns(list(self), partial(self._sweep, now, self._now_ms() / 1000))

    def _sweep(self, now: float, seconds: float, connection: Connection) -> int:
        if connection.stage is not Stage.OPEN:
            return 0
        if connection.pinged:
            if connection.is_silent(self._settings.ping_seconds + self._settings.pong_seconds, now):
                connection.disconnect(CloseReason.NO_PONG, "no pong")
        elif connection.is_silent(self._settings.ping_seconds, now):
            connection.ping()
        ended = self._watch_tokens(connection, seconds)
        if connection.is_late(now):
            self._metrics.limited.labels("message_seconds").inc()
            connection.disconnect(CloseReason.BAD_USE, "message not complete in time")
        return ended

    def _watch_tokens(self, connection: Connection, now: float) -> int:
        """Warn a client whose token expires soon, close it once expired; the same for subscription tokens.

        `now`: seconds since 1970. Returns the number of topics whose token expired; at `TURN_ITEMS` there may be more.
        """
        client, expires = connection.session, connection.session.identity.expires
        if expires is not None and expires <= now:
            connection.disconnect(CloseReason.TOKEN_EXPIRED, "token expired")
            return 0
        if expires is not None and not client.warned:
            ends = expires - self._settings.jwt_leeway_seconds
            if ends - WARNING_SECONDS <= now:
                client.warned = True
                self._outbox.send(connection, events.TokenExpiring(int(ends * 1000)))
        ended, topics = client.expire_grants(now, TURN_ITEMS)
        self._unsubscribe(connection, topics, "subscription token expired")
        return ended

    def enforce(self, revoked: IsRevoked) -> None:
        """Close clients with a revoked token, and unsubscribe topics whose subscription token is revoked."""
        each_in_turns(list(self), partial(self._enforce, revoked))

    def _enforce(self, revoked: IsRevoked, connection: Connection) -> int:
        identity = connection.session.identity
        if revoked(identity.token_id, identity.user, identity.issued):
            self._log.info("token revoked", client=connection.client_id)
            connection.disconnect(CloseReason.BAD_TOKEN, "token revoked")
            return 0
        ended, topics = connection.session.revoke_grants(revoked, TURN_ITEMS)
        self._unsubscribe(connection, topics, "subscription token revoked")
        return ended

    # ---- messages of a client

    def received(self, connection: Connection, opcode: int, payload: bytes) -> None:
        """Decode, check and handle one message."""
        self.received_bytes += len(payload)
        kind = "invalid"
        try:
            verdict = self.limits.count(connection, len(payload))
            if verdict is Outcome.ENOUGH:
                return
            if opcode == frames.TEXT and not payload.isascii():
                payload.decode()
            command = connection.protocol.decode(opcode, payload)
            kind = command.kind
            if self.limits.allows(connection, command, verdict):
                self._handle(connection, command, effects.NO_FINDINGS)
        except ProtocolError as error:
            self._outbox.refuse(connection, error)
        except UnicodeDecodeError:
            connection.disconnect(CloseReason.NOT_UTF8, "text is not UTF-8")
        except Exception:
            self._outbox.fail(connection)
        finally:
            self._received(kind).inc()

    def command_received(self, connection: Connection, command: commands.Command) -> None:
        """Check and handle a command that is part of the request which opened the connection."""
        self._received(command.kind).inc()
        try:
            if self.limits.allows(connection, command, self.limits.count(connection, 0)):
                self._handle(connection, command, effects.NO_FINDINGS)
        except ProtocolError as error:
            self._outbox.refuse(connection, error)
        except Exception:
            self._outbox.fail(connection)

    def counted(self, connection: Connection, size: int) -> bool:
        """Count a ping or pong like a message. False: far over the limit, and the connection is closed."""
        return self.limits.count(connection, size) is not Outcome.ENOUGH

    def _handle(self, connection: Connection, message: commands.Command, findings: Findings) -> None:
        effect = connection.session.handle(message, connection.audiences, findings)
        match effect:
            case effects.ChargeTopics(topics, request_id):
                if self.limits.charge(connection, topics, request_id):
                    self._handle(connection, message, replace(findings, topics_charged=True))
            case effects.AskBackend() | effects.RefreshKeys():
                self._errands.find_out(
                    connection, effect, findings, lambda more: self._handle_again(connection, message, more)
                )
            case JudgeLater(verdicts):
                connection.hold("judge")
                more = replace(findings, verdicts=verdicts)
                asyncio.get_running_loop().call_soon(self._judge_on, connection, message, more)
            case _:
                self._carry_out(connection, effect)

    def _judge_on(self, connection: Connection, message: commands.Command, findings: Findings) -> None:
        # A separate hold key, so that handling the message again can hold it under "judge" again.
        connection.hold("judged")
        self._handle_again(connection, message, findings)
        connection.release("judged")

    def _handle_again(self, connection: Connection, message: commands.Command, findings: Findings) -> None:
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
            case effects.Reply(event):
                self._outbox.send(connection, event)
            case effects.SubscribeTopics(login=True):
                enter = partial(self._memberships.subscribe, connection, effect)
                self._drop_topics(connection, effect.removed, partial(self._admission.become, connection, enter))
            case effects.SubscribeTopics():
                self._memberships.subscribe(connection, effect)
            case effects.UnsubscribeTopics(topics, request_id):
                done = events.Unsubscribed(topics, request_id)
                self._memberships.unsubscribe_all(connection, topics, done)
            case effects.PublishMessage(publication, request_id):
                self._errands.publish(connection, publication, request_id)
            case effects.LoggedIn(removed):
                enter = partial(self._memberships.login, connection)
                self._drop_topics(connection, removed, partial(self._admission.become, connection, enter))
            case effects.ReplyStatus(request):
                self._outbox.send(connection, events.Answer(request, self._status()))
            case effects.ReadTopic(request):
                self._errands.look_up(connection, request)
            case effects.FetchFromBackend():
                assert self._calls is not None  # the session knows that there is a back end
                self._calls.fetch(connection, effect)
            case effects.ForwardCommand():
                assert self._calls is not None
                self._calls.forward(connection, effect)
            case effects.WriteLogs(entries):
                self.limits.report(connection, entries)
                self._outbox.send(connection, events.LogsAccepted(len(entries)))
            case effects.CloseConnection(reason, text):
                connection.disconnect(reason, text)

    def receive_lines(self, body: bytes) -> bool:
        """Process messages for an event stream: its name, then one message per line. False: there is no such stream."""
        name, _, texts = body.partition(b"\n")
        stream = self.event_streams.find(name)
        if stream is not None:
            stream.receive_lines(texts)
        return stream is not None

    # ---- messages from the cluster

    def on_node_channel(self, _channel: str, payload: bytes) -> None:
        """Handle a message on this node's own channel: to one of its clients, or forwarded from another node."""
        if payload.startswith(Bus.CHECK):  # self-check of the bus
            return
        if payload.startswith(FORWARDED):
            self.receive_lines(payload.removeprefix(FORWARDED))
            return
        envelope = self._relay.unpack(payload)
        connection = self._open.get(envelope.only or "") if envelope is not None else None
        if envelope is not None and connection is not None:
            self._metrics.relayed.labels("client").inc()
            event = events.Delivered(envelope.body)
            self._outbox.send_all(connection, [event.frame(connection.protocol)])

    def execute(self, order: Disconnect | Unsubscribe) -> None:
        """Execute a control message on the clients of this node that it selects."""
        parts: list[list[str]] = [[]]
        if isinstance(order, Unsubscribe):
            parts = [order.topics[at : at + TURN_ITEMS] for at in range(0, len(order.topics), TURN_ITEMS)]
        each_in_turns(itertools.product(self._selected(order.clients), parts), partial(self._execute, order))

    def _execute(self, order: Disconnect | Unsubscribe, about: tuple[Connection, list[str]]) -> int:
        connection, topics = about
        if connection.stage is not Stage.OPEN:
            return 0
        op = type(order).__name__.lower()
        self._log.info("control message executed", op=op, client=connection.client_id, reason=order.reason)
        if isinstance(order, Disconnect):
            connection.disconnect(CloseReason.DISCONNECTED, order.reason)
            return 0
        self._unsubscribe(connection, topics, order.reason)
        return len(topics) - 1

    def _selected(self, selector: ClientSelector) -> list[Connection]:
        if selector.client is not None:
            connection = self._open.get(selector.client)
            return [connection] if connection is not None else []
        assert selector.user is not None
        return [m for m in self._hub.members(hub.of_user(selector.user)) if isinstance(m, Connection)]

    def _drop_topics(self, connection: Connection, topics: Collection[str], then: Callable[[], None]) -> None:
        """Unsubscribe topics that the new identity has no permission for, notify the client, then call `then`."""
        subscribed = [topic for topic in topics if connection.audiences.has_topic(topic)]
        if subscribed:
            ended = events.SubscriptionsEnded(subscribed, NOT_ANY_MORE)
            self._memberships.unsubscribe_all(connection, subscribed, ended, then)
        else:
            then()

    def _unsubscribe(self, connection: Connection, topics: Collection[str], reason: str) -> None:
        if not topics:
            return
        subscribed = [topic for topic in topics if connection.audiences.has_topic(topic)]
        if subscribed:
            self._memberships.unsubscribe(connection, subscribed)
            self._outbox.send(connection, events.SubscriptionsEnded(subscribed, reason))

    # ---- gaps and presence

    def gap(self, topic: str) -> None:
        """Send a gap to all local subscribers of the topic."""
        event = events.Gap([topic])
        for member in self._hub.members(hub.of_topic(topic)):
            assert isinstance(member, Connection)
            self._outbox.send(member, event)

    def attendees(self, topic: str) -> list[Attendee]:
        """The clients of this node on the topic."""
        members = [m for m in self._hub.members(hub.of_topic(topic)) if isinstance(m, Connection)]
        return [Attendee(member.client_id, member.session.identity.user) for member in members]

    def attendee(self, topic: str, client_id: str) -> Attendee | None:
        """One client of this node; None if it is not on the topic."""
        connection = self._open.get(client_id)
        if connection is None or hub.of_topic(topic) not in connection.audiences:
            return None
        return Attendee(client_id, connection.session.identity.user)

    def channel(self, topic: str) -> str:
        """The topic's channel."""
        return self._relay.channel(topic)

    def show(self, topic: str, about: dict[str, Any]) -> None:
        """Send a PRESENCE message to the local subscribers of the topic."""
        self._hub.deliver(hub.of_topic(topic), events.PresenceChanged(topic, about, self._now_ms()))

    # ---- rows of the registry

    def row(self, client_id: str) -> bytes | None:
        """The row of a client as JSON; None if it is gone."""
        connection = self._open.get(client_id)
        if connection is None:
            return None
        facts, identity = connection.facts, connection.session.identity
        topics = sorted(topic for topic in map(hub.topic_of, connection.audiences) if topic is not None)
        return orjson.dumps(
            {"connectedAt": timestamps.iso_time(facts.connected_ms), "ip": facts.ip, "userAgent": facts.user_agent,
             "transport": connection.kind, "user": identity.user, "role": identity.role, "topics": topics}
        )  # fmt: skip

    def ids(self) -> list[str]:
        """The ids of all clients."""
        return list(self._open)
