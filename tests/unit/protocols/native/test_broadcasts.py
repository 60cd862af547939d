"""gateway.protocols.native: the texts of messages to clients."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import frames, message
from gateway.core.events import Broadcast, Delivered, History, PresenceChanged
from gateway.core.position import Position
from gateway.protocols.native import encoder
from gateway.protocols.native.protocol import NATIVE

NOW_MS = 1_769_860_800_000  # 2026-01-31T12:00:00.000Z
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8,
)  # fmt: skip


def delivered(data: object, extras: dict[str, object], position: Position | None = None, **more: bool) -> Delivered:
    return Delivered(message.pack("c", data, extras, NOW_MS), position, **more)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            delivered({"b": 1, "a": [None, "é"]}, {}),
            b'{"type":"DATA","topic":"c","data":{"b":1,"a":[null,"\xc3\xa9"]},"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            delivered(1, {"action": "a", "subtype": "s", "priority": "high"}),
            b'{"type":"DATA","topic":"c","action":"a","subtype":"s","priority":"high","data":1,'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
        (
            delivered(1, {}, Position("e1", 7, 70)),
            b'{"type":"DATA","topic":"c","data":1,"timestamp":"2026-01-31T12:00:00.000Z",'
            b'"offset":7,"epoch":"e1","mark":70}',
        ),
        (
            delivered(1, {}, Position("e1", 7)),
            b'{"type":"DATA","topic":"c","data":1,"timestamp":"2026-01-31T12:00:00.000Z","offset":7,"epoch":"e1"}',
        ),
        (
            delivered(1, {}, initial=True),
            b'{"type":"DATA","topic":"c","data":1,"timestamp":"2026-01-31T12:00:00.000Z","initialData":true}',
        ),
        (
            delivered(1, {}, Position("e1", 7, 70), initial=True),
            b'{"type":"DATA","topic":"c","data":1,"timestamp":"2026-01-31T12:00:00.000Z",'
            b'"offset":7,"epoch":"e1","mark":70,"initialData":true}',
        ),
        (
            PresenceChanged("c", {"joined": [{"clientId": "n.1.1", "user": "ann"}], "left": []}, NOW_MS),
            b'{"type":"PRESENCE","topic":"c","joined":[{"clientId":"n.1.1","user":"ann"}],"left":[],'
            b'"timestamp":"2026-01-31T12:00:00.000Z"}',
        ),
    ],
)
def test_an_event_has_exactly_this_text(event: Broadcast, text: bytes) -> None:
    assert encoder.broadcast_text(event) == text
    assert NATIVE.encode_broadcast(event) == frames.build(frames.TEXT, text)


@given(values, st.dictionaries(st.sampled_from(["action", "subtype", "priority"]), st.text(min_size=1)))
def test_any_data_and_extras_arrive_as_they_are(data: object, extras: dict[str, object]) -> None:
    event = delivered(data, extras, Position("e1", 7, 70))
    assert orjson.loads(encoder.broadcast_text(event)) == {
        "type": "DATA", "topic": "c", **extras, "data": data, "timestamp": "2026-01-31T12:00:00.000Z",
        "offset": 7, "epoch": "e1", "mark": 70,
    }  # fmt: skip


def test_a_page_of_history_has_its_messages_and_its_position() -> None:
    events = [delivered(n, {}, Position("e1", n, n * 10)) for n in (1, 2)]
    page = orjson.loads(orjson.dumps(encoder.history(History("e1", 5, 50, events))))
    assert page == {
        "epoch": "e1",
        "offset": 5,
        "mark": 50,
        "messages": [orjson.loads(encoder.broadcast_text(e)) for e in events],
    }


def test_an_event_that_the_protocol_does_not_know_is_an_error() -> None:
    with pytest.raises(TypeError, match="no form for Broadcast"):
        NATIVE.encode_broadcast(Broadcast())
