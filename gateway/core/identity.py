"""The identity and the grants of a client, as verified tokens state them.  (pure)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from gateway.core.topic_rules import is_reserved, matches

Reason = Literal["token_expired", "token_invalid", "token_required"]

SUPERADMIN: Final = "superadmin"
ADMIN_ROLES: Final = frozenset({"admin", SUPERADMIN})
ROLES: Final = ADMIN_ROLES | {"user"}
MAX_INFO_BYTES: Final = 2048  # of the claim `info` as JSON text
MAX_TOKEN_TOPICS: Final = 100  # names and patterns in one subscription token


class AuthError(Exception):
    """A token is missing or invalid. The browser client acts on `reason`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnknownKey(AuthError):
    """The node does not know the token's key `kid`. Verify the token again after asking the key server."""

    def __init__(self, reason: Reason, message: str, kid: str = "") -> None:
        super().__init__(reason, message)
        self.kid = kid


class KeyServerUnavailable(AuthError):
    """The key server did not answer, so the token cannot be verified now. The client may retry in a few seconds."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The claims of a verified token. An anonymous client has no user and no role."""

    user: str | None = None
    role: str | None = None
    expires: float | None = None  # seconds since 1970; None: never
    token_id: str | None = None  # its claim jti
    issued: float | None = None  # its claim iat, seconds since 1970
    reads_all: bool = (
        False  # an API key with the scope read: may subscribe to all topics that clients may, and only that
    )
    info: bytes | None = None  # its claim info, as JSON text: what presence shows of the client

    topics: tuple[str, ...] = ()  # that the node subscribes the client to when it connects

    @property
    def is_admin(self) -> bool:
        """Whether the role is an administrator's."""
        return self.role in ADMIN_ROLES

    def has_same_rights(self, other: Identity) -> bool:
        """Whether both have the same permissions, so that at most their tokens differ."""
        return (self.user, self.role, self.reads_all) == (other.user, other.role, other.reads_all)


ANONYMOUS: Final = Identity()


@dataclass(frozen=True, slots=True)
class Grant:
    """The topics that a subscription token allows, even if the topic rules do not."""

    patterns: tuple[str, ...]
    user: str | None  # only this user may use the token; None: every client may
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
        """The number of patterns with a wildcard. Each costs one comparison per topic; all names together cost one."""
        return len(self._wildcards)

    def is_for(self, identity: Identity) -> bool:
        """Whether `identity` may use this grant."""
        return self.user is None or self.user == identity.user

    def covers(self, topic: str, identity: Identity) -> bool:
        """Whether this grant allows `identity` to subscribe to `topic`."""
        if not self.is_for(identity) or is_reserved(topic):
            return False
        return topic in self._names or any(matches(pattern, topic) for pattern in self._wildcards)


# Arguments: the token's id, its user, and when it was issued (seconds since 1970).
IsRevoked = Callable[[str | None, str | None, float | None], bool]


def nothing_revoked(_token_id: str | None, _user: str | None, _issued: float | None) -> bool:
    """False for every token: the default where tokens cannot be revoked."""
    return False
