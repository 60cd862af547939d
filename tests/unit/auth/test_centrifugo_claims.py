"""gateway.auth.centrifugo_claims, and the verifier with them: tokens as Centrifugo's users have them."""

from __future__ import annotations

import math
from typing import Any

import jwt
import pytest

from gateway.auth import key_set
from gateway.auth.centrifugo_claims import CentrifugoClaims
from gateway.auth.token_verifier import TokenVerifier
from gateway.core.identity import ANONYMOUS, MAX_TOKEN_TOPICS, AuthError
from gateway.settings import Settings

SECRET = "a secret that only this test knows, and long enough"
NOW = 1000.0


def verifier(claims: CentrifugoClaims | None) -> TokenVerifier:
    keys = key_set.load(Settings(jwt_secret=SECRET))
    return TokenVerifier(keys, leeway_seconds=5, now=lambda: NOW, centrifugo=claims)


LENIENT = CentrifugoClaims(needs_expiry=False, personal=True)
STRICT = CentrifugoClaims(needs_expiry=True, personal=False)


def signed(**claims: Any) -> str:
    return jwt.encode(claims, SECRET, "HS256")


def test_a_token_need_not_have_a_user() -> None:
    assert verifier(STRICT).verify(signed(sub="")) == ANONYMOUS
    with pytest.raises(AuthError, match="no user"):
        verifier(None).verify(signed(sub=""))


@pytest.mark.parametrize(("claims", "expires"), [({"exp": 1010, "expire_at": 2000}, 2005), ({"expire_at": 0}, None)])
def test_expire_at_takes_precedence(claims: dict[str, Any], expires: float | None) -> None:
    assert verifier(STRICT).verify(signed(sub="ann", **claims)).expires == expires


def test_a_token_names_the_topics_of_its_client() -> None:
    token = signed(sub="ann", channels=["a", "b"], subs={"b": {}, "c": {}})
    assert verifier(STRICT).verify(token).topics == ("a", "b", "c")
    assert verifier(None).verify(token).topics == ()


@pytest.mark.parametrize(
    "claims",
    [
        {"channels": "a"},
        {"subs": ["a"]},
        {"channels": ["no topic"]},
        {"channels": [1]},
        {"channels": [f"t{at}" for at in range(MAX_TOKEN_TOPICS + 1)]},
    ],
)
def test_other_topics_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(AuthError, match="channels"):
        verifier(STRICT).verify(signed(sub="ann", **claims))


def test_a_subscription_token_has_one_topic_and_perhaps_no_end() -> None:
    assert verifier(LENIENT).verify_grant(signed(sub="ann", channel="a")).expires == math.inf
    assert verifier(STRICT).verify_grant(signed(sub="ann", channel="a", exp=2000)).patterns == ("a",)
    with pytest.raises(AuthError, match="expiry"):
        verifier(STRICT).verify_grant(signed(sub="ann", channel="a"))
    with pytest.raises(AuthError, match="topics"):
        verifier(None).verify_grant(signed(sub="ann", channel="a", exp=2000))
    with pytest.raises(AuthError, match="log in"):
        verifier(STRICT).verify(signed(sub="ann", channel="a", exp=2000))
