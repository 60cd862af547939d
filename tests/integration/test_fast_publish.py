"""POST /api/publish gives the same response with fast paths and without: status, headers and body.

Only the Date, and positions of messages, may differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import orjson
import pytest

from tests.conftest import Connect
from tests.hostile.test_smuggling import CHUNK, FRAMING
from tests.kit.node import API_KEY, Node, token
from tests.kit.raw import exchange
from tests.kit.redis import Redis
from tests.kit.waiting import eventually, until

KEYS = """
[[key]]
name = "prices"
sha256 = "{prices}"
scopes = ["publish:price:*"]

[[key]]
name = "reader"
sha256 = "{reader}"
scopes = ["read"]
"""
RULES = """
[[topic]]
pattern = "kept*"
history = 10
history_bytes = 3000

[[topic]]
pattern = "last*"
snapshot = true
"""
HOST = b"Host: localhost\r\n"
KEY = b"Authorization: Bearer " + API_KEY.encode() + b"\r\n"


def request(body: object, head: bytes = HOST + KEY, *, target: bytes = b"/api/publish", length: str = "") -> bytes:
    """A publish; `body` is its bytes or its JSON."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    size = length.encode() or b"%d" % len(content)
    return b"POST " + target + b" HTTP/1.1\r\n" + head + b"Content-Length: " + size + b"\r\n\r\n" + content


