"""One client's rules: what each message may do, given who sent it.  (pure)

`Session.handle` takes a decoded message and gives back what is to be done, as one of the effects below;
the node does it. A refusal is a `ProtocolError` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gateway.core import messages, replies, targets, topics
from gateway.core.hub import Audiences, topics_of
from gateway.core.identity import ANONYMOUS, AuthError, Grant, Identity, IsRevoked, UnknownKey
from gateway.core.permits import Judge, Verdict, judge, refusal, weigh
from gateway.core.position import Position
from gateway.core.protocol import Close, Code, Json, ProtocolError, RequestId
from gateway.core.publication import Publication
from gateway.core.topics import TOKEN_ACTS, Act

MAX_COMPARISONS: Final = 20_000  # of topics with the patterns of tokens, in one SUBSCRIBE: 5 ms


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this; nothing else to do."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Login:
    """The client is now `Session.identity`: move it between users' and roles' audiences, then reply."""

    data: bytes
    taken: tuple[str, ...] = ()  # what it heard, and may not as who it is now


@dataclass(frozen=True, slots=True)
class Join:
    """Let it hear these topics and acknowledge once the cluster has confirmed."""

    topics: tuple[str, ...]
    request_id: RequestId
    login: bool  # the frame carried a token: `Session.identity` has changed too
    recover: Mapping[str, Position] = field(default_factory=dict)
    taken: tuple[str, ...] = ()  # as of `Login`


@dataclass(frozen=True, slots=True)
class Leave:
    """Let it hear these no more, and acknowledge."""

    topics: tuple[str, ...]
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Say:
    """Publish this and acknowledge once Redis has it."""

    publication: Publication
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with the node's status."""

    request: messages.Request


@dataclass(frozen=True, slots=True)
class Lookup:
    """Answer with the topic's history or the people on it, as `request.action` says."""

    request: messages.Request


@dataclass(frozen=True, slots=True)
class Fetch:
    """Answer with what the back end has at `target`; an answer serves for so long, unless it says something else."""

    request: messages.Request
    target: str
    seconds: float
    stale_seconds: float


@dataclass(frozen=True, slots=True)
class Forward:
    """Have the back end carry it out for `identity`, and acknowledge with its answer."""

    command: messages.Command
    identity: Identity


