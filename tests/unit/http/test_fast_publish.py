"""gateway.http.fast_publish: the requests that it handles or leaves to the route, and its responses."""

from __future__ import annotations

import asyncio
import hashlib
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from gateway.auth.api_keys import ALL_SCOPES, ApiKey, ApiKeys
from gateway.core import topic_rules
from gateway.delivery.publisher import MessagePublisher
from gateway.http import fast_publish
from gateway.http.fast_publish import MAX_BODY_BYTES, FastPublish
from gateway.node.node import Node
from gateway.settings import Settings
from gateway.transports.fast_exchange import FastExchange
from tests.unit.delivery.test_publisher import KEYS, RULES
from tests.unit.memory_redis import MemoryRedis
from tests.unit.virtual_time import in_virtual_time, later

HEADERS = [(b"host", b"localhost"), (b"authorization", b"Bearer k"), (b"content-length", b"9")]


class Written:
    """What is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False


class At:
    """A fast path to a Redis in memory."""

    def __init__(self, **settings: Any) -> None:
        self.redis = MemoryRedis()
        self.publisher = MessagePublisher(
            self.redis.client, KEYS, topic_rules.parse(RULES, "rules"), self.redis.metrics, max_message_bytes=3000,
            now=lambda: 1_700_000_000.0,
        )  # fmt: skip
        key = ApiKey("all", hashlib.sha256(b"k").digest(), ALL_SCOPES)
        node = SimpleNamespace(api_keys=ApiKeys([key]), publisher=self.publisher, settings=Settings(**settings))
        self.node = cast(Node, node)
        self.path = FastPublish(self.node)
        self.transport = Written()

    async def start(self, body: Any, headers: list[tuple[bytes, bytes]] = HEADERS) -> bool:
        exchange = FastExchange(cast(asyncio.Transport, self.transport), [], True, lambda: None)
        exchange.body += body if isinstance(body, bytes) else orjson.dumps(body)
        start = self.path.accept(b"POST", b"/api/publish", headers)
        started = start is not None and start(exchange)
        await later(0.01)
        return started


def test_only_an_ordinary_publish_is_accepted() -> None:
    path = At().path
    assert path.accept(b"POST", b"/api/publish", HEADERS)
    assert path.accept(b"POST", b"/api/publish", [*HEADERS, (b"content-type", b"x"), (b"x-forwarded-for", b"1.1.1.1")])
    for method, target in ((b"GET", b"/api/publish"), (b"POST", b"/api/publish?"), (b"POST", b"/api/key")):
        assert not path.accept(method, target, HEADERS)
    for name in (b"expect", b"transfer-encoding", b"content-encoding", b"upgrade", b"host", b"authorization"):
        assert not path.accept(b"POST", b"/api/publish", [*HEADERS, (name, b"x")])
    for missing in range(3):
        assert not path.accept(b"POST", b"/api/publish", HEADERS[:missing] + HEADERS[missing + 1 :])
    for length in (b"", b"x", b"-1", b"+1", b"1_0", b"%d" % (MAX_BODY_BYTES + 1), b"9" * 5000):
        assert not path.accept(b"POST", b"/api/publish", [*HEADERS[:2], (b"content-length", length)])


@in_virtual_time
async def test_a_publish_is_answered_as_the_route_does() -> None:
    at = At()
    assert await at.start({"messages": [{"topic": "plain", "data": 1}, {"topic": "kept", "data": 2}]})
    head, _, body = at.transport.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-type: application/json\r\n" % len(body))
    plain, kept = orjson.loads(body)["results"]
    assert plain == {"topic": "plain"}
    assert kept.keys() == {"topic", "epoch", "offset", "mark"}
    assert len(at.redis.published) == 2
    assert at.redis.metrics.publishes.labels("ok").value == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", {"topic": "a b", "data": 1}, {"topic": "system", "data": 1}, {"topic": "plain"},
     {"topic": "plain", "data": "x" * 3000}, {"topic": "plain", "data": 1, "idempotencyKey": "k k"}],
    ids=lambda body: repr(body)[:50],
)  # fmt: skip
@in_virtual_time
async def test_a_refusal_is_left_to_the_route_and_nothing_has_happened(body: Any) -> None:
    at = At()
    assert not await at.start(body)
    assert (at.transport.written, at.redis.trips) == (b"", [])


@in_virtual_time
async def test_a_foreign_host_and_other_keys_are_left_to_the_route() -> None:
    at = At()
    for changed in ((b"host", b"evil.example"), (b"authorization", b"Bearer other"), (b"authorization", b"Basic k"),
                    (b"authorization", b"Bearer \xff")):  # fmt: skip
        headers = [changed if name == changed[0] else (name, value) for name, value in HEADERS]
        assert not await at.start({"topic": "plain", "data": 1}, headers)
    assert at.redis.trips == []


@in_virtual_time
async def test_each_request_is_checked_although_its_head_was_accepted_before() -> None:
    at = At()
    start = at.path.accept(b"POST", b"/api/publish", HEADERS)
    assert start is not None
    large = FastExchange(cast(asyncio.Transport, at.transport), [], True, lambda: None, b" " * (MAX_BODY_BYTES + 1))
    assert not start(large)
    at.node.api_keys.replace(ApiKeys([]))  # the key is no longer valid
    body = orjson.dumps({"topic": "plain", "data": 1})
    assert not start(FastExchange(cast(asyncio.Transport, at.transport), [], True, lambda: None, body))
    assert at.redis.trips == []


@in_virtual_time
async def test_a_failure_of_redis_is_answered() -> None:
    at = At()
    at.redis.away = True
    assert await at.start({"topic": "plain", "data": 1})
    assert at.transport.written.startswith(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n")
    assert at.redis.metrics.publishes.labels("unavailable").value == 1


@in_virtual_time
async def test_an_unexpected_error_is_answered_and_logged() -> None:
    at = At()
    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: logged.append(context))
    at.publisher.positions = lambda *_: 1 / 0  # type: ignore[assignment, method-assign]
    assert await at.start({"topic": "plain", "data": 1})
    assert at.transport.written.startswith(b"HTTP/1.1 500 ")
    assert [type(context["exception"]) for context in logged] == [ZeroDivisionError]


def test_it_can_be_turned_off_and_is_off_on_a_redis_cluster() -> None:
    at = At()
    assert fast_publish.create(at.node) is not None
    assert fast_publish.create(At(fast_paths=False).node) is None
    at.redis.sharded = True
    assert fast_publish.create(at.node) is None
