"""Keys and their algorithms: no token chooses how it is verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth import key_set
from gateway.auth.key_set import InvalidKey, KeySet
from gateway.auth.token_verifier import TokenVerifier
from gateway.core.identity import AuthError, UnknownKey
from gateway.settings import Settings

RSA = rsa.generate_private_key(65537, 2048)
WEAK = rsa.generate_private_key(65537, 1024)
P256, P384, P521 = (ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()))
BITCOIN = ec.generate_private_key(ec.SECP256K1())
ED25519, ED448 = ed25519.Ed25519PrivateKey.generate(), ed448.Ed448PrivateKey.generate()
SIGNERS: list[tuple[Any, str]] = [
    *((RSA, name) for name in sorted(key_set.RSA_ALGORITHMS)),
    (P256, "ES256"), (P384, "ES384"), (P521, "ES512"), (ED25519, "EdDSA"), (ED448, "EdDSA"),
]  # fmt: skip
SECRET = "a secret of sixty-four bytes, at least, for the longest of hashes."


def pem(private: Any) -> str:
    """Its public key."""
    text: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def private_pem(private: Any) -> str:
    text: bytes = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()


def jwk(private: Any, **more: Any) -> dict[str, Any]:
    """Its public key, as a key server has it."""
    algorithm: Any = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm, ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
    }.get(next(base for base in (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, object) if isinstance(private, base)),
          jwt.algorithms.OKPAlgorithm)  # fmt: skip
    return {**json.loads(algorithm.to_jwk(private.public_key())), **more}


def served(*entries: dict[str, Any]) -> KeySet:
    token_keys = KeySet(has_server=True)
    token_keys.replace_served(key_set.from_jwks({"keys": list(entries)}))
    return token_keys


def from_file(tmp_path: Path, text: str) -> KeySet:
    file = tmp_path / "keys.pem"
    file.write_text(text)
    return KeySet(key_set.from_pem(str(file)))


def token(private: Any, algorithm: str, kid: str | None = None) -> str:
    return jwt.encode({"sub": "ann"}, private, algorithm=algorithm, headers={"kid": kid} if kid else None)


def user(token_keys: KeySet, text: str) -> str | None:
    try:
        return TokenVerifier(token_keys).verify(text).user
    except AuthError:
        return None


@pytest.mark.parametrize(("private", "algorithm"), SIGNERS, ids=lambda value: value if isinstance(value, str) else "")
def test_each_kind_of_key_verifies_from_a_file_and_from_a_server(private: Any, algorithm: str, tmp_path: Path) -> None:
    made = token(private, algorithm, "k1")
    assert user(from_file(tmp_path, pem(private)), made) == "ann"
    assert user(served(jwk(private, kid="k1")), made) == "ann"


def test_of_several_keys_the_right_one_is_found(tmp_path: Path) -> None:
    token_keys = from_file(tmp_path, "first\n" + pem(RSA) + pem(P256) + pem(ED25519))
    for private, algorithm in ((RSA, "RS256"), (P256, "ES256"), (ED25519, "EdDSA")):
        assert user(token_keys, token(private, algorithm)) == "ann"
    assert user(token_keys, token(P384, "ES384")) is None


def test_a_public_key_is_never_a_shared_secret(tmp_path: Path) -> None:
    # The classic confusion: the public key's text, which everybody knows, as the secret of an HMAC.
    for private in (RSA, P256, ED25519):
        token_keys = from_file(tmp_path, pem(private))
        for text in (pem(private), pem(private).strip()):
            forged = _hmac({"alg": "HS256", "typ": "JWT"}, text.encode())
            assert user(token_keys, forged) is None
            assert user(served(jwk(private, kid="k1")), forged) is None


def _hmac(header: dict[str, Any], secret: bytes) -> str:
    import base64
    import hashlib
    import hmac

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    signed = part(json.dumps(header).encode()) + b"." + part(b'{"sub":"ann"}')
    return (signed + b"." + part(hmac.new(secret, signed, hashlib.sha256).digest())).decode()


def test_a_public_key_as_the_secret_stops_the_start() -> None:
    with pytest.raises(InvalidKey, match="GATEWAY_JWT_SECRET holds a public key"):
        key_set.from_secret(pem(RSA), "GATEWAY_JWT_SECRET")


def test_a_key_bound_to_one_algorithm_verifies_no_other() -> None:
    token_keys = served(jwk(RSA, kid="k1", alg="RS256"))
    assert user(token_keys, token(RSA, "RS256", "k1")) == "ann"
    assert user(token_keys, token(RSA, "PS256", "k1")) is None
    assert user(token_keys, token(RSA, "RS512", "k1")) is None


def test_the_name_of_a_key_binds_too() -> None:
    other = rsa.generate_private_key(65537, 2048)
    token_keys = served(jwk(RSA, kid="k1"), jwk(other, kid="k2"))
    assert user(token_keys, token(RSA, "RS256", "k1")) == "ann"
    assert user(token_keys, token(RSA, "RS256", "k2")) is None
    assert user(token_keys, token(RSA, "RS256")) == "ann"


def test_a_key_that_may_be_new_is_distinguished() -> None:
    token_keys = served(jwk(RSA, kid="k1"))
    verifier = TokenVerifier(token_keys)
    with pytest.raises(UnknownKey):
        verifier.verify(token(P256, "ES256", "k2"))
    for text in (token(P256, "ES256", "k1"), token(P256, "ES256"), jwt.encode({"sub": "ann"}, SECRET, "HS256")):
        with pytest.raises(AuthError) as refused:
            verifier.verify(text)
        assert not isinstance(refused.value, UnknownKey)
    with pytest.raises(UnknownKey):  # the key server has not answered yet
        TokenVerifier(KeySet(has_server=True)).verify(token(RSA, "RS256"))


def test_what_the_server_no_longer_has_counts_no_more() -> None:
    token_keys = served(jwk(RSA, kid="k1"))
    token_keys.replace_served(key_set.from_jwks({"keys": [jwk(P256, kid="k2")]}))
    assert user(token_keys, token(RSA, "RS256", "k1")) is None
    assert user(token_keys, token(P256, "ES256", "k2")) == "ann"


def test_what_cannot_verify_is_left_out_of_a_document() -> None:
    entries = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}, jwk(RSA, use="enc"), jwk(WEAK), jwk(BITCOIN), 5,
        jwk(RSA, alg="HS256"), jwk(P256, alg="ES384"), {"kty": "RSA"}, jwk(RSA, kid=5), jwk(P256, kid="good"),
    ]  # fmt: skip
    assert [key.kid for key in key_set.from_jwks({"keys": entries})] == ["good"]


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": []}, {"keys": [{"kty": "oct", "k": "eA"}]}])
def test_a_document_of_no_use_is_a_fault(document: Any) -> None:
    with pytest.raises(InvalidKey):
        key_set.from_jwks(document)
    with pytest.raises(InvalidKey):
        key_set.from_jwks({"keys": [jwk(P256)] * (key_set.MAX_KEYS + 1)})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(["kty", "kid", "alg", "use", "n", "e", "crv", "x", "y", "k", "d"])
texts = st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "ES256", "sig", ""])


@settings(deadline=None, max_examples=300)
@given(
    json_values | st.fixed_dictionaries({"keys": st.lists(st.dictionaries(fields, texts | json_values), max_size=4)})
)
def test_any_document_gives_keys_or_a_fault_and_nothing_else(document: Any) -> None:
    try:
        keys = key_set.from_jwks(document)
    except InvalidKey:
        return
    assert keys and not any(key.algorithms & key_set.HMAC_ALGORITHMS for key in keys)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must hold 1 to"),
        ("no key", "must hold 1 to"),
        (private_pem(RSA), "holds a private key"),
        (pem(WEAK), "1024 bits"),
        (pem(BITCOIN), "key 1 cannot be used"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "key 1 cannot be used"),
        (pem(RSA) + pem(WEAK), "key 2 cannot be used"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidKey, match=reason) as fault:
        from_file(tmp_path, text)
    assert "keys.pem" in str(fault.value)


def test_settings_name_all_that_verifies(tmp_path: Path) -> None:
    file = tmp_path / "keys.pem"
    file.write_text(pem(P256))
    token_keys = key_set.load(Settings(jwt_secret=SECRET, jwt_secret_previous=SECRET[::-1], jwt_pem=str(file)))
    for key, algorithm in ((SECRET, "HS512"), (SECRET[::-1], "HS256"), (P256, "ES256")):
        assert user(token_keys, token(key, algorithm)) == "ann"
    assert not key_set.load(Settings())
    assert key_set.load(Settings(jwks_url="https://keys.example/jwks"))


@pytest.mark.parametrize("private", [RSA, P256, P384, P521, ED25519, ED448])
def test_a_private_key_signs_what_its_public_key_verifies(private: Any, tmp_path: Path) -> None:
    key, algorithm = key_set.signing_key(private_pem(private))
    assert user(from_file(tmp_path, pem(private)), token(key, algorithm)) == "ann"


@pytest.mark.parametrize("text", ["", "no key", pem(RSA), private_pem(WEAK), private_pem(BITCOIN)])
def test_what_cannot_sign_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the words are the library's
        key_set.signing_key(text)


def test_no_key_shows_its_secret() -> None:
    assert SECRET not in repr(key_set.from_secret(SECRET, ""))


def test_replaced_keys_leave_those_of_the_key_server() -> None:
    token_keys = key_set.load(Settings(jwt_secret=SECRET, jwks_url="https://keys.example/jwks"))
    served = key_set.Key("served", key_set.HMAC_ALGORITHMS, "k")
    token_keys.replace_served([served])
    token_keys.replace_given(key_set.load(Settings(jwt_secret=SECRET[::-1])))
    assert [key.material for key in token_keys.candidates("HS256", None)] == [SECRET[::-1], "served"]
