"""The connections of this node: opens them, handles their messages, closes them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

import orjson

from gateway import __version__
from gateway.connections.admission import Admission
from gateway.connections.async_commands import AsyncCommands
from gateway.connections.backend_calls import BackendCalls
from gateway.connections.client_limits import ClientLimits
from gateway.connections.client_orders import ClientOrder, ClientOrders
from gateway.core import commands, effects, events, frames, hub, json_text, session, timestamps
from gateway.core.effects import Findings
from gateway.core.errors import CloseReason, ProtocolError
from gateway.core.hub import Hub
from gateway.core.identity import Identity, IsRevoked
from gateway.core.permissions import ContinueChecks
from gateway.core.presence_set import ClientChanges, Member
from gateway.core.rate_limits import RateOutcome
from gateway.core.session import Session, Verify
from gateway.delivery.sender import Sender
from gateway.delivery.slices import SLICE_ITEMS, each_in_slices
from gateway.delivery.subscriptions import Subscriptions
from gateway.logging import logger
from gateway.metrics import Metrics
from gateway.protocols.protocol import ClientProtocol
from gateway.settings import Settings
from gateway.transports.compression import Compressor
from gateway.transports.connection import ClientInfo, Connection, ConnectionStage
from gateway.transports.http_stream import HttpStreams

USER_AGENT_CHARACTERS: Final = 256
WARNING_SECONDS: Final = 30.0  # a client is warned this long before its token expires
NOT_ALLOWED_ANY_MORE: Final = "not allowed for the user that you are now"

_RFC_CODES: Final = frozenset({1000, 1001, 1002, 1005, 1006, 1007, 1009, 1011, 1012})  # RFC 6455, 7.4.1


class ConnectionManager:
    """Owner of every open `Connection`: executes the effects of sessions and control messages.

    `status` returns the answer to getStatus; `now_ms` gives the time in ms since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        node_id: str,
        *,
        rules: session.SessionRules,
        hub: Hub,
        sender: Sender,
        subscriptions: Subscriptions,
        async_commands: AsyncCommands,
        backend_calls: BackendCalls | None,
        admission: Admission,
        metrics: Metrics,
        status: Callable[[], dict[str, Any]],
        now_ms: Callable[[], int],
    ) -> None:
        self.max_message_bytes = settings.max_message_bytes
        self.client_buffer_bytes = settings.client_buffer_bytes
        self.received_bytes = 0
        self.deflater = Compressor()
        self.compress = self.deflater.deflate
        self._settings = settings
        self._node_id = node_id
        self._rules = rules
        self._hub = hub
        self._sender = sender
        self._subscriptions = subscriptions
        self._async_commands = async_commands
        self._backend_calls = backend_calls  # None: no back end
        self._admission = admission
        self._metrics = metrics
        self._received = cache(metrics.received.labels)  # by type: a dozen
        self._status = status
        self._now_ms = now_ms
        self.limits = ClientLimits(settings, rules.topics, sender, metrics)
        self.buffer_grew, self.fragment_received = self.limits.buffer_grew, self.limits.count_fragment
        self._limits_about: Mapping[str, json_text.Json] = {
            "messageBytes": settings.max_message_bytes, "topics": settings.max_client_topics,
            "messagesPerSecond": settings.client_messages_per_second,
            "subscriptionsPerSecond": settings.client_subscriptions_per_second,
        }  # fmt: skip
        self._log = logger()
        self.event_streams = HttpStreams()
        self._open: dict[str, Connection] = {}
        self._orders = ClientOrders(
            self.find, hub, subscriptions, self._unsubscribe, max_client_topics=rules.max_client_topics
        )
        self._counter = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open.values()))

    # ---- open and close

    def accept(
        self, connection: Connection, protocol: ClientProtocol, identity: Identity, ip: str, user_agent: str,
        verify: Verify | None = None,
    ) -> None:  # fmt: skip
        """Open a connection whose handshake was accepted; it receives the welcome once its channels are subscribed.

        `protocol`: what the client speaks; `verify`: replaces the usual check of tokens for this connection.
        """
        self._counter += 1
        client_id = f"{self._node_id}.{self._counter}"
        # Many clients have the same user agent; they share one string.
        info = ClientInfo(self._now_ms(), sys.intern(ip), sys.intern(user_agent[:USER_AGENT_CHARACTERS]))
        rules = self._rules if verify is None else replace(self._rules, verify=verify)
        connection.open(self, client_id, Session(rules, identity), info, protocol)
        self._open[client_id] = connection
        self._metrics.opens.inc()
        self._log.debug("client opened", client=client_id, ip=ip, user=identity.user)
        ping_ms = int(self._settings.ping_seconds * 1000)
        welcome = events.Welcome(client_id, self._settings.node, __version__, ping_ms, self._limits_about)
        self._subscriptions.accept(connection, welcome)
        if self._subscriptions.degraded:  # the other clients were notified before
            self._sender.send(connection, events.Degraded())

    def connection_closed(self, connection: Connection, code: int) -> None:
        """Remove a closed connection from the hub and the registry in the same turn."""
        del self._open[connection.client_id]
        self._subscriptions.remove(connection)
        self._admission.release(connection)
        self.limits.connection_closed(connection)
        known = code in _RFC_CODES or code in connection.protocol.close_codes.values()
        self._metrics.closes.labels(str(int(code)) if known else "other").inc()
        self._log.debug("client closed", client=connection.client_id, code=int(code))

    def check_timeouts(self, now: float) -> None:
        """Ping silent clients; close those without a pong, a late message or an expired token. `now`: loop time."""
        each_in_slices(list(self), partial(self._check_timeout, now, self._now_ms() / 1000))

    def _check_timeout(self, now: float, seconds: float, connection: Connection) -> int:
        if connection.stage is not ConnectionStage.OPEN:
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

        `now`: seconds since 1970. Returns the number of topics whose token expired; at `SLICE_ITEMS` there may be more.
        """
        client, expires = connection.session, connection.session.identity.expires
        if expires is not None and expires <= now:
            connection.disconnect(CloseReason.TOKEN_EXPIRED, "token expired")
            return 0
        if expires is not None and not client.warned:
            ends = expires - self._settings.jwt_leeway_seconds
            if ends - WARNING_SECONDS <= now:
                client.warned = True
                self._sender.send(connection, events.TokenExpiring(int(ends * 1000)))
        ended, topics = client.expire_grants(now, SLICE_ITEMS)
        self._unsubscribe(connection, topics, "subscription token expired")
        return ended

    def enforce_revocations(self, revoked: IsRevoked) -> None:
        """Close clients with a revoked token, and unsubscribe topics whose subscription token is revoked."""
        each_in_slices(list(self), partial(self._enforce_revocations, revoked))

    def _enforce_revocations(self, revoked: IsRevoked, connection: Connection) -> int:
        identity = connection.session.identity
        if revoked(identity.token_id, identity.user, identity.issued):
            self._log.info("token revoked", client=connection.client_id)
            connection.disconnect(CloseReason.BAD_TOKEN, "token revoked")
            return 0
        ended, topics = connection.session.revoke_grants(revoked, SLICE_ITEMS)
        self._unsubscribe(connection, topics, "subscription token revoked")
        return ended

    # ---- messages of a client

    def message_received(self, connection: Connection, opcode: int, payload: bytes) -> None:
        """Decode, check and handle one message."""
        self.received_bytes += len(payload)
        kind = "invalid"
        try:
            verdict = self.limits.count(connection, len(payload))
            if verdict is RateOutcome.DISCONNECT:
                return
            if opcode == frames.TEXT and not payload.isascii():
                payload.decode()
            command = connection.protocol.decode(opcode, payload)
            kind = command.kind
            if self.limits.allows(connection, command, verdict):
                self._handle(connection, command, effects.NO_FINDINGS)
        except ProtocolError as error:
            self._sender.send_error(connection, error)
        except UnicodeDecodeError:
            connection.disconnect(CloseReason.NOT_UTF8, "text is not UTF-8")
        except Exception:
            self._sender.send_internal_error(connection)
        finally:
            self._received(kind).inc()

    def command_received(self, connection: Connection, command: commands.Command) -> None:
        """Check and handle a command that is part of the request which opened the connection."""
        self._received(command.kind).inc()
        try:
            if self.limits.allows(connection, command, self.limits.count(connection, 0)):
                self._handle(connection, command, effects.NO_FINDINGS)
        except ProtocolError as error:
            self._sender.send_error(connection, error)
        except Exception:
            self._sender.send_internal_error(connection)

    def control_frame_received(self, connection: Connection, size: int) -> bool:
        """Count a ping or pong like a message. False: far over the limit, and the connection is closed."""
        return self.limits.count(connection, size) is not RateOutcome.DISCONNECT

    def _handle(self, connection: Connection, message: commands.Command, findings: Findings) -> None:
        effect = connection.session.handle(message, connection.audiences, findings)
        match effect:
            case effects.ChargeTopics(topics, request_id):
                if self.limits.charge(connection, topics, request_id):
                    self._handle(connection, message, replace(findings, topics_charged=True))
            case effects.AskBackend() | effects.RefreshKeys():
                self._async_commands.resolve(
                    connection, effect, findings, lambda more: self._handle_again(connection, message, more)
                )
            case ContinueChecks(verdicts):
                connection.hold("judge")
                more = replace(findings, verdicts=verdicts)
                asyncio.get_running_loop().call_soon(self._continue_checks, connection, message, more)
            case _:
                self._carry_out_effect(connection, effect)

    def _continue_checks(self, connection: Connection, message: commands.Command, findings: Findings) -> None:
        # A separate hold key, so that handling the message again can hold it under "judge" again.
        connection.hold("judged")
        self._handle_again(connection, message, findings)
        connection.release("judged")

    def _handle_again(self, connection: Connection, message: commands.Command, findings: Findings) -> None:
        """Handle a message again with the `findings` collected for it."""
        if connection.stage is ConnectionStage.OPEN:
            try:
                self._handle(connection, message, findings)
            except ProtocolError as error:
                self._sender.send_error(connection, error)
            except Exception:
                self._sender.send_internal_error(connection)

    def _carry_out_effect(self, connection: Connection, effect: effects.FinalEffect) -> None:
        match effect:
            case effects.SendReply(event):
                self._sender.send(connection, event)
            case effects.SubscribeTopics(login=True):
                enter = partial(self._subscriptions.subscribe, connection, effect)
                self._drop_topics(
                    connection, effect.removed, partial(self._admission.change_identity, connection, enter)
                )
            case effects.SubscribeTopics():
                self._subscriptions.subscribe(connection, effect)
            case effects.UnsubscribeTopics(topics, request_id):
                done = events.Unsubscribed(topics, request_id)
                self._subscriptions.unsubscribe_all(connection, topics, done)
            case effects.PublishMessage(publication, request_id):
                self._async_commands.publish_message(connection, publication, request_id)
            case effects.LoggedIn(removed):
                enter = partial(self._subscriptions.change_identity, connection)
                self._drop_topics(connection, removed, partial(self._admission.change_identity, connection, enter))
            case effects.SendStatus(request):
                self._sender.send(connection, events.Answer(request, self._status()))
            case effects.ReadTopic(request):
                self._async_commands.read_topic(connection, request)
            case effects.FetchFromBackend():
                assert self._backend_calls is not None  # the session knows that there is a back end
                self._backend_calls.fetch(connection, effect)
            case effects.ForwardCommand():
                assert self._backend_calls is not None
                self._backend_calls.forward(connection, effect)
            case effects.WriteLogs(entries):
                self.limits.log_browser_lines(connection, entries)
                self._sender.send(connection, events.LogsAccepted(len(entries)))
            case effects.CloseConnection(reason, text):
                connection.disconnect(reason, text)

    def post_received(self, body: bytes) -> bool:
        """Process messages for an event stream: its name, then one message per line. False: there is no such stream."""
        name, _, texts = body.partition(b"\n")
        stream = self.event_streams.find(name)
        if stream is not None:
            stream.post_received(texts)
        return stream is not None

    # ---- messages from the cluster

    def find(self, client_id: str) -> Connection | None:
        """The connection of a client; None: this node does not have it."""
        return self._open.get(client_id)

    def execute(self, order: ClientOrder) -> None:
        """Execute a control message on the clients of this node that it selects."""
        self._orders.execute(order)

    def _drop_topics(self, connection: Connection, topics: Collection[str], then: Callable[[], None]) -> None:
        """Unsubscribe topics that the new identity has no permission for, notify the client, then call `then`."""
        subscribed = [topic for topic in topics if connection.audiences.has_topic(topic)]
        if subscribed:
            ended = events.SubscriptionsEnded(subscribed, NOT_ALLOWED_ANY_MORE)
            self._subscriptions.unsubscribe_all(connection, subscribed, ended, then)
        else:
            then()

    def _unsubscribe(self, connection: Connection, topics: Collection[str], reason: str) -> None:
        if not topics:
            return
        subscribed = [topic for topic in topics if connection.audiences.has_topic(topic)]
        if subscribed:
            connection.session.forget_grants(subscribed)
            self._subscriptions.unsubscribe(connection, subscribed)
            self._sender.send(connection, events.SubscriptionsEnded(subscribed, reason))

    # ---- presence

    def topic_members(self, topic: str) -> list[Member]:
        """The clients of this node on the topic."""
        members = [m for m in self._hub.members(hub.topic_audience(topic)) if isinstance(m, Connection)]
        return [_member(member) for member in members]

    def topic_member(self, topic: str, client_id: str) -> Member | None:
        """One client of this node; None if it is not on the topic."""
        connection = self._open.get(client_id)
        if connection is None or hub.topic_audience(topic) not in connection.audiences:
            return None
        return _member(connection)

    def send_presence(self, topic: str, about: dict[str, Any]) -> None:
        """Send a PRESENCE message to the local subscribers of the topic."""
        self._hub.deliver(hub.topic_audience(topic), events.PresenceChanged(topic, about, self._now_ms()))

    def send_client_changes(self, topic: str, changes: ClientChanges) -> None:
        """Send the clients that joined and left to the local subscribers whose protocol shows them."""
        self._hub.deliver(hub.topic_audience(topic), events.ClientsChanged(topic, changes, self._now_ms()))

    # ---- rows of the registry

    def client_row(self, client_id: str) -> bytes | None:
        """The row of a client as JSON; None if it is gone."""
        connection = self._open.get(client_id)
        if connection is None:
            return None
        info, identity = connection.info, connection.session.identity
        topics = sorted(topic for topic in map(hub.topic_of, connection.audiences) if topic is not None)
        return orjson.dumps(
            {"connectedAt": timestamps.iso_time(info.connected_ms), "ip": info.ip, "userAgent": info.user_agent,
             "transport": connection.kind, "user": identity.user, "role": identity.role, "topics": topics}
        )  # fmt: skip

    def client_ids(self) -> list[str]:
        """The ids of all clients."""
        return list(self._open)


def _member(connection: Connection) -> Member:
    identity = connection.session.identity
    return Member(connection.client_id, identity.user, identity.info)
