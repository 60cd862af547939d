"""Verifies tokens: login tokens give an identity, subscription tokens give a grant."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any, Final

import jwt

from gateway.auth.centrifugo_claims import CentrifugoClaims
from gateway.auth.key_set import KeySet
from gateway.core import json_text
from gateway.core.identity import (
    MAX_INFO_BYTES,
    MAX_TOKEN_TOPICS,
    ROLES,
    AuthError,
    Grant,
    Identity,
    IsRevoked,
    UnknownKey,
    nothing_revoked,
)  # fmt: skip
from gateway.core.names import MAX_NAME_LENGTH
from gateway.core.revocations import name_of
from gateway.core.topic_rules import PATTERN_FORM, is_pattern

MAX_TOKEN_LENGTH: Final = 16 << 10
MAX_TIMESTAMP: Final = 1e12  # seconds since 1970; later times are cut to this

_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # lone surrogates, which UTF-8 cannot encode


class TokenVerifier:
    """Verifies tokens from memory, without any I/O.

    Claims, as the DegenDuel API issues them: ``wallet_address`` is the user (otherwise ``sub``), ``role`` is one of
    `ROLES` (any other counts as ``user``), and ``exp`` is the expiry in seconds since 1970. A subscription token has
    ``topics`` and cannot be used to log in. ``info`` of a login token is any JSON of at most `MAX_INFO_BYTES` bytes.

    Args:
        key_set: The keys that may have signed a token.
        audience: The required ``aud``; empty: none.
        issuer: The required ``iss``; empty: none.
        leeway_seconds: How long a token is accepted after its expiry, and before its ``nbf``.
        revoked: Whether a token is revoked.
        now: Returns seconds since 1970.
        centrifugo: How to read the claims of Centrifugo's tokens; None: they have no meaning.
    """

    def __init__(
        self, token_keys: KeySet, *, audience: str = "", issuer: str = "", leeway_seconds: float = 0,
        revoked: IsRevoked = nothing_revoked,
        now: Callable[[], float] = time.time,
        centrifugo: CentrifugoClaims | None = None,
    ) -> None:  # fmt: skip
        self._token_keys = token_keys
        self._audience = audience
        self._issuer = issuer
        self._leeway = leeway_seconds
        self._revoked = revoked
        self._now = now
        self._centrifugo = centrifugo

    def verify(self, token: str | None) -> Identity:
        """Verify a login token and return its identity.

        Raises:
            UnknownKey: The token names an unknown key, which the key server may have.
            AuthError: The token is missing, not signed for this gateway, expired, revoked, or has no user.
        """
        claims = self._claims(token)
        if "topics" in claims or (self._centrifugo is not None and "channel" in claims):
            raise AuthError("token_invalid", "A subscription token cannot log in: send it in tokens of SUBSCRIBE")
        user = _user(claims)
        if user is None and self._centrifugo is None:
            raise AuthError("token_invalid", "The token has no user: it needs wallet_address or sub")
        role, ends = claims.get("role"), self._expiry(claims)
        if user is None:
            role = None
        elif not isinstance(role, str) or role not in ROLES:
            role = "user"
        return Identity(
            user,
            role,
            None if ends is None else ends + self._leeway,
            _token_id(claims),
            _number(claims, "iat"),
            info=_info(claims),
            topics=self._centrifugo.topics(claims, user) if self._centrifugo is not None else (),
        )

    def verify_grant(self, token: str) -> Grant:
        """Verify a subscription token and return its grant.

        Raises:
            UnknownKey: As in `verify`.
            AuthError: The token is not signed for this gateway, expired, revoked, or has no topics or no expiry.
        """
        claims = self._claims(token)
        named = claims.get("topics")
        if named is None and self._centrifugo is not None:
            named = claims.get("channel")
        patterns = [named] if isinstance(named, str) else named
        if (
            not isinstance(patterns, list)
            or not 0 < len(patterns) <= MAX_TOKEN_TOPICS
            or not all(map(is_pattern, patterns))
        ):
            raise AuthError(
                "token_invalid",
                f"A subscription token has topics: 1 to {MAX_TOKEN_TOPICS} names or patterns of {PATTERN_FORM}",
            )
        ends = self._expiry(claims)
        if ends is None and self._centrifugo is not None and not self._centrifugo.needs_expiry:
            ends = math.inf
        if ends is None:
            raise AuthError("token_invalid", "A subscription token needs an expiry (exp)")
        return Grant(tuple(patterns), _user(claims), ends + self._leeway, _token_id(claims), _number(claims, "iat"))

    def _expiry(self, claims: dict[str, Any]) -> float | None:
        expire_at = _number(claims, "expire_at") if self._centrifugo is not None else None
        return _number(claims, "exp") if expire_at is None else expire_at or None  # 0: never

    def _claims(self, token: str | None) -> dict[str, Any]:
        if not token:
            raise AuthError("token_required", "A token is required")
        if not self._token_keys:
            raise AuthError(
                "token_invalid", "This gateway has neither GATEWAY_JWT_SECRET nor another key to verify with"
            )
        claims = self._signed(token)
        # Checked here, because PyJWT would not use `now`. `iat` is not checked (RFC 7519, 4.1.6): the issuer's clock
        # may be ahead of ours.
        begins, ends = _number(claims, "nbf"), _number(claims, "exp")
        if ends is not None and not self._now() < ends + self._leeway:  # written so that NaN counts as expired
            raise AuthError("token_expired", "The token has expired")
        if begins is not None and not begins - self._leeway <= self._now():
            raise AuthError("token_invalid", "The token is not valid yet (nbf)")
        if self._revoked(_token_id(claims), _user(claims), _number(claims, "iat")):
            raise AuthError("token_invalid", "The token has been revoked")
        return claims

    def _signed(self, token: str) -> dict[str, Any]:
        """Verify the signature, audience and issuer of `token`, and return its claims."""
        try:
            if len(token) > MAX_TOKEN_LENGTH:
                raise jwt.InvalidTokenError("too long")
            header = jwt.get_unverified_header(token)
            algorithm, kid = str(header.get("alg")), header.get("kid")
            for key in self._token_keys.candidates(algorithm, kid):
                try:
                    # `candidates` returns only keys bound to this algorithm. The header alone must not choose it.
                    claims: dict[str, Any] = jwt.decode(
                        token, key.material, algorithms=[algorithm], audience=self._audience or None,
                        issuer=self._issuer or None,
                        options={
                            "verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_jti": False,
                            "verify_sub": False,
                        },
                    )  # fmt: skip
                except jwt.InvalidSignatureError:
                    continue
                return claims
        except (jwt.InvalidAudienceError, jwt.MissingRequiredClaimError, jwt.InvalidIssuerError):
            raise AuthError("token_invalid", "The token was not issued for this gateway (aud, iss)") from None
        except (jwt.PyJWTError, ValueError):  # ValueError: a malformed signature
            raise AuthError("token_invalid", "The token is not valid") from None
        if self._token_keys.may_be_new(algorithm, kid):
            raise UnknownKey("token_invalid", "The token names an unknown key (kid)", kid or "")
        raise AuthError("token_invalid", "The token is not valid")


def _user(claims: dict[str, Any]) -> str | None:
    """The user in the claims; None if there is none.

    Raises:
        AuthError: The claim is not a valid name.
    """
    claim = "wallet_address" if claims.get("wallet_address") else "sub"
    user = claims.get(claim)
    if user is None or user == "":
        return None
    if not isinstance(user, str):
        kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
        raise AuthError("token_invalid", f"The token's {claim} is {kinds[type(user)]}; it must be a string")
    if len(user) > MAX_NAME_LENGTH or _SURROGATE.search(user):
        raise AuthError("token_invalid", f"The token's {claim} must have 1 to {MAX_NAME_LENGTH} characters of text")
    return user


def _token_id(claims: dict[str, Any]) -> str | None:
    """The name under which the token can be revoked. None: it has no `jti`, so only all tokens of its user can be.

    Raises:
        AuthError: `jti` is not a valid string, so no revocation could name it.
    """
    token_id = claims.get("jti")
    if token_id is None or token_id == "":
        return None
    if not isinstance(token_id, str) or _SURROGATE.search(token_id):
        raise AuthError("token_invalid", "The token's jti must be a string, so that the token can be revoked")
    return name_of(token_id)


def _info(claims: dict[str, Any]) -> bytes | None:
    """The claim `info` as JSON text; None if there is none.

    Raises:
        AuthError: JSON cannot hold it, or it is too long.
    """
    info = claims.get("info")
    if info is None:
        return None
    try:
        text = json_text.dumps(info)
    except ValueError as error:
        raise AuthError("token_invalid", f"The token's info is not valid: {error}") from None
    if len(text) > MAX_INFO_BYTES:
        raise AuthError(
            "token_invalid", f"The token's info has {len(text)} bytes; the limit is {MAX_INFO_BYTES}: shorten it"
        )
    return text


def _number(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise AuthError("token_invalid", f"The token's {name} is not a number")
    return None if value is None else max(-MAX_TIMESTAMP, min(value, MAX_TIMESTAMP))
