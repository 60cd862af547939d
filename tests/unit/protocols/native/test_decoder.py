"""Every sequence of bytes from a client is a command or a ProtocolError."""

from __future__ import annotations

import json
from typing import Any, get_args

import orjson
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway.core import events, json_numbers, json_text, message, topic_rules
from gateway.core.commands import (
    Auth,
    BackendCommand,
    Command,
    Connect,
    Logs,
    Ping,
    Publish,
    RenewGrant,
    Request,
    Subscribe,
    Unsubscribe,
)
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.events import Delivered
from gateway.core.json_numbers import NumberError
from gateway.core.position import Position
from gateway.core.publication import Publication
from gateway.core.subscription_options import SubscriptionOptions
from gateway.core.tag_filter import TagFilter
from gateway.protocols.native import decoder, encoder
from tests.unit.core.test_json_text import nested

BUYS = TagFilter({"key": "side", "cmp": "eq", "val": "buy"})
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
topic_names = st.from_regex(r"[!-)+-z|~]{1,12}", fullmatch=True)
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
        "tags": st.one_of(st.dictionaries(st.text(max_size=3), names, max_size=3), values),
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
        decoder.decode(to_text(text) if isinstance(text, dict) else text)
    return refused.value


def judge(text: bytes) -> Command | ProtocolError:
    """A message or a ProtocolError; anything else escapes and fails the test."""
    try:
        return decoder.decode(text)
    except ProtocolError as error:
        return error


# ---- any text at all


def _is_sound(found: Command | ProtocolError) -> None:
    """What a node does with each never fails either."""
    match found:
        case ProtocolError():
            assert json.loads(encoder.text(events.Failed(found), 0))["error"] == found.message
        case Ping(timestamp):
            assert orjson.loads(encoder.text(events.Pong(timestamp), 0)) == {"type": "pong", "timestamp": timestamp}
        case Publish(publication, request_id):
            assert topic_rules.is_topic(publication.topic)
            assert publication.to is None and publication.except_client is None
            body = message.pack(publication.topic, publication.data, publication.extras, 0)
            assert orjson.loads(encoder.data(Delivered(body)))["data"] == publication.data
            encoder.text(events.Published(publication.topic, None, request_id), 0)
        case Subscribe(found_topics, request_id, _):
            assert found_topics and len(set(found_topics)) == len(found_topics)
            assert all(map(topic_rules.is_topic, found_topics))
            encoder.text(events.Subscribed(found_topics, request_id), 0)
        case Unsubscribe(found_topics, request_id):
            assert len(set(found_topics)) == len(found_topics)
            assert all(map(topic_rules.is_topic, found_topics))
            encoder.text(events.Unsubscribed(found_topics, request_id), 0)
        case Request(topic, action, _, _):
            assert 0 < len(topic) <= 200 and 0 < len(action) <= 200
            encoder.text(events.Answer(found, {}), 0)
            encoder.text(events.RequestPong(found), 0)
        case Logs(entries):
            assert all(orjson.dumps(entry) for entry in entries)
        case _:
            assert isinstance(found, Auth | BackendCommand)


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
    assert refusal(text[:-1]).reason is ErrorReason.NOT_JSON


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [200, 252, 253, 254, 255, 300, 1000, 1023, 5000, 100_000])
def test_no_nesting_is_deep_enough_to_break_anything(kind: str, depth: int) -> None:
    shape = {"type": kind, "topic": "contest", "topics": ["contest"], "action": "ping", "data": 1, "logs": [{}]}
    for key in ("topic", "topics", "action", "data", "requestId", "authToken", "logs", "timestamp", "x"):
        for form in ("[]", "{}"):
            found = judge(to_text({**shape, key: "DEEP"}).replace(b'"DEEP"', nested(depth, form)))
            _is_sound(found)
            if depth >= json_text.MAX_NESTING:  # the message around it is a level too
                assert isinstance(found, ProtocolError) and found.reason is ErrorReason.NOT_JSON


