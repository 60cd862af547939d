"""The claims that only Centrifugo's tokens have.  (pure)

A connection token may name channels that the server subscribes the client to (`channels`, `subs`), and need not have a
user. A subscription token names its one topic in `channel`. `expire_at` takes precedence over `exp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.core.identity import MAX_TOKEN_TOPICS, AuthError
from gateway.core.topic_rules import is_topic


@dataclass(frozen=True, slots=True)
class CentrifugoClaims:
    """How to read them. `needs_expiry`: a subscription token must expire; `personal`: users have a topic each."""

    needs_expiry: bool
    personal: bool

    def topics(self, claims: Mapping[str, Any], user: str | None) -> tuple[str, ...]:
        """The topics that a client with this connection token is subscribed to.

        Raises:
            AuthError: The claims are not valid.
        """
        channels, subs = claims.get("channels") or [], claims.get("subs") or {}
        if not isinstance(channels, list) or not isinstance(subs, dict):
            raise AuthError("token_invalid", "The token's channels must be a list, and its subs an object")
        personal = [f"#{user}"] if self.personal and user is not None else []
        topics = dict.fromkeys([*channels, *subs, *personal])
        if len(topics) > MAX_TOKEN_TOPICS or not all(map(is_topic, topics)):
            raise AuthError(
                "token_invalid", f"The token's channels and subs must be at most {MAX_TOKEN_TOPICS} topic names"
            )
        return tuple(topics)
