"""What clients are sent is exactly what they read."""

from __future__ import annotations

import json

import pytest

from gateway.core import replies
from gateway.core.messages import Request
from gateway.core.position import Position

NOW = "2026-01-31T12:00:00.000Z"


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        (
            replies.welcome("web.f00d.1", "web", "0.1.0", 25000, {"messageBytes": 1024}, NOW),
            b'{"type":"SYSTEM","topic":"system","action":"welcome","data":{"clientId":"web.f00d.1","node":"web",'
            b'"version":"0.1.0","pingMs":25000,"limits":{"messageBytes":1024}},"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.authenticated(NOW),
            b'{"type":"ACKNOWLEDGMENT","operation":"authenticate","status":"success",'
            b'"message":"User authenticated successfully","timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.subscribed(["contest"], "r", NOW),
            b'{"type":"ACKNOWLEDGMENT","operation":"subscribe","topics":["contest"],"status":"success",'
            b'"message":"Successfully subscribed to contest","requestId":"r","timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.subscribed(("a", "b"), None, NOW),
            b'{"type":"ACKNOWLEDGMENT","operation":"subscribe","topics":["a","b"],"status":"success",'
            b'"message":"Successfully subscribed to a, b","timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.unsubscribed(["contest"], 0, NOW),
            b'{"type":"ACKNOWLEDGMENT","operation":"unsubscribe","topics":["contest"],"requestId":0,'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.published("chat", None, "", NOW),
            b'{"type":"ACKNOWLEDGMENT","operation":"publish","topic":"chat","requestId":"",'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.published("chat", Position("e1", 44), 7, NOW),
            b'{"type":"ACKNOWLEDGMENT","operation":"publish","topic":"chat","offset":44,"epoch":"e1","requestId":7,'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.subscribed(["c"], "1", NOW, {"c": {"epoch": "e1", "offset": 43, "recovered": True}}),
            b'{"type":"ACKNOWLEDGMENT","operation":"subscribe","topics":["c"],"status":"success",'
            b'"message":"Successfully subscribed to c","requestId":"1","timestamp":"2026-01-31T12:00:00.000Z",'
            b'"positions":{"c":{"epoch":"e1","offset":43,"recovered":true}}}',
        ),
        (
            replies.logged(1, NOW),
            b'{"type":"ACKNOWLEDGMENT","topic":"logs","message":"Logs received","count":1,'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.answer(Request("system", "getStatus", {}, "r"), {"ok": True}, NOW),
            b'{"type":"DATA","topic":"system","action":"getStatus","data":{"ok":true},"requestId":"r",'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.request_pong(Request("system", "ping", {}, "r"), NOW),
            b'{"type":"RESPONSE","topic":"system","action":"pong","data":{"timestamp":"2026-01-31T12:00:00.000Z"},'
            b'"requestId":"r"}',
        ),
        (
            replies.gap({"b", "a"}, NOW),
            b'{"type":"SYSTEM","topic":"system","action":"gap","data":{"topics":["a","b"]},'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.system("shutdown", {"message": "m", "code": 1001, "reconnectMs": 1234}, NOW),
            b'{"type":"SYSTEM","topic":"system","action":"shutdown","data":{"message":"m","code":1001,"reconnectMs":1234},'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            replies.system("unsubscribed", {"topics": ["a"], "reason": "why"}, NOW),
            b'{"type":"SYSTEM","topic":"system","action":"unsubscribed","data":{"topics":["a"],"reason":"why"},'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (replies.pong(1795502108477), b'{"type":"pong","timestamp":1795502108477}'),
        (replies.pong(None), b'{"type":"pong","timestamp":null}'),
    ],
)
def test_a_client_is_sent_exactly_this(encoded: bytes, text: bytes) -> None:
    assert encoded == text


def test_thousands_of_topics_are_acknowledged_without_saying_each_twice() -> None:
    wanted = [f"token:price:{n}" for n in range(3500)]
    ack = json.loads(replies.subscribed(wanted, "r", NOW))
    assert ack["topics"] == wanted
    assert ack["message"] == "Successfully subscribed to 3500 topics"
