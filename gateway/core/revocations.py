"""Tokens that hold no more though their end has not come.  (pure)

A book that only grows, and forgets what would have expired by now: whatever order two nodes hear of revocations in,
and however often, they know the same. So nothing is lost if all that is known is written again, or read again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gateway.core.protocol import MAX_NAME_LENGTH

MAX_REVOCATIONS: Final = 100_000  # at a time, in Redis and on each node
MAX_SECONDS: Final = 10 * 365 * 86_400  # the longest that one is kept

AHEAD_SECONDS: Final = 3600.0  # a token issued further ahead than that moves no revocation

Kind = Literal["token", "user"]


@dataclass(frozen=True, slots=True)
class Revocation:
    """One token, or all that a user was given up to a moment. Times in seconds since 1970."""

    kind: Kind
    name: str  # a token's id (its claim jti), or a user
    until: float  # what it is about has expired by then
    before: float = 0.0  # of a user: the tokens issued at this moment or earlier

    def about(self) -> dict[str, Any]:
        """As `parse` reads it."""
        return {"kind": self.kind, "name": self.name, "until": self.until, "before": self.before}


def name_of(token_id: str) -> str:
    """The name that the token with the claim `jti` is revoked by: the claim itself, or the digest of a long one."""
    if len(token_id) <= MAX_NAME_LENGTH:
        return token_id
    return f"sha256:{hashlib.sha256(token_id.encode()).hexdigest()}"


def parse(about: Any) -> Revocation:
    """The revocation that a JSON object says.

    Raises:
        ValueError: It says none.
    """
    match about:
        case {
            "kind": "token" | "user" as kind, "name": str(name), "until": int() | float() as until,
            "before": int() | float() as before,
        } if 0 < len(name) <= MAX_NAME_LENGTH and 0 <= until < 1e12 and 0 <= before < 1e12:  # fmt: skip
            return Revocation(kind, name, float(until), float(before))
    raise ValueError("a revocation has kind, name, until and before")


class Revocations:
    """All that a node knows of."""

    def __init__(self) -> None:
        self._known: dict[tuple[Kind, str], Revocation] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(tuple(self._known.values()))

    def add(self, revocations: Iterable[Revocation]) -> bool:
        """Take them in; True if that revokes anything that was not revoked."""
        news = False
        for one in revocations:
            key = one.kind, one.name
            known = self._known.get(key)
            if known is None and len(self._known) >= MAX_REVOCATIONS:
                continue  # Redis takes no more either
            if known is not None:
                one = Revocation(*key, max(known.until, one.until), max(known.before, one.before))
            news |= one != known
            self._known[key] = one
        return news

    def refuses(self, token_id: str | None, user: str | None, issued: float | None, latest: float = math.inf) -> bool:
        """Whether the token of this name, of this user, issued then, is revoked. Without `issued` it is an old one.

        One issued after `latest`, which is now, comes from a clock that is ahead. It may be older than the revocation
        of its user, so it counts as that.
        """
        if token_id is not None and ("token", token_id) in self._known:
            return True
        of_user = self._known.get(("user", user)) if user is not None else None
        return of_user is not None and (issued is None or not of_user.before < issued <= latest)

    def extend(self, user: str, issued: float) -> bool:
        """Revoke the tokens of a revoked `user` up to `issued`; True if that revokes more."""
        known = self._known.get(("user", user))
        return known is not None and self.add([replace(known, before=issued)])

    def expire(self, now: float) -> None:
        """Forget those that are about nothing any more."""
        for key in [key for key, one in self._known.items() if one.until <= now]:
            del self._known[key]
