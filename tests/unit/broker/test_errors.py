"""What an error of Redis means to a node: one table for all of them."""

from __future__ import annotations

import pytest
from redis._parsers.base import BaseParser

from gateway.broker.errors import (
    ERROR_CODES,
    CommandRefused,
    Impaired,
    Unavailable,
    WrongServer,
    WrongType,
    to_unavailable,
)

IN_REDIS_6 = "ERR Error running script (call to f_ab): @user_script:3: @user_script: 3: -"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("READONLY", WrongServer),
        ("MASTERDOWN", WrongServer),
        ("OOM", Impaired),
        ("MISCONF", Impaired),
        ("NOREPLICAS", Impaired),
        ("CLUSTERDOWN", Impaired),
        ("LOADING", CommandRefused),
        ("BUSY", CommandRefused),
        ("UNKILLABLE", CommandRefused),
        ("NOAUTH", CommandRefused),
        ("WRONGPASS", CommandRefused),
        ("NOPERM", CommandRefused),
    ],
)
@pytest.mark.parametrize("before", ["", IN_REDIS_6, "EXECABORT Transaction discarded because of: "])
@pytest.mark.parametrize("after", [" some words", " words. script: ab, on @user_script:1."])
def test_an_error_means_the_same_wherever_it_comes_from(
    code: str, kind: type[CommandRefused], before: str, after: str
) -> None:
    found = to_unavailable(BaseParser.parse_error(f"{before}{code}{after}"))  # type: ignore[no-untyped-call]
    assert type(found) is kind
    assert str(found) == f"{code}: {ERROR_CODES[code][1]}"


def test_every_code_of_the_table_is_tried() -> None:
    [parameters] = [
        mark.args[1] for mark in test_an_error_means_the_same_wherever_it_comes_from.pytestmark  # type: ignore[attr-defined]
        if mark.args[0] == ("code", "kind")
    ]  # fmt: skip
    assert {code for code, _ in parameters} == ERROR_CODES.keys()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("BUSYGROUP Consumer Group name already exists", CommandRefused),
        ("ERR unknown command 'READONLY', with args beginning with: ", CommandRefused),
        ("ERR value is not an integer: OOMPH", CommandRefused),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", WrongType),
        ("EXECABORT Transaction discarded because of previous errors.", CommandRefused),
    ],
)
def test_other_errors_concern_their_command_alone(text: str, kind: type[CommandRefused]) -> None:
    assert type(to_unavailable(BaseParser.parse_error(text))) is kind  # type: ignore[no-untyped-call]


def test_a_lost_connection_is_no_refusal() -> None:
    assert type(to_unavailable(ConnectionError("gone"))) is Unavailable
    assert type(to_unavailable(TimeoutError())) is Unavailable
