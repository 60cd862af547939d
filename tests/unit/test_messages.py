"""What a client may send: any bytes at all are a message or a ProtocolError."""

from __future__ import annotations

import json
from typing import Any, get_args

import orjson
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway.core import events, message, messages, numbers, protocol, topics
from gateway.core.events import Delivered
from gateway.core.messages import (
    Auth,
    ClientMessage,
    Command,
    Logs,
    Ping,
    Publish,
    Request,
    Subscribe,
    Unsubscribe,
)
from gateway.core.numbers import NumberError
from gateway.core.position import Position
from gateway.core.protocol import Code, ProtocolError
from gateway.core.publication import Publication
from gateway.protocols.native import encoder
from tests.unit.test_protocol import NOW, nested

KINDS = ["AUTH", "SUBSCRIBE", "UNSUBSCRIBE", "PUBLISH", "REQUEST", "COMMAND", "LOGS", "ping"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=10),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=12,
)
topic_names = st.from_regex(r"[A-Za-z0-9_:.\-/]{1,12}", fullmatch=True)
request_ids = st.one_of(st.none(), st.text(max_size=12), st.integers(-(1 << 63), (1 << 64) - 1))
names = st.one_of(topic_names, st.sampled_from(["", "a b", "x" * 201, "contest\n", "system"]), values)
commands = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={
        "topic": names,
        "topics": st.one_of(st.lists(names, max_size=5), values),
        "action": names,
        "subtype": names,
        "priority": names,
        "data": values,
        "requestId": st.one_of(request_ids, values),
        "authToken": names,
        "logs": st.one_of(st.lists(st.dictionaries(st.text(max_size=3), values, max_size=2), max_size=3), values),
        "timestamp": values,
    },
)


def to_text(value: Any) -> bytes:
    return json.dumps(value).encode()


def refusal(text: bytes | dict[str, Any]) -> ProtocolError:
    """The error that this message is answered with."""
    with pytest.raises(ProtocolError) as refused:
        messages.decode(to_text(text) if isinstance(text, dict) else text)
    return refused.value


def judge(text: bytes) -> ClientMessage | ProtocolError:
    """A message or a ProtocolError; anything else escapes and fails the test."""
    try:
        return messages.decode(text)
    except ProtocolError as error:
        return error


# ---- any text at all


def _is_sound(found: ClientMessage | ProtocolError) -> None:
    """What a node does with each never fails either."""
    match found:
        case ProtocolError():
            assert json.loads(found.encode(NOW))["code"] == found.code
        case Ping(timestamp):
            assert orjson.loads(encoder.text(events.Pong(timestamp), 0)) == {"type": "pong", "timestamp": timestamp}
        case Publish(publication, request_id):
            assert topics.is_topic(publication.topic)
            assert publication.to is None and publication.except_client is None
            body = message.pack(publication.topic, publication.data, publication.extras, 0)
            assert orjson.loads(encoder.data(Delivered(body)))["data"] == publication.data
            encoder.text(events.Published(publication.topic, None, request_id), 0)
        case Subscribe(found_topics, request_id, _):
            assert found_topics and len(set(found_topics)) == len(found_topics)
            assert all(map(topics.is_topic, found_topics))
            encoder.text(events.Subscribed(found_topics, request_id), 0)
        case Unsubscribe(found_topics, request_id):
            assert len(set(found_topics)) == len(found_topics)
            assert all(map(topics.is_topic, found_topics))
            encoder.text(events.Unsubscribed(found_topics, request_id), 0)
        case Request(topic, action, _, _):
            assert 0 < len(topic) <= 200 and 0 < len(action) <= 200
            encoder.text(events.Answer(found, {}), 0)
            encoder.text(events.RequestPong(found), 0)
        case Logs(entries):
            assert all(orjson.dumps(entry) for entry in entries)
        case _:
            assert isinstance(found, Auth | Command)


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
@example(b"")
@example(b"\xff\xfe")
@example(b"\xef\xbb\xbf{}")
@example(b'{"type":"ping","timestamp":NaN}')
@example(b'{"type":"ping","timestamp":Infinity}')
@example(b'{"type":"ping","timestamp":1e999}')
@example(b'{"type":"ping","timestamp":"\\ud800"}')
@example(b'{"type":"ping","timestamp":"\xed\xa0\x80"}')
@example(b'{"type":"ping","timestamp":' + b"9" * 10_000 + b"}")
@example(b'{"type":"ping"}{"type":"ping"}')
def test_any_bytes_are_a_message_or_a_protocol_error(text: bytes) -> None:
    _is_sound(judge(text))


