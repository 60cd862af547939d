"""gateway.protocols.native.event_ids: the id that a reconnecting EventSource sends is enough to recover."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import events, frames, message
from gateway.core.commands import Request
from gateway.core.errors import CloseReason
from gateway.core.events import Delivered, Event
from gateway.core.position import Position
from gateway.protocols.native import encoder
from gateway.protocols.native.event_ids import NATIVE_EVENTS, EventIds

TOPICS = st.text('abcXYZ019_:.-/%=,&"\\#?<>', min_size=1, max_size=200)
POSITIONS = st.builds(
    Position, st.text("0123456789abcdef", min_size=1, max_size=16), st.integers(0, 2**53),
    st.one_of(st.none(), st.integers(0, 2**53)),
)  # fmt: skip


def data(topic: str, value: Any, position: Position | None = None, *, initial: bool = False) -> bytes:
    """A message, as it is queued for a stream."""
    [payload] = frames.payloads(NATIVE_EVENTS.encode_broadcast(delivered(topic, value, position, initial=initial)))
    return payload


def delivered(topic: str, value: Any, position: Position | None = None, *, initial: bool = False) -> Delivered:
    return Delivered(message.pack(topic, value, {}, 0), position, initial=initial)


def queued(event: Event) -> bytes:
    """An event for one client, as it is queued for a stream."""
    [payload] = frames.payloads(NATIVE_EVENTS.encode(event, 0))
    return payload


def fields(event: bytes) -> dict[str, str]:
    """An event as a browser reads it."""
    assert event.endswith(b"\n\n")
    return dict(line.split(": ", 1) for line in event.decode().removesuffix("\n\n").split("\n"))


def test_a_message_without_a_place_is_an_event_without_an_id() -> None:
    text = encoder.data(delivered("plain", {"a": 1}))
    assert EventIds(["plain"]).event(data("plain", {"a": 1})) == b"data: " + text + b"\n\n"


def test_the_id_tells_the_places_of_all_topics() -> None:
    ids = EventIds(["a", "b"])
    assert fields(ids.event(data("a", 1, Position("e1", 7))))["id"] == "a=e1:7"
    assert fields(ids.event(data("b", 1, Position("e2", 1))))["id"] == "a=e1:7,b=e2:1"
    assert fields(ids.event(data("a", 1, Position("e1", 8))))["id"] == "a=e1:8,b=e2:1"


def test_the_id_tells_the_mark_of_the_message_and_an_id_without_one_is_understood() -> None:
    assert (
        fields(EventIds(["a"]).event(data("a", 1, Position("e1", 7, 1795502108477123))))["id"]
        == "a=e1:7:1795502108477123"
    )
    assert EventIds(["a", "b"], "a=e1:7:1795502108477123,b=e1:3").recover == {
        "a": Position("e1", 7, 1795502108477123), "b": Position("e1", 3),
    }  # fmt: skip


def test_an_acknowledgement_tells_the_first_places() -> None:
    ids = EventIds(["a", "plain"])
    ack = events.Subscribed(["a", "plain"], None, {"a": Position("e1", 41, 410)}, {"a": True})
    assert fields(ids.event(queued(ack))) == {"id": "a=e1:41:410", "data": encoder.text(ack, 0).decode()}


def test_a_farewell_has_the_reconnect_delay() -> None:
    farewell = events.ServerLeaving(CloseReason.SHUTDOWN, 321)
    event = EventIds([]).event(queued(farewell))
    assert fields(event) == {"retry": "321", "data": encoder.text(farewell, 0).decode()}


@pytest.mark.parametrize(
    "text",
    [
        data("a", {"topic": "b", "offset": 3, "epoch": "x"}),
        data("a", '","offset":3,"epoch":"x"}'),
        data("a", 1, Position("e1", 7), initial=True),
        data("a", 1, Position("e1", 7, 70), initial=True),
        queued(events.Answer(Request("a", "b", {}, None), {"offset": 3, "epoch": "x"})),
    ],
)
def test_what_only_looks_like_a_place_is_none(text: bytes) -> None:
    assert "id" not in fields(EventIds(["a"]).event(text))


@given(st.dictionaries(TOPICS, POSITIONS, min_size=1, max_size=20))
def test_an_event_id_can_be_decoded_again(positions: dict[str, Position]) -> None:
    ids = EventIds(list(positions))
    for topic, position in positions.items():
        event = ids.event(data(topic, "x", position))
    assert EventIds(list(positions), fields(event)["id"]).recover == positions


@given(st.text())
def test_any_other_id_is_no_place(said: str) -> None:
    recover = EventIds(["a"], said).recover
    assert set(recover) <= {"a"}
    orjson.dumps({topic: position._asdict() for topic, position in recover.items()})


def test_separators_in_a_topic_are_percent_encoded() -> None:
    ids = EventIds(["a=e:1,b", "a", "b", "%61"])
    assert fields(ids.event(data("a=e:1,b", 1, Position("x", 9))))["id"] == "a%3De:1%2Cb=x:9"
    assert fields(ids.event(data("%61", 1, Position("y", 2))))["id"] == "a%3De:1%2Cb=x:9,%2561=y:2"
    assert EventIds(["a=e:1,b", "a", "b", "%61"], "a%3De:1%2Cb=x:9,%2561=y:2").recover == {
        "a=e:1,b": Position("x", 9), "%61": Position("y", 2),
    }  # fmt: skip


def test_only_topics_that_are_asked_for_are_recovered() -> None:
    assert dict(EventIds(["a"], "a=e:1,b=e:2,a b=e:3").recover) == {"a": Position("e", 1)}


def test_an_id_that_is_too_long_is_none() -> None:
    assert not EventIds(["a"], "a=e:1," + "b=e:2," * 2000).recover
