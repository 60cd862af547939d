"""gateway.protocols.native.codes: the codes of errors and closes, and the ERROR messages with them."""

from __future__ import annotations

import orjson
import pytest

from gateway.core.errors import CloseReason, ErrorReason, ProtocolError
from gateway.core.events import Failed
from gateway.protocols.native import encoder
from gateway.protocols.native.codes import CLOSE_CODES, ERROR_CODES, CloseCode, ErrorCode

NOW_MS = 1_769_860_800_000  # 2026-01-31T12:00:00.000Z


def text(error: ProtocolError) -> bytes:
    """The ERROR message."""
    return encoder.text(Failed(error), NOW_MS)


@pytest.mark.parametrize("reason", list(ErrorReason))
@pytest.mark.parametrize("request_id", ["r-1", "", 0, 7])
def test_an_error_carries_request_id_only_for_three_codes(reason: ErrorReason, request_id: str | int) -> None:
    # The front end resends a failed SUBSCRIBE without end upon any other.
    error = orjson.loads(text(ProtocolError(reason, "No", request_id)))
    if ERROR_CODES[reason] in (4004, 4010, 4012):
        assert error["requestId"] == request_id and "inReplyTo" not in error
    else:
        assert error["inReplyTo"] == request_id and "requestId" not in error


@pytest.mark.parametrize("reason", list(ErrorReason))
def test_an_error_to_a_message_without_request_id_carries_none(reason: ErrorReason) -> None:
    error = orjson.loads(text(ProtocolError(reason, "No")))
    assert not {"requestId", "inReplyTo", "reason"} & error.keys()


@pytest.mark.parametrize("reason", list(ErrorReason))
def test_only_what_may_go_well_next_time_is_temporary(reason: ErrorReason) -> None:
    error = orjson.loads(text(ProtocolError(reason, "No")))
    assert error.get("temporary") is (True if ERROR_CODES[reason] in (4029, 5000, 5030) else None)


def test_an_error_looks_so() -> None:
    assert text(ProtocolError(ErrorReason.AUTHENTICATION_NEEDED, "No", "r")) == (
        b'{"type":"ERROR","code":4010,"error":"No","message":"No","timestamp":"2026-01-31T12:00:00.000Z","requestId":"r"}'
    )
    assert text(ProtocolError(ErrorReason.TOKEN, "No", detail="token_expired")) == (
        b'{"type":"ERROR","code":4401,"error":"No","message":"No","timestamp":"2026-01-31T12:00:00.000Z",'
        b'"reason":"token_expired"}'
    )
    assert text(ProtocolError(ErrorReason.UNAVAILABLE, "No", 5)) == (
        b'{"type":"ERROR","code":5030,"error":"No","message":"No","timestamp":"2026-01-31T12:00:00.000Z",'
        b'"temporary":true,"inReplyTo":5}'
    )


def test_the_codes_are_those_that_clients_know() -> None:
    assert sorted(map(int, ErrorCode)) == [
        4000, 4001, 4002, 4003, 4004, 4005, 4006, 4007, 4009, 4010, 4011, 4012, 4013, 4014, 4015, 4016, 4029,
        4401, 4403, 5000, 5001, 5030,
    ]  # fmt: skip
    assert sorted(map(int, CloseCode)) == [
        1007, 1012, 3001, 3004, 3005, 3008, 3011, 3012, 3013, 3500, 3501, 3503, 3504, 3505,
    ]  # fmt: skip


def test_each_reason_has_a_code_of_its_own() -> None:
    foreign = {
        ErrorReason.ALREADY_SUBSCRIBED, ErrorReason.TOO_MANY_TOPICS, ErrorReason.UNRECOVERABLE,
        ErrorReason.UNKNOWN_NAMESPACE,
    }  # fmt: skip
    own = [code for reason, code in ERROR_CODES.items() if reason not in foreign]
    assert sorted(own) == sorted(ErrorCode) and set(ERROR_CODES) == set(ErrorReason)
    assert sorted(CLOSE_CODES.values()) == sorted(CloseCode)
    assert set(CLOSE_CODES) == set(CloseReason) - {CloseReason.NO_CONNECT}
