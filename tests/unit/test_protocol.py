"""Codes, errors, JSON and times, as all who speak on the wire have them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import protocol
from gateway.core.protocol import Close, Code, ProtocolError

NOW = "2026-01-31T12:00:00.000Z"


def nested(depth: int, form: str = "[]") -> bytes:
    """A JSON value of so many levels."""
    left, right = {"[]": (b"[", b"]"), "{}": (b'{"a":', b"}")}[form]
    return left * depth + (b"" if form == "[]" else b"1") + right * depth


# ---- JSON


@settings(deadline=None)
@given(st.integers(0, 300), st.sampled_from(["[]", "{}"]), st.text("[{", max_size=300))
def test_what_loads_gives_can_be_written_again(depth: int, form: str, harmless: str) -> None:
    text = b'[%s,"%s"]' % (nested(depth, form) if depth else b"1", harmless.encode())
    if depth < protocol.MAX_NESTING:
        assert orjson.dumps(protocol.loads(text)) == text
    else:
        with pytest.raises(ValueError, match="nested deeper than 254"):
            protocol.loads(text)


@pytest.mark.parametrize("form", ["[]", "{}"])
def test_the_deepest_that_loads_gives_has_max_nesting_levels(form: str) -> None:
    assert orjson.dumps(protocol.loads(nested(protocol.MAX_NESTING, form))) == nested(protocol.MAX_NESTING, form)
    with pytest.raises(ValueError, match="nested deeper"):
        protocol.loads(nested(protocol.MAX_NESTING + 1, form))


# ---- errors


@pytest.mark.parametrize("code", list(Code))
@pytest.mark.parametrize("request_id", ["r-1", "", 0, 7])
def test_an_error_carries_request_id_only_for_three_codes(code: Code, request_id: str | int) -> None:
    # The front end resends a failed SUBSCRIBE without end upon any other.
    error = json.loads(ProtocolError(code, "No", request_id).encode(NOW))
    if code in (4004, 4010, 4012):
        assert error["requestId"] == request_id and "inReplyTo" not in error
    else:
        assert error["inReplyTo"] == request_id and "requestId" not in error


@pytest.mark.parametrize("code", list(Code))
def test_an_error_to_a_message_without_request_id_carries_none(code: Code) -> None:
    error = json.loads(ProtocolError(code, "No").encode(NOW))
    assert not {"requestId", "inReplyTo", "reason"} & error.keys()


@pytest.mark.parametrize("code", list(Code))
def test_only_what_may_go_well_next_time_is_temporary(code: Code) -> None:
    error = json.loads(ProtocolError(code, "No").encode(NOW))
    assert error.get("temporary") is (True if code in (4029, 5000, 5030) else None)


def test_an_error_looks_so() -> None:
    assert ProtocolError(Code.AUTHENTICATION_NEEDED, "No", "r").encode(NOW) == (
        b'{"type":"ERROR","code":4010,"error":"No","message":"No","timestamp":"2026-01-31T12:00:00.000Z","requestId":"r"}'
    )
    assert ProtocolError(Code.TOKEN, "No", reason="token_expired").encode(NOW) == (
        b'{"type":"ERROR","code":4401,"error":"No","message":"No","timestamp":"2026-01-31T12:00:00.000Z",'
        b'"reason":"token_expired"}'
    )
    assert ProtocolError(Code.UNAVAILABLE, "No", 5).encode(NOW) == (
        b'{"type":"ERROR","code":5030,"error":"No","message":"No","timestamp":"2026-01-31T12:00:00.000Z",'
        b'"temporary":true,"inReplyTo":5}'
    )


def test_the_codes_are_those_that_clients_know() -> None:
    assert sorted(map(int, Code)) == [
        4000, 4001, 4002, 4003, 4004, 4005, 4006, 4007, 4009, 4010, 4011, 4012, 4013, 4014, 4015, 4016, 4029,
        4401, 4403, 5000, 5001, 5030,
    ]  # fmt: skip
    assert sorted(map(int, Close)) == [
        1001, 1002, 1007, 1009, 1012, 3001, 3004, 3005, 3008, 3011, 3012, 3013, 3500, 3501, 3503, 3504, 3505,
    ]  # fmt: skip


# ---- times


@settings(deadline=None)
@given(st.integers(0, 253402300799999))
def test_iso_gives_the_millisecond_in_utc(milliseconds: int) -> None:
    text = protocol.iso(milliseconds)
    assert len(text) == 24 and text.endswith("Z")
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo is not None
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() == pytest.approx(milliseconds / 1000, abs=1e-4)


def test_iso_looks_so() -> None:
    assert protocol.iso(0) == "1970-01-01T00:00:00.000Z"
    assert protocol.iso(1795502108477) == "2026-11-24T06:35:08.477Z"
    assert protocol.iso(1795502108000) == "2026-11-24T06:35:08.000Z"
