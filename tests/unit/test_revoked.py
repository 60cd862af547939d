"""A node's revocations and Redis': a full list refuses the writer, and a node that knows one more lives on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import orjson
import pytest
from structlog.testing import capture_logs

from gateway.cluster.keys import Keys
from gateway.cluster.link import Refused, WrongType
from gateway.cluster.revoked import CLOCK_CHECKS, Full, Revoked
from gateway.cluster.rows import Rows
from gateway.core.revocations import Revocation
from gateway.metrics import Metrics
from tests.unit.memory_link import MemoryLink

KEYS = Keys("gw:")
OURS = Revocation("token", "ours", 4e9)


class Link:
    """A Redis with `members`, each with its end, and no room for more if `full`."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.rows = Rows(self.metrics)
        self.members: list[bytes] = []
        self.version = b"1"
        self.full = False
        self.wrong: str | None = None  # the key that has another type
        self.written: list[Any] = []
        self.unlinked: list[str] = []

    def script(self, name: str) -> Any:
        return lambda keys, arguments: (name, keys, arguments)

    async def ask(self, *command: Any) -> Any:
        return (await self.ask_each([command]))[0]

    async def ask_each(self, commands: Sequence[Any]) -> list[Any]:
        return [self._answer(*command) for command in commands]

    def _answer(self, name: str, key: Any, *arguments: Any) -> Any:
        if (key if isinstance(key, str) else key[0]) == self.wrong and name != "UNLINK":
            return WrongType("WRONGTYPE")
        match name:
            case "GETRANGE":
                return self.version
            case "members":
                page = self.members[arguments[0][1] // 2 : arguments[0][2] // 2 + 1]
                return [len(page), [part for member in page for part in (member, b"4000000000")]]
            case "ZMSCORE":
                return [None] * len(arguments)
            case "revoke":
                if self.full:
                    return 0
                self.written += arguments[0][5::3]
                return b"0.0"
            case "UNLINK":
                self.unlinked.append(key)
                self.wrong = None
                return 1
        raise AssertionError(name)


def make() -> tuple[Revoked, Link]:
    link = Link()
    answer = link._answer
    link._answer = lambda name, key=None, *rest: [b"0", b"0"] if name == "TIME" else answer(name, key, *rest)  # type: ignore[method-assign]
    return Revoked(cast(Any, link), KEYS, lambda: 0.0), link


async def test_a_full_list_ends_no_node_and_is_logged_once() -> None:
    revoked, link = make()
    revoked.receive([OURS])
    link.full = True
    with capture_logs() as lines:
        for version in (b"1", b"2", b"3"):
            link.version = version
            await revoked.check()
    assert revoked.known
    assert revoked.refuses("ours", None, None)
    assert [line["event"] for line in lines] == ["revocations not written"]
    with pytest.raises(Full):
        await revoked.revoke("token", "another", 4e9)
    link.full = False
    link.version = b"4"
    await revoked.check()
    assert link.written == ["token:ours"]


async def test_rows_that_are_no_revocations_are_skipped_and_the_others_hold() -> None:
    revoked, link = make()
    link.members = [b"\xff\xfe", b"token:good", b"token", b"nobody:x", b"user:" + b"u" * 300]
    with capture_logs():
        assert await revoked.check()
    assert revoked.refuses("good", None, None)
    assert len(list(revoked.book)) == 1
    assert link.metrics.registry.get_sample_value("gateway_malformed_total", {"kind": "revocation"}) == 4


@pytest.mark.parametrize("key", [KEYS.revoked, KEYS.revoked_users, KEYS.revoked_version])
async def test_a_key_of_another_type_is_deleted_and_what_is_known_is_written(key: str) -> None:
    revoked, link = make()
    revoked.receive([OURS])
    link.members, link.wrong = [b"token:theirs"], key
    with capture_logs():
        await revoked.check()
    assert link.unlinked == [key]
    assert revoked.known
    assert "token:ours" in link.written


async def test_redis_time_is_read_at_every_fifth_check_and_after_an_order() -> None:
    revoked, link = make()
    seconds, asked = 100, 0
    answer = link._answer

    def counted(name: str, key: Any = None, *rest: Any) -> Any:
        nonlocal asked
        if name != "TIME":
            return answer(name, key, *rest)
        asked += 1
        return [b"%d" % seconds, b"500000"]

    link._answer = counted  # type: ignore[method-assign]
    times = []
    for seconds in range(100, 100 + 2 * CLOCK_CHECKS + 1):  # noqa: B007 - `counted` reads it
        await revoked.check()
        times.append(revoked.clock())
    assert times == [100.5] * CLOCK_CHECKS + [105.5] * CLOCK_CHECKS + [110.5]
    assert asked == 3
    seconds = 200
    revoked.receive([OURS])
    await revoked.check()
    assert revoked.clock() == 200.5, "what is revoked up to a moment is judged by the clock of that moment"


async def test_redis_time_that_was_refused_is_asked_for_again() -> None:
    revoked, link = make()
    answer = link._answer
    link._answer = lambda name, *rest: Refused("NOPERM") if name == "TIME" else answer(name, *rest)  # type: ignore[method-assign]
    with pytest.raises(Refused):
        await revoked.check()
    assert not revoked.known
    link._answer = answer  # type: ignore[method-assign]
    await revoked.check()
    assert revoked.known


def test_a_user_is_revoked_up_to_redis_time_and_a_token_for_good_and_each_is_told_once() -> None:
    redis = MemoryLink()
    keys = Keys("", False)
    revoked = Revoked(redis.link, keys, lambda: redis.now_ms / 1000)
    until = redis.now_ms / 1000 + 60
    user = asyncio.run(revoked.revoke("user", "ann", until))
    token = asyncio.run(revoked.revoke("token", "jti", until))
    assert (user.before, token.before) == (redis.now_ms / 1000, 0.0)
    assert redis.run("ZSCORE", keys.revoked_users, "user:ann") is not None
    assert redis.run("ZSCORE", keys.revoked_users, "token:jti") is None
    told = [orjson.loads(payload)["revocations"] for _, payload in redis.published]
    assert told == [[user.as_dict()], [token.as_dict()]]
    other = Revoked(redis.link, keys, lambda: redis.now_ms / 1000)
    assert asyncio.run(other.check())
    assert other.refuses("jti", None, None)
    assert other.refuses(None, "ann", redis.now_ms / 1000 - 1)
    assert not other.refuses("other", "bob", redis.now_ms / 1000)
    assert not asyncio.run(other.check()), "nothing is new"
