"""Clients decode exactly the events that the node encodes."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import events, message
from gateway.core.commands import BackendCommand, Request
from gateway.core.errors import CloseReason
from gateway.core.events import Event
from gateway.core.position import Position
from gateway.protocols.native import encoder

NOW_MS = 1_769_860_800_000  # 2026-01-31T12:00:00.000Z


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            events.Welcome("web.f00d.1", "web", "0.1.0", 25000, {"messageBytes": 1024}),
            b'{"type":"SYSTEM","topic":"system","action":"welcome","data":{"clientId":"web.f00d.1","node":"web",'
            b'"version":"0.1.0","pingMs":25000,"limits":{"messageBytes":1024}},"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Authenticated(),
            b'{"type":"ACKNOWLEDGMENT","operation":"authenticate","status":"success",'
            b'"message":"User authenticated successfully","timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Subscribed(["contest"], "r"),
            b'{"type":"ACKNOWLEDGMENT","operation":"subscribe","topics":["contest"],"status":"success",'
            b'"message":"Successfully subscribed to contest","requestId":"r","timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Subscribed(("a", "b"), None),
            b'{"type":"ACKNOWLEDGMENT","operation":"subscribe","topics":["a","b"],"status":"success",'
            b'"message":"Successfully subscribed to a, b","timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Subscribed(["c", "d"], None, {"c": Position("e1", 43, 430)}, by_server=True),
            b'{"type":"SYSTEM","topic":"system","action":"subscribed","data":{"topics":["c","d"],'
            b'"positions":{"c":{"epoch":"e1","offset":43,"mark":430}}},"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Subscribed(["d"], None, by_server=True),
            b'{"type":"SYSTEM","topic":"system","action":"subscribed","data":{"topics":["d"]},'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Unsubscribed(["contest"], 0),
            b'{"type":"ACKNOWLEDGMENT","operation":"unsubscribe","topics":["contest"],"requestId":0,'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Published("chat", None, ""),
            b'{"type":"ACKNOWLEDGMENT","operation":"publish","topic":"chat","requestId":"",'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Published("chat", Position("e1", 44), 7),
            b'{"type":"ACKNOWLEDGMENT","operation":"publish","topic":"chat","offset":44,"epoch":"e1","requestId":7,'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Subscribed(["c"], "1", {"c": Position("e1", 43, 430), "d": Position("e2", 0, 0)}, {"c": True}),
            b'{"type":"ACKNOWLEDGMENT","operation":"subscribe","topics":["c"],"status":"success",'
            b'"message":"Successfully subscribed to c","requestId":"1","timestamp":"2026-01-31T12:00:00.000Z",'
            b'"positions":{"c":{"epoch":"e1","offset":43,"mark":430,"recovered":true},'
            b'"d":{"epoch":"e2","offset":0,"mark":0}}}',
        ),
        (
            events.LogsAccepted(1),
            b'{"type":"ACKNOWLEDGMENT","topic":"logs","message":"Logs received","count":1,'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Answer(Request("system", "getStatus", {}, "r"), {"ok": True}),
            b'{"type":"DATA","topic":"system","action":"getStatus","data":{"ok":true},"requestId":"r",'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.RequestPong(Request("system", "ping", {}, "r")),
            b'{"type":"RESPONSE","topic":"system","action":"pong","data":{"timestamp":"2026-01-31T12:00:00.000Z"},'
            b'"requestId":"r"}',
        ),
        (
            events.Gap({"b", "a"}),
            b'{"type":"SYSTEM","topic":"system","action":"gap","data":{"topics":["a","b"]},'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.ServerLeaving(CloseReason.SHUTDOWN, 1234),
            b'{"type":"SYSTEM","topic":"system","action":"shutdown","data":{"message":"Server is restarting",'
            b'"code":1001,"reconnectMs":1234},"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.SubscriptionsEnded(["a"], "why"),
            b'{"type":"SYSTEM","topic":"system","action":"unsubscribed","data":{"topics":["a"],"reason":"why"},'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (events.Pong(1795502108477), b'{"type":"pong","timestamp":1795502108477}'),
        (events.Pong(None), b'{"type":"pong","timestamp":null}'),
        (
            events.ServerLeaving(CloseReason.MOVE, 5),
            b'{"type":"SYSTEM","topic":"system","action":"move","data":{"message":"Another server has more room",'
            b'"code":3011,"reconnectMs":5},"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Degraded(),
            b'{"type":"SYSTEM","topic":"system","action":"degraded","data":{"message":'
            b'"Live updates are interrupted; you stay connected"},"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.Restored(),
            b'{"type":"SYSTEM","topic":"system","action":"restored","data":{"message":"Live updates flow again"},'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.TokenExpiring(NOW_MS + 1),
            b'{"type":"SYSTEM","topic":"system","action":"token_expiring","data":{"expires":"2026-01-31T12:00:00.001Z",'
            b'"message":"Your token expires: send AUTH with a new one"},"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            events.CommandDone(BackendCommand("game", "move", None, "r"), None),
            b'{"type":"ACKNOWLEDGMENT","operation":"command","topic":"game","action":"move","status":"success",'
            b'"requestId":"r","timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (events.StreamOpened("n.1.key"), b'{"type":"OPEN","stream":"n.1.key"}'),
        (events.StreamClosed(3503, "why"), b'{"type":"CLOSE","code":3503,"reason":"why"}'),
    ],
)
def test_a_client_is_sent_exactly_this(event: Event, text: bytes) -> None:
    assert encoder.text(event, NOW_MS) == text


def test_thousands_of_topics_are_acknowledged_without_saying_each_twice() -> None:
    wanted = [f"token:price:{n}" for n in range(3500)]
    ack = orjson.loads(encoder.text(events.Subscribed(wanted, "r"), NOW_MS))
    assert ack["topics"] == wanted
    assert ack["message"] == "Successfully subscribed to 3500 topics"


@given(st.from_regex("[!-z|~]{1,40}", fullmatch=True))
def test_any_topic_stays_one_string_of_the_message(topic: str) -> None:
    read = orjson.loads(encoder.data(events.Delivered(message.pack(topic, {"topic": "x"}, {}, NOW_MS))))
    assert (list(read), read["topic"]) == (["type", "topic", "data", "timestamp"], topic)


@pytest.mark.parametrize(
    ("topic", "written"),
    [('a"b', rb'"a\"b"'), ("a\\b", rb'"a\\b"'), ('\\",\\', rb'"\\\",\\"'), ("a:b", b'"a:b"')],
)
def test_a_topic_is_escaped_as_json_does(topic: str, written: bytes) -> None:
    text = encoder.data(events.Delivered(message.pack(topic, 1, {}, NOW_MS)))
    assert text.startswith(b'{"type":"DATA","topic":' + written + b',"data":1')