PLAIN = {"topic": "plain", "data": 1}
CASES: dict[str, bytes] = {
    "plain": request(PLAIN),
    "history": request({"topic": "kept", "data": {"a": [1, "ß", None]}}),
    "snapshot": request({"topic": "last", "data": 1.5}),
    "extras": request({**PLAIN, "action": "a", "subtype": "ß", "priority": 3}),
    "to a user": request({**PLAIN, "to": {"user": "ann"}}),
    "to a client": request({**PLAIN, "to": {"client": "n1.9f2c31ab.7"}}),
    "except": request({**PLAIN, "except": "n1.9f2c31ab.7"}),
    "several": request({"messages": [PLAIN, {"topic": "kept", "data": 2}, {"topic": "last", "data": 3}]}),
    "idempotent": request({"topic": "kept", "data": 2, "idempotencyKey": "once"}),
    "idempotent again": request({"topic": "kept", "data": 2, "idempotencyKey": "once"}),
    "key without history": request({**PLAIN, "idempotencyKey": "once"}),
    "close": request(PLAIN, HOST + KEY + b"Connection: close\r\n"),
    "keep-alive": request(PLAIN, HOST + KEY + b"Connection: keep-alive\r\n"),
    "any type": request(PLAIN, HOST + KEY + b"Content-Type: text/plain\r\n"),
    "forwarded": request(PLAIN, HOST + KEY + b"X-Forwarded-For: 10.1.1.1\r\nX-Request-ID: 7\r\n"),
    "lower case": request(PLAIN, b"host: localhost\r\nauthorization: bearer " + API_KEY.encode() + b"\r\n"),
    "administrator": request(PLAIN, HOST + b"Authorization: Bearer " + token("root", "admin").encode() + b"\r\n"),
    "user's token": request(PLAIN, HOST + b"Authorization: Bearer " + token("ann").encode() + b"\r\n"),
    "not a token": request(PLAIN, HOST + b"Authorization: Bearer a.b.c\r\n"),
    "no key": request(PLAIN, HOST),
    "wrong key": request(PLAIN, HOST + b"Authorization: Bearer nothing\r\n"),
    "basic": request(PLAIN, HOST + b"Authorization: Basic " + API_KEY.encode() + b"\r\n"),
    "two keys": request(PLAIN, HOST + KEY + b"Authorization: Bearer nothing\r\n"),
    "key of a pattern": request({"topic": "price:x", "data": 1}, HOST + b"Authorization: Bearer prices\r\n"),
    "key of another pattern": request(PLAIN, HOST + b"Authorization: Bearer prices\r\n"),
    "key of another scope": request(PLAIN, HOST + b"Authorization: Bearer reader\r\n"),
    "no host": request(PLAIN, KEY),
    "two hosts": request(PLAIN, HOST + HOST + KEY),
    "foreign host": request(PLAIN, b"Host: evil.example\r\n" + KEY),
    "query": request(PLAIN, target=b"/api/publish?a=1"),
    "empty query": request(PLAIN, target=b"/api/publish?"),
    "absolute": request(PLAIN, target=b"http://localhost/api/publish"),
    "escaped": request(PLAIN, target=b"/api/%70ublish"),
    "get": b"GET /api/publish HTTP/1.1\r\n" + HOST + KEY + b"\r\n",
    "expect": request(PLAIN, HOST + KEY + b"Expect: 100-continue\r\nConnection: close\r\n"),
    "gzip": request(PLAIN, HOST + KEY + b"Content-Encoding: gzip\r\n"),
    "identity": request(PLAIN, HOST + KEY + b"Content-Encoding: identity\r\n"),
    "chunked": b"POST /api/publish HTTP/1.1\r\n" + HOST + KEY + b"Transfer-Encoding: chunked\r\n\r\n"
    b"1a\r\n" + orjson.dumps(PLAIN)[:26].ljust(26) + b"\r\n0\r\n\r\n",
    "h2c": request(PLAIN, HOST + KEY + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    "http/1.0": request(PLAIN).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "no body": request(b""),
    "no length": b"POST /api/publish HTTP/1.1\r\n" + HOST + KEY + b"\r\n",
    "not json": request(b"{"),
    "not utf-8": request(b'{"topic":"plain","data":"\xff"}'),
    "gzip data": request(b"\x1f\x8b\x08"),
    "number": request(b'{"topic":"plain","data":100000000000000000001}'),
    "deep": request(b'{"topic":"plain","data":' + b"[" * 300 + b"]" * 300 + b"}"),
    "list": request([PLAIN]),
    "no messages": request({"messages": []}),
    "too many": request({"messages": [PLAIN] * 1001}),
    "messages and more": request({"messages": [PLAIN], "topic": "plain"}),
    "no data": request({"topic": "plain"}),
    "unknown field": request({"messages": [PLAIN, {**PLAIN, "x": 1}]}),
    "bad topic": request({"topic": "a b", "data": 1}),
    "bad to": request({**PLAIN, "to": {}}),
    "reserved": request({"topic": "system", "data": 1}),
    "too large for the topic": request({"topic": "kept", "data": "x" * 3000}),
    "large": request({"topic": "plain", "data": "x" * 60_000}),
    "too large for the stop of reading": request({"topic": "plain", "data": "x" * 70_000}),
    "too large": request({"topic": "plain", "data": "x" * 150_000}),
    "body too large": request({"topic": "plain", "data": "x" * 250_000}, HOST + KEY + b"Connection: close\r\n"),
    "malformed length": request(PLAIN, length="1x"),
    "negative length": request(PLAIN, length="-1"),
    "two lengths": request(PLAIN, HOST + KEY + b"Content-Length: 0\r\n"),
    "length and chunks": request(PLAIN, HOST + KEY + b"Transfer-Encoding: chunked\r\n"),
}


def comparable(answer: bytes) -> bytes:
    """The answer without its Date and positions."""
    answer = re.sub(rb"\r\ndate: [^\r]+", b"\r\ndate: *", answer)
    answer = re.sub(rb'"epoch":"\w+","offset":\d+,"mark":\d+', b'"position":*', answer)
    return re.sub(rb"content-length: \d+", b"content-length: *", answer) if b"position" in answer else answer


class Pair:
    """Two nodes on one Redis, of which the first has fast paths."""

    def __init__(self, folder: Path, redis: Redis, **settings: object) -> None:
        self.nodes = [Node(f"n{fast}", folder, redis, fast_paths=fast, **settings) for fast in (1, 0)]
        for node in self.nodes:
            until(node.ready, 60, f"{node.name} is ready")

    async def same(self, sent: bytes) -> bytes:
        """The response to `sent`, which both nodes give."""
        fast, usual = [comparable(await exchange(node.port, sent)) for node in self.nodes]
        assert fast == usual
        return fast


@pytest.fixture
def pair(folder: Path, redis: Redis) -> Iterator[Callable[..., Pair]]:
    """`pair(wait_replicas=1)`: two nodes with these settings."""
    started: list[Pair] = []

    def start(**settings: object) -> Pair:
        started.append(Pair(folder, redis, **settings))
        return started[-1]

    yield start
    for one in started:
        complaints = [line for node in one.nodes for line in node.complaints()]
        for node in one.nodes:
            node.close()
        assert not complaints


@pytest.fixture
def settings(folder: Path) -> dict[str, object]:
    """Topic rules and keys for all cases."""
    (folder / "rules.toml").write_text(RULES)
    digests = {name: sha256(name.encode()).hexdigest() for name in ("prices", "reader")}
    (folder / "keys.toml").write_text(KEYS.format(**digests))
    return {"topics": folder / "rules.toml", "api_keys": folder / "keys.toml", "max_message_bytes": 100_000}


async def test_every_case_has_the_same_response(
    pair: Callable[..., Pair], settings: dict[str, object], connect: Connect
) -> None:
    both = pair(**settings)
    subscriber = await connect(both.nodes[0])
    await subscriber.subscribe("plain")
    statuses, delivered = set(), 0
    for name, sent in CASES.items():
        try:
            answer = await both.same(sent)
        except AssertionError as error:
            error.add_note(f"case {name!r}")
            raise
        statuses.add(int(answer[9:12]))
        if b" 200 OK" in answer and b'"to":' not in sent:
            # Each node publishes the message once, but both together if it has an idempotency key.
            delivered += answer.count(b'"topic":"plain"') * (1 if b'"idempotencyKey"' in sent else 2)
    assert statuses == {100, 200, 400, 401, 403, 404, 405, 413, 415, 421}
    await eventually(lambda: len(subscriber.data("plain")) >= delivered)
    await subscriber.ask(type="REQUEST", topic="system", action="getStatus", requestId="after")
    assert len(subscriber.data("plain")) == delivered


async def test_every_case_behind_others_on_its_connection_has_the_same_response(
    pair: Callable[..., Pair], settings: dict[str, object]
) -> None:
    both = pair(**settings)
    for name, sent in CASES.items():
        before = CASES["plain"], CASES["history"], CASES["plain"]
        fast, usual = [comparable(await exchange(node.port, *before, sent)) for node in both.nodes]
        assert fast == usual, name


async def test_a_publish_that_is_not_confirmed_has_the_same_response(
    pair: Callable[..., Pair], settings: dict[str, object]
) -> None:
    both = pair(**settings, wait_replicas=1, wait_seconds=0.1)
    assert (await both.same(CASES["plain"])).startswith(b"HTTP/1.1 200 ")
    assert b'"code":"unconfirmed"' in await both.same(CASES["history"])


async def test_a_redis_that_is_away_or_frozen_gives_the_same_response(
    pair: Callable[..., Pair], redis: Redis, settings: dict[str, object]
) -> None:
    both = pair(**settings, redis_timeout_seconds=0.3)
    redis.freeze()
    assert (await both.same(CASES["plain"])).startswith(b"HTTP/1.1 503 ")
    redis.thaw()
    redis.stop()
    answers = [await exchange(node.port, CASES["plain"]) for node in both.nodes]  # the reasons may differ
    assert all(answer.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in answer for answer in answers)
    redis.start()


async def test_any_split_and_any_order_has_the_same_response(
    pair: Callable[..., Pair], settings: dict[str, object]
) -> None:
    both = pair(**settings)
    names = ["plain", "history", "get", "wrong key", "chunked", "large", "bad topic", "close"]
    together = b"".join(CASES[name] for name in names)
    sizes = (1, 7, 100, 3000, len(together))
    for size in sizes:
        fast, usual = [comparable(await all_answers(node, together, size)) for node in both.nodes]
        assert fast == usual
        assert fast.count(b"HTTP/1.1 ") == len(names), size


async def test_no_request_hides_in_a_publish(pair: Callable[..., Pair], settings: dict[str, object]) -> None:
    both = pair(**settings)
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for lines in FRAMING:
        if "h2c" in lines:  # uvicorn reads no further request, so the connection stays open
            continue
        for body in (CASES["plain"], CHUNK, orjson.dumps(PLAIN)):
            head = HOST + KEY + lines.format(size=len(body)).encode("latin-1") + b"\r\n"
            sent = b"POST /api/publish HTTP/1.1\r\n" + head + b"\r\n" + body + last
            fast, usual = [comparable(await all_answers(node, sent, len(sent))) for node in both.nodes]
            assert fast == usual, (lines, body)


async def all_answers(node: Node, sent: bytes, size: int) -> bytes:
    """All answers to pipelined requests, sent in pieces of this size, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    for at in range(0, len(sent), size):
        writer.write(sent[at : at + size])
        if at < 2000:  # the others may be joined
            await asyncio.sleep(0)
    async with asyncio.timeout(30):
        answer = await reader.read(-1)
    await closed(writer)
    return answer


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close the connection, and wait until it is closed."""
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_stop_answers_the_publish_under_way(
    pair: Callable[..., Pair], redis: Redis, settings: dict[str, object]
) -> None:
    both = pair(**settings, drain_seconds=0)
    node = both.nodes[0]
    reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
    writer.write(CASES["plain"])
    async with asyncio.timeout(10):
        await reader.readuntil(b"}]}")
        redis.cli("CLIENT", "PAUSE", 1500, "ALL")
        writer.write(CASES["plain"])
        node.process.terminate()
        answer = await reader.read(-1)  # until the node closes the connection
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answer
    await closed(writer)
    assert node.process.exit_code() == 0
