"""gateway.protocols.centrifugo.codes: every reason has a code that Centrifugo's clients know."""

from __future__ import annotations

import pytest

from gateway.core.errors import CloseReason, ErrorReason, ProtocolError, UnsubscribeReason
from gateway.protocols.centrifugo.codes import CLOSE_CODES, ERROR_CODES, UNSUBSCRIBE_CODES, ErrorCode, error_code


def test_each_reason_has_a_code() -> None:
    assert set(ERROR_CODES) == set(ErrorReason)
    assert set(CLOSE_CODES) == set(CloseReason)
    assert set(UNSUBSCRIBE_CODES) == set(UnsubscribeReason)


@pytest.mark.parametrize("reason", [ErrorReason.TOKEN, ErrorReason.BAD_TOKEN_IN_SUBSCRIBE])
def test_an_expired_token_has_a_code_of_its_own(reason: ErrorReason) -> None:
    assert error_code(ProtocolError(reason, "expired", 1, "token_expired")) is ErrorCode.TOKEN_EXPIRED
    assert error_code(ProtocolError(reason, "wrong", 1, "token_invalid")) is ErrorCode.PERMISSION_DENIED
