"""The rules of one client: the effects that each command may have, for each identity."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import commands, hub, topic_rules
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
from gateway.core.events import Pong, RequestPong
from gateway.core.hub import Audiences
from gateway.core.identity import ANONYMOUS, AuthError, Grant, Identity, UnknownKey
from gateway.core.permissions import TOPICS_PER_TURN, ContinueChecks, Verdict
from gateway.core.publication import Publication
from gateway.core.session import Session
from gateway.core.session_rules import SessionRules
from gateway.core.topic_rules import Need
from gateway.node.configuration import load_rules
from gateway.protocols.native import decoder

DEFAULT = load_rules("")  # the package's own
ANN = Identity("ann", "user")
BOB = Identity("bob", "user", 1e12)
ADMIN = Identity("eve", "admin")
SUPERADMIN = Identity("max", "superadmin")
TOKENS = {"ann": ANN, "bob": BOB, "eve": ADMIN, "max": SUPERADMIN}

EVERYBODY = [ANONYMOUS, ANN, BOB, ADMIN, SUPERADMIN]
MEETS = {
    Need.ANYONE: EVERYBODY,
    Need.USER: [ANN, BOB, ADMIN, SUPERADMIN],
    Need.ADMIN: [ADMIN, SUPERADMIN],
    Need.SUPERADMIN: [SUPERADMIN],
    Need.NOBODY: [],
}
TOPICS = ["contest", "token:price:ABC", "portfolio", "user", "wallet", "skyduel", "admin", "system"]


def name(identity: Identity) -> str:
    return identity.user or "anonymous"


def verify(token: str | None) -> Identity:
    """Tokens here are names; one that ends in "!" is past its end."""
    if not token:
        raise AuthError("token_required", "A token is required")
    if token.endswith("!"):
        raise AuthError("token_expired", "The token has expired")
    if token.endswith("?"):
        raise UnknownKey("token_invalid", "The token names a key that is not known")
    if token not in TOKENS:
        raise AuthError("token_invalid", "The token is not valid")
    return TOKENS[token]


def verify_grant(token: str) -> Grant:
    """Tokens for topics are "topic" or "topic@user"; else as `verify`."""
    pattern, _, user = token.partition("@")
    if token.endswith(("!", "?")):
        verify(token)
    return Grant((pattern,), user or None, 2e9, token)


def session_of(identity: Identity = ANONYMOUS, *, limit: int = 100, everything: bool = False) -> Session:
    return Session(SessionRules(verify, verify_grant, DEFAULT, limit, everything), identity)


def handle(client: Session, message: commands.Command, *received: str) -> Effect:
    effect = client.handle(message, Audiences(received))
    if isinstance(effect, ChargeTopics):
        effect = client.handle(message, Audiences(received), Findings(topics_charged=True))
    return effect


def refusal(client: Session, message: commands.Command, *received: str) -> ProtocolError:
    """The error this message is answered with; who the client is must stay."""
    before = client.identity
    with pytest.raises(ProtocolError) as refused:
        handle(client, message, *received)
    assert client.identity is before
    return refused.value


def subscribe(*names: str, token: str | None = None) -> commands.Subscribe:
    return commands.Subscribe(names, "r", token)


def publish(topic: str) -> commands.Publish:
    return commands.Publish(Publication(topic, {"text": "hello"}), "r")


# ---- permission


@pytest.mark.parametrize("identity", EVERYBODY, ids=name)
@pytest.mark.parametrize("topic", TOPICS)
def test_subscribe_needs_the_permission_of_the_rule(topic: str, identity: Identity) -> None:
    client = session_of(identity)
    if identity in MEETS[DEFAULT.of(topic).subscribe]:
        assert handle(client, subscribe(topic)) == SubscribeTopics((topic,), "r", login=False)
    else:
        expected = ErrorReason.AUTHENTICATION_NEEDED if identity is ANONYMOUS else ErrorReason.ROLE_NEEDED
        error = refusal(client, subscribe(topic))
        assert (error.reason, error.request_id) == (expected, "r")
        assert topic in error.message


@pytest.mark.parametrize("identity", EVERYBODY, ids=name)
@pytest.mark.parametrize("topic", TOPICS)
def test_publish_needs_the_permission_of_the_rule(topic: str, identity: Identity) -> None:
    client, message = session_of(identity), publish(topic)
    need = DEFAULT.of(topic).publish
    if identity in MEETS[need]:
        assert handle(client, message) == PublishMessage(message.publication, "r")
    else:
        expected = ErrorReason.AUTHENTICATION_NEEDED if identity is ANONYMOUS else ErrorReason.ROLE_NEEDED
        assert refusal(client, message).reason is (ErrorReason.NOT_ALLOWED if need is Need.NOBODY else expected)


@pytest.mark.parametrize("topic", TOPICS)
def test_on_an_open_gateway_anybody_may_hear_everything(topic: str) -> None:
    assert handle(session_of(everything=True), subscribe(topic)) == SubscribeTopics((topic,), "r", login=False)


@pytest.mark.parametrize("topic", [topic for topic in TOPICS if topic != "system"])
def test_on_an_open_gateway_anybody_may_say_everything(topic: str) -> None:
    assert handle(session_of(everything=True), publish(topic)) == PublishMessage(publish(topic).publication, "r")


@pytest.mark.parametrize("identity", EVERYBODY, ids=name)
def test_no_client_publishes_on_the_gateways_topics_even_on_an_open_gateway(identity: Identity) -> None:
    assert refusal(session_of(identity, everything=True), publish("system")).reason is ErrorReason.NOT_ALLOWED


def test_subscribe_is_all_or_nothing() -> None:
    assert refusal(session_of(), subscribe("contest", "portfolio")).reason is ErrorReason.AUTHENTICATION_NEEDED
    assert refusal(session_of(ANN), subscribe("portfolio", "admin", "contest")).reason is ErrorReason.ROLE_NEEDED


def test_anybody_may_stop_to_hear_anything() -> None:
    assert handle(session_of(), commands.Unsubscribe(("admin", "never joined"), "r")) == UnsubscribeTopics(
        ("admin", "never joined"), "r"
    )


# ---- who someone is


def test_a_good_token_logs_in() -> None:
    client = session_of()
    assert handle(client, commands.Auth("ann")) == LoggedIn()
    assert client.identity is ANN


def test_another_good_token_makes_it_another() -> None:
    client = session_of(ADMIN)
    handle(client, commands.Auth("ann"))
    assert client.identity is ANN
    assert refusal(client, subscribe("admin")).reason is ErrorReason.ROLE_NEEDED


@pytest.mark.parametrize(
    ("token", "reason"),
    [(None, "token_required"), ("", "token_required"), ("ann!", "token_expired"), ("nobody", "token_invalid")],
)
@pytest.mark.parametrize("identity", [ANONYMOUS, ANN], ids=name)
def test_a_bad_token_gets_its_reason_and_does_not_log_the_client_out(
    identity: Identity, token: str | None, reason: str
) -> None:
    error = refusal(session_of(identity), commands.Auth(token))
    assert (error.reason, error.detail, error.request_id) == (ErrorReason.TOKEN, reason, None)
    assert error.detail == reason


def test_subscribe_may_bring_a_token() -> None:
    client = session_of()
    assert handle(client, subscribe("portfolio", token="ann")) == SubscribeTopics(("portfolio",), "r", login=True)
    assert client.identity is ANN


@pytest.mark.parametrize(("token", "reason"), [("ann!", "token_expired"), ("nobody", "token_invalid")])
def test_a_bad_token_in_subscribe_is_4011_even_if_nothing_needed_it(token: str, reason: str) -> None:
    error = refusal(session_of(ANN), subscribe("contest", token=token))
    assert (error.reason, error.detail) == (ErrorReason.BAD_TOKEN_IN_SUBSCRIBE, reason)


def test_the_token_of_a_rejected_subscribe_does_not_log_the_client_in() -> None:
    assert refusal(session_of(), subscribe("portfolio", "admin", token="ann")).reason is ErrorReason.ROLE_NEEDED


def test_the_token_of_a_subscribe_counts_not_who_it_was_before() -> None:
    assert refusal(session_of(ADMIN), subscribe("admin", token="ann")).reason is ErrorReason.ROLE_NEEDED


# ---- how many topics


def received(*names: str) -> list[str]:
    return [hub.topic_audience(name) for name in names]


def test_a_client_may_hear_as_many_topics_as_the_limit() -> None:
    client = session_of(limit=3)
    assert handle(client, subscribe("c"), *received("a", "b")) == SubscribeTopics(("c",), "r", login=False)
    assert handle(client, subscribe("a", "b", "c"), *received("a", "b", "c")) == SubscribeTopics(
        ("a", "b", "c"), "r", login=False
    )


def test_one_more_closes_the_connection_without_a_login() -> None:
    client = session_of(limit=3)
    effect = handle(client, subscribe("c", "d", token="ann"), *received("a", "b"))
    assert isinstance(effect, CloseConnection) and effect.reason is CloseReason.TOO_MANY_TOPICS
    assert client.identity is ANONYMOUS


def test_audiences_of_users_and_roles_are_not_topics() -> None:
    audiences = [hub.user_audience("ann"), hub.role_audience("user"), *received("a", "b")]
    assert handle(session_of(ANN, limit=3), subscribe("c"), *audiences) == SubscribeTopics(("c",), "r", login=False)
    assert isinstance(handle(session_of(ANN, limit=3), subscribe("c", "d"), *audiences), CloseConnection)


# ---- the others


def test_ping_is_answered_with_its_own_timestamp() -> None:
    assert handle(session_of(), commands.Ping(5)) == SendReply(Pong(5))


def test_request_system_ping_is_answered() -> None:
    request = commands.Request("system", "ping", {}, "r")
    assert handle(session_of(), request) == SendReply(RequestPong(request))


def test_request_status_is_the_nodes_to_answer() -> None:
    request = commands.Request("system", "getStatus", {}, "r")
    assert handle(session_of(), request) == SendStatus(request)


@pytest.mark.parametrize(
    ("topic", "action", "code"),
    [
        ("contest", "ping", ErrorReason.UNKNOWN_TOPIC),
        ("System", "ping", ErrorReason.UNKNOWN_TOPIC),
        ("system", "Ping", ErrorReason.UNKNOWN_ACTION),
        ("system", "reboot", ErrorReason.UNKNOWN_ACTION),
    ],
)
def test_other_requests_are_refused(topic: str, action: str, code: ErrorReason) -> None:
    assert refusal(session_of(ADMIN), commands.Request(topic, action, {}, "r")).reason is code


def test_logs_are_reported_and_counted() -> None:
    entries = ({"level": "error"}, {"level": "info"})
    assert handle(session_of(), commands.Logs(entries)) == WriteLogs(entries)


@pytest.mark.parametrize("topic", [None, "chat"])
@pytest.mark.parametrize("action", [None, "SEND"])
def test_a_command_of_an_anonymous_client_first_gets_token_required(topic: str | None, action: str | None) -> None:
    error = refusal(session_of(), commands.BackendCommand(topic, action, None, "r"))
    assert error.reason is ErrorReason.COMMAND_WITHOUT_AUTHENTICATION


@pytest.mark.parametrize(("client"), [session_of(ANN), session_of(everything=True)], ids=["a user", "anybody if open"])
@pytest.mark.parametrize(
    ("topic", "action", "code"),
    [
        (None, "SEND", ErrorReason.COMMAND_WITHOUT_TOPIC_OR_ACTION),
        ("chat", None, ErrorReason.COMMAND_WITHOUT_TOPIC_OR_ACTION),
        ("chat", "SEND", ErrorReason.NOT_IMPLEMENTED),
    ],
)
def test_a_command_without_permission_gets_the_reason(
    client: Session, topic: str | None, action: str | None, code: ErrorReason
) -> None:
    assert refusal(client, commands.BackendCommand(topic, action, None, "r")).reason is code


# ---- of all sequences

tokens = st.sampled_from([None, "", "ann", "bob", "eve", "max", "ann!", "nobody"])


def test_to_judge_all_topics_of_a_client_again_is_counted_first_and_only_if_it_is_somebody_else() -> None:
    client = session_of(ANN)
    held = Counted(received("a", "b", "admin"))
    assert client.handle(commands.Auth("bob"), held) == ChargeTopics(3, None)
    assert client.handle(subscribe("c", token="bob"), held) == ChargeTopics(3, "r")
    assert client.identity is ANN
    assert isinstance(client.handle(commands.Auth("ann"), held), LoggedIn)
    assert isinstance(client.handle(commands.Auth("bob"), Audiences()), LoggedIn)
    again = client.handle(commands.Auth("ann"), Audiences(received("a", "admin")), Findings(topics_charged=True))
    assert again == LoggedIn(("admin",))


class Counted(Audiences):
    """Audiences that may be looked up and counted, and not gone through: there may be thousands."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the cost of this grows with all that the client holds")


