"""The permissions that a topic rule gives to a client."""

from __future__ import annotations

import pytest

from gateway.core.identity import ANONYMOUS, Identity
from gateway.core.permissions import REFUSALS, Verdict, check_name, check_rule
from gateway.core.topic_rules import Need, Rule

ANN = Identity("ann", "user")
ADMIN = Identity("eve", "admin")
SUPERADMIN = Identity("max", "superadmin")
RULE = Rule(pattern="wallet:*")
V = Verdict


@pytest.mark.parametrize(
    ("need", "anonymous", "ann", "admin", "superadmin"),
    [
        (Need.ANYONE, V.ALLOWED, V.ALLOWED, V.ALLOWED, V.ALLOWED),
        (Need.USER, V.NO_USER, V.ALLOWED, V.ALLOWED, V.ALLOWED),
        (Need.ADMIN, V.NO_USER, V.NO_ROLE, V.ALLOWED, V.ALLOWED),
        (Need.SUPERADMIN, V.NO_USER, V.NO_ROLE, V.NO_ROLE, V.ALLOWED),
        (Need.OWNER, V.NO_USER, V.ALLOWED, V.NOT_OWNER, V.NOT_OWNER),
        (Need.TOKEN, V.NO_TOKEN, V.NO_TOKEN, V.NO_TOKEN, V.NO_TOKEN),
        (Need.SUBSCRIBER, V.NOT_SUBSCRIBED, V.NOT_SUBSCRIBED, V.NOT_SUBSCRIBED, V.NOT_SUBSCRIBED),
        (Need.ASK, V.ASK, V.ASK, V.ASK, V.ASK),
        (Need.NOBODY, V.NO_CLIENT, V.NO_CLIENT, V.NO_CLIENT, V.NO_CLIENT),
    ],
)
def test_every_need_of_everybody(
    need: Need, anonymous: Verdict, ann: Verdict, admin: Verdict, superadmin: Verdict
) -> None:
    verdicts = [check_rule(need, RULE, "wallet:ann", who) for who in (ANONYMOUS, ANN, ADMIN, SUPERADMIN)]
    assert verdicts == [anonymous, ann, admin, superadmin]


@pytest.mark.parametrize("topic", ["wallet:", "wallet:anna", "wallet:x:ann", "wallet:Ann", "wallet:ann:"])
def test_an_owner_owns_its_own_topic_and_none_that_looks_like_it(topic: str) -> None:
    assert check_rule(Need.OWNER, RULE, topic, ANN) is V.NOT_OWNER


def test_a_user_name_with_colons_owns_its_topic_and_its_last_part_does_not() -> None:
    assert check_rule(Need.OWNER, RULE, "wallet:did:key:ann", Identity("did:key:ann", "user")) is V.ALLOWED
    assert check_rule(Need.OWNER, RULE, "wallet:did:key:ann", ANN) is V.NOT_OWNER


def test_every_refusal_has_a_code_and_a_sentence() -> None:
    assert REFUSALS.keys() == set(Verdict) - {V.ALLOWED, V.ASK}
    assert all("a:b" in message.format(topic="a:b") for _, message in REFUSALS.values())


@pytest.mark.parametrize(
    ("topic", "anonymous", "ann"),
    [
        ("chat", None, None),
        ("$chat", V.NO_TOKEN, V.NO_TOKEN),
        ("chat#ann", V.NO_USER, None),
        ("chat#eve,ann", V.NO_USER, None),
        ("#ann", V.NO_USER, None),
        ("chat#anna", V.NO_USER, V.NOT_OWNER),
        ("chat#", V.NO_USER, V.NOT_OWNER),
    ],
)
def test_names_of_topics_may_restrict_their_subscribers(
    topic: str, anonymous: Verdict | None, ann: Verdict | None
) -> None:
    assert (check_name(topic, ANONYMOUS), check_name(topic, ANN)) == (anonymous, ann)
