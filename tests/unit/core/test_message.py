"""gateway.core.message: the form of a message in Redis."""

from __future__ import annotations

from contextlib import suppress

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import message

NOW_MS = 1_769_860_800_000
BODY = b'2026-01-31T12:00:00.000Z chat {"action":"a b"}\n{"text":"one\\n two"}'


def test_a_body_is_a_header_line_and_the_data() -> None:
    assert message.pack("chat", {"text": "one\n two"}, {"action": "a b"}, NOW_MS) == BODY
    parts = b"2026-01-31T12:00:00.000Z", b"chat", b'{"action":"a b"}', b'{"text":"one\\n two"}'
    assert message.unpack(BODY) == parts
    assert message.pack("chat", None, {}, NOW_MS) == b"2026-01-31T12:00:00.000Z chat {}\nnull"


@given(
    st.recursive(st.none() | st.text() | st.integers(0, 9), st.lists),
    st.dictionaries(st.sampled_from(["action", "subtype", "priority"]), st.text(min_size=1)),
)
def test_any_message_is_read_back(data: object, extras: dict[str, str]) -> None:
    body = message.pack("a/b:c", data, extras, NOW_MS)
    assert message.check(body) is body
    _, topic, written, value = message.unpack(body)
    assert topic == b"a/b:c"
    assert (orjson.loads(value), orjson.loads(written)) == (data, extras)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\n", b"x", b"{", b"{}", b"[]", BODY.partition(b"\n")[0], BODY.partition(b"\n")[0] + b"\n", b"t chat\n1",
        b"t chat {\n1", b"t chat }\n1", b"t  {}\n1", b'{"type":"DATA"}', b'{"type":"DATA","topic":5,"data":1}',
        b'{"type":"PRESENCE","topic":"a","data":1,"timestamp":"t"}', b"t chat {}\n\xff", b"\xff chat {}\n1",
        b'{"type":"DATA","topic":"a b","data":1,"timestamp":"t"}',
    ],
)  # fmt: skip
def test_bytes_that_are_no_message_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  for any reason
        message.check(body)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_a_value_error(body: bytes) -> None:
    with suppress(ValueError):
        message.unpack(message.check(body))


def test_the_text_that_the_version_before_wrote_becomes_a_body() -> None:
    text = (
        b'{"type":"DATA","topic":"chat","action":"a","data":{"x":[1]},"timestamp":"2026-01-31T12:00:00.000Z",'
        b'"offset":4,"epoch":"e"}'
    )
    assert message.check(text) == b'2026-01-31T12:00:00.000Z chat {"action":"a"}\n{"x":[1]}'