def test_a_subscribe_costs_as_much_as_it_names_however_many_topics_the_client_holds() -> None:
    client, held = session_of(limit=3), Counted(received("a", "b"))
    assert client.handle(subscribe("a", "c"), held) == SubscribeTopics(("a", "c"), "r", login=False)
    assert isinstance(client.handle(subscribe("a", "c", "d"), held), CloseConnection)
    held.add(hub.joining_topic("a"))  # the client subscribes again while it waits
    assert isinstance(client.handle(subscribe("a", "c"), held), SubscribeTopics)


topic_names = st.sampled_from([*TOPICS, "no topic", ""])
texts: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"type": st.just("AUTH"), "authToken": tokens}),
    st.fixed_dictionaries(
        {"type": st.just("SUBSCRIBE"), "topics": st.lists(topic_names, max_size=5), "requestId": st.integers(0, 9)},
        optional={"authToken": tokens},
    ),
    st.fixed_dictionaries({"type": st.just("UNSUBSCRIBE"), "topics": st.lists(topic_names, max_size=3)}),
    st.fixed_dictionaries({"type": st.just("PUBLISH"), "topic": topic_names, "data": st.none()}),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["REQUEST", "COMMAND"]),
            "topic": topic_names,
            "action": st.sampled_from(["ping", "x"]),
        }
    ),
    st.just({"type": "LOGS", "logs": [{}]}),
    st.just({"type": "ping"}),
    st.just({"type": "nothing"}),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(texts, max_size=25), st.integers(1, 6), st.booleans())
