"""One client's rules: what each message may cause, given who sent it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import hub, protocol, replies, session
from gateway.app import load_rules
from gateway.auth import ANONYMOUS, AuthError, Identity
from gateway.protocol import Close, Code, ProtocolError, Publication
from gateway.session import Join, Leave, Login, Quit, Reply, Report, Rules, Say, Session, Status
from gateway.topics import Need

DEFAULT = load_rules("")  # the package's own
NOW = "2026-01-31T12:00:00.000Z"
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
    if token not in TOKENS:
        raise AuthError("token_invalid", "The token is not valid")
    return TOKENS[token]


def session_of(identity: Identity = ANONYMOUS, *, limit: int = 100, everything: bool = False) -> Session:
    return Session(Rules(verify, DEFAULT, limit, everything), identity)


def handle(client: Session, message: protocol.ClientMessage, *heard: str) -> session.Effect:
    return client.handle(message, set(heard), NOW)


def refusal(client: Session, message: protocol.ClientMessage, *heard: str) -> ProtocolError:
    """The error this message is answered with; who the client is must stay."""
    before = client.identity
    with pytest.raises(ProtocolError) as refused:
        handle(client, message, *heard)
    assert client.identity is before
    return refused.value


def subscribe(*names: str, token: str | None = None) -> protocol.Subscribe:
    return protocol.Subscribe(names, "r", token)


def publish(topic: str) -> protocol.Publish:
    return protocol.Publish(Publication(topic, {"text": "hello"}), "r")


# ---- permission


@pytest.mark.parametrize("identity", EVERYBODY, ids=name)
@pytest.mark.parametrize("topic", TOPICS)
def test_who_may_hear_a_topic(topic: str, identity: Identity) -> None:
    client = session_of(identity)
    if identity in MEETS[DEFAULT.of(topic).subscribe]:
        assert handle(client, subscribe(topic)) == Join((topic,), "r", login=False)
    else:
        expected = Code.AUTHENTICATION_NEEDED if identity is ANONYMOUS else Code.ROLE_NEEDED
        error = refusal(client, subscribe(topic))
        assert (error.code, error.request_id) == (expected, "r")
        assert topic in error.message


@pytest.mark.parametrize("identity", EVERYBODY, ids=name)
@pytest.mark.parametrize("topic", TOPICS)
def test_who_may_say_something_on_a_topic(topic: str, identity: Identity) -> None:
    client, message = session_of(identity), publish(topic)
    need = DEFAULT.of(topic).publish
    if identity in MEETS[need]:
        assert handle(client, message) == Say(message.publication, "r")
    else:
        expected = Code.AUTHENTICATION_NEEDED if identity is ANONYMOUS else Code.ROLE_NEEDED
        assert refusal(client, message).code is (Code.NOT_ALLOWED if need is Need.NOBODY else expected)


@pytest.mark.parametrize("topic", TOPICS)
def test_on_an_open_gateway_anybody_may_hear_everything(topic: str) -> None:
    assert handle(session_of(everything=True), subscribe(topic)) == Join((topic,), "r", login=False)


@pytest.mark.parametrize("topic", [topic for topic in TOPICS if topic != "system"])
def test_on_an_open_gateway_anybody_may_say_everything(topic: str) -> None:
    assert handle(session_of(everything=True), publish(topic)) == Say(publish(topic).publication, "r")


@pytest.mark.parametrize("identity", EVERYBODY, ids=name)
def test_the_gateways_own_voice_is_nobodys_even_on_an_open_gateway(identity: Identity) -> None:
    assert refusal(session_of(identity, everything=True), publish("system")).code is Code.NOT_ALLOWED


def test_subscribe_is_all_or_nothing() -> None:
    assert refusal(session_of(), subscribe("contest", "portfolio")).code is Code.AUTHENTICATION_NEEDED
    assert refusal(session_of(ANN), subscribe("portfolio", "admin", "contest")).code is Code.ROLE_NEEDED


def test_anybody_may_stop_to_hear_anything() -> None:
    assert handle(session_of(), protocol.Unsubscribe(("admin", "never heard"), "r")) == Leave(
        ("admin", "never heard"), "r"
    )


# ---- who someone is


def test_a_good_token_logs_in() -> None:
    client = session_of()
    assert handle(client, protocol.Auth("ann")) == Login(replies.authenticated(NOW))
    assert client.identity is ANN


def test_another_good_token_makes_it_another() -> None:
    client = session_of(ADMIN)
    handle(client, protocol.Auth("ann"))
    assert client.identity is ANN
    assert refusal(client, subscribe("admin")).code is Code.ROLE_NEEDED


@pytest.mark.parametrize(
    ("token", "reason"),
    [(None, "token_required"), ("", "token_required"), ("ann!", "token_expired"), ("nobody", "token_invalid")],
)
@pytest.mark.parametrize("identity", [ANONYMOUS, ANN], ids=name)
def test_a_bad_token_is_answered_with_its_reason_and_logs_nobody_out(
    identity: Identity, token: str | None, reason: str
) -> None:
    error = refusal(session_of(identity), protocol.Auth(token))
    assert (error.code, error.reason, error.request_id) == (Code.TOKEN, reason, None)
    assert json.loads(error.encode(NOW))["reason"] == reason


def test_subscribe_may_bring_a_token() -> None:
    client = session_of()
    assert handle(client, subscribe("portfolio", token="ann")) == Join(("portfolio",), "r", login=True)
    assert client.identity is ANN


@pytest.mark.parametrize(("token", "reason"), [("ann!", "token_expired"), ("nobody", "token_invalid")])
def test_a_bad_token_in_subscribe_is_4011_even_if_nothing_needed_it(token: str, reason: str) -> None:
    error = refusal(session_of(ANN), subscribe("contest", token=token))
    assert (error.code, error.reason) == (Code.BAD_TOKEN_IN_SUBSCRIBE, reason)
    assert "requestId" not in json.loads(error.encode(NOW))


def test_a_good_token_of_a_subscribe_that_is_refused_logs_nobody_in() -> None:
    assert refusal(session_of(), subscribe("portfolio", "admin", token="ann")).code is Code.ROLE_NEEDED


def test_the_token_of_a_subscribe_counts_not_who_it_was_before() -> None:
    assert refusal(session_of(ADMIN), subscribe("admin", token="ann")).code is Code.ROLE_NEEDED


# ---- how many topics


def heard(*names: str) -> list[str]:
    return [hub.of_topic(name) for name in names]


def test_a_client_may_hear_as_many_topics_as_the_limit() -> None:
    client = session_of(limit=3)
    assert handle(client, subscribe("c"), *heard("a", "b")) == Join(("c",), "r", login=False)
    assert handle(client, subscribe("a", "b", "c"), *heard("a", "b", "c")) == Join(("a", "b", "c"), "r", login=False)


def test_one_more_ends_the_connection_and_logs_nobody_in() -> None:
    client = session_of(limit=3)
    effect = handle(client, subscribe("c", "d", token="ann"), *heard("a", "b"))
    assert isinstance(effect, Quit) and effect.code is Close.TOO_MANY_TOPICS
    assert client.identity is ANONYMOUS


def test_a_users_and_roles_own_audiences_are_not_topics_it_hears() -> None:
    audiences = [hub.of_user("ann"), hub.of_role("user"), *heard("a", "b")]
    assert handle(session_of(ANN, limit=3), subscribe("c"), *audiences) == Join(("c",), "r", login=False)
    assert isinstance(handle(session_of(ANN, limit=3), subscribe("c", "d"), *audiences), Quit)


# ---- the others


def test_ping_is_answered_with_its_own_timestamp() -> None:
    assert handle(session_of(), protocol.Ping(5)) == Reply(b'{"type":"pong","timestamp":5}')


def test_request_system_ping_is_answered() -> None:
    request = protocol.Request("system", "ping", {}, "r")
    assert handle(session_of(), request) == Reply(replies.request_pong(request, NOW))


def test_request_status_is_the_nodes_to_answer() -> None:
    request = protocol.Request("system", "getStatus", {}, "r")
    assert handle(session_of(), request) == Status(request)


@pytest.mark.parametrize(
    ("topic", "action", "code"),
    [
        ("contest", "ping", Code.UNKNOWN_TOPIC),
        ("System", "ping", Code.UNKNOWN_TOPIC),
        ("system", "Ping", Code.UNKNOWN_ACTION),
        ("system", "reboot", Code.UNKNOWN_ACTION),
    ],
)
def test_other_requests_are_refused(topic: str, action: str, code: Code) -> None:
    assert refusal(session_of(ADMIN), protocol.Request(topic, action, {}, "r")).code is code


def test_logs_are_reported_and_counted() -> None:
    entries = ({"level": "error"}, {"level": "info"})
    assert handle(session_of(), protocol.Logs(entries)) == Report(entries, replies.logged(2, NOW))


@pytest.mark.parametrize("topic", [None, "chat"])
@pytest.mark.parametrize("action", [None, "SEND"])
def test_a_command_from_nobody_is_told_so_first(topic: str | None, action: str | None) -> None:
    error = refusal(session_of(), protocol.Command(topic, action, None, "r"))
    assert error.code is Code.COMMAND_WITHOUT_AUTHENTICATION


@pytest.mark.parametrize(("client"), [session_of(ANN), session_of(everything=True)], ids=["a user", "anybody if open"])
@pytest.mark.parametrize(
    ("topic", "action", "code"),
    [
        (None, "SEND", Code.COMMAND_WITHOUT_TOPIC_OR_ACTION),
        ("chat", None, Code.COMMAND_WITHOUT_TOPIC_OR_ACTION),
        ("chat", "SEND", Code.NOT_IMPLEMENTED),
    ],
)
def test_a_command_from_somebody_is_told_what_it_lacks(
    client: Session, topic: str | None, action: str | None, code: Code
) -> None:
    assert refusal(client, protocol.Command(topic, action, None, "r")).code is code


# ---- of all sequences

tokens = st.sampled_from([None, "", "ann", "bob", "eve", "max", "ann!", "nobody"])
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
    audiences: set[str] = set()
    for text in sequence:
        before, heard_before = client.identity, set(audiences)
        token = text.get("authToken")
        effect: session.Effect | None
        try:
            effect = client.handle(protocol.decode(json.dumps(text).encode()), audiences, NOW)
        except ProtocolError:
            effect = None
        assert audiences == heard_before  # the hub's, and nobody else writes it
        match effect:
            case Login():
                assert client.identity is TOKENS[str(token)]
            case Join(joined, _, login):
                assert client.identity is (TOKENS[str(token)] if login else before)
                assert everything or all(client.identity in MEETS[DEFAULT.of(topic).subscribe] for topic in joined)
                audiences |= set(heard(*joined))
                assert len(audiences) <= limit
            case Say(publication, _):
                need = DEFAULT.of(publication.topic).publish
                assert need is not Need.NOBODY and (everything or before in MEETS[need])
                assert client.identity is before
            case Leave(left, _):
                audiences -= set(heard(*left))
                assert client.identity is before
            case _:
                assert client.identity is before
