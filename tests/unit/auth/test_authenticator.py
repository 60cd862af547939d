"""A node accepts no token before it has read the revocations."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.auth import key_set
from gateway.auth.authenticator import Authenticator
from gateway.broker.client import Unavailable
from gateway.broker.keys import Keys
from gateway.metrics import Metrics
from gateway.settings import Settings


class FakeRedis:
    """A Redis that is away, or holds nothing."""

    away = True

    def script(self, _name: str) -> None:
        """Nothing is written here."""

    async def execute(self, *_command: Any) -> None:
        return None

    async def execute_each(self, commands: list[Any]) -> list[Any]:
        """No version, and the time."""
        if self.away:
            raise Unavailable("gone")
        assert [command[0] for command in commands] == ["GETRANGE", "TIME"]
        return [b"", [b"0", b"0"]]


async def test_tokens_are_not_judged_before_it_was_read_what_is_revoked() -> None:
    redis = FakeRedis()
    settings = Settings(jwt_secret="s" * 32)
    authenticator = Authenticator(
        settings, key_set.load(settings), cast(Any, redis), Keys("gw:"), Metrics(), lambda: 0.0
    )
    assert authenticator.unready_reason == "revocations: not yet read from Redis"
    with pytest.raises(Unavailable):
        await authenticator.revocation_store.refresh()
    assert authenticator.unready_reason is not None
    redis.away = False
    assert not await authenticator.revocation_store.refresh()
    assert authenticator.unready_reason is None
