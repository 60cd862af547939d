"""The session of one client: decides what each of its messages causes.  (pure)

`Session.handle` takes a decoded message and returns an effect. The node carries the effect out.
If the message is refused, `handle` raises a `ProtocolError` and the session does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from gateway.core import backend_targets, commands, topic_rules
from gateway.core.effects import (
    NO_FINDINGS,
    AskBackend,
    ChargeTopics,
    CloseConnection,
    Effect,
    FetchFromBackend,
    Findings,
    ForwardCommand,
    LoggedIn,
    PublishMessage,
    ReadTopic,
    RefreshKeys,
    SendReply,
    SendStatus,
    SubscribeTopics,
    UnsubscribeTopics,
    WriteLogs,
)
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.events import GrantRenewed, Pong, RequestPong
from gateway.core.hub import Audiences, topics_of
from gateway.core.identity import ANONYMOUS, AuthError, Grant, Identity, IsRevoked, UnknownKey
from gateway.core.json_text import RequestId
from gateway.core.permissions import ContinueChecks, Verdict, check_name, check_rule, check_topics, refusal
from gateway.core.session_rules import SessionRules
from gateway.core.topic_rules import TOKEN_ACTS, Act

# Comparisons of topics with token patterns in one SUBSCRIBE. They take about 5 ms.
MAX_COMPARISONS: Final = 20_000
OTHERS_TOKEN: Final = CloseConnection(CloseReason.BAD_TOKEN, "the token is another user's, or another topic's")


class Session:
    """One client's identity and subscription tokens, and the decisions that follow from them."""

    __slots__ = ("_grants", "_rules", "identity", "info_changed", "warned")

    def __init__(self, rules: SessionRules, identity: Identity = ANONYMOUS) -> None:
        self._rules = rules
        # The grant of each topic that a subscription token allows. None, since most clients have no such token.
        self._grants: dict[str, Grant] | None = None
        self.identity = identity
        self.info_changed = False  # presence shows another info of the client
        self.warned = False  # the node has sent `token_expiring` for the current token

    def handle(self, message: commands.Command, audiences: Audiences, findings: Findings = NO_FINDINGS) -> Effect:
        """Return the effect of `message`.

        `AskBackend`, `RefreshKeys`, `ChargeTopics` and `ContinueChecks` leave the session unchanged: the caller
        carries the effect out, adds the result to `findings`, and calls `handle` again with the same message.

        Args:
            message: The decoded message.
            audiences: The audiences that the client is in.
            findings: The results of earlier effects of this message.

        Raises:
            ProtocolError: The session refuses the message. The session has not changed.
        """
        try:
            return self._handle(message, audiences, findings)
        except _MoreNeeded as needed:
            return needed.effect

    def grant(self, topics: Sequence[str]) -> None:
        """Allow the client to subscribe to `topics` until it is another user, or is unsubscribed."""
        grant = Grant(tuple(topics), self.identity.user, math.inf)
        self._grants = {**(self._grants or {}), **dict.fromkeys(topics, grant)}

    def join_leave_topics(self, topics: Iterable[str], *, asked: bool = False) -> tuple[str, ...]:
        """Those of `topics` of which the client is sent joins and leaves of clients. `asked`: it asks for them."""
        rules = ((topic, self._rules.topics.of(topic)) for topic in topics)
        return tuple(topic for topic, rule in rules if rule.presence and (asked or rule.force_join_leave))

    def expire_at(self, expires: float | None) -> None:
        """Set when the login expires, in seconds since 1970; None: never."""
        self.identity = replace(self.identity, expires=expires)
        self.warned = False

    def forget_grants(self, names: Iterable[str]) -> None:
        """Drop what allows the client to subscribe to the topics `names` beyond the topic rules."""
        self._forget(names)

    def expire_grants(self, now: float, most: int) -> tuple[int, list[str]]:
        """Drop at most `most` of the grants that have expired at `now` (seconds since 1970).

        Returns how many were dropped, and the topics that the client may no longer receive.
        """
        return self._drop_grants(lambda grant: grant.expires <= now, most)

    def revoke_grants(self, revoked: IsRevoked, most: int) -> tuple[int, list[str]]:
        """Drop at most `most` of the grants whose tokens are `revoked`. Returns the same as `expire_grants`."""
        return self._drop_grants(lambda grant: revoked(grant.token_id, grant.user, grant.issued), most)

    def _drop_grants(self, is_invalid: Callable[[Grant], bool], most: int) -> tuple[int, list[str]]:
        if not self._grants:  # The node calls this every second for each client, and few clients have grants.
            return 0, []
        dropped = list(islice((topic for topic, grant in self._grants.items() if is_invalid(grant)), most))
        self._forget(dropped)
        verdicts = ((topic, self._decide("subscribe", topic, self.identity, (), NO_FINDINGS)) for topic in dropped)
        return len(dropped), [topic for topic, verdict in verdicts if verdict is not Verdict.ALLOWED]

    def _forget(self, names: Iterable[str]) -> None:
        if self._grants is not None:
            for name in names:
                self._grants.pop(name, None)

    def _handle(self, message: commands.Command, audiences: Audiences, findings: Findings) -> Effect:
        match message:
            case commands.Ping(timestamp):
                return SendReply(Pong(timestamp))
            case commands.Subscribe():
                return self._subscribe(message, audiences, findings)
            case commands.Unsubscribe(names, request_id):
                self._forget(names)
                return UnsubscribeTopics(names, request_id)
            case commands.Publish(publication, request_id):
                self._require("publish", publication.topic, request_id, audiences, findings)
                return PublishMessage(publication, request_id)
            case commands.Auth():
                return self._authenticate(message, audiences, findings)
            case commands.Connect():
                return self._connect(message, audiences, findings)
            case commands.RenewGrant():
                return self._renew_grant(message, findings)
            case commands.Request():
                return self._request(message, audiences, findings)
            case commands.Logs(entries):
                return WriteLogs(entries)
            case commands.BackendCommand():
                return self._command(message, audiences, findings)

    # ---- authentication

    def _authenticate(self, message: commands.Auth, audiences: Audiences, findings: Findings) -> Effect:
        identity = self._verified(message.token, message.request_id, findings)
        if message.same_user and identity.user != self.identity.user:
            return CloseConnection(CloseReason.BAD_TOKEN, "the token is another user's")
        removed = self._forbidden_topics(identity, audiences, (), None, findings)
        self._set_identity(identity, removed)
        return LoggedIn(removed)

    def _connect(self, message: commands.Connect, audiences: Audiences, findings: Findings) -> Effect:
        token = message.token
        identity = self.identity if token is None else self._verified(token, message.request_id, findings)
        self._require_all(message.topics, message.request_id, identity, (), findings)
        removed = self._forbidden_topics(identity, audiences, (), message.request_id, findings)
        self._set_identity(identity, removed)
        topics = tuple(dict.fromkeys((*identity.topics, *message.topics)))
        if not topics:
            return LoggedIn(removed)
        if len(topics) > self._rules.max_client_topics:
            return CloseConnection(CloseReason.TOO_MANY_TOPICS, f"more than {self._rules.max_client_topics} topics")
        joins = self.join_leave_topics(topics)
        return SubscribeTopics(topics, message.request_id, True, message.recover, removed, join_leave=joins)

    def _verified(self, token: str | None, request_id: RequestId, findings: Findings) -> Identity:
        try:
            return self._rules.verify(token)
        except AuthError as error:
            raise self._token_error(error, ErrorReason.TOKEN, request_id, findings) from None

    def seconds_left(self, now: float) -> int | None:
        """For how many seconds the client's token is valid at `now` (since 1970), at least 1; None: it has no end."""
        return self._rules.seconds_left(self.identity.expires, now)

    def grant_seconds_left(self, topic: str, now: float) -> int | None:
        """The same for the subscription token by which the client is subscribed to `topic`."""
        return next((self._rules.seconds_left(grant.expires, now) for grant in self._held(topic)), None)

    def _set_identity(self, identity: Identity, removed: Collection[str]) -> None:
        self.info_changed |= identity.info != self.identity.info
        self.identity = identity
        self.warned = False
        self._forget(removed)

    def _forbidden_topics(
        self, identity: Identity, audiences: Audiences, but: Collection[str], request_id: RequestId, findings: Findings
    ) -> tuple[str, ...]:
        """The subscribed topics, except those in `but`, that `identity` may not subscribe to."""
        if identity.has_same_rights(self.identity) or not audiences.topics:
            return ()
        if not findings.topics_charged:
            raise _MoreNeeded(ChargeTopics(audiences.topics, request_id))  # before any work is done
        names = topics_of(audiences).difference(but)
        verdicts = self._check_topics(names, identity, self._held, findings)
        asked = sorted(name for name, verdict in verdicts if verdict is Verdict.ASK)
        if asked:
            raise _MoreNeeded(AskBackend("subscribe", tuple(asked), identity))
        return tuple(sorted(name for name, verdict in verdicts if verdict is not Verdict.ALLOWED))

    def _check_topics(
        self, names: Collection[str], identity: Identity, held: Callable[[str], Sequence[Grant]], findings: Findings
    ) -> list[tuple[str, Verdict]]:
        """Decide for each of `names` whether `identity` may subscribe. `held` gives the grants to consider."""
        verdicts = check_topics(
            names,
            findings.verdicts,
            findings.backend_verdicts,
            lambda name: self._decide("subscribe", name, identity, held(name), findings),
        )
        if isinstance(verdicts, ContinueChecks):
            raise _MoreNeeded(verdicts)
        return verdicts

    @staticmethod
    def _token_error(error: AuthError, reason: ErrorReason, request_id: RequestId, findings: Findings) -> Exception:
        if isinstance(error, UnknownKey) and not findings.keys_refreshed:
            return _MoreNeeded(RefreshKeys(error.kid))
        if isinstance(error, UnknownKey) and findings.key_server_failed:
            message = "The key server does not answer, so the token cannot be verified; try again"
            return ProtocolError(ErrorReason.UNAVAILABLE, message, request_id)
        return ProtocolError(reason, str(error), request_id, error.reason)

    # ---- permissions

    def _subscribe(self, message: commands.Subscribe, audiences: Audiences, findings: Findings) -> Effect:
        request_id = message.request_id
        try:
            identity = self.identity if message.token is None else self._rules.verify(message.token)
            grants = [self._rules.verify_grant(token) for token in message.tokens]
        except AuthError as error:
            raise self._token_error(error, ErrorReason.BAD_TOKEN_IN_SUBSCRIBE, request_id, findings) from None
        if message.once and not all(grant.covers(topic, identity) for grant in grants for topic in message.topics):
            return OTHERS_TOKEN
        if len(message.topics) * sum(grant.wildcards for grant in grants) > MAX_COMPARISONS:
            raise ProtocolError(
                ErrorReason.DATA_REFUSED,
                f"SUBSCRIBE compares each topic with each pattern of its tokens, at most {MAX_COMPARISONS} times; "
                "send the topics in several SUBSCRIBE messages",
                request_id,
            )
        used = self._require_all(message.topics, request_id, identity, grants, findings)  # all or nothing
        removed = self._forbidden_topics(identity, audiences, message.topics, request_id, findings)
        if message.once and any(map(audiences.has_topic, message.topics)):
            raise ProtocolError(ErrorReason.ALREADY_SUBSCRIBED, "Already subscribed", request_id)
        limit = self._rules.max_client_topics
        most = audiences.topics + len(message.topics)  # if the client is not subscribed to any of them yet
        if most > limit and most - sum(map(audiences.has_topic, message.topics)) > limit:
            if message.once:
                raise ProtocolError(ErrorReason.TOO_MANY_TOPICS, f"More than {limit} topics", request_id)
            return CloseConnection(CloseReason.TOO_MANY_TOPICS, f"more than {limit} topics")
        if message.token is not None:
            self._set_identity(identity, removed)
        if used:
            self._grants = {**(self._grants or {}), **used}
        return SubscribeTopics(
            message.topics, request_id, message.token is not None, message.recover, removed, False, message.whole,
            message.options, self.join_leave_topics(message.topics, asked=message.join_leave),
        )  # fmt: skip

    def _renew_grant(self, message: commands.RenewGrant, findings: Findings) -> Effect:
        try:
            grant = self._rules.verify_grant(message.token)
        except AuthError as error:
            raise self._token_error(error, ErrorReason.BAD_TOKEN_IN_SUBSCRIBE, message.request_id, findings) from None
        if not grant.covers(message.topic, self.identity):
            return OTHERS_TOKEN
        if not self._held(message.topic):
            raise refusal(Verdict.NO_TOKEN, message.topic, message.request_id)
        self._grants = {**(self._grants or {}), message.topic: grant}
        return SendReply(GrantRenewed(message.topic, message.request_id))

    def _require_all(
        self, names: Collection[str], request_id: RequestId, identity: Identity, grants: Sequence[Grant],
        findings: Findings,
    ) -> dict[str, Grant]:  # fmt: skip
        """Require that `identity` may subscribe to all of `names`. Returns the new grants that this uses, by topic."""
        asked, used = [], {}
        for name, verdict in self._check_topics(names, identity, lambda _name: (), findings):
            if verdict is Verdict.ALLOWED:
                continue
            covering = [grant for grant in (*grants, *self._held(name)) if grant.covers(name, identity)]
            if covering and verdict not in (Verdict.NO_CLIENT, Verdict.NO_NAMESPACE):
                used[name] = max(covering, key=lambda grant: grant.expires)
            elif verdict is Verdict.ASK:  # ask about all such topics in one call
                asked.append(name)
            else:
                raise refusal(verdict, name, request_id)
        if asked:
            raise _MoreNeeded(AskBackend("subscribe", tuple(asked), identity))
        return used

    def _held(self, name: str) -> tuple[Grant, ...]:
        """The grant that the client uses for the topic `name`, if any."""
        grant = (self._grants or {}).get(name)
        return () if grant is None else (grant,)

    def _request(self, message: commands.Request, audiences: Audiences, findings: Findings) -> Effect:
        if self._rules.topics.is_unknown(message.topic):
            raise refusal(Verdict.NO_NAMESPACE, message.topic, message.request_id)
        rule = self._rules.topics.of(message.topic)
        if (message.action == "history" and rule.history) or (message.action == "presence" and rule.presence):
            self._require("request", message.topic, message.request_id, audiences, findings)
            return ReadTopic(message)
        if rule.source and message.topic != topic_rules.SYSTEM:
            self._require("request", message.topic, message.request_id, audiences, findings)
            if not self._rules.backend:
                text = f"No back end answers requests on topic {message.topic}"
                raise ProtocolError(ErrorReason.NOT_IMPLEMENTED, text, message.request_id)
            target = backend_targets.backend_target(rule, message, self.identity.user)
            return FetchFromBackend(message, target, rule.source_seconds, rule.source_stale_seconds)
        if message.topic != topic_rules.SYSTEM:
            raise ProtocolError(
                ErrorReason.UNKNOWN_TOPIC, f"No requests are answered on topic {message.topic}", message.request_id
            )
        self._require("request", message.topic, message.request_id, audiences, findings)
        if message.action == "ping":
            return SendReply(RequestPong(message))
        if message.action == "getStatus":
            return SendStatus(message)
        raise ProtocolError(ErrorReason.UNKNOWN_ACTION, f"Unknown action {message.action}", message.request_id)

    def _command(self, message: commands.BackendCommand, audiences: Audiences, findings: Findings) -> Effect:
        if message.topic is None or message.action is None:
            if self.identity.user is None and not self._rules.open:
                raise self._command_without_user(message.request_id)
            raise ProtocolError(
                ErrorReason.COMMAND_WITHOUT_TOPIC_OR_ACTION,
                f"COMMAND needs a topic of {topic_rules.NAME_FORM}, and an action",
                message.request_id,
            )
        self._require("command", message.topic, message.request_id, audiences, findings)
        if not self._rules.backend:
            raise ProtocolError(
                ErrorReason.NOT_IMPLEMENTED, f"No back end carries out {message.action}", message.request_id
            )
        return ForwardCommand(message, self.identity)

    @staticmethod
    def _command_without_user(request_id: RequestId) -> ProtocolError:
        return ProtocolError(ErrorReason.COMMAND_WITHOUT_AUTHENTICATION, "COMMAND needs authentication", request_id)

    def _require(self, act: Act, topic: str, request_id: RequestId, audiences: Audiences, findings: Findings) -> None:
        """Require that the client, which is in `audiences`, may `act` on `topic`.

        Raises:
            ProtocolError: The client may not.
        """
        verdict = self._decide(act, topic, self.identity, self._held(topic), findings)
        if verdict is Verdict.ASK:
            raise _MoreNeeded(AskBackend(act, (topic,), self.identity))
        if verdict is Verdict.NOT_SUBSCRIBED and any(map(audiences.has_topic, self._rules.topics.names(topic))):
            return
        if verdict is Verdict.NO_USER and act == "command":
            raise self._command_without_user(request_id)
        if verdict is not Verdict.ALLOWED:
            raise refusal(verdict, topic, request_id)

    def _decide(self, act: Act, topic: str, identity: Identity, grants: Sequence[Grant], findings: Findings) -> Verdict:
        """Decide whether `identity` may `act` on `topic`. `grants`: the client's grants for this topic."""
        if self._rules.topics.is_unknown(topic):
            return Verdict.NO_NAMESPACE
        rule = self._rules.topics.of(topic)
        verdict = check_rule(rule.need(act), rule, topic, identity)
        if self._rules.centrifugo and act in TOKEN_ACTS and verdict is not Verdict.NO_CLIENT:
            verdict = check_name(topic, identity) or verdict
        if verdict in (Verdict.ALLOWED, Verdict.NO_CLIENT):
            return verdict
        if self._rules.open:
            return Verdict.ALLOWED
        if act in TOKEN_ACTS and (identity.reads_all or any(grant.is_for(identity) for grant in grants)):
            return Verdict.ALLOWED
        return findings.backend_verdicts.get(topic, verdict) if verdict is Verdict.ASK else verdict


class _MoreNeeded(Exception):
    """The session needs the result of `effect` before it can decide."""

    def __init__(self, effect: AskBackend | RefreshKeys | ChargeTopics | ContinueChecks) -> None:
        super().__init__()
        self.effect = effect
