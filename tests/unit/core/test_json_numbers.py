"""Finds numbers that JSON clients would change, at any place of a text and in bounded time."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import json_numbers, json_text
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.json_numbers import InfiniteError, NumberError
from gateway.core.publication import Publication
from gateway.protocols.native import decoder

MIB = 1 << 20

# Strings that look like numbers, quotes and backslashes are what could mislead a search in the text.
texts = st.text(st.sampled_from('0123456789,:[]{}"\\ -.eE'), max_size=60) | st.just(" 123456789012345678901 ")
integers = (
    st.integers()
    | st.integers(-(10**25), 10**25)
    | st.sampled_from(
        [
            json_numbers.MOST,
            json_numbers.MOST + 1,
            json_numbers.LEAST,
            json_numbers.LEAST - 1,
            10**18,
            10**19,
            -(10**18),
            10**400,
        ]
    )
)
scalars = st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5), max_leaves=20
)


def holds_large_integer(value: Any) -> bool:
    """What `json_numbers.check` must find, by way of Python's own JSON."""
    match value:
        case bool():
            return False
        case int():
            return not json_numbers.LEAST <= value <= json_numbers.MOST
        case dict():
            return any(map(holds_large_integer, value.values()))
        case list():
            return any(map(holds_large_integer, value))
    return False


@given(values, st.sampled_from([None, 1]), st.booleans())
def test_an_integer_is_refused_if_and_only_if_it_has_more_than_64_bits(
    value: Any, indent: int | None, ascii_: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_).encode()
    if holds_large_integer(value):
        with pytest.raises(NumberError, match=r"send it as a string"):
            json_numbers.check(text)
    else:
        json_numbers.check(text)


@pytest.mark.parametrize(
    "text",
    [b"1e20", b"1E+300", b"0.12345678901234567890123", b"12345678901234567890123.5", b"1e-99999999999999999999",
     b'"123456789012345678901"', b'{"123456789012345678901":1}', b"-0", b"18446744073709551615"],
)  # fmt: skip
def test_fractions_exponents_and_strings_are_no_large_integers(text: bytes) -> None:
    json_text.loads(text)


@pytest.mark.parametrize("text", [b"1e400", b"-1e999999999", b"[1, 1" + b"0" * 400 + b"]"])
def test_a_number_beyond_all_floats_is_refused(text: bytes) -> None:
    with pytest.raises(InfiniteError, match="beyond the range"):
        json_text.loads(text)


def test_a_refusal_shows_the_beginning_of_a_long_number() -> None:
    with pytest.raises(NumberError, match=r"123456789012345678901234\.\.\. \(300 characters\)") as refused:
        json_text.loads(b"1234567890" * 30)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "part",
    [b"1,", b"1" * 18 + b",", b'"",', b'"1234567890123456789",', b'" 1234567890123456789 ",', b"0.1234567890123456789,",
     b'"\\\\",', b'"\\"",', b"-1e-1234567890123456789,"],
)  # fmt: skip
def test_no_mebibyte_of_json_takes_long(part: bytes) -> None:
    text = b"[" + part * (MIB // len(part)) + b"0.1234567890123456789]"
    orjson.loads(text)

    def seconds() -> float:
        started = time.process_time()
        json_numbers.check(text)
        return time.process_time() - started

    assert min(seconds() for _ in range(3)) < 0.3  # 2 to 15 ms on a quiet machine; backtracking takes seconds


@pytest.mark.parametrize("number", [b"9" * MIB, b"0." + b"9" * MIB, b"1e" + b"9" * MIB, b"1e-" + b"9" * MIB])
def test_a_number_of_a_mebibyte_takes_no_longer(number: bytes) -> None:
    def seconds() -> float:
        started = time.process_time()
        with suppress(NumberError):
            json_text.loads(number)
        return time.process_time() - started

    assert min(seconds() for _ in range(3)) < 0.06


# ---- what clients and programs send


def test_the_error_names_the_rejected_number_and_the_message() -> None:
    text = b'{"type":"PUBLISH","topic":"t","data":{"wei":100000000000000000001},"requestId":"r1"}'
    with pytest.raises(ProtocolError) as refused:
        decoder.decode(text)
    assert refused.value.reason is ErrorReason.DATA_REFUSED and refused.value.request_id == "r1"
    assert "100000000000000000001" in refused.value.message and "string" in refused.value.message


@pytest.mark.parametrize("request_id", [b"[1]", b"100000000000000000001", b"null"])
def test_a_refused_message_with_a_bad_request_id_is_answered_without_it(request_id: bytes) -> None:
    with pytest.raises(ProtocolError) as refused:
        decoder.decode(b'{"type":"ping","timestamp":1%s,"requestId":%s}' % (b"0" * 20, request_id))
    assert refused.value.reason is ErrorReason.DATA_REFUSED and refused.value.request_id is None


@pytest.mark.parametrize(
    "data",
    [1 << 64, -(1 << 63) - 1, float("nan"), float("inf"), [{"x": float("-inf")}], (None, float("nan")), "\ud800",
     {1: 2}, object()],
)  # fmt: skip
def test_a_value_that_json_cannot_represent_is_rejected(data: Any) -> None:
    with pytest.raises(ProtocolError, match="cannot be written as JSON") as refused:
        Publication.of_python({"topic": "t", "data": data})
    assert refused.value.reason is ErrorReason.DATA_REFUSED


def test_a_value_within_itself_is_refused() -> None:
    within: list[Any] = []
    within.append(within)
    with pytest.raises(ProtocolError, match="cannot be written as JSON"):
        Publication.of_python({"topic": "t", "data": within})


@given(values)
def test_what_a_program_may_publish_comes_out_unchanged(value: Any) -> None:
    if holds_large_integer(value):
        with pytest.raises(ValueError, match="64-bit"):
            json_text.dumps(value)
    else:
        assert json.loads(json_text.dumps(value)) == value
