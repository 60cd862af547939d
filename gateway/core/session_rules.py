"""The rules that the sessions of a node share.  (pure)"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from gateway.core.identity import Grant, Identity
from gateway.core.topic_rules import TopicRules

Verify: TypeAlias = Callable[[str | None], Identity]


@dataclass(frozen=True, slots=True)
class SessionRules:
    """The rules that all sessions of a node share. Both verifiers raise `AuthError` for an invalid token."""

    verify: Verify
    verify_grant: Callable[[str], Grant]
    topics: TopicRules
    max_client_topics: int
    open: bool = False  # every client may do everything that the rules allow to some client
    backend: bool = False  # a back end is configured
    leeway_seconds: float = 0.0  # for which the node still accepts an expired token
    centrifugo: bool = False  # names of topics restrict their subscribers, as Centrifugo's channels do

    def seconds_left(self, expires: float | None, now: float) -> int | None:
        """For how many seconds a token that `expires` is valid; both since 1970."""
        if expires is None or expires == math.inf:
            return None
        return max(1, int(expires - self.leeway_seconds - now))
