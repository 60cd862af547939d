"""Revoked tokens that have not expired yet.  (pure)

A node only adds revocations, and drops one when the tokens that it concerns have expired. So the order in which nodes
receive revocations does not matter, nor does receiving one twice: all nodes end up with the same set. Writing or
reading the whole set again is always safe.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gateway.core.names import MAX_NAME_LENGTH

MAX_REVOCATIONS: Final = 100_000  # at a time, in Redis and on each node
MAX_SECONDS: Final = 10 * 365 * 86_400  # the longest lifetime of a revocation

AHEAD_SECONDS: Final = 3600.0  # a token whose `iat` is further in the future does not extend a revocation

Kind = Literal["token", "user"]


@dataclass(frozen=True, slots=True)
class Revocation:
    """The revocation of one token, or of all tokens issued to a user up to a time. Times are seconds since 1970."""

    kind: Kind
    name: str  # a token's id (its claim jti), or a user
    until: float  # the revoked tokens have expired by then
    before: float = 0.0  # for a user: tokens issued at this time or earlier are revoked

    def as_dict(self) -> dict[str, Any]:
        """The revocation as a JSON object for `parse`."""
        return {"kind": self.kind, "name": self.name, "until": self.until, "before": self.before}


def name_of(token_id: str) -> str:
    """The name under which a token is revoked: its claim `jti`, or the digest of a long one."""
    if len(token_id) <= MAX_NAME_LENGTH:
        return token_id
    return f"sha256:{hashlib.sha256(token_id.encode()).hexdigest()}"


def parse(about: Any) -> Revocation:
    """Parse a revocation from a JSON object.

    Raises:
        ValueError: `about` is not a revocation.
    """
    match about:
        case {
            "kind": "token" | "user" as kind, "name": str(name), "until": int() | float() as until,
            "before": int() | float() as before,
        } if 0 < len(name) <= MAX_NAME_LENGTH and 0 <= until < 1e12 and 0 <= before < 1e12:  # fmt: skip
            return Revocation(kind, name, float(until), float(before))
    raise ValueError("a revocation has kind, name, until and before")


class Revocations:
    """The revocations that a node knows."""

    def __init__(self) -> None:
        self._known: dict[tuple[Kind, str], Revocation] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(tuple(self._known.values()))

    def add(self, revocations: Iterable[Revocation]) -> bool:
        """Add `revocations`. True if this revokes a token that was valid before."""
        news = False
        for one in revocations:
            key = one.kind, one.name
            known = self._known.get(key)
            if known is None and len(self._known) >= MAX_REVOCATIONS:
                continue  # Redis has the same limit
            if known is not None:
                one = Revocation(*key, max(known.until, one.until), max(known.before, one.before))
            news |= one != known
            self._known[key] = one
        return news

    def is_revoked(
        self, token_id: str | None, user: str | None, issued: float | None, latest: float = math.inf
    ) -> bool:
        """Whether a token is revoked.

        Args:
            token_id: The token's name, see `name_of`.
            user: The token's user.
            issued: When it was issued; None counts as before any revocation.
            latest: The current time. A token issued later comes from a clock that is ahead, and may in fact be older
                than the revocation of its user. So it counts as older.
        """
        if token_id is not None and ("token", token_id) in self._known:
            return True
        of_user = self._known.get(("user", user)) if user is not None else None
        return of_user is not None and (issued is None or not of_user.before < issued <= latest)

    def extend(self, user: str, issued: float) -> bool:
        """Extend the revocation of `user`, if there is one, to tokens issued up to `issued`. True if it changed."""
        known = self._known.get(("user", user))
        return known is not None and self.add([replace(known, before=issued)])

    def expire(self, now: float) -> None:
        """Drop the revocations whose tokens have all expired at `now`."""
        for key in [key for key, one in self._known.items() if one.until <= now]:
            del self._known[key]