def test_only_a_good_token_changes_who_a_client_is_and_a_refusal_changes_nothing(
    sequence: list[dict[str, Any]], limit: int, everything: bool
) -> None:
    client = session_of(limit=limit, everything=everything)
    audiences = Audiences()
    for text in sequence:
        before, audiences_before = client.identity, set(audiences)
        token = text.get("authToken")
        effect: Effect | None
        try:
            effect = client.handle(decoder.decode(json.dumps(text).encode()), audiences)
        except ProtocolError:
            effect = None
        assert audiences == audiences_before  # only the hub changes it
        match effect:
            case LoggedIn():
                assert client.identity is TOKENS[str(token)]
            case SubscribeTopics(joined, _, login):
                assert client.identity is (TOKENS[str(token)] if login else before)
                assert everything or all(client.identity in MEETS[DEFAULT.of(topic).subscribe] for topic in joined)
                for audience in received(*joined):
                    audiences.add(audience)
                assert len(audiences) <= limit
            case PublishMessage(publication, _):
                need = DEFAULT.of(publication.topic).publish
                assert need is not Need.NOBODY and (everything or before in MEETS[need])
                assert client.identity is before
            case UnsubscribeTopics(left, _):
                for audience in received(*left):
                    audiences.discard(audience)
                assert client.identity is before
            case _:
                assert client.identity is before


