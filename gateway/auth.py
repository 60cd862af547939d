"""Who someone is: tokens verified, never only decoded."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import jwt

from gateway.protocol import MAX_NAME_LENGTH

Reason = Literal["token_expired", "token_invalid", "token_required"]

ADMIN_ROLES: Final = frozenset({"admin", "superadmin"})
ROLES: Final = ADMIN_ROLES | {"user"}

_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # half a character: UTF-8 cannot carry it, so nothing of ours can


class AuthError(Exception):
    """A token that proves nothing; `reason` is the word the browser client acts on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Identity:
    """What a token proved. Anonymous has no user and no role."""

    user: str | None = None
    role: str | None = None
    expires: float | None = None  # seconds since 1970; None: never

    @property
    def is_admin(self) -> bool:
        """Whether the role is one of the administrators'."""
        return self.role in ADMIN_ROLES


ANONYMOUS: Final = Identity()


class Authenticator:
    """Verifies HS256 tokens with one secret; without a secret nobody can log in.

    Claims, as the DegenDuel API issues them: ``wallet_address`` is the user (``sub`` where there is none),
    ``role`` one of `ROLES` (any other counts as ``user``), ``exp`` the end in seconds since 1970.
    """

    def __init__(self, secret: str, now: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._now = now

    def verify(self, token: str | None) -> Identity:
        """The identity that `token` proves.

        Raises:
            AuthError: It is missing, was not signed by us, is past its end or names no user.
        """
        if not token:
            raise AuthError("token_required", "A token is required")
        if not self._secret:
            raise AuthError("token_invalid", "This gateway has no GATEWAY_JWT_SECRET and can verify no token")
        try:
            # The end is checked below, against our own clock argument. The beginning is no promise (RFC 7519, 4.1.6):
            # an issuer's clock may run ahead of ours.
            claims = jwt.decode(
                token, self._secret, algorithms=["HS256"], options={"verify_exp": False, "verify_iat": False}
            )
        except jwt.InvalidTokenError:
            raise AuthError("token_invalid", "The token is not valid") from None
        user = claims.get("wallet_address") or claims.get("sub")
        if not isinstance(user, str) or not 0 < len(user) <= MAX_NAME_LENGTH or _SURROGATE.search(user):
            raise AuthError("token_invalid", "The token names no user in wallet_address or sub")
        expires = claims.get("exp")
        if expires is not None and (isinstance(expires, bool) or not isinstance(expires, int | float)):
            raise AuthError("token_invalid", "The token's exp is not a number")
        if expires is not None and not self._now() < expires:  # NaN, too, is never ahead
            raise AuthError("token_expired", "The token has expired")
        role = claims.get("role")
        return Identity(user, role if isinstance(role, str) and role in ROLES else "user", expires)


def issue(secret: str, user: str, role: str, seconds: float, now: float) -> str:
    """A token that `Authenticator` accepts until `seconds` after `now` (seconds since 1970)."""
    claims = {"id": user, "wallet_address": user, "role": role, "iat": int(now), "exp": int(now + seconds)}
    return jwt.encode(claims, secret, algorithm="HS256")
