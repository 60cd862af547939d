"""gateway.transports.repeated_request: the requests that are recognised by the head of an earlier one."""

from __future__ import annotations

import pytest

from gateway.transports.fast_exchange import FastExchange
from gateway.transports.repeated_request import RepeatedRequest

HEAD = b"POST /api/publish HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\nAuthorization: Bearer k\r\n\r\n"
LAST = b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length:\t%s\r\n\r\n"


def start(exchange: FastExchange) -> bool:
    return not exchange.response_complete


def request(head: bytes, body: bytes, length: bytes | None = None) -> bytes:
    return head.replace(b"%s", b"%d" % len(body) if length is None else length) + body


@pytest.mark.parametrize("head", [HEAD, LAST])
@pytest.mark.parametrize("body", [b"", b"x", b"\r\n\r\n", HEAD, b"x" * 70_000])
def test_a_request_with_the_same_head_has_its_body_read(head: bytes, body: bytes) -> None:
    repeated = RepeatedRequest.of(request(head, b"first"), 5, start)
    assert repeated is not None
    assert repeated.start is start
    assert repeated.body_of(request(head, body)) == body


@pytest.mark.parametrize(
    "data",
    [
        b"", HEAD, request(HEAD, b"body")[:-1], request(HEAD, b"body") + b"x", 2 * request(HEAD, b"body"),
        request(HEAD, b"body", b"3"), request(HEAD, b"body", b"5"), request(HEAD, b"body", b"-4"),
        request(HEAD, b"body", b"+4"), request(HEAD, b"body", b" 4"), request(HEAD, b"body", b"4 "),
        request(HEAD, b"body", b"0x4"), request(HEAD, b"body", b""), request(HEAD, b"body", b"4\r\nx: y"),
        request(HEAD, b"body", b"0000000004"), request(HEAD, b"body").replace(b"Bearer k", b"Bearer l"),
        request(HEAD, b"body").replace(b"POST", b"post"), request(HEAD, b"body").replace(b"Host: a\r\n", b""),
        b"\r\n" + request(HEAD, b"body"),
    ],
)  # fmt: skip
def test_anything_else_must_be_parsed(data: bytes) -> None:
    repeated = RepeatedRequest.of(request(HEAD, b"first"), 5, start)
    assert repeated is not None
    assert repeated.body_of(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n" + request(HEAD, b"body"), request(HEAD, b"body") + b"\r\n", 2 * request(HEAD, b"body"),
        request(HEAD, b"body").replace(b"Content-Length: 4\r\n", b""), b"body", b"", request(HEAD, b"body", b"4 "),
    ],
)  # fmt: skip
def test_a_head_is_kept_only_of_one_whole_request(data: bytes) -> None:
    assert RepeatedRequest.of(data, 4, start) is None
