"""Publications: every item is either a valid publication or a ProtocolError."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import json_text, message
from gateway.core.commands import Publish
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.events import Delivered
from gateway.core.json_numbers import NumberError
from gateway.core.publication import (
    MAX_BROADCAST_BYTES,
    Publication,
    PublicationTooLarge,
    of_broadcast,
    of_python_broadcast,
)
from gateway.protocols.native import encoder
from gateway.protocols.native.decoder import decode
from tests.unit.protocols.native.test_decoder import names, to_text, values


@pytest.mark.parametrize(
    ("item", "publication"),
    [
        ({"topic": "chat", "data": 1}, Publication("chat", 1)),
        ({"topic": "system", "data": None}, Publication("system", None)),
        (
            {"topic": "chat", "data": 1, "action": "a", "subtype": "s", "priority": 1.5},
            Publication("chat", 1, {"action": "a", "subtype": "s", "priority": 1.5}),
        ),
        (
            {"topic": "chat", "data": 1, "tags": {"room": "a b\n", "é": ""}},
            Publication("chat", 1, {"tags": {"room": "a b\n", "é": ""}}),
        ),
        ({"topic": "chat", "data": 1, "tags": {}}, Publication("chat", 1)),
        (
            {"topic": "chat", "data": 1, "tags": None, "action": None, "to": None, "except": None},
            Publication("chat", 1),
        ),
        ({"topic": "chat", "data": 1, "to": {"user": "ann\n é"}}, Publication("chat", 1, to=("user", "ann\n é"))),
        ({"topic": "chat", "data": 1, "to": {"role": "admin"}}, Publication("chat", 1, to=("role", "admin"))),
        ({"topic": "chat", "data": 1, "to": {"client": "w-1.b.1"}}, Publication("chat", 1, to=("client", "w-1.b.1"))),
        ({"topic": "chat", "data": 1, "except": "w-1.b.1"}, Publication("chat", 1, except_client="w-1.b.1")),
    ],
)
def test_a_publication_is_read(item: dict[str, Any], publication: Publication) -> None:
    assert Publication.of_item(item) == publication


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (None, "object"),
        ([], "object"),
        ("chat", "object"),
        ({}, "topic and data"),
        ({"topic": "chat"}, "topic and data"),
        ({"data": 1}, "topic and data"),
        ({"topic": "no topic", "data": 1}, "'no topic'"),
        ({"topic": ["chat"], "data": 1}, "topic must be"),
        ({"topic": "chat", "data": 1, "Except": "x"}, "unknown field 'Except'"),
        ({"topic": "chat", "data": 1, "z": 1, "requestId": 1}, "unknown field 'requestId'"),
        ({"topic": "chat", "data": 1, "action": ""}, "action must be"),
        ({"topic": "chat", "data": 1, "subtype": 5}, "subtype must be"),
        ({"topic": "chat", "data": 1, "priority": {}}, "priority must be"),
        ({"topic": "chat", "data": 1, "tags": []}, "tags must be"),
        ({"topic": "chat", "data": 1, "tags": ["a"]}, "tags must be"),
        ({"topic": "chat", "data": 1, "tags": {"price": 5}}, "the tag 'price' must be a string"),
        ({"topic": "chat", "data": 1, "to": "ann"}, "to must be"),
        ({"topic": "chat", "data": 1, "to": {}}, "to must be"),
        ({"topic": "chat", "data": 1, "to": {"user": "ann", "role": "admin"}}, "to must be"),
        ({"topic": "chat", "data": 1, "to": {"team": "red"}}, "to must be"),
        ({"topic": "chat", "data": 1, "to": {"user": ""}}, "to must be"),
        ({"topic": "chat", "data": 1, "to": {"user": "x" * 201}}, "to must be"),
        ({"topic": "chat", "data": 1, "to": {"user": 5}}, "to must be"),
        ({"topic": "chat", "data": 1, "to": {"client": "a b"}}, "to must be"),
        ({"topic": "chat", "data": 1, "to": {"client": "a\n"}}, "to must be"),
        ({"topic": "chat", "data": 1, "to": {"client": ["a"]}}, "to must be"),
        ({"topic": "chat", "data": 1, "except": "a\nb"}, "except must be"),
        ({"topic": "chat", "data": 1, "except": ""}, "except must be"),
        ({"topic": "chat", "data": 1, "except": 5}, "except must be"),
        ({"topic": "chat", "data": 1, "except": "a", "to": {"user": "ann"}}, "except must be"),
    ],
)
def test_an_item_of_the_wrong_form_is_refused_in_a_sentence(item: Any, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        Publication.of_item(item)


publish_items = st.fixed_dictionaries(
    {},
    optional={
        "topic": names,
        "data": values,
        "action": names,
        "subtype": names,
        "priority": names,
        "tags": st.one_of(values, st.dictionaries(st.text(max_size=3), names, max_size=3)),
        "to": st.one_of(values, st.dictionaries(st.sampled_from(["user", "role", "client", "x"]), names, max_size=2)),
        "except": names,
        "more": values,
    },
)


@settings(deadline=None, max_examples=400)
@given(st.one_of(values, publish_items))
def test_any_item_is_a_publication_that_can_be_sent_or_a_protocol_error(item: Any) -> None:
    try:
        item = json_text.loads(to_text(item))
    except NumberError:
        return
    with suppress(ProtocolError):
        publication = Publication.of_item(item)
        body = message.pack(publication.topic, publication.data, publication.extras, 0)
        sent = orjson.loads(encoder.data(Delivered(body)))
        assert (sent["topic"], sent["data"]) == (item["topic"], item["data"])
        assert sent.keys() <= {"type", "topic", "data", "timestamp", "action", "subtype", "priority", "tags"}
        assert sent.keys().isdisjoint({"to", "except"})


def publish(item: dict[str, Any]) -> Publish:
    """The client's PUBLISH of it."""
    command = decode(orjson.dumps({"type": "PUBLISH", "requestId": "r", **item}))
    assert isinstance(command, Publish)
    return command