@settings(deadline=None, max_examples=200)
@given(values)
def test_any_json_value_is_a_message_or_a_protocol_error(value: Any) -> None:
    _is_sound(judge(to_text(value)))


@settings(deadline=None, max_examples=600)
@given(commands)
def test_a_command_of_any_shape_is_a_message_or_a_protocol_error(command: dict[str, Any]) -> None:
    _is_sound(judge(to_text(command)))


@settings(deadline=None, max_examples=200)
@given(commands, values)
def test_a_command_cut_short_is_not_json(command: dict[str, Any], value: Any) -> None:
    text = to_text({**command, "more": value})
    assert refusal(text[:-1]).code is Code.NOT_JSON


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [200, 252, 253, 254, 255, 300, 1000, 1023, 5000, 100_000])
def test_no_nesting_is_deep_enough_to_break_anything(kind: str, depth: int) -> None:
    shape = {"type": kind, "topic": "contest", "topics": ["contest"], "action": "ping", "data": 1, "logs": [{}]}
    for key in ("topic", "topics", "action", "data", "requestId", "authToken", "logs", "timestamp", "x"):
        for form in ("[]", "{}"):
            found = judge(to_text({**shape, key: "DEEP"}).replace(b'"DEEP"', nested(depth, form)))
            _is_sound(found)
            if depth >= protocol.MAX_NESTING:  # the message around it is a level too
                assert isinstance(found, ProtocolError) and found.code is Code.NOT_JSON


@pytest.mark.parametrize("form", ["[]", "{}"])
def test_a_type_that_is_deeply_nested_is_refused_like_any_other(form: str) -> None:
    assert refusal(b'{"type":' + nested(250, form) + b"}").code is Code.UNKNOWN_TYPE
    assert refusal(b'{"type":' + nested(1000, form) + b"}").code is Code.NOT_JSON


