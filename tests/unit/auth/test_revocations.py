"""A node's revocations and Redis': a full list refuses the writer, and a node that knows one more lives on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import orjson
import pytest
from structlog.testing import capture_logs

from gateway.auth.revocations import CLOCK_CHECKS, RevocationStore, TooManyRevocations
from gateway.broker.client import CommandRefused, WrongType
from gateway.broker.keys import Keys
from gateway.broker.rows import RowDecoder
from gateway.core.revocations import Revocation
from gateway.metrics import Metrics
from tests.unit.memory_redis import MemoryRedis

KEYS = Keys("gw:")
OURS = Revocation("token", "ours", 4e9)


class FakeRedis:
    """A Redis with `members`, each with its end, and no room for more if `full`."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.rows = RowDecoder(self.metrics)
        self.members: list[bytes] = []
        self.version = b"1"
        self.full = False
        self.wrong: str | None = None  # the key that has another type
        self.written: list[Any] = []
        self.unlinked: list[str] = []

    def script(self, name: str) -> Any:
        return lambda keys, arguments: (name, keys, arguments)

    async def execute(self, *command: Any) -> Any:
        return (await self.execute_each([command]))[0]

    async def execute_each(self, commands: Sequence[Any]) -> list[Any]:
        return [self._answer(*command) for command in commands]

    def _answer(self, name: str, key: Any, *arguments: Any) -> Any:
        if (key if isinstance(key, str) else key[0]) == self.wrong and name != "UNLINK":
            return WrongType("WRONGTYPE")
        match name:
            case "GETRANGE":
                return self.version
            case "page_sorted_set":
                page = self.members[arguments[0][1] // 2 : arguments[0][2] // 2 + 1]
                return [len(page), [part for member in page for part in (member, b"4000000000")]]
            case "ZMSCORE":
                return [None] * len(arguments)
            case "revoke_tokens":
                if self.full:
                    return 0
                self.written += arguments[0][5::3]
                return b"0.0"
            case "UNLINK":
                self.unlinked.append(key)
                self.wrong = None
                return 1
        raise AssertionError(name)


def make() -> tuple[RevocationStore, FakeRedis]:
    redis = FakeRedis()
    answer = redis._answer
    redis._answer = lambda name, key=None, *rest: [b"0", b"0"] if name == "TIME" else answer(name, key, *rest)  # type: ignore[method-assign]
    return RevocationStore(cast(Any, redis), KEYS, lambda: 0.0), redis


async def test_a_full_list_ends_no_node_and_is_logged_once() -> None:
    revocation_store, redis = make()
    revocation_store.receive([OURS])
    redis.full = True
    with capture_logs() as lines:
        for version in (b"1", b"2", b"3"):
            redis.version = version
            await revocation_store.refresh()
    assert revocation_store.known
    assert revocation_store.is_revoked("ours", None, None)
    assert [line["event"] for line in lines] == ["revocations not written"]
    with pytest.raises(TooManyRevocations):
        await revocation_store.revoke("token", "another", 4e9)
    redis.full = False
    redis.version = b"4"
    await revocation_store.refresh()
    assert redis.written == ["token:ours"]


async def test_rows_that_are_no_revocations_are_skipped_and_the_others_hold() -> None:
    revocation_store, redis = make()
    redis.members = [b"\xff\xfe", b"token:good", b"token", b"nobody:x", b"user:" + b"u" * 300]
    with capture_logs():
        assert await revocation_store.refresh()
    assert revocation_store.is_revoked("good", None, None)
    assert len(list(revocation_store.book)) == 1
    assert redis.metrics.registry.get_sample_value("gateway_malformed_total", {"kind": "revocation"}) == 4


@pytest.mark.parametrize("key", [KEYS.revoked, KEYS.revoked_users, KEYS.revoked_version])
async def test_a_key_of_another_type_is_deleted_and_what_is_known_is_written(key: str) -> None:
    revocation_store, redis = make()
    revocation_store.receive([OURS])
    redis.members, redis.wrong = [b"token:theirs"], key
    with capture_logs():
        await revocation_store.refresh()
    assert redis.unlinked == [key]
    assert revocation_store.known
    assert "token:ours" in redis.written


async def test_redis_time_is_read_at_every_fifth_check_and_after_an_order() -> None:
    revocation_store, redis = make()
    seconds, asked = 100, 0
    answer = redis._answer

    def counted(name: str, key: Any = None, *rest: Any) -> Any:
        nonlocal asked
        if name != "TIME":
            return answer(name, key, *rest)
        asked += 1
        return [b"%d" % seconds, b"500000"]

    redis._answer = counted  # type: ignore[method-assign]
    times = []
    for seconds in range(100, 100 + 2 * CLOCK_CHECKS + 1):  # noqa: B007 - `counted` reads it
        await revocation_store.refresh()
        times.append(revocation_store.clock())
    assert times == [100.5] * CLOCK_CHECKS + [105.5] * CLOCK_CHECKS + [110.5]
    assert asked == 3
    seconds = 200
    revocation_store.receive([OURS])
    await revocation_store.refresh()
    assert revocation_store.clock() == 200.5, "what is revoked up to a moment is judged by the clock of that moment"


async def test_redis_time_that_was_refused_is_asked_for_again() -> None:
    revocation_store, redis = make()
    answer = redis._answer
    redis._answer = lambda name, *rest: CommandRefused("NOPERM") if name == "TIME" else answer(name, *rest)  # type: ignore[method-assign]
    with pytest.raises(CommandRefused):
        await revocation_store.refresh()
    assert not revocation_store.known
    redis._answer = answer  # type: ignore[method-assign]
    await revocation_store.refresh()
    assert revocation_store.known


def test_a_user_is_revoked_up_to_redis_time_and_a_token_for_good_each_published_once() -> None:
    redis = MemoryRedis()
    keys = Keys("", False)
    revocation_store = RevocationStore(redis.client, keys, lambda: redis.now_ms / 1000)
    until = redis.now_ms / 1000 + 60
    user = asyncio.run(revocation_store.revoke("user", "ann", until))
    token = asyncio.run(revocation_store.revoke("token", "jti", until))
    assert (user.before, token.before) == (redis.now_ms / 1000, 0.0)
    assert redis.run("ZSCORE", keys.revoked_users, "user:ann") is not None
    assert redis.run("ZSCORE", keys.revoked_users, "token:jti") is None
    sent = [orjson.loads(payload)["revocations"] for _, payload in redis.published]
    assert sent == [[user.as_dict()], [token.as_dict()]]
    other = RevocationStore(redis.client, keys, lambda: redis.now_ms / 1000)
    assert asyncio.run(other.refresh())
    assert other.is_revoked("jti", None, None)
    assert other.is_revoked(None, "ann", redis.now_ms / 1000 - 1)
    assert not other.is_revoked("other", "bob", redis.now_ms / 1000)
    assert not asyncio.run(other.refresh()), "nothing is new"