# ---- effects that come before the decision

SECRET_TOPICS = topic_rules.parse(
    """
    [[topic]]
    pattern = "asked*"
    subscribe = "ask"
    publish = "ask"
    command = "ask"
    [[topic]]
    pattern = "ticket:*"
    subscribe = "token"
    [[topic]]
    pattern = "wallet:*"
    subscribe = "owner"
    publish = "owner"
    [[topic]]
    pattern = "admin"
    subscribe = "role:admin"
    [[topic]]
    pattern = "dead"
    subscribe = "nobody"
    """,
    "test",
)
V = Verdict


def strict(identity: Identity = ANONYMOUS, *, everything: bool = False) -> Session:
    return Session(SessionRules(verify, verify_grant, SECRET_TOPICS, 100, everything), identity)


def backend_verdicts(**verdicts: Verdict) -> Findings:
    return Findings(backend_verdicts=verdicts, topics_charged=True)


def error_of(
    client: Session, message: commands.Command, findings: Findings = NO_FINDINGS, *names: str
) -> ProtocolError:
    with pytest.raises(ProtocolError) as refused:
        client.handle(message, Audiences(received(*names)), findings)
    return refused.value


def test_the_back_end_is_asked_about_all_topics_that_need_it_at_once() -> None:
    client = strict(ANN)
    assert handle(client, subscribe("asked1", "open", "asked2")) == AskBackend("subscribe", ("asked1", "asked2"), ANN)
    findings = backend_verdicts(asked1=V.ALLOWED, asked2=V.ALLOWED)
    joined = client.handle(subscribe("asked1", "open", "asked2"), Audiences(), findings)
    assert joined == SubscribeTopics(("asked1", "open", "asked2"), "r", login=False)


@pytest.mark.parametrize(
    ("verdict", "code"), [(V.REFUSED, ErrorReason.NOT_ALLOWED), (V.UNKNOWN, ErrorReason.UNAVAILABLE)]
)
@pytest.mark.parametrize(
    "message", [subscribe("asked", "open"), publish("asked"), commands.BackendCommand("asked", "X", None, "r")]
)
def test_what_the_back_end_does_not_allow_is_refused(
    message: commands.Command, verdict: Verdict, code: ErrorReason
) -> None:
    assert isinstance(handle(strict(ANN), message), AskBackend)
    assert error_of(strict(ANN), message, backend_verdicts(asked=verdict)).reason is code


def test_a_refusal_needs_no_question() -> None:
    assert error_of(strict(), subscribe("asked", "admin")).reason is ErrorReason.AUTHENTICATION_NEEDED


def test_an_open_gateway_does_not_ask_the_back_end() -> None:
    everything = subscribe("asked", "ticket:1", "wallet:x", "admin")
    assert isinstance(handle(strict(everything=True), everything), SubscribeTopics)
    assert error_of(strict(everything=True), subscribe("dead")).reason is ErrorReason.NOT_ALLOWED


@pytest.mark.parametrize("message", [commands.Auth("ann?"), subscribe("open", token="ann?")])
def test_a_key_that_may_be_new_is_asked_for_once(message: commands.Command) -> None:
    client = strict()
    assert handle(client, message) == RefreshKeys()
    code = error_of(client, message, Findings(keys_refreshed=True)).reason
    assert code in (ErrorReason.TOKEN, ErrorReason.BAD_TOKEN_IN_SUBSCRIBE) and client.identity is ANONYMOUS
    error = error_of(client, message, Findings(keys_refreshed=True, key_server_failed=True))
    assert error.reason is ErrorReason.UNAVAILABLE