@dataclass(frozen=True, slots=True)
class Report:
    """Write the browser's log lines to our log, then reply."""

    entries: tuple[Mapping[str, Json], ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Have the back end say on which of these topics `who` may `act`; then handle the message again."""

    act: Act
    topics: tuple[str, ...]
    who: Identity


@dataclass(frozen=True, slots=True)
class Refresh:
    """Have the key server asked for the key `kid`; then handle the message again."""

    kid: str = ""


@dataclass(frozen=True, slots=True)
class Charge:
    """Count so many `topics`, as a SUBSCRIBE of them would be: each must be judged again. Then handle the message."""

    topics: int
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Quit:
    """End the connection."""

    code: Close
    reason: str


Settled: TypeAlias = Reply | Login | Join | Leave | Say | Status | Lookup | Fetch | Forward | Report | Quit
Effect: TypeAlias = Settled | Ask | Refresh | Charge | Judge


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out since a message came, for handling it again."""

    refreshed: bool = False  # the key server was asked, or could not be
    charged: bool = False  # that the topics of the client are judged again was counted
    keys_away: bool = False  # it could not be
    said: Mapping[str, Verdict] = field(default_factory=dict)  # by the back end, of each topic it was asked about
    judged: Mapping[str, Verdict] = field(default_factory=dict)  # by the rules, of the topics judged so far


NOTHING: Final = Found()
Verify: TypeAlias = Callable[[str | None], Identity]


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every session of a node; both verifiers raise `AuthError` for a bad token."""

    verify: Verify
    verify_grant: Callable[[str], Grant]
    topics: topics.TopicRules
    max_client_topics: int
    open: bool = False
    backend: bool = False  # there is one


class Session:
    """Who the client is, and from that what it may do."""

    __slots__ = ("_grants", "_rules", "identity", "warned")

    def __init__(self, rules: Rules, identity: Identity = ANONYMOUS) -> None:
        self._rules = rules
        self._grants: dict[str, Grant] | None = None  # what it hears by subscription tokens; most have none
        self.identity = identity
        self.warned = False  # it was told that its token ends soon

    def handle(self, message: messages.ClientMessage, heard: Audiences, now: str, found: Found = NOTHING) -> Effect:
        """What `message` is to cause. `heard`: the audiences it is in already; `now`: ISO 8601.

        After `Ask`, `Refresh`, `Charge` and `Judge`, and only then, nothing has changed yet: the same message is to be
        handled again, with all that was `found` for it.

        Raises:
            ProtocolError: It may not; nothing has changed.
        """
        try:
            return self._handle(message, heard, now, found)
        except _Needed as needed:
            return needed.effect

    def expire_grants(self, now: float) -> list[str]:
        """The topics it may hear no more: their subscription tokens have ended by `now`, seconds since 1970."""
        return self._without(lambda grant: grant.expires <= now)

    def revoke_grants(self, revoked: IsRevoked) -> list[str]:
        """The same, because their subscription tokens are `revoked`."""
        return self._without(lambda grant: revoked(grant.token_id, grant.user, grant.issued))

    def _without(self, is_void: Callable[[Grant], bool]) -> list[str]:
        if not self._grants:  # nearly nobody has any, and all are asked every second
            return []
        void = [topic for topic, grant in self._grants.items() if is_void(grant)]
        self._forget(void)
        return [
            topic
            for topic in void
            if self._weigh("subscribe", topic, self.identity, (), NOTHING) is not Verdict.ALLOWED
        ]

    def _forget(self, names: Iterable[str]) -> None:
        if self._grants is not None:
            for name in names:
                self._grants.pop(name, None)

    def _handle(self, message: messages.ClientMessage, heard: Audiences, now: str, found: Found) -> Effect:
        match message:
            case messages.Ping(timestamp):
                return Reply(replies.pong(timestamp))
            case messages.Subscribe():
                return self._subscribe(message, heard, found)
            case messages.Unsubscribe(names, request_id):
                self._forget(names)
                return Leave(names, request_id)
            case messages.Publish(publication, request_id):
                self._demand("publish", publication.topic, request_id, found)
                return Say(publication, request_id)
            case messages.Auth(token):
                return self._authenticate(token, heard, now, found)
            case messages.Request():
                return self._request(message, now, found)
            case messages.Logs(entries):
                return Report(entries, replies.logged(len(entries), now))
            case messages.Command():
                return self._command(message, found)

    # ---- who it is

    def _authenticate(self, token: str | None, heard: Audiences, now: str, found: Found) -> Effect:
        try:
            identity = self._rules.verify(token)
        except AuthError as error:
            raise self._unproved(error, Code.TOKEN, None, found) from None
        taken = self._beyond(identity, heard, (), None, found)
        self._become(identity, taken)
        return Login(replies.authenticated(now), taken)

    def _become(self, identity: Identity, taken: Collection[str]) -> None:
        self.identity = identity
        self.warned = False
        self._forget(taken)

    def _beyond(
        self, identity: Identity, heard: Audiences, but: Collection[str], request_id: RequestId, found: Found
    ) -> tuple[str, ...]:
        """Which of the topics it hears, `but` these, `identity` may not. Whoever it was, and is, may what it could."""
        if identity.is_same_person(self.identity) or not heard.topics:
            return ()
        if not found.charged:
            raise _Needed(Charge(heard.topics, request_id))
        names = topics_of(heard).difference(but)
        verdicts = self._judge(names, identity, self._held, found)
        asked = sorted(name for name, verdict in verdicts if verdict is Verdict.ASK)
        if asked:
            raise _Needed(Ask("subscribe", tuple(asked), identity))
        return tuple(sorted(name for name, verdict in verdicts if verdict is not Verdict.ALLOWED))

    def _judge(
        self, names: Collection[str], identity: Identity, held: Callable[[str], Sequence[Grant]], found: Found
    ) -> list[tuple[str, Verdict]]:
        """Each of `names` with the verdict whether `identity` may subscribe; `held`: the grants that count."""
        verdicts = judge(
            names, found.judged, found.said, lambda name: self._weigh("subscribe", name, identity, held(name), found)
        )
        if isinstance(verdicts, Judge):
            raise _Needed(verdicts)
        return verdicts

    @staticmethod
    def _unproved(error: AuthError, code: Code, request_id: RequestId, found: Found) -> Exception:
        if isinstance(error, UnknownKey) and not found.refreshed:
            return _Needed(Refresh(error.kid))
        if isinstance(error, UnknownKey) and found.keys_away:
            message = "The key server cannot be asked for the token's key; try again"
            return ProtocolError(Code.UNAVAILABLE, message, request_id)
        return ProtocolError(code, str(error), request_id, error.reason)

    # ---- what it may

    def _subscribe(self, message: messages.Subscribe, heard: Audiences, found: Found) -> Effect:
        identity, request_id = self.identity, message.request_id
        try:
            if message.token is not None:
                identity = self._rules.verify(message.token)
            grants = [self._rules.verify_grant(token) for token in message.tokens]
        except AuthError as error:
            raise self._unproved(error, Code.BAD_TOKEN_IN_SUBSCRIBE, request_id, found) from None
        if len(message.topics) * sum(grant.wildcards for grant in grants) > MAX_COMPARISONS:
            raise ProtocolError(
                Code.DATA_REFUSED,
                f"SUBSCRIBE has too many topics for the patterns of its tokens: each is compared with each, "
                f"{MAX_COMPARISONS} times at most; send it in parts",
                request_id,
            )
        used = self._demand_all(message.topics, request_id, identity, grants, found)  # all or nothing
        taken = self._beyond(identity, heard, message.topics, request_id, found)
        limit = self._rules.max_client_topics
        most = heard.topics + len(message.topics)  # if it has none of them yet
        if most > limit and most - sum(map(heard.has_topic, message.topics)) > limit:
            return Quit(Close.TOO_MANY_TOPICS, f"more than {limit} topics")
        if message.token is not None:
            self._become(identity, taken)
        if used:
            self._grants = {**(self._grants or {}), **used}
        return Join(message.topics, request_id, message.token is not None, message.recover, taken)

    def _demand_all(
        self, names: Collection[str], request_id: RequestId, identity: Identity, grants: Sequence[Grant],
        found: Found,
    ) -> dict[str, Grant]:  # fmt: skip
        """See that it may hear them all; the new grants by which it may hear some."""
        asked, used = [], {}
        for name, verdict in self._judge(names, identity, lambda _name: (), found):
            if verdict is Verdict.ALLOWED:
                continue
            covering = [grant for grant in (*grants, *self._held(name)) if grant.covers(name, identity)]
            if covering and verdict is not Verdict.NOBODY:
                used[name] = max(covering, key=lambda grant: grant.expires)
            elif verdict is Verdict.ASK:
                asked.append(name)
            else:
                raise refusal(verdict, name, request_id)
        if asked:
            raise _Needed(Ask("subscribe", tuple(asked), identity))
        return used

    def _held(self, name: str) -> tuple[Grant, ...]:
        """The grant by which it hears the topic, if it does by one."""
        grant = (self._grants or {}).get(name)
        return () if grant is None else (grant,)

    def _request(self, message: messages.Request, now: str, found: Found) -> Effect:
        rule = self._rules.topics.of(message.topic)
        if (message.action == "history" and rule.history) or (message.action == "presence" and rule.presence):
            self._demand("request", message.topic, message.request_id, found)
            return Lookup(message)
        if rule.source and message.topic != topics.SYSTEM:
            self._demand("request", message.topic, message.request_id, found)
            if not self._rules.backend:
                raise ProtocolError(
                    Code.NOT_IMPLEMENTED, f"No back end answers requests on topic {message.topic}", message.request_id
                )
            target = targets.target_of(rule, message, self.identity.user)
            return Fetch(message, target, rule.source_seconds, rule.source_stale_seconds)
        if message.topic != topics.SYSTEM:
            raise ProtocolError(
                Code.UNKNOWN_TOPIC, f"No requests are answered on topic {message.topic}", message.request_id
            )
        self._demand("request", message.topic, message.request_id, found)
        if message.action == "ping":
            return Reply(replies.request_pong(message, now))
        if message.action == "getStatus":
            return Status(message)
        raise ProtocolError(Code.UNKNOWN_ACTION, f"Unknown action {message.action}", message.request_id)

    def _command(self, message: messages.Command, found: Found) -> Effect:
        anonymous = self.identity.user is None and not self._rules.open
        if message.topic is None or message.action is None:
            code = Code.COMMAND_WITHOUT_AUTHENTICATION if anonymous else Code.COMMAND_WITHOUT_TOPIC_OR_ACTION
            what = "authentication" if anonymous else f"a topic of {topics.NAME_FORM}, and an action"
            raise ProtocolError(code, f"COMMAND needs {what}", message.request_id)
        self._demand("command", message.topic, message.request_id, found)
        if not self._rules.backend:
            raise ProtocolError(Code.NOT_IMPLEMENTED, f"No back end carries out {message.action}", message.request_id)
        return Forward(message, self.identity)

    def _demand(self, act: Act, topic: str, request_id: RequestId, found: Found) -> None:
        """See that it may `act` on `topic`, as who it is.

        Raises:
            ProtocolError: It may not.
        """
        verdict = self._weigh(act, topic, self.identity, self._held(topic), found)
        if verdict is Verdict.ASK:
            raise _Needed(Ask(act, (topic,), self.identity))
        if verdict is Verdict.NO_USER and act == "command":
            raise ProtocolError(Code.COMMAND_WITHOUT_AUTHENTICATION, "COMMAND needs authentication", request_id)
        if verdict is not Verdict.ALLOWED:
            raise refusal(verdict, topic, request_id)

    def _weigh(self, act: Act, topic: str, identity: Identity, grants: Sequence[Grant], found: Found) -> Verdict:
        """Whether `identity` may `act` on `topic`; `grants`: those by which this client hears it already."""
        rule = self._rules.topics.of(topic)
        verdict = weigh(rule.need(act), rule, topic, identity)
        if verdict in (Verdict.ALLOWED, Verdict.NOBODY):
            return verdict
        if self._rules.open:
            return Verdict.ALLOWED
        if act in TOKEN_ACTS and (identity.hears_all or any(grant.is_for(identity) for grant in grants)):
            return Verdict.ALLOWED
        return found.said.get(topic, verdict) if verdict is Verdict.ASK else verdict


class _Needed(Exception):
    """Something must be found out before the message can be judged."""

    def __init__(self, effect: Ask | Refresh | Charge | Judge) -> None:
        super().__init__()
        self.effect = effect
