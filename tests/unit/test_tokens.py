"""gateway.tokens: nodes accept the tokens that it issues."""

from __future__ import annotations

import warnings
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway import tokens
from gateway.auth.key_set import KeySet, from_pem, from_secret
from gateway.auth.token_verifier import TokenVerifier
from gateway.core.identity import AuthError, Identity

SECRET = "a secret that only this test knows, long enough"
NOW = 1_800_000_000.0


def verifier(*, now: float = NOW, audience: str = "", issuer: str = "") -> TokenVerifier:
    keys = KeySet([from_secret(SECRET, "SECRET")])
    return TokenVerifier(keys, audience=audience, issuer=issuer, now=lambda: now)


def test_a_login_token_gives_its_user_and_role_until_it_expires() -> None:
    token = tokens.issue(SECRET, "ann é", "admin", 60, NOW, jti="t1")
    assert verifier().verify(token) == Identity("ann é", "admin", NOW + 60, "t1", NOW)
    with pytest.raises(AuthError, match="expired"):
        verifier(now=NOW + 60).verify(token)


def test_a_token_carries_the_audience_and_issuer_that_nodes_require() -> None:
    with pytest.raises(AuthError, match="aud, iss"):
        verifier(audience="live", issuer="shop").verify(tokens.issue(SECRET, "ann", now=NOW))
    verifier(audience="live", issuer="shop").verify(tokens.issue(SECRET, "ann", now=NOW, aud="live", iss="shop"))


def test_a_subscription_token_permits_its_topics_to_its_user() -> None:
    grant = verifier().verify_grant(tokens.issue_for_topics(SECRET, ["chat:*", "news"], "ann", 60, NOW))
    assert (grant.patterns, grant.user) == (("chat:*", "news"), "ann")
    assert verifier().verify_grant(tokens.issue_for_topics(SECRET, ["news"], now=NOW)).user is None


@pytest.mark.parametrize(
    "private",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
def test_a_private_key_signs_with_its_own_algorithm(private: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = tmp_path / "public.pem"
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    nodes = TokenVerifier(KeySet(from_pem(str(public))), now=lambda: NOW)
    token = tokens.issue(pem, "ann", now=NOW, kid="k1")
    assert nodes.verify(token).user == "ann"
    assert jwt.get_unverified_header(token)["kid"] == "k1"


def test_other_libraries_read_the_token() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        claims = jwt.decode(tokens.issue(SECRET, "ann", seconds=60), SECRET, algorithms=["HS256"])
    assert (claims["wallet_address"], claims["role"], claims["exp"] - claims["iat"]) == ("ann", "user", 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": ""}, "user must have 1 to 200 characters, not 0"),
        ({"role": "king"}, "role must be one of admin, superadmin, user, not 'king'"),
        ({"key": ""}, "give the secret of the nodes"),
        ({"key": "-----BEGIN PRIVATE KEY-----"}, "PEM"),
    ],
)
def test_what_no_node_would_accept_is_not_issued(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokens.issue(**{"key": SECRET, "user": "ann", **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="topics must be 1 to 100 names or patterns"):
        tokens.issue_for_topics(SECRET, ["not a topic"])
