"""Who a client is, and what a token lets it hear: what was proved, not how.  (pure)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from gateway.core.topics import is_reserved, matches

Reason = Literal["token_expired", "token_invalid", "token_required"]

SUPERADMIN: Final = "superadmin"
ADMIN_ROLES: Final = frozenset({"admin", SUPERADMIN})
ROLES: Final = ADMIN_ROLES | {"user"}


class AuthError(Exception):
    """A token that proves nothing; `reason` is the word the browser client acts on."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnknownKey(AuthError):
    """The key server may have the key `kid` by now: once it was asked, the token may be tried again."""

    def __init__(self, reason: Reason, message: str, kid: str = "") -> None:
        super().__init__(reason, message)
        self.kid = kid


class KeysAway(AuthError):
    """The key server could not be asked for the token's key: the token may be tried again in some seconds."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a token proved. Anonymous has no user and no role."""

    user: str | None = None
    role: str | None = None
    expires: float | None = None  # seconds since 1970 at which it holds no more; None: never
    token_id: str | None = None  # its claim jti
    issued: float | None = None  # its claim iat, seconds since 1970
    hears_all: bool = False  # an API key with the scope read: what any client may hear, and no more than that

    @property
    def is_admin(self) -> bool:
        """Whether the role is one of the administrators'."""
        return self.role in ADMIN_ROLES

    def is_same_person(self, other: Identity) -> bool:
        """Whether the two may do the same: only the tokens differ."""
        return (self.user, self.role, self.hears_all) == (other.user, other.role, other.hears_all)


ANONYMOUS: Final = Identity()


@dataclass(frozen=True, slots=True)
class Grant:
    """What a subscription token lets its bearer hear, whatever the rules say; of a user, only that one."""

    patterns: tuple[str, ...]
    user: str | None
    expires: float  # seconds since 1970
    token_id: str | None = None
    issued: float | None = None
    _names: frozenset[str] = field(init=False, repr=False, compare=False)
    _wildcards: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_names", frozenset(pattern for pattern in self.patterns if "*" not in pattern))
        object.__setattr__(self, "_wildcards", tuple(pattern for pattern in self.patterns if "*" in pattern))

    @property
    def wildcards(self) -> int:
        """How many of its patterns a topic is compared with one by one; names cost one look-up together."""
        return len(self._wildcards)

    def is_for(self, identity: Identity) -> bool:
        """Whether `identity` may use it."""
        return self.user is None or self.user == identity.user

    def covers(self, topic: str, identity: Identity) -> bool:
        """Whether `identity` may hear `topic` by it."""
        if not self.is_for(identity) or is_reserved(topic):
            return False
        return topic in self._names or any(matches(pattern, topic) for pattern in self._wildcards)


# Whether the token with this id, of this user, issued then, holds no more.
IsRevoked = Callable[[str | None, str | None, float | None], bool]


def nothing_revoked(_token_id: str | None, _user: str | None, _issued: float | None) -> bool:
    """The answer where nobody revokes tokens."""
    return False