@pytest.mark.parametrize("form", ["[]", "{}"])
def test_a_type_that_is_deeply_nested_is_refused_like_any_other(form: str) -> None:
    assert refusal(b'{"type":' + nested(250, form) + b"}").reason is ErrorReason.UNKNOWN_TYPE
    assert refusal(b'{"type":' + nested(1000, form) + b"}").reason is ErrorReason.NOT_JSON


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
        (
            {"type": "SUBSCRIBE", "topics": ["a"], "filter": {"key": "side", "cmp": "eq", "val": "buy"}},
            Subscribe(("a",), None, options=SubscriptionOptions(BUYS)),
        ),
        ({"type": "SUBSCRIBE", "topics": ["a"], "filter": None}, Subscribe(("a",), None)),
        (
            {"type": "SUBSCRIBE", "topics": ["a"], "delta": "fossil"},
            Subscribe(("a",), None, options=SubscriptionOptions(delta=True)),
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
            BackendCommand("chat", "SEND", {"m": 1}, "1"),
        ),
        ({"type": "COMMAND"}, BackendCommand(None, None, None, None)),
        ({"type": "COMMAND", "topic": 5, "action": ""}, BackendCommand(None, None, None, None)),
        ({"type": "LOGS", "logs": [{"level": "error"}, {}]}, Logs(({"level": "error"}, {}))),
        ({"type": "LOGS", "logs": []}, Logs(())),
        ({"type": "ping", "timestamp": 1795502108477}, Ping(1795502108477)),
        ({"type": "ping"}, Ping(None)),
    ],
)  # fmt: skip
def test_a_message_is_read(text: dict[str, Any], message: Command) -> None:
    assert decoder.decode(to_text(text)) == message


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", ErrorReason.NOT_JSON),
        (b"hello", ErrorReason.NOT_JSON),
        (b'{"type":"ping"', ErrorReason.NOT_JSON),
        (b'{"type":"ping","timestamp":NaN}', ErrorReason.NOT_JSON),
        (b'{"type":"AUTH","authToken":"\\ud800"}', ErrorReason.NOT_JSON),
        (b"null", ErrorReason.NO_TYPE),
        (b'"ping"', ErrorReason.NO_TYPE),
        (b'[{"type":"ping"}]', ErrorReason.NO_TYPE),
        (b"{}", ErrorReason.NO_TYPE),
        (b'{"Type":"ping"}', ErrorReason.NO_TYPE),
        (b'{"type":null}', ErrorReason.UNKNOWN_TYPE),
        (b'{"type":"PING"}', ErrorReason.UNKNOWN_TYPE),
        (b'{"type":"subscribe","topics":["a"]}', ErrorReason.UNKNOWN_TYPE),
        (b'{"type":["ping"]}', ErrorReason.UNKNOWN_TYPE),
        (b'{"type":{}}', ErrorReason.UNKNOWN_TYPE),
        (b'{"type":"SUBSCRIBE"}', ErrorReason.SUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"SUBSCRIBE","topics":[]}', ErrorReason.SUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"SUBSCRIBE","topics":"contest"}', ErrorReason.SUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"SUBSCRIBE","topics":{"contest":1}}', ErrorReason.SUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"SUBSCRIBE","topics":["no topic","contest\\n"]}', ErrorReason.NO_VALID_TOPIC),
        (b'{"type":"SUBSCRIBE","topics":["a"],"filter":{"cmp":"eq"}}', ErrorReason.DATA_REFUSED),
        (b'{"type":"SUBSCRIBE","topics":["a"],"filter":[]}', ErrorReason.DATA_REFUSED),
        (b'{"type":"SUBSCRIBE","topics":["a"],"delta":true}', ErrorReason.DATA_REFUSED),
        (
            b'{"type":"SUBSCRIBE","topics":["a"],"delta":"fossil","filter":{"key":"a","cmp":"ex"}}',
            ErrorReason.DATA_REFUSED,
        ),
        (b'{"type":"UNSUBSCRIBE"}', ErrorReason.UNSUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"UNSUBSCRIBE","topics":[]}', ErrorReason.UNSUBSCRIBE_WITHOUT_TOPICS),
        (b'{"type":"PUBLISH","data":1}', ErrorReason.MISSING_PARAMETER),
        (b'{"type":"PUBLISH","topic":"a"}', ErrorReason.MISSING_PARAMETER),
        (b'{"type":"PUBLISH","topic":"a b","data":1}', ErrorReason.NO_VALID_TOPIC),
        (b'{"type":"PUBLISH","topic":"a","data":1,"action":5}', ErrorReason.DATA_REFUSED),
        (b'{"type":"PUBLISH","topic":"a","data":1,"subtype":""}', ErrorReason.DATA_REFUSED),
        (b'{"type":"PUBLISH","topic":"a","data":1,"priority":[]}', ErrorReason.DATA_REFUSED),
        (b'{"type":"PUBLISH","topic":"a","data":1,"priority":true}', ErrorReason.DATA_REFUSED),
        (b'{"type":"REQUEST","topic":"system"}', ErrorReason.MISSING_PARAMETER),
        (b'{"type":"REQUEST","action":"ping"}', ErrorReason.MISSING_PARAMETER),
        (b'{"type":"REQUEST","topic":"system","action":5}', ErrorReason.MISSING_PARAMETER),
        (b'{"type":"REQUEST","topic":5,"action":"history"}', ErrorReason.MISSING_PARAMETER),
        (b'{"type":"REQUEST","topic":"","action":"history"}', ErrorReason.MISSING_PARAMETER),
        *(
            (to_text({"type": "REQUEST", "topic": topic, "action": action}), ErrorReason.UNKNOWN_TOPIC)
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
                "..\\ x",
                "a%2F{b",
            )
            for action in ("history", "presence", "show", "getStatus")
        ),
        (b'{"type":"LOGS"}', ErrorReason.BAD_LOGS),
        (b'{"type":"LOGS","logs":{}}', ErrorReason.BAD_LOGS),
        (b'{"type":"LOGS","logs":["line"]}', ErrorReason.BAD_LOGS),
        (b'{"type":"ping","requestId":[]}', None),
        (b'{"type":"REQUEST","topic":"system","action":"ping","requestId":true}', ErrorReason.DATA_REFUSED),
        (b'{"type":"REQUEST","topic":"system","action":"ping","requestId":1.5}', ErrorReason.DATA_REFUSED),
        (b'{"type":"SUBSCRIBE","topics":["a"],"requestId":{}}', ErrorReason.DATA_REFUSED),
        (b'{"type":"UNSUBSCRIBE","topics":["a"],"requestId":[]}', ErrorReason.DATA_REFUSED),
        (b'{"type":"COMMAND","requestId":1e30}', ErrorReason.DATA_REFUSED),
        (b'{"type":"PUBLISH","topic":"a","data":1,"requestId":"' + b"x" * 201 + b'"}', ErrorReason.DATA_REFUSED),
    ],
)
def test_what_is_no_message_is_refused_with_its_code(text: bytes, code: ErrorReason | None) -> None:
    found = judge(text)
    assert (found.reason if isinstance(found, ProtocolError) else None) == code