# ---- owners and subscription tokens


def test_only_its_owner_subscribes_and_publishes_on_a_topic() -> None:
    assert isinstance(handle(strict(ANN), subscribe("wallet:ann")), SubscribeTopics)
    assert isinstance(handle(strict(ANN), publish("wallet:ann")), PublishMessage)
    for who, code in (
        (BOB, ErrorReason.NOT_ALLOWED),
        (ADMIN, ErrorReason.NOT_ALLOWED),
        (ANONYMOUS, ErrorReason.AUTHENTICATION_NEEDED),
    ):
        assert error_of(strict(who), subscribe("wallet:ann")).reason is code


CHAT = topic_rules.parse(
    """
    [[topic]]
    pattern = "chat:*"
    publish = "subscriber"
    request = "subscriber"
    command = "subscriber"
    history = 1
    [[topic]]
    pattern = "room"
    aliases = ["raum"]
    publish = "subscriber"
    """,
    "test",
)


@pytest.mark.parametrize("identity", [ANONYMOUS, ANN, ADMIN], ids=name)
@pytest.mark.parametrize(
    "message",
    [publish("chat:1"), commands.Request("chat:1", "history", {}, "r"), commands.BackendCommand("chat:1", "a", 1, "r")],
)
def test_only_subscribers_may_act_under_the_rule_subscriber(identity: Identity, message: commands.Command) -> None:
    client = Session(SessionRules(verify, verify_grant, CHAT, 100, backend=True), identity)
    for others in ((), ("chat:2", "chat:", "chat:1:2")):
        error = error_of(client, message, NO_FINDINGS, *others)
        assert error.reason is ErrorReason.NOT_ALLOWED
        assert "chat:1" in error.message
    effect = client.handle(message, Audiences(received("chat:1")))
    assert isinstance(effect, PublishMessage | ReadTopic | ForwardCommand)


@pytest.mark.parametrize("subscribed", ["topic:room", "topic:raum", "joining:room"])
def test_a_subscription_under_an_alias_or_one_that_waits_counts_for_publishing(subscribed: str) -> None:
    client = Session(SessionRules(verify, verify_grant, CHAT, 100))
    assert isinstance(client.handle(publish("room"), Audiences([subscribed])), PublishMessage)
    for no_subscription in ("user:room", "role:room", "topic:chat:1"):
        with pytest.raises(ProtocolError):
            client.handle(publish("room"), Audiences([no_subscription]))


def with_tokens(name: str, *tokens: str, token: str | None = None) -> commands.Subscribe:
    return commands.Subscribe((name,), "r", token, {}, tokens)


@pytest.mark.parametrize("name", ["ticket:1", "wallet:bob", "admin", "asked"])
def test_a_subscription_token_lets_hear_what_the_rule_would_not(name: str) -> None:
    client = strict(ANN)
    assert isinstance(handle(client, with_tokens(name, "other", f"{name[:3]}*")), SubscribeTopics)
    assert isinstance(handle(client, subscribe(name), *received(name)), SubscribeTopics), (
        "a second SUBSCRIBE changes nothing"
    )
    assert isinstance(handle(client, commands.Unsubscribe((name,), "r")), UnsubscribeTopics)
    assert not isinstance(_try(client, subscribe(name)), SubscribeTopics), "what was given up is given up"


def _try(client: Session, message: commands.Command) -> Effect | None:
    try:
        return handle(client, message)
    except ProtocolError:
        return None


def test_no_token_opens_a_topic_with_the_rule_nobody() -> None:
    assert error_of(strict(), with_tokens("dead", "dead")).reason is ErrorReason.NOT_ALLOWED


def test_a_read_key_subscribes_to_all_but_nobody_topics_and_may_not_publish() -> None:
    client = strict(Identity(reads_all=True))
    assert isinstance(handle(client, subscribe("ticket:1", "wallet:ann", "admin", "asked")), SubscribeTopics)
    assert error_of(client, subscribe("dead")).reason is ErrorReason.NOT_ALLOWED
    for name in ("open", "wallet:ann", "admin"):
        assert not isinstance(_try(client, publish(name)), PublishMessage)


def test_a_bad_subscription_token_refuses_the_whole() -> None:
    error = error_of(strict(), with_tokens("open", "open", "ticket:1!"))
    assert (error.reason, error.detail) == (ErrorReason.BAD_TOKEN_IN_SUBSCRIBE, "token_expired")


