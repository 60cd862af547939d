"""Who someone is: tokens verified, never only decoded."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import tokens
from gateway.auth import key_set
from gateway.auth.key_set import KeySet
from gateway.auth.token_verifier import MAX_TOKEN_LENGTH, TokenVerifier
from gateway.core.identity import ANONYMOUS, AuthError, Grant, Identity
from gateway.core.revocations import name_of

SECRET = "a secret of thirty-two bytes, at least"
OTHER = "another secret, as long as the first one"
NOW = 1_795_502_108.0


def ring(secret: str = SECRET) -> KeySet:
    return KeySet([key_set.from_secret(secret, "GATEWAY_JWT_SECRET")] if secret else [])


def authenticator(secret: str = SECRET) -> TokenVerifier:
    return TokenVerifier(ring(secret), now=lambda: NOW)


def token_of(claims: Any, secret: str = SECRET, header: Any = None) -> str:
    """A signed token around any claims and header, even such as no library would write."""

    def part(value: Any) -> bytes:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(text).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT"} if header is None else header) + b"." + part(claims)
    return (signed + b"." + part(hmac.new(secret.encode(), signed, hashlib.sha256).digest())).decode()


def refusal(token: str | None, secret: str = SECRET) -> str:
    """The reason this token is refused with."""
    with pytest.raises(AuthError) as refused:
        authenticator(secret).verify(token)
    return refused.value.reason


def proved_by(**claims: Any) -> Identity:
    return authenticator().verify(token_of(claims))


# ---- whom it names


def test_the_wallet_address_is_the_user() -> None:
    assert proved_by(id="7", wallet_address="ann", sub="bob", role="user") == Identity("ann", "user")


@pytest.mark.parametrize("wallet", [None, ""])
def test_sub_serves_where_there_is_no_wallet_address(wallet: str | None) -> None:
    assert proved_by(wallet_address=wallet, sub="bob") == Identity("bob", "user")
    assert proved_by(sub="bob") == Identity("bob", "user")


@pytest.mark.parametrize("claims", [{}, {"id": "7"}, {"wallet_address": 7}, {"wallet_address": ["ann"]}, {"sub": ""}])
def test_a_token_without_a_user_is_invalid(claims: dict[str, Any]) -> None:
    assert refusal(token_of(claims)) == "token_invalid"


def test_a_user_has_at_most_200_characters() -> None:
    assert proved_by(wallet_address="x" * 200).user == "x" * 200
    assert refusal(token_of({"wallet_address": "x" * 201})) == "token_invalid"


def test_a_user_that_no_channel_can_carry_is_invalid() -> None:
    # JavaScript's JSON.stringify writes half a character, cut at the wrong place, as such an escape.
    assert refusal(token_of(b'{"wallet_address":"ann\\ud83d"}')) == "token_invalid"


@pytest.mark.parametrize("role", ["user", "admin", "superadmin"])
def test_these_roles_there_are(role: str) -> None:
    identity = proved_by(sub="ann", role=role)
    assert identity.role == role
    assert identity.is_admin == (role != "user")


@pytest.mark.parametrize("role", [None, "", "Admin", "root", 1, True, ["admin"], {"admin": True}])
def test_any_other_role_counts_as_user(role: Any) -> None:
    identity = proved_by(sub="ann", role=role)
    assert identity == Identity("ann", "user")
    assert not identity.is_admin


def test_an_anonymous_client_has_no_user() -> None:
    assert (ANONYMOUS.user, ANONYMOUS.role, ANONYMOUS.expires, ANONYMOUS.is_admin) == (None, None, None, False)


# ---- how long it holds


def test_a_token_holds_until_its_end_by_the_given_clock() -> None:
    assert proved_by(sub="ann", exp=NOW + 1).expires == NOW + 1
    assert refusal(token_of({"sub": "ann", "exp": NOW})) == "token_expired"
    assert refusal(token_of({"sub": "ann", "exp": 0})) == "token_expired"
    assert refusal(token_of({"sub": "ann", "exp": -1.5})) == "token_expired"


def test_a_token_without_an_end_never_ends() -> None:
    assert proved_by(sub="ann").expires is None
    assert proved_by(sub="ann", exp=None).expires is None


@pytest.mark.parametrize("exp", [True, False, "tomorrow", "1795502109", [], {}])
def test_an_end_that_is_no_number_is_invalid(exp: Any) -> None:
    assert refusal(token_of({"sub": "ann", "exp": exp})) == "token_invalid"


def test_an_end_that_no_clock_ever_reaches_is_no_end() -> None:
    assert refusal(token_of(b'{"sub":"ann","exp":NaN}')) == "token_expired"


@pytest.mark.parametrize("ahead", [0, 3, 86_400, 10**9])
def test_an_issuer_whose_clock_runs_ahead_is_believed(ahead: int) -> None:
    # `iat` is no promise (RFC 7519, 4.1.6): no token is refused for it.
    assert proved_by(sub="ann", iat=int(NOW) + ahead).user == "ann"


# ---- who signed it


def test_none_is_required() -> None:
    assert refusal(None) == "token_required"
    assert refusal("") == "token_required"


def test_without_a_secret_no_token_is_valid() -> None:
    assert refusal(token_of({"sub": "ann"}, ""), secret="") == "token_invalid"
    assert refusal(None, secret="") == "token_required"


def test_another_secret_proves_nothing() -> None:
    assert refusal(token_of({"sub": "ann"}, OTHER)) == "token_invalid"


def test_an_expired_token_of_another_secret_is_invalid_not_expired() -> None:
    assert refusal(token_of({"sub": "ann", "exp": 1}, OTHER)) == "token_invalid"


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "", None, "HS384", "HS512", "RS256", "ES256", "EdDSA", "hs256", [], ["HS256"], {}]
)
def test_other_algorithms_are_rejected_for_every_signature(alg: Any) -> None:
    token = token_of({"sub": "ann"}, SECRET * 2, header={"alg": alg, "typ": "JWT"})
    assert refusal(token, secret=SECRET * 2) == "token_invalid"


def test_an_unsigned_token_is_invalid() -> None:
    assert refusal(jwt.encode({"sub": "ann"}, "", algorithm="none")) == "token_invalid"
    head, claims, _ = token_of({"sub": "ann"}).split(".")
    assert refusal(f"{head}.{claims}.") == "token_invalid"
    assert refusal(f"{head}.{claims}") == "token_invalid"


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_a_shared_secret_signs_with_each_of_its_algorithms(alg: str) -> None:
    token = jwt.encode({"sub": "ann"}, SECRET * 2, algorithm=alg)
    assert authenticator(SECRET * 2).verify(token).user == "ann"


def test_claims_swapped_under_a_good_signature_are_invalid() -> None:
    head, _, signature = token_of({"sub": "ann"}).split(".")
    _, claims, _ = token_of({"sub": "ann", "role": "admin"}).split(".")
    assert refusal(f"{head}.{claims}.{signature}") == "token_invalid"


@pytest.mark.parametrize("claims", [b"[]", b'"ann"', b"null", b"5", b"{", b"\xff", b"", b"[" * 100_000])
def test_claims_that_are_no_object_are_invalid(claims: bytes) -> None:
    assert refusal(token_of(claims)) == "token_invalid"


@pytest.mark.parametrize("header", [b"[]", b"5", b"null", b"\xff", b"", b"[" * 100_000, b'{"alg":"HS256","kid":5}'])
def test_a_header_of_the_wrong_form_is_invalid(header: bytes) -> None:
    assert refusal(token_of({"sub": "ann"}, header=header)) == "token_invalid"


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(st.text(), st.text("abc.=-_é ", max_size=20), st.binary().map(lambda header: token_of({}, header=header)))
)
def test_any_other_text_is_an_auth_error_and_nothing_else(text: str) -> None:
    assert refusal(text) == ("token_invalid" if text else "token_required")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
claim_names = st.sampled_from(["wallet_address", "sub", "role", "exp", "iat", "nbf", "aud", "iss", "jti", "id"])


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(claim_names, json_values, max_size=6))
def test_any_signed_claims_give_an_identity_or_an_auth_error_and_nothing_else(claims: dict[str, Any]) -> None:
    try:
        identity = proved_by(**claims)
    except AuthError:
        return
    assert identity.user in (claims.get("wallet_address"), claims.get("sub")) and identity.user
    assert identity.role in ("user", "admin", "superadmin")
    assert identity.expires is None or identity.expires > NOW


# ---- what we issue


@settings(deadline=None)
@given(
    st.text(min_size=1, max_size=200),
    st.sampled_from(["user", "admin", "superadmin"]),
    st.integers(1, 10**9),
    st.floats(0, 4e9),
)
def test_what_is_issued_is_accepted_until_its_end(user: str, role: str, seconds: int, now: float) -> None:
    token = tokens.issue(SECRET, user, role, seconds, now)
    end = int(now + seconds)
    assert TokenVerifier(ring(), now=lambda: end - 0.5).verify(token) == Identity(user, role, end, issued=int(now))
    with pytest.raises(AuthError, match="expired"):
        TokenVerifier(ring(), now=lambda: end).verify(token)


# ---- for us, from ours


def encoded(**claims: Any) -> str:
    return jwt.encode({"sub": "ann", **claims}, SECRET, algorithm="HS256")


@pytest.mark.parametrize("claims", [{}, {"aud": "other"}, {"aud": ["other"]}, {"aud": 5}])
def test_where_an_audience_is_set_a_token_must_name_it(claims: dict[str, Any]) -> None:
    ours = TokenVerifier(ring(), audience="gateway", now=lambda: NOW)
    assert ours.verify(encoded(aud="gateway")).user == "ann"
    assert ours.verify(encoded(aud=["other", "gateway"])).user == "ann"
    with pytest.raises(AuthError, match="not issued for this gateway"):
        ours.verify(token_of({"sub": "ann", **claims}))


def test_where_none_is_set_a_token_for_another_is_refused() -> None:
    assert refusal(encoded(aud="other")) == "token_invalid"


@pytest.mark.parametrize("claims", [{}, {"iss": "other"}, {"iss": ["ours"]}])
def test_where_an_issuer_is_set_a_token_must_be_its(claims: dict[str, Any]) -> None:
    ours = TokenVerifier(ring(), issuer="ours", now=lambda: NOW)
    assert ours.verify(encoded(iss="ours")).user == "ann"
    with pytest.raises(AuthError):
        ours.verify(token_of({"sub": "ann", **claims}))


def test_the_leeway_counts_at_both_ends() -> None:
    ours = TokenVerifier(ring(), leeway_seconds=5, now=lambda: NOW)
    assert ours.verify(encoded(exp=NOW - 4.5)).expires == NOW + 0.5
    assert ours.verify(encoded(nbf=NOW + 4.5)).user == "ann"
    for late in ({"exp": NOW - 5}, {"nbf": NOW + 5.5}):
        with pytest.raises(AuthError):
            ours.verify(encoded(**late))


def test_a_token_tells_its_id_and_when_it_was_issued() -> None:
    identity = proved_by(sub="ann", jti="t1", iat=5)
    assert (identity.token_id, identity.issued) == ("t1", 5)


def test_a_revoked_token_is_invalid() -> None:
    asked: list[Any] = []

    def revoked(*about: Any) -> bool:
        asked.append(about)
        return True

    with pytest.raises(AuthError, match="revoked"):
        TokenVerifier(ring(), revoked=revoked, now=lambda: NOW).verify(encoded(jti="t1", iat=5))
    assert asked == [("t1", "ann", 5)]


def test_two_secrets_are_good_at_once() -> None:
    both = KeySet([key_set.from_secret(SECRET, "a"), key_set.from_secret(OTHER, "b")])
    for secret in (SECRET, OTHER):
        assert TokenVerifier(both, now=lambda: NOW).verify(token_of({"sub": "ann"}, secret)).user == "ann"


def test_a_huge_token_is_not_even_looked_at() -> None:
    assert refusal(token_of({"sub": "ann", "x": "y" * MAX_TOKEN_LENGTH})) == "token_invalid"


# ---- for topics


def grant_of(**claims: Any) -> Grant:
    return authenticator().verify_grant(encoded(**claims) if "sub" in claims else token_of(claims))


def test_a_subscription_token_names_topics_and_patterns() -> None:
    grant = grant_of(topics=["room:42", "wallet:*"], exp=NOW + 9, jti="t1")
    assert grant == Grant(("room:42", "wallet:*"), None, NOW + 9, "t1")
    assert grant.covers("room:42", ANONYMOUS) and grant.covers("wallet:x", ANONYMOUS)
    assert not grant.covers("room:43", ANONYMOUS)
    assert grant_of(topics="room:42", exp=NOW + 9).patterns == ("room:42",)


def test_one_for_a_user_is_good_for_that_user_alone() -> None:
    grant = grant_of(sub="ann", topics=["a"], exp=NOW + 9)
    assert grant.covers("a", Identity("ann", "user"))
    assert not grant.covers("a", Identity("bob", "admin")) and not grant.covers("a", ANONYMOUS)


@pytest.mark.parametrize(
    "claims",
    [{}, {"topics": []}, {"topics": ["no topic"]}, {"topics": [5]}, {"topics": {"a": 1}}, {"topics": ["a"] * 101},
     {"topics": ["a"], "exp": None}, {"topics": ["a"], "exp": NOW - 1}],
)  # fmt: skip
def test_one_without_topics_or_end_is_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(AuthError):
        grant_of(**{"exp": NOW + 9, **claims})


def test_neither_kind_of_token_serves_as_the_other() -> None:
    with pytest.raises(AuthError, match="cannot log in"):
        authenticator().verify(encoded(topics=["a"], exp=NOW + 9))
    with pytest.raises(AuthError, match="has topics"):
        authenticator().verify_grant(encoded(exp=NOW + 9))


# ---- the id that a token can be revoked by


@pytest.mark.parametrize("jti", [5, 5.0, True, [], {}, ["a"]])
def test_a_token_whose_id_no_revocation_could_name_is_refused(jti: Any) -> None:
    with pytest.raises(AuthError, match="jti must be a string"):
        TokenVerifier(ring(), now=lambda: NOW).verify(encoded(jti=jti))


def test_any_text_is_an_id_that_can_be_revoked() -> None:
    asked: list[str | None] = []

    def revoked(token_id: str | None, _user: str | None, _issued: float | None) -> bool:
        asked.append(token_id)
        return False

    verifier = TokenVerifier(ring(), revoked=revoked, now=lambda: NOW)
    for jti in ("j" * 200, "j" * 201, "j" * 9000, "\n", "ü"):
        assert verifier.verify(encoded(jti=jti)).token_id == asked[-1] == name_of(jti)
    assert verifier.verify(encoded(jti="")).token_id is None, "no id: its user's tokens can be revoked together"
    assert verifier.verify(encoded(jti=None)).token_id is None


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"sub": 42}, "The token's sub is a number; it must be a string"),
        ({"sub": 4.5}, "sub is a number"),
        ({"sub": True}, "sub is true or false"),
        ({"sub": ["ann"]}, "sub is a list"),
        ({"sub": {"a": 1}}, "sub is an object"),
        ({"wallet_address": 42, "sub": "ann"}, "wallet_address is a number"),
        ({"sub": "x" * 201}, "1 to 200 characters"),
    ],
)
def test_a_user_that_is_no_string_is_rejected_with_the_reason(claims: dict[str, Any], says: str) -> None:
    with pytest.raises(AuthError, match=says) as refused:
        authenticator().verify(token_of({"exp": NOW + 9, **claims}))
    assert refused.value.reason == "token_invalid"


def test_sub_does_not_matter_where_the_wallet_names_the_user() -> None:
    assert authenticator().verify(token_of({"wallet_address": "ann", "sub": 42, "exp": NOW + 9})).user == "ann"
