"""Runs Lua scripts on a real Redis, and records their writes and publishes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import redis

from gateway.broker.client import RedisClient
from gateway.broker.errors import RedisCommand
from gateway.broker.keys import Keys
from gateway.metrics import Metrics
from tests.kit.waiting import until

CLOCK_MS: Final = 2  # Redis rounds the time of a script and of an expiry down, each by itself
_MARKER: Final = b"the end of what was published"


class Steps:
    """Calls Lua steps as the code does: the stripped source of `RedisClient.script`, by its digest."""

    def __init__(self, url: str) -> None:
        client: Any = redis.Redis.from_url(url)
        self.redis = client
        self.redis_client = RedisClient(url, timeout_seconds=5, name="test", metrics=Metrics())  # it never connects
        self.keys = Keys("")
        self._listener = self.redis.pubsub()  # on a connection of its own
        self._listener.psubscribe("*")
        self._listener.subscribe("")  # which no pattern matches
        kinds = [self._listener.get_message(timeout=10)["type"] for _ in range(2)]
        assert kinds == ["psubscribe", "subscribe"]
        self._loaded: set[str] = set()
        self._between = 0, 0  # Redis' time in ms before and after the last call

    def begin(self) -> None:
        """Empty Redis and take another namespace."""
        self.redis.flushall()
        self.keys = Keys(f"{secrets.token_hex(4)}:")
        self.published()

    def close(self) -> None:
        """Close all connections."""
        self._listener.close()
        self.redis.close()

    # ---- calls

    def call(self, name: str, keys: Sequence[str | bytes], *arguments: Any) -> Any:
        """The answer of the step `name`, as Redis sends it."""
        step = self.redis_client.script(name)
        if step.digest not in self._loaded:
            assert self.redis.script_load(step.source) == step.digest
            self._loaded.add(step.digest)
        return self.run(step(keys, arguments))

    def run(self, command: RedisCommand) -> Any:
        """The answer to a command that the code made."""
        before = self.now_ms()
        answer = self.redis.execute_command(*command)
        self._between = before, self.now_ms()
        return answer

    # ---- time

    def now_us(self) -> int:
        """Redis' time in microseconds since 1970."""
        seconds, micros = self.redis.time()
        return int(seconds) * 1_000_000 + int(micros)

    def now_ms(self) -> int:
        """Redis' time in milliseconds since 1970."""
        return self.now_us() // 1000

    def is_due(self, at_ms: float, ms: int) -> bool:
        """Whether `at_ms` lies `ms` after the last call."""
        before, after = self._between
        return before + ms - CLOCK_MS <= at_ms <= after + ms + CLOCK_MS

    def expires(self, key: str, ms: int) -> bool:
        """Whether `key` expires `ms` after the last call."""
        return self.is_due(self.redis.pexpiretime(key), ms)

    def expire(self, key: str) -> None:
        """Let the TTL of `key` end."""
        assert self.redis.pttl(key) > 0, f"{key} has no TTL"
        self.redis.pexpire(key, 1)
        until(lambda: not self.redis.exists(key), what=f"{key} expires")

    # ---- what there is

    def state(self) -> Mapping[bytes, tuple[bytes, int]]:
        """Value and end of each key."""
        return {key: (self.redis.dump(key), self.redis.pexpiretime(key)) for key in self.redis.scan_iter(count=1000)}

    def hash(self, key: str) -> dict[str, str]:
        """A hash as text."""
        return {field.decode(): value.decode() for field, value in self.redis.hgetall(key).items()}

    def scores(self, key: str) -> dict[str, float]:
        """A sorted set."""
        return {member.decode(): score for member, score in self.redis.zrange(key, 0, -1, withscores=True)}

    def published(self) -> list[tuple[str, bytes]]:
        """Channel and payload of all messages since the last call."""
        self.redis.publish("test", _MARKER)
        found: list[tuple[str, bytes]] = []
        while True:
            message = self._listener.get_message(timeout=10)
            assert message is not None, "the marker did not come"
            if message["data"] == _MARKER:
                return found
            found.append((message["channel"].decode(), message["data"]))

    @contextmanager
    def nothing_done(self) -> Iterator[None]:
        """What is called within writes nothing and publishes nothing."""
        before = self.state()
        self.published()
        yield
        assert self.state() == before
        assert self.published() == []

    @contextmanager
    def silence(self) -> Iterator[None]:
        """What is called within publishes nothing."""
        self.published()
        yield
        assert self.published() == []

    def writes(self) -> int:
        """How many changes Redis has counted: a write that changes no value counts too."""
        return int(self.redis.info("persistence")["rdb_changes_since_last_save"])