def test_a_users_token_needs_that_user_which_the_frame_may_prove() -> None:
    assert error_of(strict(), with_tokens("ticket:1", "ticket:*@ann")).reason is ErrorReason.NOT_ALLOWED
    assert error_of(strict(BOB), with_tokens("ticket:1", "ticket:*@ann")).reason is ErrorReason.NOT_ALLOWED
    assert isinstance(handle(strict(), with_tokens("ticket:1", "ticket:*@ann", token="ann")), SubscribeTopics)


def test_a_subscription_by_a_token_ends_with_the_token() -> None:
    client = strict(ANN)
    handle(client, with_tokens("ticket:1", "ticket:*"))
    assert client.expire_grants(2e9 - 1, 10) == (0, [])
    assert client.expire_grants(2e9, 10) == (1, ["ticket:1"])
    assert client.expire_grants(3e9, 10) == (0, [])
    handle(client, with_tokens("ticket:1", "ticket:*"))
    assert client.revoke_grants(lambda token_id, _user, _issued: token_id == "ticket:*", 10) == (1, ["ticket:1"])


def test_tokens_of_many_topics_end_some_at_a_time() -> None:
    client, names = strict(ANN), [f"ticket:{at}" for at in range(5)]
    handle(client, commands.Subscribe(tuple(names), "r", None, {}, ("ticket:*",)))
    parts = [client.expire_grants(2e9, 2) for _ in range(4)]
    assert parts == [(2, names[:2]), (2, names[2:4]), (1, names[4:]), (0, [])]


# ---- another user on the same socket


def test_a_new_identity_loses_the_topics_of_the_old_one() -> None:
    client = strict(ADMIN)
    message = commands.Auth("ann")
    for name in ("admin", "wallet:eve", "open"):
        handle(client, subscribe(name))
    effect = handle(client, message, *received("admin", "wallet:eve", "wallet:ann", "open"))
    assert effect == LoggedIn(("admin", "wallet:eve"))


def test_a_pending_subscription_counts_as_a_subscription() -> None:
    assert handle(strict(ADMIN), commands.Auth("ann"), hub.joining_topic("admin")) == LoggedIn(("admin",))


def test_a_renewed_token_costs_nothing_and_asks_no_back_end() -> None:
    client = strict(ANN)
    client.warned = True
    assert handle(client, commands.Auth("ann"), *received("asked", "ticket:1")) == LoggedIn()
    assert not client.warned


def test_of_another_user_the_back_end_is_asked_again_and_silence_is_a_no() -> None:
    client = strict(ANN)
    names = received("asked1", "asked2", "asked3")
    assert handle(client, commands.Auth("bob"), *names) == AskBackend("subscribe", ("asked1", "asked2", "asked3"), BOB)
    assert client.identity is ANN
    findings = backend_verdicts(asked1=V.ALLOWED, asked2=V.REFUSED, asked3=V.UNKNOWN)
    effect = client.handle(commands.Auth("bob"), Audiences(names), findings)
    assert effect == LoggedIn(("asked2", "asked3"))


def test_a_token_for_anybody_survives_another_user_and_one_for_a_user_does_not() -> None:
    client = strict(ANN)
    handle(client, commands.Subscribe(("ticket:1", "ticket:2"), "r", None, {}, ("ticket:1", "ticket:2@ann")))
    effect = handle(client, commands.Auth("bob"), *received("ticket:1", "ticket:2"))
    assert effect == LoggedIn(("ticket:2",))


def test_a_subscribe_with_anothers_token_takes_what_that_one_may_not_hear() -> None:
    effect = handle(strict(ADMIN), subscribe("open", token="ann"), *received("admin"))
    assert effect == SubscribeTopics(("open",), "r", login=True, removed=("admin",))


def test_a_subscribe_of_another_user_asks_of_the_new_and_of_the_old_topics() -> None:
    client, names, message = strict(ANN), received("asked1"), subscribe("asked2", token="bob")
    assert handle(client, message, *names) == AskBackend("subscribe", ("asked2",), BOB)
    findings = backend_verdicts(asked2=V.ALLOWED)
    assert client.handle(message, Audiences(names), findings) == AskBackend("subscribe", ("asked1",), BOB)
    findings = backend_verdicts(asked2=V.ALLOWED, asked1=V.REFUSED)
    assert client.handle(message, Audiences(names), findings) == SubscribeTopics(
        ("asked2",), "r", login=True, removed=("asked1",)
    )


# ---- the back end


SERVED = topic_rules.parse(
    """
    [[topic]]
    pattern = "contest:*"
    source = "/contests/{1}"
    source_seconds = 5
    source_stale_seconds = 60
    history = 10

    [[topic]]
    pattern = "mine"
    subscribe = "user"
    source = "/users/{user}"
    """,
    "rules",
)


def served(identity: Identity = ANONYMOUS, *, backend: bool = True) -> Session:
    return Session(SessionRules(verify, verify_grant, SERVED, 100, backend=backend), identity)


