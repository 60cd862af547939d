"""The keys that verify tokens, each bound to its algorithms.

The binding prevents a token from choosing its verification: a public key is never used as a shared secret, and an RSA
key never verifies an elliptic-curve signature.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from jwt.algorithms import HMACAlgorithm

from gateway.core.revocations import name_of
from gateway.settings import Settings

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

HMAC_ALGORITHMS: Final = frozenset({"HS256", "HS384", "HS512"})
RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
EDDSA_ALGORITHMS: Final = frozenset({"EdDSA"})
OKP: Final = {"OKP": "EdDSA"}  # PyJWT needs this for Ed448
CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

MIN_RSA_BITS: Final = 2048  # RFC 7518, 3.3
MAX_KEYS: Final = 32  # in one document; a token without a kid is tried with every key of its algorithm

_BEGIN: Final = "-----BEGIN "


class InvalidKey(ValueError):
    """A key cannot be used. The message names the key and does not show it."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key that verifies tokens, with its allowed algorithms and its name `kid`, if any."""

    material: str | PublicKey = field(repr=False)
    algorithms: frozenset[str]
    kid: str | None = None


class KeySet:
    """All keys of a node: the configured ones, and the key server's keys as of the last fetch."""

    def __init__(self, given: Iterable[Key] = (), *, has_server: bool = False) -> None:
        self._given = tuple(given)
        self._has_server = has_server
        self._served: tuple[Key, ...] = ()

    def __bool__(self) -> bool:
        """Whether the node can verify any token."""
        return bool(self._given) or self._has_server

    def replace_given(self, other: KeySet) -> None:
        """Replace the configured keys by those of `other`."""
        self._given = other._given

    def replace_served(self, keys: Iterable[Key]) -> None:
        """Replace the key server's keys by `keys`."""
        self._served = tuple(keys)

    def names(self) -> frozenset[str]:
        """The names of the key server's keys, as `revocations.name_of` gives them."""
        return frozenset(name_of(key.kid) for key in self._served if key.kid is not None)

    def candidates(self, algorithm: str, kid: str | None) -> list[Key]:
        """The keys that may have signed a token with this header. A key without a `kid` fits every `kid`."""
        return [
            key
            for key in (*self._given, *self._served)
            if algorithm in key.algorithms and (kid is None or key.kid is None or key.kid == kid)
        ]

    def may_be_new(self, algorithm: str, kid: str | None) -> bool:
        """Whether the key server may have a new key for this header that the node has not fetched yet."""
        if not self._has_server or algorithm in HMAC_ALGORITHMS:
            return False
        return not self._served or (kid is not None and all(key.kid != kid for key in self._served))


def from_secret(secret: str, name: str) -> Key:
    """The key for a shared `secret`. `name` is its name for error messages.

    Raises:
        InvalidKey: `secret` is the text of a public key, which is not secret.
    """
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise InvalidKey(
            f"{name} holds a public key, which is not a secret: put it into a file and set GATEWAY_JWT_PEM"
        ) from None
    return Key(secret, HMAC_ALGORITHMS)


def from_pem(file: str) -> list[Key]:
    """The public keys in a PEM file.

    Raises:
        InvalidKey: The file cannot be read, or holds anything else.
    """
    try:
        text = Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidKey(f"GATEWAY_JWT_PEM: {file} cannot be read: {error}") from None
    if "PRIVATE KEY-----" in text:
        raise InvalidKey(f"GATEWAY_JWT_PEM: {file} holds a private key; use a file with only the public key")
    keys = []
    for number, block in enumerate(text.split(_BEGIN)[1:], 1):
        try:
            keys.append(_bound(load_pem_public_key(f"{_BEGIN}{block}".encode()), None, None))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidKey(f"GATEWAY_JWT_PEM: {file}: key {number} cannot be used: {error}") from None
    if not 0 < len(keys) <= MAX_KEYS:
        raise InvalidKey(f"GATEWAY_JWT_PEM: {file} must hold 1 to {MAX_KEYS} public keys (-----BEGIN PUBLIC KEY-----)")
    return keys


def from_jwks(document: Any) -> list[Key]:
    """The keys in a JWKS document (RFC 7517) that can verify tokens. Other keys are ignored, as the RFC says.

    Raises:
        InvalidKey: The document is invalid, has too many keys, or has no key that can verify tokens.
    """
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list) or len(found) > MAX_KEYS:
        raise InvalidKey(f'a JWKS document must be {{"keys": […]}} with at most {MAX_KEYS} keys')
    keys = []
    for entry in found:
        # A shared secret (oct) in a public document is not secret, so it is ignored.
        if (
            not isinstance(entry, dict)
            or entry.get("kty") not in ("RSA", "EC", "OKP")
            or entry.get("use", "sig") != "sig"
        ):
            continue
        kid, algorithm = entry.get("kid"), entry.get("alg")
        if not isinstance(kid, str | None) or not isinstance(algorithm, str | None):
            continue
        try:
            public = {name: value for name, value in entry.items() if name not in ("d", "p", "q", "dp", "dq", "qi")}
            keys.append(_bound(jwt.PyJWK(public, algorithm or OKP.get(entry["kty"])).key, kid, algorithm))
        except (ValueError, TypeError, KeyError, AttributeError, jwt.PyJWTError, UnsupportedAlgorithm):
            continue  # the key may be for other programs
    if not keys:
        raise InvalidKey("it has no key for RS, PS, ES or EdDSA signatures")
    return keys


def _bound(key: Any, kid: str | None, algorithm: str | None) -> Key:
    match key:
        case RSAPublicKey() if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"an RSA key of {key.key_size} bits; it must have at least {MIN_RSA_BITS}")
        case RSAPublicKey():
            algorithms = RSA_ALGORITHMS
        case EllipticCurvePublicKey() if key.curve.name in CURVES:
            algorithms = frozenset({CURVES[key.curve.name]})
        case Ed25519PublicKey() | Ed448PublicKey():
            algorithms = EDDSA_ALGORITHMS
        case _:
            raise ValueError("not an RSA, P-256, P-384, P-521, Ed25519 or Ed448 key")
    if algorithm is not None:
        algorithms &= {algorithm}
        if not algorithms:
            raise ValueError(f"the key's type does not fit its algorithm {algorithm}")
    return Key(key, algorithms, kid)


def signing_key(text: str) -> tuple[Any, str]:
    """The private key in a PEM text, and the algorithm to sign with.

    Raises:
        ValueError: `text` is not a private key, or nodes do not support its type.
    """
    try:
        private: Any = load_pem_private_key(text.encode(), None)
    except (TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise ValueError(str(error)) from None
    algorithms = _bound(private.public_key(), None, None).algorithms
    return private, "RS256" if "RS256" in algorithms else min(algorithms)


def load(settings: Settings) -> KeySet:
    """Load the keys in `settings`. This does not ask the key server.

    Raises:
        InvalidKey: A key cannot be used.
    """
    given = [
        from_secret(secret, f"GATEWAY_{name}")
        for name, secret in (("JWT_SECRET", settings.jwt_secret), ("JWT_SECRET_PREVIOUS", settings.jwt_secret_previous))
        if secret
    ]
    if settings.jwt_pem:
        given += from_pem(settings.jwt_pem)
    return KeySet(given, has_server=bool(settings.jwks_url))