# ---- each message, as it is read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"type": "AUTH", "authToken": "t"}, Auth("t")),
        ({"type": "AUTH"}, Auth(None)),
        ({"type": "AUTH", "authToken": ""}, Auth(None)),
        ({"type": "AUTH", "authToken": 5}, Auth(None)),
        ({"type": "SUBSCRIBE", "topics": ["contest", "token:a:B"]}, Subscribe(("contest", "token:a:B"), None)),
        (
            {"type": "SUBSCRIBE", "topics": ["b", "a", "b"], "requestId": "7", "authToken": "t"},
            Subscribe(("b", "a"), "7", "t"),
        ),
        ({"type": "SUBSCRIBE", "topics": ["a", "no topic", 5, None, ["a"], {}]}, Subscribe(("a",), None)),
        (
            {"type": "SUBSCRIBE", "topics": ["a"], "requestId": 0, "recover": {"a": {}}},
            Subscribe(("a",), 0, None, {"a": Position("", 0)}),
        ),
        ({"type": "UNSUBSCRIBE", "topics": ["a", "no topic", "a"], "requestId": "r"}, Unsubscribe(("a",), "r")),
        ({"type": "UNSUBSCRIBE", "topics": ["no topic"]}, Unsubscribe((), None)),
        ({"type": "PUBLISH", "topic": "chat", "data": None, "requestId": 1}, Publish(Publication("chat", None), 1)),
        (
            {"type": "PUBLISH", "topic": "chat", "data": [1], "action": "a", "subtype": "s", "priority": 3, "x": 1},
            Publish(Publication("chat", [1], {"action": "a", "subtype": "s", "priority": 3}), None),
        ),
        (
            {"type": "PUBLISH", "topic": "c", "data": 1, "to": {"user": "ann"}, "except": "x"},
            Publish(Publication("c", 1), None),
        ),
        (
            {"type": "REQUEST", "topic": "system", "action": "ping", "requestId": 1, "a": 1, "b": 2, "data": {"b": 3}},
            Request("system", "ping", {"a": 1, "b": 3}, 1),
        ),
        ({"type": "REQUEST", "topic": "system", "action": "ping", "data": [1]}, Request("system", "ping", {}, None)),
        (
            {"type": "COMMAND", "topic": "chat", "action": "SEND", "data": {"m": 1}, "requestId": "1"},
            Command("chat", "SEND", {"m": 1}, "1"),
        ),
        ({"type": "COMMAND"}, Command(None, None, None, None)),
        ({"type": "COMMAND", "topic": 5, "action": ""}, Command(None, None, None, None)),
        ({"type": "LOGS", "logs": [{"level": "error"}, {}]}, Logs(({"level": "error"}, {}))),
        ({"type": "LOGS", "logs": []}, Logs(())),
        ({"type": "ping", "timestamp": 1795502108477}, Ping(1795502108477)),
        ({"type": "ping"}, Ping(None)),
    ],
)  # fmt: skip
def test_a_message_is_read(text: dict[str, Any], message: ClientMessage) -> None:
    assert messages.decode(to_text(text)) == message


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", Code.NOT_JSON),
        (b"hello", Code.NOT_JSON),
        (b'{"type":"ping"', Code.NOT_JSON),
        (b'{"type":"ping","timestamp":NaN}', Code.NOT_JSON),
        (b'{"type":"AUTH","authToken":"\\ud800"}', Code.NOT_JSON),
        (b"null", Code.NO_TYPE),
        (b'"ping"', Code.NO_TYPE),
        (b'[{"type":"ping"}]', Code.NO_TYPE),
        (b"{}", Code.NO_TYPE),
        (b'{"Type":"ping"}', Code.NO_TYPE),
        (b'{"type":null}', Code.UNKNOWN_TYPE),
        (b'{"type":"PING"}', Code.UNKNOWN_TYPE),
        (b'{"type":"subscribe","topics":["a"]}', Code.UNKNOWN_TYPE),
        (b'{"type":["ping"]}', Code.UNKNOWN_TYPE),
        (b'{"type":{}}', Code.UNKNOWN_TYPE),
        (b'{"type":"SUBSCRIBE"}', Code.SUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"SUBSCRIBE","topics":[]}', Code.SUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"SUBSCRIBE","topics":"contest"}', Code.SUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"SUBSCRIBE","topics":{"contest":1}}', Code.SUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"SUBSCRIBE","topics":["no topic","contest\\n"]}', Code.NO_VALID_TOPIC),
        (b'{"type":"UNSUBSCRIBE"}', Code.UNSUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"UNSUBSCRIBE","topics":[]}', Code.UNSUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"PUBLISH","data":1}', Code.MISSING_PARAMETER),
        (b'{"type":"PUBLISH","topic":"a"}', Code.MISSING_PARAMETER),
        (b'{"type":"PUBLISH","topic":"a b","data":1}', Code.NO_VALID_TOPIC),
        (b'{"type":"PUBLISH","topic":"a","data":1,"action":5}', Code.DATA_REFUSED),
        (b'{"type":"PUBLISH","topic":"a","data":1,"subtype":""}', Code.DATA_REFUSED),
        (b'{"type":"PUBLISH","topic":"a","data":1,"priority":[]}', Code.DATA_REFUSED),
        (b'{"type":"PUBLISH","topic":"a","data":1,"priority":true}', Code.DATA_REFUSED),
        (b'{"type":"REQUEST","topic":"system"}', Code.MISSING_PARAMETER),
        (b'{"type":"REQUEST","action":"ping"}', Code.MISSING_PARAMETER),
        (b'{"type":"REQUEST","topic":"system","action":5}', Code.MISSING_PARAMETER),
        (b'{"type":"REQUEST","topic":5,"action":"history"}', Code.MISSING_PARAMETER),
        (b'{"type":"REQUEST","topic":"","action":"history"}', Code.MISSING_PARAMETER),
        *(
            (to_text({"type": "REQUEST", "topic": topic, "action": action}), Code.UNKNOWN_TOPIC)
            for topic in (
                "contests:\n",
                "\n",
                "a b",
                "a\0",
                "{a}",
                "é",
                "a*",
                "x" * 201,
                "multi:" + ":" * 190 + "\n",
                "..\\x",
                "a%2Fb",
            )
            for action in ("history", "presence", "show", "getStatus")
        ),
        (b'{"type":"LOGS"}', Code.BAD_LOGS),
        (b'{"type":"LOGS","logs":{}}', Code.BAD_LOGS),
        (b'{"type":"LOGS","logs":["line"]}', Code.BAD_LOGS),
        (b'{"type":"ping","requestId":[]}', None),
        (b'{"type":"REQUEST","topic":"system","action":"ping","requestId":true}', Code.DATA_REFUSED),
        (b'{"type":"REQUEST","topic":"system","action":"ping","requestId":1.5}', Code.DATA_REFUSED),
        (b'{"type":"SUBSCRIBE","topics":["a"],"requestId":{}}', Code.DATA_REFUSED),
        (b'{"type":"UNSUBSCRIBE","topics":["a"],"requestId":[]}', Code.DATA_REFUSED),
        (b'{"type":"COMMAND","requestId":1e30}', Code.DATA_REFUSED),
        (b'{"type":"PUBLISH","topic":"a","data":1,"requestId":"' + b"x" * 201 + b'"}', Code.DATA_REFUSED),
    ],
)
def test_what_is_no_message_is_refused_with_its_code(text: bytes, code: Code | None) -> None:
    found = judge(text)
    assert (found.code if isinstance(found, ProtocolError) else None) == code


