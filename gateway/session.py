"""One client's rules: what each message may do, given who sent it.  (pure)

`Session.handle` takes a decoded message and gives back what is to be done, as one of the effects below;
the node does it. A refusal is a `ProtocolError` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from gateway import protocol, replies, topics
from gateway.auth import ANONYMOUS, AuthError, Identity
from gateway.hub import topic_of
from gateway.protocol import Close, Code, ProtocolError
from gateway.topics import Need


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this; nothing else to do."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Login:
    """The client is now `Session.identity`: move it between users' and roles' audiences, then reply."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Join:
    """Let it hear these topics and acknowledge once the cluster has confirmed."""

    topics: tuple[str, ...]
    request_id: protocol.RequestId
    login: bool  # the frame carried a token: `Session.identity` has changed too
    recover: Mapping[str, protocol.Position] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leave:
    """Let it hear these no more, and acknowledge."""

    topics: tuple[str, ...]
    request_id: protocol.RequestId


@dataclass(frozen=True, slots=True)
class Say:
    """Publish this and acknowledge once Redis has it."""

    publication: protocol.Publication
    request_id: protocol.RequestId


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with the node's status."""

    request: protocol.Request


@dataclass(frozen=True, slots=True)
class Lookup:
    """Answer with the topic's history or the people on it, as `request.action` says."""

    request: protocol.Request


@dataclass(frozen=True, slots=True)
class Report:
    """Write the browser's log lines to our log, then reply."""

    entries: tuple[Mapping[str, protocol.Json], ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Quit:
    """End the connection."""

    code: Close
    reason: str


Effect: TypeAlias = Reply | Login | Join | Leave | Say | Status | Lookup | Report | Quit


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every session of a node; `verify` raises `AuthError` for a bad token."""

    verify: Callable[[str | None], Identity]
    topics: topics.TopicRules
    max_client_topics: int
    open: bool = False


class Session:
    """Who the client is, and from that what it may do."""

    __slots__ = ("_rules", "identity")

    def __init__(self, rules: Rules, identity: Identity = ANONYMOUS) -> None:
        self._rules = rules
        self.identity = identity

    def handle(self, message: protocol.ClientMessage, heard: Collection[str], now: str) -> Effect:
        """What `message` is to cause. `heard`: the audiences it is in already; `now`: ISO 8601.

        Raises:
            ProtocolError: It may not; nothing has changed.
        """
        match message:
            case protocol.Ping(timestamp):
                return Reply(replies.pong(timestamp))
            case protocol.Subscribe():
                return self._subscribe(message, heard)
            case protocol.Unsubscribe(names, request_id):
                return Leave(names, request_id)
            case protocol.Publish(publication, request_id):
                self._demand(self._rules.topics.of(publication.topic).publish, publication.topic, request_id)
                return Say(publication, request_id)
            case protocol.Auth(token):
                return self._authenticate(token, now)
            case protocol.Request():
                return self._request(message, now)
            case protocol.Logs(entries):
                return Report(entries, replies.logged(len(entries), now))
            case protocol.Command():
                raise self._command(message)

    def _authenticate(self, token: str | None, now: str) -> Effect:
        try:
            self.identity = self._rules.verify(token)
        except AuthError as error:
            raise ProtocolError(Code.TOKEN, str(error), reason=error.reason) from None
        return Login(replies.authenticated(now))

    def _subscribe(self, message: protocol.Subscribe, heard: Collection[str]) -> Effect:
        identity = self.identity
        if message.token is not None:
            try:
                identity = self._rules.verify(message.token)
            except AuthError as error:
                raise ProtocolError(Code.BAD_TOKEN_IN_SUBSCRIBE, str(error), message.request_id, error.reason) from None
        for topic in message.topics:  # all or nothing
            self._demand(self._rules.topics.of(topic).subscribe, topic, message.request_id, identity)
        limit = self._rules.max_client_topics
        if len(heard) + len(message.topics) > limit and len(_together(heard, message.topics)) > limit:
            return Quit(Close.TOO_MANY_TOPICS, f"more than {limit} topics")
        self.identity = identity
        return Join(message.topics, message.request_id, message.token is not None, message.recover)

    def _request(self, message: protocol.Request, now: str) -> Effect:
        rule = self._rules.topics.of(message.topic)
        if (message.action == "history" and rule.history) or (message.action == "presence" and rule.presence):
            self._demand(rule.subscribe, message.topic, message.request_id)
            return Lookup(message)
        if message.topic != topics.SYSTEM:
            raise ProtocolError(
                Code.UNKNOWN_TOPIC, f"No requests are answered on topic {message.topic}", message.request_id
            )
        if message.action == "ping":
            return Reply(replies.request_pong(message, now))
        if message.action == "getStatus":
            return Status(message)
        raise ProtocolError(Code.UNKNOWN_ACTION, f"Unknown action {message.action}", message.request_id)

    def _command(self, message: protocol.Command) -> ProtocolError:
        if self.identity.user is None and not self._rules.open:
            return ProtocolError(
                Code.COMMAND_WITHOUT_AUTHENTICATION, "COMMAND needs authentication", message.request_id
            )
        if message.topic is None or message.action is None:
            return ProtocolError(
                Code.COMMAND_WITHOUT_TOPIC_OR_ACTION, "COMMAND needs a topic and an action", message.request_id
            )
        return ProtocolError(Code.NOT_IMPLEMENTED, f"No back end carries out {message.action}", message.request_id)

    def _demand(self, need: Need, topic: str, request_id: protocol.RequestId, identity: Identity | None = None) -> None:
        identity = identity or self.identity
        if need is Need.NOBODY:
            raise ProtocolError(Code.NOT_ALLOWED, f"No client may do that on {topic}", request_id)
        if need is Need.ANYONE or self._rules.open:
            return
        if identity.user is None:
            raise ProtocolError(Code.AUTHENTICATION_NEEDED, f"Authentication required for topic {topic}", request_id)
        if need is Need.ADMIN and not identity.is_admin:
            raise ProtocolError(Code.ROLE_NEEDED, f"Topic {topic} needs the admin role", request_id)


def _together(heard: Collection[str], names: Collection[str]) -> set[str]:
    """The topics a client would hear, having subscribed to `names`."""
    return {topic for topic in map(topic_of, heard) if topic is not None}.union(names)