def test_a_request_on_a_topic_with_a_source_is_fetched() -> None:
    request = commands.Request("contest:5", "show", {"page": 2}, "r")
    assert handle(served(), request) == FetchFromBackend(request, "/contests/5?action=show&page=2", 5, 60)
    request = commands.Request("mine", "show", {}, "r")
    assert handle(served(ANN), request) == FetchFromBackend(request, "/users/ann?action=show", 10, 0)


def test_what_the_gateway_has_itself_is_not_fetched() -> None:
    request = commands.Request("contest:5", "history", {}, "r")
    assert handle(served(), request) == ReadTopic(request)


def test_fetching_needs_what_hearing_needs() -> None:
    assert refusal(served(), commands.Request("mine", "show", {}, "r")).reason is ErrorReason.AUTHENTICATION_NEEDED


def test_a_command_is_forwarded_for_who_the_client_is() -> None:
    command = commands.BackendCommand("chat", "SEND", {"text": "hi"}, "r")
    assert handle(served(ANN), command) == ForwardCommand(command, ANN)
    assert refusal(served(), command).reason is ErrorReason.COMMAND_WITHOUT_AUTHENTICATION


def test_without_a_back_end_nothing_is_fetched_or_forwarded() -> None:
    for message in (commands.Request("mine", "show", {}, "r"), commands.BackendCommand("chat", "SEND", None, "r")):
        assert refusal(served(ANN, backend=False), message).reason is ErrorReason.NOT_IMPLEMENTED


# ---- the gateway's own topics, and many patterns


@pytest.mark.parametrize("topic", ["gateway:figures", "gateway:x", "service", "circuit-breaker"])
@pytest.mark.parametrize("granted", ["*", "gateway:*", "gateway:figures", "service", "circuit-*"])
def test_no_subscription_token_opens_a_topic_of_the_gateways_own(topic: str, granted: str) -> None:
    message = commands.Subscribe((topic,), "r", tokens=(granted,))
    assert refusal(session_of(), message).reason is ErrorReason.AUTHENTICATION_NEEDED
    assert refusal(session_of(ANN), message).reason is ErrorReason.ROLE_NEEDED
    assert isinstance(handle(session_of(ADMIN), message), SubscribeTopics)


def test_topics_are_compared_with_a_bounded_number_of_patterns() -> None:
    def grant_of(token: str) -> Grant:
        return Grant((*(f"{token}{at}*" for at in range(100)), *(f"name{at}" for at in range(100))), None, 2e9)

    client = Session(SessionRules(verify, grant_of, topic_rules.parse(CLOSED, "t"), 5000))
    many = tuple(f"a{at}" for at in range(1000))
    refused = refusal(client, commands.Subscribe(many, "r", tokens=("a", "b")))
    assert refused.reason is ErrorReason.DATA_REFUSED and "in several SUBSCRIBE messages" in refused.message
    assert isinstance(handle(client, commands.Subscribe(many[:100], "r", tokens=("a", "b"))), SubscribeTopics)
    named = Session(SessionRules(verify, lambda _: Grant(("a1",) * 100, None, 2e9), DEFAULT, 5000))
    assert isinstance(handle(named, commands.Subscribe(many, "r", tokens=("a",) * 20)), SubscribeTopics)


CLOSED = '[[topic]]\npattern = "*"\nsubscribe = "token"'


def judge_all(client: Session, message: commands.Command, received: Audiences, findings: Findings) -> list[Effect]:
    """The effects of a message that is handled again until it is settled."""
    effects = [client.handle(message, received, findings)]
    while isinstance(effects[-1], ContinueChecks):
        assert len(effects) < 50
        findings = replace(findings, verdicts=effects[-1].verdicts)
        effects.append(client.handle(message, received, findings))
    return effects


class Judging(Session):
    """A session that counts its decisions."""

    decisions = 0

    def _decide(self, *about: Any) -> Verdict:
        self.decisions += 1
        return super()._decide(*about)