def _has_exact_numbers(text: bytes) -> bool:
    try:
        numbers.check(text)
    except NumberError:
        return False
    return True


@settings(deadline=None)
@given(st.lists(names, max_size=8), request_ids)
def test_subscribe_keeps_what_are_topics_each_once_in_their_order(wanted: list[Any], request_id: Any) -> None:
    known = list(dict.fromkeys(name for name in wanted if topics.is_topic(name)))
    text = to_text({"type": "SUBSCRIBE", "topics": wanted, "requestId": request_id})
    assume(known and _has_exact_numbers(text))
    assert messages.decode(text) == Subscribe(tuple(known), request_id)


def test_a_refusal_shows_no_more_of_what_was_sent_than_helps() -> None:
    text = refusal({"type": "x" * 100_000})
    assert len(text.message) < 120


def test_every_message_that_a_client_may_send_is_tried_here() -> None:
    assert len(get_args(ClientMessage)) == len(KINDS)


@pytest.mark.parametrize("topic", ["contests:\n", "a b", "a\0", "{a}", "é", "x" * 201, "", 5, None, ["a"]])
def test_a_command_on_what_is_no_topic_is_one_without_a_topic(topic: Any) -> None:
    assert messages.decode(to_text({"type": "COMMAND", "topic": topic, "action": "a"})) == Command(
        None, "a", None, None
    )


@pytest.mark.parametrize("named", [{"b": {"epoch": "e", "offset": 1}}, {"a\n": 1}, {str(at): at for at in range(99)}])
def test_places_of_topics_that_are_not_subscribed_to_are_not_read(named: dict[str, Any]) -> None:
    message = messages.decode(to_text({"type": "SUBSCRIBE", "topics": ["a"], "recover": named}))
    assert isinstance(message, Subscribe)
    assert not message.recover