def _has_exact_numbers(text: bytes) -> bool:
    try:
        json_numbers.check(text)
    except NumberError:
        return False
    return True


@settings(deadline=None)
@given(st.lists(names, max_size=8), request_ids)
def test_subscribe_keeps_what_are_topics_each_once_in_their_order(wanted: list[Any], request_id: Any) -> None:
    known = list(dict.fromkeys(name for name in wanted if topic_rules.is_topic(name)))
    text = to_text({"type": "SUBSCRIBE", "topics": wanted, "requestId": request_id})
    assume(known and _has_exact_numbers(text))
    assert decoder.decode(text) == Subscribe(tuple(known), request_id)


def test_a_refusal_shows_no_more_of_what_was_sent_than_helps() -> None:
    text = refusal({"type": "x" * 100_000})
    assert len(text.message) < 120


def test_every_message_that_a_client_may_send_is_tried_here() -> None:
    foreign = {Connect, RenewGrant}  # commands of other protocols
    assert len(set(get_args(Command)) - foreign) == len(KINDS)


@pytest.mark.parametrize("topic", ["contests:\n", "a b", "a\0", "{a}", "é", "x" * 201, "", 5, None, ["a"]])
def test_a_command_on_what_is_no_topic_is_one_without_a_topic(topic: Any) -> None:
    assert decoder.decode(to_text({"type": "COMMAND", "topic": topic, "action": "a"})) == BackendCommand(
        None, "a", None, None
    )


@pytest.mark.parametrize("named", [{"b": {"epoch": "e", "offset": 1}}, {"a\n": 1}, {str(at): at for at in range(99)}])
def test_places_of_topics_that_are_not_subscribed_to_are_not_read(named: dict[str, Any]) -> None:
    message = decoder.decode(to_text({"type": "SUBSCRIBE", "topics": ["a"], "recover": named}))
    assert isinstance(message, Subscribe)
    assert not message.recover