@pytest.mark.parametrize("size", [1, TOPICS_PER_TURN, TOPICS_PER_TURN + 1, 3 * TOPICS_PER_TURN + 5])
def test_topics_are_judged_some_at_a_time_each_once_and_all_or_nothing(size: int) -> None:
    client = Judging(SessionRules(verify, verify_grant, DEFAULT, 10_000), ANN)
    names = tuple(f"contest:{at}" for at in range(size))
    effects = judge_all(client, subscribe(*names), Audiences(), NO_FINDINGS)
    assert effects[-1] == SubscribeTopics(names, "r", False)
    assert len(effects) == -(-size // TOPICS_PER_TURN)
    assert client.decisions == size
    with pytest.raises(ProtocolError) as refused:
        judge_all(client, subscribe(*names, "admin"), Audiences(), NO_FINDINGS)
    assert refused.value.reason is ErrorReason.ROLE_NEEDED


def test_a_new_identity_is_judged_for_very_many_topics_some_at_a_time() -> None:
    names = [f"portfolio:{at}" for at in range(2 * TOPICS_PER_TURN)] + [
        f"contest:{at}" for at in range(TOPICS_PER_TURN)
    ]
    client = Judging(SessionRules(verify, verify_grant, DEFAULT, 10_000), ADMIN)
    received = Audiences([*map(hub.topic_audience, names), hub.topic_audience("admin"), hub.joining_topic("admin:x")])
    *parts, effect = judge_all(client, commands.Auth("ann"), received, Findings(topics_charged=True))
    assert all(isinstance(part, ContinueChecks) for part in parts)
    assert len(parts) == 3
    assert client.decisions == len(names) + 2
    assert isinstance(effect, LoggedIn)
    assert set(effect.removed) >= {"admin"}
    assert client.identity is ANN


def test_of_topics_judged_before_the_back_end_answers_count() -> None:
    rules = topic_rules.parse('[[topic]]\npattern = "asked:*"\nsubscribe = "ask"\n', "rules")
    names = tuple(f"asked:{at}" for at in range(TOPICS_PER_TURN + 1))
    client = Judging(SessionRules(verify, verify_grant, rules, 10_000), ANN)
    *_, ask = judge_all(client, subscribe(*names), Audiences(), NO_FINDINGS)
    assert ask == AskBackend("subscribe", names, ANN)
    assert client.decisions == len(names)
    [verdicts] = judge_all(client, subscribe(*names), Audiences(), NO_FINDINGS)[:-1]
    assert isinstance(verdicts, ContinueChecks)
    findings = Findings(verdicts=verdicts.verdicts, backend_verdicts=dict.fromkeys(names, Verdict.ALLOWED))
    assert judge_all(client, subscribe(*names), Audiences(), findings) == [SubscribeTopics(names, "r", False)]
    findings = replace(findings, backend_verdicts={**findings.backend_verdicts, names[3]: Verdict.REFUSED})
    with pytest.raises(ProtocolError):
        judge_all(client, subscribe(*names), Audiences(), findings)


# ---- topics that the back end gives


def test_what_the_back_end_grants_may_be_subscribed_to_and_read_until_it_is_taken_away() -> None:
    client = strict(ANN)
    assert error_of(client, subscribe("ticket:1")).reason is ErrorReason.NOT_ALLOWED
    client.grant(["ticket:1", "admin"])
    for topic in ("ticket:1", "admin"):
        assert isinstance(handle(client, subscribe(topic)), SubscribeTopics)
    assert client.expire_grants(1e12, 100) == (0, [])
    client.forget_grants(["ticket:1"])
    assert error_of(client, subscribe("ticket:1")).reason is ErrorReason.NOT_ALLOWED
    assert isinstance(handle(client, subscribe("admin")), SubscribeTopics)


def test_what_the_back_end_grants_to_a_user_is_not_another_users() -> None:
    client = strict(ANN)
    client.grant(["ticket:1"])
    effect = client.handle(commands.Auth("bob"), Audiences(received("ticket:1")), Findings(topics_charged=True))
    assert effect == LoggedIn(("ticket:1",))
    assert error_of(client, subscribe("ticket:1")).reason is ErrorReason.NOT_ALLOWED


@pytest.mark.parametrize(
    "message",
    [
        commands.Subscribe(("x:1",), "r"), commands.Subscribe(("x:1",), "r", None, {}, ("x:1",)),
        commands.Publish(Publication("x:1", 1), "r"), commands.Request("x:1", "presence", {}, "r"),
        commands.Request("x:1", "history", {}, "r"), commands.Connect(None, "r", {}, ("x:1",)),
    ],
)  # fmt: skip
def test_an_unknown_namespace_is_refused_to_everybody(message: commands.Command) -> None:
    rules = topic_rules.parse('strict_namespaces = true\n[[topic]]\npattern = "*"\nhistory = 1\npresence = true', "f")
    client = Session(SessionRules(verify, verify_grant, rules, 100, open=True), SUPERADMIN)
    error = refusal(client, message, "topic:x:1")
    assert error.reason is ErrorReason.UNKNOWN_NAMESPACE and "unknown channel" in error.message


def test_joins_are_for_clients_that_ask_or_must_receive_them() -> None:
    rules = topic_rules.parse(
        """
        [[topic]]
        pattern = "asked:*"
        presence = true
        [[topic]]
        pattern = "forced:*"
        presence = true
        force_join_leave = true
        """,
        "f",
    )
    client = Session(SessionRules(verify, verify_grant, rules, 100))
    names = ("asked:1", "forced:1", "other:1")
    for asked, shown in ((False, ("forced:1",)), (True, ("asked:1", "forced:1"))):
        effect = handle(client, commands.Subscribe(names, "r", join_leave=asked))
        assert isinstance(effect, SubscribeTopics) and effect.join_leave == shown
