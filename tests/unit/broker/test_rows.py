"""The decoder of values read from Redis: any value is decoded or skipped, counted, and logged once for each kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.broker import rows
from gateway.broker.rows import REPEAT_SECONDS, RowDecoder
from gateway.metrics import Metrics


class Clock:
    """Seconds, moved by the test."""

    now = 0.0


def make(clock: Clock) -> tuple[RowDecoder, Callable[[str], float]]:
    """A decoder, and its count of skipped values by kind."""
    metrics = Metrics()

    def count(kind: str) -> float:
        return metrics.registry.get_sample_value("gateway_malformed_total", {"kind": kind}) or 0

    return RowDecoder(metrics, lambda: clock.now), count


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=30) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
DECODERS: list[Callable[[Any], Any]] = [
    rows.text, rows.integer, rows.seconds, rows.node_id, rows.client_id, rows.pairs,
    lambda value: rows.json_object(value, 100),
]  # fmt: skip


@given(anything)
def test_any_value_is_decoded_or_refused_with_a_value_error(value: Any) -> None:
    for decode in DECODERS:
        with suppress(ValueError):
            decode(value)


@pytest.mark.parametrize(
    ("decode", "value", "expected"),
    [
        (rows.text, "grün".encode(), "grün"),
        (rows.integer, b"17", 17),
        (rows.integer, 17, 17),
        (rows.seconds, b"1.5", 1.5),
        (rows.node_id, b"n1.9f2c31ab", "n1.9f2c31ab"),
        (rows.client_id, b"n1.9f2c31ab.12", "n1.9f2c31ab.12"),
        (rows.pairs, [b"a", b"1"], [(b"a", b"1")]),
    ],
)
def test_valid_values_are_decoded(decode: Callable[[Any], Any], value: Any, expected: Any) -> None:
    assert decode(value) == expected


@pytest.mark.parametrize(
    ("decode", "value"),
    [
        (rows.text, b"\xff"),
        (rows.text, b""),
        (rows.text, b"x" * 10_000_000),
        (rows.integer, b"9" * 5000),
        (rows.integer, b"1.5"),
        (rows.integer, -1),
        (rows.seconds, b"nan"),
        (rows.seconds, math.inf),
        (rows.node_id, b"\xff\xfe.9f2c31ab"),
        (rows.node_id, b"n1"),
        (rows.node_id, b"n1.9f2c31ab\n"),
        (rows.client_id, b"n1.9f2c31ab"),
        (rows.pairs, [b"a"]),
        (rows.pairs, b"ab"),
        (lambda value: rows.json_object(value, 10), b"[]"),
        (lambda value: rows.json_object(value, 10), b'{"a":"' + b"x" * 100 + b'"}'),
    ],
)
def test_values_that_are_not_valid_are_refused(decode: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(value)


def test_skipped_values_are_counted_and_logged_once_for_each_kind() -> None:
    clock = Clock()
    decoder, count = make(clock)
    with capture_logs() as logged:
        for _ in range(3):
            assert list(decoder.decode_each("topic", "k", [b"7", b"x", b"8"], rows.integer)) == [7, 8]
        assert decoder.decode("client", b"\xff", lambda: rows.text(b"\xff")) is None
        assert decoder.decode("client", "k", lambda: {"a": 1}["missing"]) is None
    assert (count("topic"), count("client"), count("node")) == (3, 2, 0)
    assert [(line["kind"], line["log_level"]) for line in logged] == [("topic", "warning"), ("client", "warning")]
    with capture_logs() as logged:
        clock.now = REPEAT_SECONDS - 1
        decoder.skip("topic", "k", "bad")
        clock.now = REPEAT_SECONDS
        decoder.skip("topic", "k", "bad", 4)
    assert len(logged) == 1
    assert count("topic") == 8


def test_faults_that_no_input_causes_are_raised() -> None:
    decoder, count = make(Clock())

    def fault() -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError):
        decoder.decode("topic", "k", fault)
    assert count("topic") == 0


def test_a_log_line_shows_the_start_of_a_value_only() -> None:
    assert len(rows.shown(b"\x00" * 1_000_000)) < 600
    assert rows.shown(["a"]) == "list"