def test_an_idempotency_key_goes_with_no_address_and_not_into_a_clients_publish() -> None:
    item = {"topic": "chat", "data": 1, "idempotencyKey": "k"}
    assert Publication.of_item(item).key == "k"
    for to in ({"user": "ann"}, {"role": "admin"}, {"client": "n.1.1"}):
        with pytest.raises(ProtocolError, match="no effect with to"):
            Publication.of_item({**item, "to": to})
    with pytest.raises(ProtocolError, match="PUBLISH takes no idempotencyKey") as refused:
        publish(item)
    assert (refused.value.reason, refused.value.request_id) == (ErrorReason.DATA_REFUSED, "r")
    assert publish({**item, "idempotencyKey": None}).publication.key is None


# ---- broadcasts


def test_a_broadcast_is_one_message_on_each_topic_with_the_data_written_once() -> None:
    item = {"topics": ["a", "b"], "data": {"x": 1}, "action": "A", "except": "n.b.1", "idempotencyKey": "k"}
    a, b = of_broadcast(item)
    assert (a.topic, b.topic) == ("a", "b")
    assert a.data is b.data
    one = Publication.of_item({**{name: item[name] for name in item if name != "topics"}, "topic": "a"})
    assert message.pack("a", a.data, a.extras, 0) == message.pack("a", one.data, one.extras, 0)
    assert (a.extras, a.except_client, a.key, a.to) == (one.extras, "n.b.1", "k", None)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (7, "a broadcast needs topics"),
        ({"data": 1}, "a broadcast needs topics"),
        ({"topics": [], "data": 1}, "a list of 1 to 1000 names"),
        ({"topics": "a", "data": 1}, "a broadcast needs topics"),
        ({"topics": {"a": 1}, "data": 1}, "a broadcast needs topics"),
        ({"topics": ["a"], "topic": "a", "data": 1}, "instead of topic"),
        ({"topics": [str(at) for at in range(1001)], "data": 1}, "send several broadcasts"),
        ({"topics": ["a", "b", "a"], "data": 1}, "topics names a twice"),
        ({"topics": ["a", "b c"], "data": 1}, "not 'b c'"),
        ({"topics": ["a", ["b"]], "data": 1}, "topic must be"),
        ({"topics": ["a", None], "data": 1}, "topic must be"),
        ({"topics": ["a"]}, "needs a topic and data"),
        ({"topics": ["a"], "data": 1, "tpoic": 1}, "unknown field 'tpoic'"),
    ],
)
def test_a_bad_broadcast_is_refused(item: Any, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        of_broadcast(item)


def test_the_data_of_a_broadcast_are_bounded_on_all_topics_together() -> None:
    topics = [str(at) for at in range(16)]
    most = MAX_BROADCAST_BYTES // 16
    assert len(of_broadcast({"topics": topics, "data": "x" * (most - 2)})) == 16
    with pytest.raises(PublicationTooLarge, match=f"{most + 1} bytes of data on 16 topics are {16 * most + 16} bytes"):
        of_broadcast({"topics": topics, "data": "x" * (most - 1)})


@pytest.mark.parametrize("data", [float("nan"), object(), 2**65, {1: 1}])
def test_a_broadcast_of_a_program_has_data_that_json_can_hold(data: Any) -> None:
    with pytest.raises(ProtocolError, match="cannot be written as JSON"):
        of_python_broadcast({"topics": ["a"], "data": data})
