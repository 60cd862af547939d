"""The claim `info` of a login token."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.identity import MAX_INFO_BYTES, AuthError
from tests.unit.auth.test_token_verifier import authenticator, proved_by, token_of


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"name": "Ann", "n": 1}, b'{"name":"Ann","n":1}'), ("Ann", b'"Ann"'), (7, b"7"), (False, b"false"),
        ([], b"[]"),
        (None, None), ("x" * (MAX_INFO_BYTES - 2), b'"%s"' % (b"x" * (MAX_INFO_BYTES - 2))),
    ],
)  # fmt: skip
def test_info_is_any_json_of_a_bounded_size(info: Any, text: bytes | None) -> None:
    assert proved_by(sub="ann", info=info).info == text
    assert proved_by(sub="ann").info is None


@pytest.mark.parametrize("info", ["x" * (MAX_INFO_BYTES - 1), {"n": 2**70}, float("nan"), "\ud800"])
def test_info_that_is_too_long_or_no_json_is_refused_and_named(info: Any) -> None:
    with pytest.raises(AuthError, match="token's info") as refused:
        authenticator().verify(token_of({"sub": "ann", "info": info}))
    assert refused.value.reason == "token_invalid"


def test_info_changes_no_rights() -> None:
    assert proved_by(sub="ann", info=1).has_same_rights(proved_by(sub="ann", info=2))
